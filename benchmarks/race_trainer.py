"""fedmq's trainer in the race, which begins at the gate, and its evaluator, which leaves the measuring to the judge."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.edge_agent.torch_trainer import TorchTrainer, mlp
from fedmq.edge_agent.trainer import Task, TrainingStoppedError, TrainResult

from benchmarks.idle import LAYOUT
from fedmq.plan import Scalar
from fedmq.types import ParamVector

_LOOK_SECONDS: Final = 0.01


def shuffling_seed(seed: int, client: int, epoch: int) -> int:
    """Of a client's n-th local epoch; the peers' `learner.order` has the same rule."""
    return (seed * 100 + client) * 100_000 + epoch


class GatedTrainer:
    """`torch-mlp`, which waits for the start before its first epoch and shuffles as the peers do.

    Args:
        trainer: does the work.
        seed: of the run.
        client: this client's number.
        gate: folder where clients say that they are ready, and the race says go.
    """

    def __init__(self, trainer: TorchTrainer, seed: int, client: int, gate: Path) -> None:
        self._trainer, self._seed, self._client, self._gate = trainer, seed, client, gate
        self._epoch = 0
        self.layout = trainer.layout

    def initial(self) -> ParamVector:
        """The module's present parameters."""
        return self._trainer.initial()

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """One piece of work."""
        if not self._epoch:
            (self._gate / f"ready-{self._client}").touch()
            while not (self._gate / "go").exists():
                if should_stop():
                    raise TrainingStoppedError
                time.sleep(_LOOK_SECONDS)
        task = replace(task, seed=shuffling_seed(self._seed, self._client, self._epoch))
        self._epoch += 1
        return self._trainer.train(base, task, should_stop)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """Loss and accuracy."""
        return self._trainer.evaluate(vector)


def gated(settings: Mapping[str, Scalar], *, data: str, seed: int, client: int, gate: str) -> GatedTrainer:
    """The factory that the agents are told.

    Args:
        settings: the plan's.
        data: this client's `.npz` file.
        seed: of the run.
        client: its number.
        gate: the folder.
    """
    return GatedTrainer(mlp(settings, data=data), seed, client, Path(gate))


class SnapshotTrainer:
    """Writes each model that is to be evaluated to a file.

    Args:
        folder: where; files are called by their number in order.
    """

    layout = LAYOUT

    def __init__(self, folder: Path) -> None:
        self._folder, self._written = folder, 0

    def initial(self) -> ParamVector:
        """Zeros."""
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """No training."""
        raise TrainingStoppedError

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """The file's number, which then stands in the evaluator's diary beside the model's version."""
        self._written += 1
        np.save(self._folder / f"{self._written}.npy", vector)
        return {"snapshot": self._written}


def snapshots(settings: Mapping[str, Scalar], *, folder: str) -> SnapshotTrainer:
    """The factory that the evaluator is told."""
    return SnapshotTrainer(Path(folder))
