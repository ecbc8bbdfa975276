"""The port to whatever learns: what a trainer gets, does and returns."""

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from fedmq.errors import FedmqError, SettingError
from fedmq.layout import ParamLayout
from fedmq.plan import Scalar
from fedmq.types import ParamVector

ENTRY_POINT_GROUP: Final = "fedmq.trainers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of local work.

    Attributes:
        local_epochs: passes over the local data.
        settings: what the plan tells the trainer, for instance `learning_rate`, `batch_size`.
        seed: for shuffling; differs between pieces of work and between clients.
    """

    local_epochs: int
    settings: Mapping[str, Scalar]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainResult:
    """What came of it.

    Attributes:
        vector: the local model afterwards, float32, shape (layout.size,).
        num_examples: examples in the local data; what FedAvg weights by.
        local_steps: optimiser steps taken.
        metrics: for people, for instance the mean training loss; at most 16.
    """

    vector: ParamVector = field(repr=False)
    num_examples: int
    local_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class TrainingStoppedError(FedmqError):
    """The agent is shutting down; what was trained so far is thrown away."""


class Trainer(Protocol):
    """Learns from data that never leaves the device."""

    @property
    def layout(self) -> ParamLayout:
        """The model's tensors; must agree with the plan's, or the device refuses the plan."""

    def initial(self) -> ParamVector:
        """A freshly initialised model, float32, shape (layout.size,)."""

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """Train from `base`, which must not be written to.

        Args:
            base: the global model, float32, shape (layout.size,).
            task: how much, and how.
            should_stop: asked now and then, at least once in a second or two.

        Raises:
            TrainingStoppedError: `should_stop` said so.
        """

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """Measure a model on this device's test data: `accuracy` in [0, 1], `loss`, and what else there is."""


#: Makes a trainer from the plan's settings and the device's own.
TrainerFactory = Callable[..., Trainer]


def find_factory(name: str) -> TrainerFactory:
    """The factory that a device's setting names.

    Args:
        name: `package.module:function`, or the name of an entry point in the group `fedmq.trainers`.

    Raises:
        SettingError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        if attribute:
            factory: object = getattr(importlib.import_module(module), attribute)
        else:
            (entry,) = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
            factory = entry.load()
    except ValueError:
        known = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP).names)
        raise SettingError(
            "trainer.factory", name, f"package.module:function, or one of {', '.join(known)}, is allowed"
        ) from None
    except (ImportError, AttributeError) as error:
        hint = ": install fedmq[torch]" if "torch" in str(error) else ""
        raise SettingError("trainer.factory", name, f"it cannot be imported ({error}){hint}") from error
    if not callable(factory):
        raise SettingError("trainer.factory", name, "it is not callable")
    return factory
