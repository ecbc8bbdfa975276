"""The port to whatever learns: what a trainer gets, does and returns."""

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from fedmq.envelope import MAX_INTEGER
from fedmq.errors import FedmqError, LocalError, SettingError
from fedmq.layout import ParamLayout
from fedmq.mask import Mask
from fedmq.plan import Plan, Scalar
from fedmq.settings import Table
from fedmq.types import ParamVector
from fedmq.wire import MAX_METRICS

ENTRY_POINT_GROUP: Final = "fedmq.trainers"
_MAX_METRIC_NAME: Final = 64
#: Fields that diaries and statistics have themselves.
_TAKEN_NAMES: Final = frozenset({"client", "kind", "received", "self", "sent", "seq", "time", "version"})


class TrainerError(LocalError):
    """A trainer cannot be made, is not what the plan asks for, or returned what cannot be used."""


class TrainingStoppedError(FedmqError):
    """The agent is shutting down; what was trained so far is thrown away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of local work.

    Attributes:
        local_epochs: passes over the local data, unless `steps` says how much.
        settings: what the plan tells the trainer, for instance `learning_rate`, `batch_size`.
        seed: for shuffling; differs between pieces of work and between clients.
        mask: what is pruned: zero in the base, and to be kept at zero at every step; None for nothing. What a trainer
            makes of these coordinates nevertheless is left out of its update.
        steps: optimiser steps to take instead of `local_epochs`, be they fewer or more; None for the epochs. A trainer
            that knows nothing of it does the epochs, and its result tells how many steps these were.
        max_steps: optimiser steps after which to stop in any case; None for no such bound.
    """

    local_epochs: int
    settings: Mapping[str, Scalar]
    seed: int
    mask: Mask | None = None
    steps: int | None = None
    max_steps: int | None = None

    def is_done(self, steps: int, epochs: int) -> bool:
        """Whether so many steps, and so many whole passes among them, are what is asked for."""
        if self.max_steps is not None and steps >= self.max_steps:
            return True
        return epochs >= self.local_epochs if self.steps is None else steps >= self.steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainResult:
    """What came of it.

    Attributes:
        vector: the local model afterwards, float32, shape (layout.size,).
        num_examples: examples in the local data, at least 1; what FedAvg weights by.
        local_steps: optimiser steps taken.
        metrics: for people, for instance the mean training loss; at most 16.
        epochs: passes over the local data, in which parts of one count; None when they were the task's.

    Raises:
        TrainerError: a value is none of these. No aggregator could read such an update, and so none would
            ever give a receipt for it.
    """

    vector: ParamVector = field(repr=False)
    num_examples: int
    local_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: float | None = None

    def __post_init__(self) -> None:
        if error := _fault(self.vector, self.num_examples, self.local_steps, self.metrics):
            raise TrainerError(error)


def _fault(vector: object, num_examples: object, local_steps: object, metrics: Mapping[Any, object]) -> str:
    """What is wrong with a result; the trainer is the user's code, and its types a hope."""
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        found = f"{vector.dtype}{vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        return f"the trained vector must be a numpy array of float32 in one dimension, not {found}"
    for name, count, low in (("num_examples", num_examples, 1), ("local_steps", local_steps, 0)):
        if not isinstance(count, int | np.integer) or not low <= count <= MAX_INTEGER:
            return f"{name} = {count!r}: a whole number, at least {low}, is allowed"
    if len(metrics) > MAX_METRICS:
        return f"{len(metrics)} metrics: at most {MAX_METRICS} are allowed"
    for key, value in metrics.items():
        if not isinstance(key, str) or len(key) > _MAX_METRIC_NAME or not _is_number(value):
            return f"metric {key!r} = {value!r}: a number with a name of at most {_MAX_METRIC_NAME} letters"
    return ""


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # numpy's and torch's scalars are numbers, too
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, str)


def plain_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """A trainer's metrics for diaries and statistics: plain floats, without the names that those use themselves."""
    return {name: float(value) for name, value in metrics.items() if name not in _TAKEN_NAMES}


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
    """The factory that this device's operator names.

    Args:
        name: `package.module:function`, or the name of an entry point in the group `fedmq.trainers`.

    Raises:
        SettingError: there is none, or it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        return installed_factory(name)
    try:
        factory: object = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's may raise anything
        raise _not_imported(name, error) from error
    return _checked(name, factory)


def installed_factory(name: str) -> TrainerFactory:
    """The factory that is installed under a name, in the entry-point group `fedmq.trainers`.

    Nothing else may be asked for with a name from the network: no code travels, and none is chosen from afar.

    Raises:
        SettingError: there is none, or it cannot be imported.
    """
    group = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if name not in group.names:
        known = ", ".join(sorted(group.names))
        raise SettingError(
            "trainer.factory",
            name,
            f"one of {known}, or in this device's own settings package.module:function",
        )
    try:
        factory: object = group[name].load()
    except Exception as error:  # likewise
        raise _not_imported(name, error) from error
    return _checked(name, factory)


def _not_imported(name: str, error: Exception) -> SettingError:
    hint = ": install fedmq[torch]" if isinstance(error, ImportError) and error.name == "torch" else ""
    return SettingError("trainer.factory", name, f"it cannot be imported ({error}){hint}")


def _checked(name: str, factory: object) -> TrainerFactory:
    if not callable(factory):
        raise SettingError("trainer.factory", name, "it is not callable")
    return factory


def plan_mask(plan: Plan) -> Mask | None:
    """What a plan prunes; to be asked only when its layout is that of a model on this device.

    Raises:
        WireError: its mask is none for this layout.
    """
    return Mask.decode(plan.layout, plan.mask) if plan.mask is not None else None


def make_trainer(plan: Plan, chosen: str, settings: Table, factory: TrainerFactory | None = None) -> Trainer:
    """The trainer with which this device satisfies a plan.

    Args:
        plan: from the network.
        chosen: the operator's choice, see `find_factory`; when empty, the plan's name is looked up.
        settings: what the operator tells the trainer.
        factory: used instead of looking one up.

    Raises:
        SettingError: there is no such trainer, or it refuses its settings.
        TrainerError: its factory failed in another way, or its model is not the plan's.
    """
    if factory is None:
        factory = find_factory(chosen) if chosen else installed_factory(plan.trainer)
    name = chosen or plan.trainer
    try:
        trainer = factory(dict(plan.trainer_settings), **dict(settings))
        difference = trainer.layout.difference(plan.layout)
    except FedmqError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise TrainerError(f"trainer {name} cannot be made: {type(error).__name__}: {error}") from error
    if difference:
        raise TrainerError(f"trainer {name} has another model than the plan: {difference}")
    return trainer
