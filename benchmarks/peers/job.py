"""What the race tells a peer's processes, and what they tell it: a JSON file, the gate, and snapshots of the model."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

_LOOK_SECONDS = 0.01


class Job:
    """The race's JSON file.

    Args:
        path: of the file.
    """

    def __init__(self, path):
        self.__dict__.update(json.loads(Path(path).read_text(encoding="utf-8")))

    def initial(self):
        """The first model: its tensors in the order of `names`."""
        with np.load(self.model) as file:
            return [file[name] for name in self.names]

    def wait_for_all(self, stage):
        """Return when every client has come this far."""
        self._come_to(stage)
        while len(list(Path(self.gate).glob(f"{stage}-*"))) < len(self.ports):
            time.sleep(_LOOK_SECONDS)

    def wait_for_start(self):
        """Tell the race that this client could begin; return when it says go."""
        self._come_to("ready")
        while not (Path(self.gate) / "go").exists():
            time.sleep(_LOOK_SECONDS)

    def _come_to(self, stage):
        (Path(self.gate) / f"{stage}-{self.client}").touch()


class Snapshots:
    """Writes the global model for the race's judge whenever `every` more updates are in it.

    Args:
        job: the race's.
    """

    def __init__(self, job):
        self._folder, self._every, self._next = Path(job.snapshots), job.every, job.every

    def offer(self, updates, tensors):
        """Write the model if it is time.

        Args:
            updates: how many are in it.
            tensors: a function that returns them in the order of the job's `names`, float32.
        """
        if updates < self._next:
            return
        now = time.time()
        self._next = updates - updates % self._every + self._every
        path = self._folder / f"{updates}.npy"
        np.save(path, np.concatenate([np.asarray(tensor).ravel() for tensor in tensors()]))
        with (self._folder / "index.jsonl").open("a", encoding="utf-8") as index:
            index.write(json.dumps({"time": now, "updates": updates, "path": str(path)}) + "\n")


def read_job():
    """The job of this process, from its arguments: the file, and a client's number; it ends with its parent."""
    job = Job(sys.argv[1])
    job.client = int(sys.argv[2]) if len(sys.argv) > 2 else None
    threading.Thread(target=_follow_parent, daemon=True).start()
    return job


def _follow_parent():
    """Should the race be killed outright, its end of our standard input closes."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)
