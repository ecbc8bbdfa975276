"""The tutor: the server's own update, made as a device makes its own, from data that the operator trusts.

Here, because it is a trainer of the edge's for the aggregator: neither role imports the other.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from fedmq.aggregator.guard import Tutor
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.trust import make_trust
from fedmq.edge_agent.trainer import Task, Trainer, TrainerError, TrainResult, find_factory
from fedmq.edge_agent.training import Spawn, Training, in_a_thread
from fedmq.errors import FedmqError
from fedmq.layout import ParamLayout
from fedmq.types import GlobalModel, ParamVector

#: Of its shuffling, with the version.
_SEED: Final = 1


class TrainingTutor:
    """A tutor that runs a trainer.

    Args:
        trainer: made with the trusted data.
        settings: the aggregator's; what the plan asks of devices is asked of it.
        spawn: has the work done: in a thread, or at once in virtual time.
    """

    def __init__(self, trainer: Trainer, settings: AggregatorSettings, spawn: Spawn = in_a_thread) -> None:
        self._trainer, self._task = trainer, settings.task
        self._training = Training(lambda: None, spawn=spawn)

    @property
    def layout(self) -> ParamLayout:
        """Of the model that the trusted data is for."""
        return self._trainer.layout

    def begin(self, model: GlobalModel) -> None:
        """See `Tutor`.

        Raises:
            TrainerError: the trusted data is for another model.
        """
        if difference := self.layout.difference(model.layout):
            raise TrainerError(f"trust.data is for another model than the federation's: {difference}")
        task = Task(
            local_epochs=self._task.local_epochs,
            settings=dict(self._task.settings),
            seed=_SEED + model.version,
        )
        self._training.start(replace(model, vector=model.vector.copy()), self._trainer, task)

    def take(self, *, wait: bool = False) -> ParamVector | None:
        """See `Tutor`."""
        if wait:
            self._training.join()
        finished = self._training.take()
        if finished is None:
            return None
        if isinstance(finished.outcome, TrainResult):
            with np.errstate(over="ignore", invalid="ignore"):
                update = finished.outcome.vector - finished.model.vector
            if not np.isfinite(update).all():
                raise TrainerError("learning from trust.data diverged")
            return update
        if isinstance(finished.outcome, FedmqError):
            raise finished.outcome
        raise TrainerError(f"learning from trust.data failed: {finished.outcome!r}") from finished.outcome


def make_tutor(settings: AggregatorSettings, spawn: Spawn = in_a_thread) -> Tutor | None:
    """The tutor that the settings ask for; None when they ask for none.

    Raises:
        FedmqError: a setting cannot be used, or the trusted data cannot be read.
    """
    trust = make_trust(settings.trust)
    if trust is None or not trust.needs_data:
        return None
    factory = find_factory(settings.task.trainer)
    trainer = factory(dict(settings.task.settings), data=str(settings.trust.data))
    return TrainingTutor(trainer, settings, spawn)
