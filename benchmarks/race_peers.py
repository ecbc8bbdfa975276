"""The peers in the race: a table, and how each of them is started in its own environment.

Their servers and clients are the scripts in `benchmarks/peers`; what each has of its own is explained there.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.broker.mosquitto import free_port

from benchmarks.race_process import Process, stop_all
from benchmarks.race_system import Parties, Snapshot, Stage, Tail, wait_for_port
from benchmarks.race_venvs import prepare
from benchmarks.race_workload import BATCH_SIZE, EVERY, LEARNING_RATE

_SCRIPTS: Final = Path(__file__).parent / "peers"
_START_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One of the others.

    Attributes:
        name: in the results.
        note: what a reader of its rows must know.
        venv: its environment, and the beginning of its scripts' names.
        options: what its scripts are told beyond the workload.
        limit: seconds after which a run is ended; None for the workload's.
    """

    name: str
    note: str
    venv: str
    options: Mapping[str, str | bool | float] = field(default_factory=dict)
    limit: float | None = None

    def prepare(self) -> dict[str, str]:
        """Install it unless it is there; returns versions.

        Raises:
            UnavailableError: it cannot be installed.
        """
        return prepare(self.venv).versions

    @contextmanager
    def start(self, stage: Stage) -> Iterator[Parties]:
        """The server, and then, as soon as it listens, the clients."""
        python, port = prepare(self.venv).python, free_port()
        job = _write_job(stage, port, self.options)
        processes: list[Process] = []
        try:
            server: list[str | Path] = [python, "-u", _SCRIPTS / f"{self.venv}_server.py", job]
            processes.append(Process("server", server, stage.folder))
            wait_for_port(port, processes[0], _START_SECONDS)
            stage.traffic.point_to(port)
            for index in range(len(stage.traffic.ports)):
                client: list[str | Path] = [
                    python,
                    "-u",
                    _SCRIPTS / f"{self.venv}_client.py",
                    job,
                    str(index),
                ]
                processes.append(Process(f"client-{index}", client, stage.folder))
            tail = Tail(stage.folder / "snapshots" / "index.jsonl")
            yield Parties(server=processes[0], clients=processes[1:], snapshots=lambda: _snapshots(tail))
        finally:
            stop_all(processes)


def _snapshots(tail: Tail) -> list[Snapshot]:
    return [
        Snapshot(time=entry["time"], updates=entry["updates"], path=Path(entry["path"]))
        for entry in tail.read()
    ]


def _write_job(stage: Stage, port: int, options: Mapping[str, str | bool | float]) -> Path:
    """The file that `benchmarks/peers/job.py` reads."""
    material = stage.material
    with np.load(material.shards[0]) as shard:
        examples = len(shard["train_labels"])
    path = stage.folder / "job.json"
    job = {
        "port": port,
        "ports": stage.traffic.ports,
        "model": str(material.initial),
        "names": [segment.name for segment in material.layout.shared],
        "shards": [str(shard) for shard in material.shards],
        "examples": examples,
        "network": {name: material.settings[name] for name in ("features", "hidden", "classes")},
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "seed": material.seed,
        "pauses": stage.workload.pauses,
        "every": EVERY,
        "gate": str(stage.gate),
        "snapshots": str(stage.folder / "snapshots"),
        "options": dict(options),
    }
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return path


def _appfl(algorithm: str, note: str = "", name: str = "", **options: float) -> Peer:
    return Peer(
        name=f"APPFL {algorithm}{name}",
        note=f"optimize_memory=False, gc.freeze(){note}",
        venv="appfl",
        options={"algorithm": algorithm, "tuned": True, **options},
    )


PEERS: Final = (
    Peer(name="Flower", note="FedAvg, start_server and start_client", venv="flower"),
    Peer(
        name="Flower, adjusted loss",
        note="FedAvg, the loss that fedmq takes",
        venv="flower",
        options={"adjusted": True},
    ),
    Peer(name="naive", note="Flask, JSON over HTTP, FedAvg", venv="naive"),
    _appfl("FedAvg"),
    _appfl("FedAsync", ", alpha as in its paper"),
    _appfl("FedBuff", ", K = 5, alpha as in its paper"),
    _appfl("FedAsync", ", alpha of its examples", " alpha 0.9", alpha=0.9),
    _appfl("FedBuff", ", K = 5, alpha of its examples", " alpha 0.9", alpha=0.9),
    _appfl("FedCompass"),
    Peer(
        name="APPFL as shipped",
        note="FedAvg, two minutes only: it collects garbage several times for each update",
        venv="appfl",
        options={"algorithm": "FedAvg", "tuned": False},
        limit=120.0,
    ),
)
