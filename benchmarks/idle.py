"""A trainer that takes no time and little memory, so that what is measured is everything else."""

from collections.abc import Callable, Mapping

import numpy as np
from fedmq.edge_agent.trainer import Task, TrainResult

from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Scalar
from fedmq.types import ParamVector

#: The 784-128-10 network of the demo: 101,770 parameters.
LAYOUT = ParamLayout(
    (
        Segment(name="hidden.weight", shape=(128, 784)),
        Segment(name="hidden.bias", shape=(128,)),
        Segment(name="output.weight", shape=(10, 128)),
        Segment(name="output.bias", shape=(10,)),
    )
)


class IdleTrainer:
    """Adds noise drawn once, turned a little further each time: the codec has work, the trainer has none."""

    layout = LAYOUT

    def __init__(self, seed: int) -> None:
        self._noise = (np.random.default_rng(seed).standard_normal(LAYOUT.size) * 1e-3).astype(np.float32)

    def initial(self) -> ParamVector:
        """Zeros."""
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """No training."""
        return TrainResult(vector=base + np.roll(self._noise, task.seed % 997), num_examples=1, local_steps=1)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """No evaluation."""
        return {}


def idle_trainer(settings: Mapping[str, Scalar], *, seed: int = 0) -> IdleTrainer:
    """The factory that the agents are told."""
    return IdleTrainer(seed)
