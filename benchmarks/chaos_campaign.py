"""One campaign: starts the parties, breaks them by the schedule, heals them, and has the auditor look at the rest."""

import heapq
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from fedmq.aggregator.store import Store

from benchmarks.chaos_audit import (
    Accounts,
    Device,
    Recovery,
    audit_recovery,
    balance,
    count_pending,
    judge_recoveries,
    noted_marks,
    read_outbox,
)
from benchmarks.chaos_brokers import Broker, make_broker
from benchmarks.chaos_parties import Party, copy_database, make_agent, make_aggregator
from benchmarks.chaos_schedule import AGGREGATOR, DISK_KINDS, Fault, Kind, make_schedule
from benchmarks.chaos_trainer import read_diary

_DAY: Final = 86_400.0
_START_SECONDS: Final = 60.0
_DRAIN_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a campaign came to.

    Attributes:
        faults: how many of each kind.
        accounts: the balance.
        recoveries: how often the aggregator came to an end and its store was recovered.
        identical: of them, those that were bit-identical.
        problems: one sentence for each that was not.
        deaths: processes that ended by themselves, with their last words.
        drained: whether all outboxes were empty in time.
        drain_seconds: how long that took.
        impossible: kinds of fault that this machine does not allow.
    """

    faults: Counter[Kind]
    accounts: Accounts
    recoveries: int
    identical: int
    problems: tuple[str, ...]
    deaths: tuple[str, ...]
    drained: bool
    drain_seconds: float
    impossible: frozenset[Kind]

    @property
    def is_clean(self) -> bool:
        """Whether the promise was kept."""
        accounts = self.accounts
        return self.drained and not (
            accounts.lost
            or accounts.doubled
            or accounts.unknown
            or accounts.mass
            or accounts.bases_wrong
            or self.problems
        )


class Campaign:
    """One campaign's processes and the faults on them.

    Args:
        folder: an empty one.
        broker: one of `BROKERS`.
        seed: of the schedule and the trainers.
        sabotage: one of `chaos_sabotage`, or "none".
        agents: how many.
        only: the kinds of fault that may occur.
    """

    def __init__(
        self, folder: Path, *, broker: str, seed: int, sabotage: str, agents: int, only: frozenset[Kind]
    ) -> None:
        self._folder, self._seed, self._sabotage, self._kinds = folder, seed, sabotage, only
        self._impossible: frozenset[Kind] = frozenset()
        self._copies = folder / "copies"
        self._copies.mkdir()
        self._drain = folder / "drain"
        self._stack = ExitStack()
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()
        self._faults: Counter[Kind] = Counter()
        self._deaths: list[str] = []
        self._recoveries: list[Future[Recovery]] = []
        self._pool = self._stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        self._broker: Broker = make_broker(broker, folder)
        self._stack.callback(self._broker.close)
        self._parties: dict[str, Party] = {}
        self._devices = {f"agent-{number}": Device(agent=number) for number in range(agents)}

    def run(self, seconds: float, per_minute: float) -> Outcome:
        """Break things for so long, heal them, and audit."""
        try:
            self._set_up()
            self._wait_for_work(time.monotonic() + _START_SECONDS)
            self._break(seconds, per_minute)
            self._heal()
            healed = time.monotonic()
            drained = self._wait_for_empty_outboxes(healed + _DRAIN_SECONDS)
            drain_seconds = time.monotonic() - healed
            for party in self._parties.values():
                party.process.terminate()
            return self._audit(drained, drain_seconds)
        finally:
            self._stack.close()

    def _set_up(self) -> None:
        folder, port = self._folder, self._broker.port
        self._keep(make_aggregator(folder, port, self._sabotage))
        for name, device in self._devices.items():
            self._keep(make_agent(folder, port, name, device.agent, seed=self._seed, drain=self._drain))
        if not all(party.disk.is_small for party in self._parties.values()):
            self._impossible = DISK_KINDS
        self._broker.start()
        for party in self._parties.values():
            party.process.start()

    def _keep(self, party: Party) -> None:
        self._parties[party.name] = party
        self._stack.callback(party.close)

    def _wait_for_work(self, deadline: float) -> None:
        """Until every agent has trained once: from then on there is something to lose."""
        waiting = {self._folder / f"{name}.diary" for name in self._devices}
        while waiting:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no work after {_START_SECONDS:.0f} s: see {self._folder}")
            time.sleep(_LOOK_SECONDS)
            waiting = {path for path in waiting if not read_diary(path)}

    def _break(self, seconds: float, per_minute: float) -> None:
        schedule = make_schedule(
            self._seed,
            seconds=seconds,
            per_minute=per_minute,
            agents=list(self._devices),
            kinds=self._kinds - self._impossible,
        )
        start = time.monotonic()
        for fault in schedule:
            self._wait_until(start + fault.at)
            undo = self._begin(fault)
            self._faults[fault.kind] += 1
            if undo is not None:
                heapq.heappush(self._undo, (start + fault.at + fault.seconds, next(self._ties), undo))
        self._wait_until(start + seconds)

    def _wait_until(self, moment: float) -> None:
        """End the faults that are due before, and start again what ended by itself."""
        while True:
            due = min(moment, self._undo[0][0]) if self._undo else moment
            left = due - time.monotonic()
            if left > 0:
                self._look_after_processes()
                time.sleep(min(left, _LOOK_SECONDS))
            elif due < moment or (self._undo and due == self._undo[0][0]):
                heapq.heappop(self._undo)[2]()
            else:
                return

    def _look_after_processes(self) -> None:
        for party in self._parties.values():
            death = party.process.look_after()
            if death is not None:
                self._deaths.append(death)
                self._inspect(party)

    def _inspect(self, party: Party, *, wipe: bool = False) -> None:
        """Look at the disk of a party whose process is gone."""
        if party.name == AGGREGATOR:
            copy = copy_database(party.disk.folder / "aggregator.db", self._copies)
            self._recoveries.append(self._pool.submit(audit_recovery, copy))
            return
        device = self._devices[party.name]
        copy = copy_database(party.disk.folder / "outbox.db", self._copies)
        contents = read_outbox(copy, device.agent)
        shutil.rmtree(copy.parent)
        device.seen |= contents.pending.keys()
        if wipe:
            device.wiped.append(contents)
            party.disk.clear()

    def _begin(self, fault: Fault) -> Callable[[], None] | None:
        """Let a fault begin; returns how it ends."""
        match fault.kind:
            case Kind.KILL_BROKER | Kind.WIPE_BROKER | Kind.RESTART_BROKER | Kind.PAUSE_BROKER:
                return self._hurt_broker(fault.kind)
            case Kind.KILL_AGGREGATOR | Kind.KILL_AGENT | Kind.REIMAGE_AGENT:
                party = self._parties[fault.target]
                party.process.kill()
                self._inspect(party, wipe=fault.kind is Kind.REIMAGE_AGENT)
                return party.process.start
            case Kind.RESTART_AGGREGATOR | Kind.RESTART_AGENT:
                self._parties[fault.target].process.ask_to_stop()
                return lambda: self._start_again(self._parties[fault.target])
            case Kind.PAUSE_AGGREGATOR | Kind.PAUSE_AGENT:
                process = self._parties[fault.target].process
                process.pause()
                return process.resume
            case Kind.FULL_STORE | Kind.FULL_OUTBOX:
                disk = self._parties[fault.target].disk
                disk.fill()
                return disk.empty
            case Kind.STEP_CLOCK:
                self._parties[fault.target].step_clock((2 * fault.amount - 1) * _DAY)
                return None
            case _:
                return self._hurt_link(fault)

    def _hurt_broker(self, kind: Kind) -> Callable[[], None]:
        broker = self._broker
        if kind is Kind.PAUSE_BROKER:
            broker.pause()
            return broker.resume
        if kind is Kind.RESTART_BROKER:
            broker.terminate()
        else:
            broker.kill()
        if kind is Kind.WIPE_BROKER:
            broker.wipe()
        return broker.start

    def _hurt_link(self, fault: Fault) -> Callable[[], None] | None:
        link = self._parties[fault.target].link
        match fault.kind:
            case Kind.STALL_LINK:
                link.freeze()
                # what was stalled arrives late, or never
                return link.thaw if fault.amount < 0.5 else link.cut
            case Kind.THROTTLE_LINK:
                link.bytes_per_second = 500 + 20_000 * fault.amount
                return lambda: setattr(link, "bytes_per_second", None)
            case Kind.HALF_OPEN_BROKER:
                link.abandon("server")
                return link.bury
            case Kind.HALF_OPEN_PARTY:
                link.abandon("client")
                return link.bury
            case Kind.PARTITION:
                link.target = None
                link.cut()
                return lambda: setattr(link, "target", self._broker.port)
            case _:
                link.cut()
                return None

    def _start_again(self, party: Party) -> None:
        party.process.terminate()
        self._inspect(party)
        party.process.start()

    def _heal(self) -> None:
        """End all faults, and let no more be trained."""
        self._drain.touch()
        while self._undo:
            heapq.heappop(self._undo)[2]()

    def _wait_for_empty_outboxes(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            self._look_after_processes()
            outboxes = [self._parties[name].disk.folder / "outbox.db" for name in self._devices]
            if not any(count_pending(path) for path in outboxes):
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def _audit(self, drained: bool, drain_seconds: float) -> Outcome:
        for name, device in self._devices.items():
            device.results = read_diary(self._folder / f"{name}.diary")
            device.noted = noted_marks(self._folder / f"{name}.jsonl")
            copy = copy_database(self._parties[name].disk.folder / "outbox.db", self._copies)
            device.final = read_outbox(copy, device.agent)
        path = self._parties[AGGREGATOR].disk.folder / "aggregator.db"
        final = audit_recovery(copy_database(path, self._copies))
        recoveries = [future.result() for future in self._recoveries]
        store = Store(copy_database(path, self._copies))
        try:
            identical, digests, problems = judge_recoveries(recoveries, store, final)
            accounts = balance(store, list(self._devices.values()), digests)
        finally:
            store.close()
        return Outcome(
            faults=self._faults,
            accounts=accounts,
            recoveries=len(recoveries),
            identical=identical,
            problems=tuple(problems),
            deaths=tuple(self._deaths),
            drained=drained,
            drain_seconds=drain_seconds,
            impossible=self._impossible,
        )
