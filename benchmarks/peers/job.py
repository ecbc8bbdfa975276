"""What the race tells a peer's processes, and what they tell it: a JSON file, the gate, and snapshots of the model."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The race's JSON file, and who reads it.

    Attributes:
        port: where the server listens.
        ports: where each client reaches it, through its proxy.
        model: the first model, `.npz` with tensors by name.
        names: of the tensors, in the order in which they travel.
        shards: each client's images, `.npz`.
        examples: in each of them.
        network: what `Mlp` is made with.
        batch_size: of the local SGD.
        learning_rate: likewise.
        seed: of the run.
        pauses: seconds that each client sleeps in a local epoch.
        every: a snapshot is due whenever so many more updates are in the model.
        gate: folder where clients say how far they are, and the race says go.
        snapshots: folder for models.
        options: what this system alone is told.
        client: number of the client that reads it; None in the server.
    """

    port: int
    ports: Sequence[int]
    model: str
    names: Sequence[str]
    shards: Sequence[str]
    examples: int
    network: dict[str, int]
    batch_size: int
    learning_rate: float
    seed: int
    pauses: Sequence[float]
    every: int
    gate: str
    snapshots: str
    options: dict[str, str | bool | float]
    client: int | None

    def initial(self) -> list[np.ndarray]:
        """The first model's tensors."""
        with np.load(self.model) as file:
            return [file[name] for name in self.names]

    def wait_for_all(self, stage: str) -> None:
        """Return when every client has come this far."""
        self._come_to(stage)
        while len(list(Path(self.gate).glob(f"{stage}-*"))) < len(self.ports):
            time.sleep(_LOOK_SECONDS)

    def wait_for_start(self) -> None:
        """Tell the race that this client could begin; return when it says go."""
        self._come_to("ready")
        while not (Path(self.gate) / "go").exists():
            time.sleep(_LOOK_SECONDS)

    def _come_to(self, stage: str) -> None:
        (Path(self.gate) / f"{stage}-{self.client}").touch()


class Snapshots:
    """Writes the global model for the race's judge when it is due.

    Args:
        job: the race's.
    """

    def __init__(self, job: Job) -> None:
        self._folder, self._every, self._next = Path(job.snapshots), job.every, job.every

    def offer(self, updates: int, tensors: Callable[[], Sequence[np.ndarray]]) -> None:
        """Write the model if it is time.

        Args:
            updates: how many are in it.
            tensors: gives them in the order of the job's `names`, float32.
        """
        if updates < self._next:
            return
        now = time.time()
        self._next = updates - updates % self._every + self._every
        path = self._folder / f"{updates}.npy"
        np.save(path, np.concatenate([np.asarray(tensor).ravel() for tensor in tensors()]))
        with (self._folder / "index.jsonl").open("a", encoding="utf-8") as index:
            index.write(json.dumps({"time": now, "updates": updates, "path": str(path)}) + "\n")


def read_job() -> Job:
    """The job of this process, from its arguments: the file, and a client's number; it ends with its parent."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return Job(**told, client=int(sys.argv[2]) if len(sys.argv) > 2 else None)


def _follow_parent() -> None:
    """Should the race be killed outright, its end of our standard input closes."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)
