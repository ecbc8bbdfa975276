"""One run: wait until all clients stand at the gate, open it, and watch until the target is reached.

Time, processor time and "updates" count from the opening of the gate; bytes from the connections' first byte. A model
counts from the moment it exists on the server, not from when the judge has measured it.
"""

import os
import shutil
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.harness import Row
from benchmarks.race_judge import Judge
from benchmarks.race_process import cpu_seconds, resident_bytes
from benchmarks.race_proxy import Count, Counters, counters
from benchmarks.race_system import Parties, PartyError, Snapshot, Stage, System
from benchmarks.race_workload import CLIENTS, TARGET, Material, Workload

_SAMPLE_SECONDS: Final = 0.025
_MEMORY_SECONDS: Final = 0.5
_READY_SECONDS: Final = 180.0
_JUDGE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model that was measured.

    Attributes:
        updates: in it.
        seconds: since the start.
        accuracy: on the test images, in [0, 1].
        traffic: bytes until then.
        server_cpu: seconds of the server's processor time since the start.
        broker_cpu: the broker's.
    """

    updates: int
    seconds: float
    accuracy: float
    traffic: Count
    server_cpu: float
    broker_cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        row: for the table.
        curve: every model that was measured.
    """

    row: Row
    curve: list[Point]


def run(system: System, workload: Workload, material: Material, folder: Path) -> Outcome:
    """Run one system on one workload.

    Args:
        system: the contestant, prepared.
        workload: how fast the devices are.
        material: the seed's files.
        folder: of this run; emptied first. Logs stay in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("gate", "snapshots"):
        (folder / name).mkdir(parents=True)
    row: dict[str, str | int | float | None] = {
        "system": system.name,
        "workload": workload.name,
        "seed": material.seed,
    }
    note, watch = system.note, None
    began = time.monotonic()
    try:
        with Judge(material.test, folder / "judge.log") as judge, counters(CLIENTS) as traffic:
            stage = Stage(
                workload=workload, material=material, folder=folder, gate=folder / "gate", traffic=traffic
            )
            with system.start(stage) as parties:
                _wait_until_ready(parties, stage.gate)
                set_up = time.monotonic() - began
                watch = _Watch(parties, traffic, judge)
                (stage.gate / "go").touch()
                watch.until(system.limit or workload.limit)
    except PartyError as error:
        note = f"{note}; {error}"
    shutil.rmtree(folder / "snapshots", ignore_errors=True)
    row |= {"reached": False, "note": note}
    if watch is None:
        return Outcome(row=row, curve=[])
    return Outcome(row={**row, **watch.row(), "set_up_seconds": set_up}, curve=watch.curve)


def _wait_until_ready(parties: Parties, gate: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while (ready := len(list(gate.glob("ready-*")))) < CLIENTS:
        parties.check()
        if time.monotonic() > deadline:
            raise PartyError(f"{ready} of {CLIENTS} clients were ready after {_READY_SECONDS:g} s")
        time.sleep(_SAMPLE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """What the meters showed."""

    time: float
    traffic: Count
    server_cpu: float
    broker_cpu: float


class _Watch:
    """Reads the meters, has models measured, and knows when it is over."""

    def __init__(self, parties: Parties, traffic: Counters, judge: Judge) -> None:
        self._parties, self._traffic, self._judge = parties, traffic, judge
        self._samples = [self._sample()]
        self._waiting: deque[Snapshot] = deque()
        self._memory_due = 0.0
        self._server_memory = self._client_memory = self._broker_memory = 0
        self._others = self._foreign_cpu()
        self._foreign_cores = 0.0
        self.curve: list[Point] = []

    @property
    def reached(self) -> bool:
        """Whether the last model reached the target."""
        return bool(self.curve) and self.curve[-1].accuracy >= TARGET

    def until(self, limit: float) -> None:
        """Watch until the target or the limit (seconds) is reached.

        Raises:
            PartyError: a party has ended.
        """
        deadline = time.monotonic() + limit
        while not self.reached and time.monotonic() < deadline:
            self._look()
            self._parties.check()
            time.sleep(_SAMPLE_SECONDS)
        deadline = time.monotonic() + _JUDGE_SECONDS
        while not self.reached and self._waiting and time.monotonic() < deadline:
            self._measure()
            time.sleep(_SAMPLE_SECONDS)
        elapsed = time.time() - self._samples[0].time
        self._foreign_cores = max(self._foreign_cpu() - self._others, 0.0) / elapsed

    def row(self) -> dict[str, str | int | float | None]:
        """Everything at the crossing of the target, or else at the last model that was measured."""
        found: dict[str, str | int | float | None] = {
            "reached": self.reached,
            "server_rss_mb": self._server_memory / 1e6,
            "client_rss_mb": self._client_memory / 1e6,
            "broker_rss_mb": self._broker_memory / 1e6 if self._parties.broker else None,
            "foreign_cores": self._foreign_cores,
        }
        if not self.curve:
            return found
        last = self.curve[-1]
        return {
            **found,
            "updates": last.updates,
            "seconds": last.seconds,
            "accuracy": last.accuracy,
            "uplink_bytes": last.traffic.up,
            "downlink_bytes": last.traffic.down,
            "server_cpu_ms_per_update": 1000 * last.server_cpu / last.updates,
            "broker_cpu_ms_per_update": (
                1000 * last.broker_cpu / last.updates if self._parties.broker else None
            ),
            "uplink_bytes_per_update": last.traffic.up / last.updates,
            "downlink_bytes_per_update": last.traffic.down / last.updates,
        }

    def _look(self) -> None:
        now = time.monotonic()
        self._samples.append(self._sample())
        if now >= self._memory_due:
            self._memory_due = now + _MEMORY_SECONDS
            self._weigh()
        for snapshot in self._parties.snapshots():
            self._judge.ask(snapshot.path)
            self._waiting.append(snapshot)
        self._measure()

    def _sample(self) -> _Sample:
        broker = self._parties.broker
        return _Sample(
            time=time.time(),
            traffic=self._traffic.read(),
            server_cpu=cpu_seconds(self._parties.server.process),
            broker_cpu=cpu_seconds(broker) if broker else 0.0,
        )

    def _weigh(self) -> None:
        parties = self._parties
        self._server_memory = max(self._server_memory, resident_bytes(parties.server.process))
        self._client_memory = max(
            self._client_memory, *(resident_bytes(client.process) for client in parties.clients)
        )
        if parties.broker is not None:
            self._broker_memory = max(self._broker_memory, resident_bytes(parties.broker))

    def _measure(self) -> None:
        """Take the judge's answers, until one reaches the target."""
        start = self._samples[0]
        for accuracy in self._judge.answers():
            snapshot = self._waiting.popleft()
            if self.reached:
                continue
            sample = self._samples[bisect_right(self._samples, snapshot.time, key=lambda s: s.time) - 1]
            self.curve.append(
                Point(
                    updates=snapshot.updates,
                    seconds=snapshot.time - start.time,
                    accuracy=accuracy,
                    traffic=sample.traffic,
                    server_cpu=sample.server_cpu - start.server_cpu,
                    broker_cpu=sample.broker_cpu - start.broker_cpu,
                )
            )

    def _foreign_cpu(self) -> float:
        """Processor seconds that nobody of this race has taken, since some moment in the past."""
        parties = self._parties
        ours = [parties.server, *parties.clients, *parties.others]
        others = [psutil.Process(os.getpid()), psutil.Process(self._judge.process.pid)]
        if parties.broker is not None:
            others.append(parties.broker)
        taken = sum(map(cpu_seconds, (*(party.process for party in ours), *others)))
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system) - taken
