"""The guard: puts the check that the settings name before the engine, and keeps the server's own update fresh.

With `agreement` there is nothing to keep: the consensus is the engine's. With trusted data a `Tutor` makes the server's
own update. That takes about as long as a device's epoch, so production's works in a thread of its own (the app makes
it): receipts and models do not wait for it, and updates are judged against the last one that was finished, from a model
some versions old. Which one that was depends on the machine, and nothing else does: what was refused is in the journal,
so replay asks neither the check nor its data. Only the first is waited for, before anything is judged.
"""

import logging
from typing import Protocol

from fedmq.errors import FedmqError, LocalError, SettingError
from fedmq.types import GlobalModel, ParamVector

from .engine import Engine
from .trust import TrustSettings, blend, check_agreement, check_reference, make_trust

log = logging.getLogger(__name__)


class Tutor(Protocol):
    """Learns from data that the operator trusts."""

    def begin(self, model: GlobalModel) -> None:
        """Begin to learn from a model; what was begun before is finished. The vector is the tutor's to keep."""

    def take(self, *, wait: bool = False) -> ParamVector | None:
        """The update that was begun, float32, shape (layout.size,), once; None when it is not finished.

        Raises:
            FedmqError: learning failed.
        """


class Guard:
    """For one aggregator.

    Args:
        settings: which check.
        engine: gets the check.
        tutor: for checks that need one.

    Raises:
        SettingError: the check cannot be made.
        FedmqError: the tutor could not learn.
    """

    def __init__(self, settings: TrustSettings, engine: Engine, tutor: Tutor | None) -> None:
        self._engine, self._every = engine, settings.every
        self._tutor: Tutor | None = None
        trust = make_trust(settings)
        if trust is None:
            return
        if not trust.needs_data:
            engine.gate = lambda delta, conditions: check_agreement(trust, delta, engine.consensus)
            return
        if tutor is None:
            raise SettingError("trust.rule", settings.rule, "here nobody can learn from trusted data")
        self._tutor = tutor
        self._begin(tutor)
        first = tutor.take(wait=True)
        if first is None:
            raise LocalError("the server's own update was waited for, and did not come")
        self._reference, self._is_learning = first, False
        engine.gate = lambda delta, conditions: check_reference(trust, delta, self._reference)

    def refresh(self) -> None:
        """Take what the tutor has finished, and let it begin anew when that is due."""
        if self._tutor is None:
            return
        try:
            finished = self._tutor.take()
        except FedmqError as error:
            log.error("the server's own update failed, the one before stays: %s", error)
            self._is_learning = False
        else:
            if finished is not None:
                self._reference, self._is_learning = blend(self._reference, finished), False
        if not self._is_learning and self._engine.state.version >= self._begun + self._every:
            self._begin(self._tutor)

    def _begin(self, tutor: Tutor) -> None:
        self._begun, self._is_learning = self._engine.state.version, True
        tutor.begin(self._engine.model)
