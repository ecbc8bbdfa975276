"""fedmq in the race: aggregator, agents and evaluator as processes, set as the demo sets them.

The agents' trainer is `torch-mlp` behind a gate, their pauses are the workload's; every other setting is the default,
but for the reconnection times and the period of repetitions, which are the demo's. The agents reach the broker
through the proxies. The aggregator stands beside the broker, as the peers' servers stand behind their own ports.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.broker import Mosquitto, MosquittoMissingError
from fedmq.broker.mosquitto import free_port

from benchmarks.race_process import Process, stop_all
from benchmarks.race_system import Parties, Snapshot, Stage, Tail, wait_for_port
from benchmarks.race_workload import CLIENTS, EVERY, TRAINER
from fedmq.app.cohort import demo_fold, fold_table
from fedmq.app.toml import Value, write_toml
from fedmq.plan import Scalar

_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fedmq:
    """The product.

    Attributes:
        name: in the results.
        fold: how it folds.
        settings: what its trainer is told beside the workload.
        limit: none of its own.
    """

    name: str = "fedmq"
    fold: FoldSettings = field(default_factory=lambda: demo_fold(CLIENTS))
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    limit: float | None = None

    @property
    def note(self) -> str:
        """What is not a default."""
        dials = self.fold
        fold = f"{dials.strategy}, K = {dials.buffer_size}, η = {dials.learning_rate} {dials.schedule}"
        told = "".join(f", {name} = {value}" for name, value in self.settings.items())
        return f"{fold}, {TaskSettings().codec}{told}"

    def prepare(self) -> dict[str, str]:
        """Nothing is to be installed."""
        return {name: version(name) for name in ("fedmq", "torch", "numpy", "paho-mqtt")}

    @contextmanager
    def start(self, stage: Stage) -> Iterator[Parties]:
        """Broker, aggregator, evaluator, agents."""
        processes: list[Process] = []
        with ExitStack() as stack:
            stack.callback(lambda: stop_all(processes))
            port, broker = _broker(stack, stage.folder, processes)
            stage.traffic.point_to(port)
            self._write_settings(stage, port)
            for name in ("aggregator", "evaluator", *_clients(stage)):
                role = name.partition("-")[0]
                config = stage.folder / f"{name}.toml"
                command = [sys.executable, "-m", "fedmq.app", role, "--config", str(config)]
                processes.append(Process(name, command, stage.folder))
            aggregator, evaluator, *agents = processes[-2 - len(stage.traffic.ports) :]
            yield Parties(
                server=aggregator,
                clients=agents,
                snapshots=Diaries(stage.folder).snapshots,
                others=[evaluator],
                broker=broker,
            )

    def _write_settings(self, stage: Stage, port: int) -> None:
        folder, material = stage.folder, stage.material

        def common(name: str, at: int) -> dict[str, Value]:
            broker: dict[str, Value] = {"port": at, "reconnect_min": 0.2, "reconnect_max": 2.0}
            return {"federation": "race", "events": folder / f"{name}.jsonl", "broker": broker}

        write_toml(
            folder / "aggregator.toml",
            {
                **common("aggregator", port),
                "model": material.model,
                "store": {"path": folder / "aggregator.db"},
                "fold": fold_table(self.fold),
                "task": {
                    "trainer": TRAINER,
                    "settings": {**material.settings, **self.settings},
                    "resend_seconds": 20.0,
                },
            },
        )
        snapshots: dict[str, Value] = {"folder": str(folder / "snapshots")}
        factory = "benchmarks.race_trainer:snapshots"
        write_toml(
            folder / "evaluator.toml",
            {**common("evaluator", port), "trainer": {"factory": factory, "settings": snapshots}},
        )
        for index, name in enumerate(_clients(stage)):
            settings: dict[str, Value] = {
                "data": str(material.shards[index]),
                "seed": material.seed,
                "client": index,
                "gate": str(stage.gate),
            }
            trainer: dict[str, Value] = {
                "factory": "benchmarks.race_trainer:gated",
                "pause": stage.workload.pauses[index],
                "settings": settings,
            }
            outbox: dict[str, Value] = {"folder": folder / name}
            write_toml(
                folder / f"{name}.toml",
                {
                    **common(name, stage.traffic.ports[index]),
                    "client": name,
                    "trainer": trainer,
                    "outbox": outbox,
                },
            )


class Diaries:
    """Finds out from the roles' diaries which model was in which snapshot.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aggregator = Tail(folder / "aggregator.jsonl")
        self._evaluator = Tail(folder / "evaluator.jsonl")
        self._folds: Counter[int] = Counter()
        self._last_fold: dict[int, float] = {}
        self._next = EVERY

    def snapshots(self) -> list[Snapshot]:
        """Of the versions that are due."""
        evaluations = self._evaluator.read()
        for (
            entry
        ) in self._aggregator.read():  # after the evaluator's: a version is folded before it is measured
            if entry["kind"] == "fold":
                self._folds[entry["version"]] += 1
                self._last_fold[entry["version"]] = entry["time"]
        found = []
        for entry in evaluations:
            path = self._folder / "snapshots" / f"{int(entry['snapshot'])}.npy"
            # an update is folded into the version that its entry names, and what comes of it is the next one
            updates = sum(count for version, count in self._folds.items() if version < entry["version"])
            if updates < self._next:
                path.unlink()
                continue
            self._next = updates - updates % EVERY + EVERY
            found.append(Snapshot(time=self._last_fold[entry["version"] - 1], updates=updates, path=path))
        return found


def _clients(stage: Stage) -> list[str]:
    return [f"agent-{index:02d}" for index in range(len(stage.traffic.ports))]


def _broker(stack: ExitStack, folder: Path, processes: list[Process]) -> tuple[int, psutil.Process]:
    """Mosquitto with the shipped configuration where it is installed, otherwise the embedded broker."""
    try:
        mosquitto = stack.enter_context(Mosquitto())
    except MosquittoMissingError:
        port = free_port()
        command = [sys.executable, "-m", "fedmq.app", "broker", "--port", str(port)]
        processes.append(Process("broker", command, folder))
        wait_for_port(port, processes[-1], _START_SECONDS)
        return port, processes[-1].process
    return mosquitto.port, psutil.Process(mosquitto.pid)


#: As the demo runs it, and with the loss of the others.
FEDMQ: Final = (
    Fedmq(),
    Fedmq(
        name="fedmq, plain loss",
        fold=replace(demo_fold(CLIENTS), learning_rate=1.8),
        settings={"logit_adjustment": 0.0},
    ),
)
