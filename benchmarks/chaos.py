"""A fault campaign: real processes under a seeded schedule of faults, and an auditor at the end.

    python -m benchmarks.chaos --minutes 10 --seed 1 --broker mosquitto

An aggregator, agents and a broker run as processes of their own; between broker and parties stand TCP proxies. For
the given time `chaos_schedule` says what breaks. Then everything is healed, training stops, the outboxes drain, the
processes are stopped, and `chaos_audit` balances what was finished against what was folded and refused. Status 1 when
an update was lost or doubled, mass is missing, or a recovery was not bit-identical.

`--sabotage` runs an aggregator that breaks a law (see `chaos_sabotage`): a campaign that could not fail would
prove nothing.
"""

import argparse
import heapq
import itertools
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.aggregator.store import Store

from benchmarks.chaos_audit import (
    BUFFER_SIZE,
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
from benchmarks.chaos_parties import (
    BROKERS,
    Broker,
    Disk,
    Party,
    Process,
    copy_database,
    make_broker,
    write_clock,
)
from benchmarks.chaos_schedule import AGGREGATOR, DISK_KINDS, Fault, Kind, make_schedule
from benchmarks.chaos_trainer import LAYOUT, read_diary
from benchmarks.harness import Options, Row, make_parser, print_table, read_options, write_result
from fedmq.app.toml import Value, write_toml
from fedmq.modelfile import save_model
from fedmq.testing.proxy import Proxy

AGENTS: Final = 8
#: Faults that begin in a minute.
PER_MINUTE: Final = 150.0
_FEDERATION: Final = "chaos"
_STORE_BYTES: Final = 96 << 20
#: SQLite's log alone takes 4 MB before it is emptied for the first time.
_OUTBOX_BYTES: Final = 12 << 20
_DAY: Final = 86_400.0
_DRAIN_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.05
_SABOTAGES: Final = ("none", "ack", "receipt", "ledger")


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
        without: kinds of fault that this machine does not allow.
    """

    faults: Counter[Kind]
    accounts: Accounts
    recoveries: int
    identical: int
    problems: tuple[str, ...]
    deaths: tuple[str, ...]
    drained: bool
    drain_seconds: float
    without: frozenset[Kind]

    @property
    def is_clean(self) -> bool:
        """Whether the promise was kept."""
        accounts = self.accounts
        return not (
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
    """

    def __init__(self, folder: Path, *, broker: str, seed: int, sabotage: str, agents: int) -> None:
        self._folder, self._seed = folder, seed
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
        save_model(folder / "initial.safetensors", LAYOUT, np.zeros(LAYOUT.size, np.float32))
        self._parties = {AGGREGATOR: self._make_aggregator(sabotage)}
        self._devices = {f"agent-{number}": Device(agent=number) for number in range(agents)}
        for name, device in self._devices.items():
            self._parties[name] = self._make_agent(name, device.agent)
        self.without = frozenset() if all(p.disk.is_small for p in self._parties.values()) else DISK_KINDS

    def run(self, seconds: float, per_minute: float) -> Outcome:
        """Break things for so long, heal them, and audit."""
        try:
            self._broker.start()
            for party in self._parties.values():
                party.process.start()
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

    def _party(self, name: str, command: list[str], disk: Disk, link: Proxy) -> Party:
        clock = self._folder / f"{name}.clock"
        write_clock(clock, 0.0)
        config = str(self._folder / f"{name}.toml")
        arguments = ["-m", "benchmarks.chaos_child", str(clock), *command, "--config", config]
        party = Party(Process(name, arguments, self._folder / f"{name}.log"), link, disk, clock)
        self._stack.callback(party.close)
        return party

    def _connection(self, link: Proxy) -> dict[str, Value]:
        return {"port": link.port, "keepalive": 5, "reconnect_min": 0.05, "reconnect_max": 1.0}

    def _make_aggregator(self, sabotage: str) -> Party:
        disk, link = Disk(self._folder / "store", _STORE_BYTES), Proxy(self._broker.port)
        write_toml(
            self._folder / f"{AGGREGATOR}.toml",
            {
                "federation": _FEDERATION,
                "model": self._folder / "initial.safetensors",
                "broker": self._connection(link),
                # many small snapshots, and every journal row kept for the auditor
                "store": {
                    "path": disk.folder / "aggregator.db",
                    "snapshot_records": 100,
                    "keep_snapshots": 4,
                    "keep_records": 100_000_000,
                },
                # chunks, and arithmetic without rounding; see chaos_trainer
                "publish": {
                    "keyframe_codec": "float32",
                    "delta_codec": "float32",
                    "chunk_bytes": 4096,
                    "min_interval": 0.05,
                },
                "fold": {"buffer_size": BUFFER_SIZE, "staleness": "constant", "max_staleness": 40},
                "admission": {"max_examples": 2**62},
                "task": {"codec": "float32", "resend_seconds": 1.5},
            },
        )
        return self._party(AGGREGATOR, [sabotage, "--log-level", "warning", AGGREGATOR], disk, link)

    def _make_agent(self, name: str, number: int) -> Party:
        disk, link = Disk(self._folder / name, _OUTBOX_BYTES), Proxy(self._broker.port)
        write_toml(
            self._folder / f"{name}.toml",
            {
                "federation": _FEDERATION,
                "client": name,
                "events": self._folder / f"{name}.jsonl",
                "broker": self._connection(link),
                "outbox": {"folder": disk.folder},
                "trainer": {
                    "factory": "benchmarks.chaos_trainer:counting_trainer",
                    "seed": self._seed,
                    "settings": {
                        "agent": number,
                        "diary": self._folder / f"{name}.diary",
                        "drain": self._drain,
                    },
                },
            },
        )
        return self._party(name, ["none", "--log-level", "warning", "agent"], disk, link)

    def _break(self, seconds: float, per_minute: float) -> None:
        schedule = make_schedule(
            self._seed,
            seconds=seconds,
            per_minute=per_minute,
            agents=list(self._devices),
            without=self.without,
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
            without=self.without,
        )


def main() -> None:
    """Run, print, write."""
    parser = make_parser("chaos", "real processes under a seeded schedule of faults, and an auditor")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long things are broken")
    parser.add_argument("--broker", choices=BROKERS, default="mosquitto")
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--per-minute", type=float, default=PER_MINUTE, help="faults that begin in a minute")
    parser.add_argument(
        "--sabotage", choices=_SABOTAGES, default="none", help="break a law, to see the auditor find it"
    )
    arguments = parser.parse_args()
    options = read_options(arguments)
    minutes = min(arguments.minutes, 0.75) if options.quick else arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="fedmq-chaos-"))
    campaign = Campaign(
        folder,
        broker=arguments.broker,
        seed=options.seed,
        sabotage=arguments.sabotage,
        agents=arguments.agents,
    )
    outcome = campaign.run(60 * minutes, arguments.per_minute)
    _report(options, arguments, minutes, outcome)
    if outcome.is_clean and outcome.drained:
        shutil.rmtree(folder)
    else:
        sys.exit(f"NOT CLEAN: what is left of it is in {folder}")


def _report(options: Options, arguments: argparse.Namespace, minutes: float, outcome: Outcome) -> None:
    accounts = outcome.accounts
    rows: list[Row] = [{"kind": kind, "faults": count} for kind, count in sorted(outcome.faults.items())]
    print_table("Faults", rows, {"kind": "kind", "faults": "faults"})
    facts: dict[str, object] = {
        "broker": arguments.broker,
        "minutes": minutes,
        "agents": arguments.agents,
        "sabotage": arguments.sabotage,
        "faults": outcome.faults.total(),
        "faults_not_possible_here": sorted(outcome.without),
        "returned": accounts.returned,
        "finished": accounts.finished,
        "folded": accounts.folded,
        "refused": sum(accounts.refused.values()),
        "refused_by_reason": dict(accounts.refused),
        "in_outbox": accounts.in_outbox,
        "wiped": accounts.wiped,
        "lost": len(accounts.lost),
        "doubled": len(accounts.doubled),
        "unknown": accounts.unknown,
        "mass_errors": list(accounts.mass),
        "recoveries": outcome.recoveries,
        "recoveries_bit_identical": outcome.identical,
        "recovery_problems": list(outcome.problems),
        "bases_checked": accounts.bases_checked,
        "bases_wrong": accounts.bases_wrong,
        "drained": outcome.drained,
        "drain_seconds": round(outcome.drain_seconds, 1),
        "ended_by_themselves": len(outcome.deaths),
        "last_words": dict(Counter(outcome.deaths).most_common(10)),
    }
    shown: list[Row] = [
        {"what": name.replace("_", " "), "value": str(value)}
        for name, value in facts.items()
        if isinstance(value, int | float | str)
    ]
    print_table("Accounts", shown, {"what": "", "value": ""})
    write_result("chaos", options, rows, **facts)


if __name__ == "__main__":
    main()
