"""Shares: what this device makes of what the aggregator asks of it. No network, no clock here.

The device's operator has the last word: he may bound the steps of an update, or refuse shares altogether. Either way
its updates say what was done: their `local_steps`, and where shares are refused the metric `accepts_shares`.
"""

import logging
from dataclasses import replace

from fedmq import wire
from fedmq.codecs import pipeline_from_wire
from fedmq.errors import WireError
from fedmq.plan import Plan
from fedmq.share import ACCEPTS_SHARES, TRAIN_SECONDS, Share
from fedmq.wire import MAX_METRICS

from .events import ShareSeen
from .settings import TrainerSettings
from .trainer import Task, TrainResult

log = logging.getLogger(__name__)


class Shares:
    """The newest share, and the operator's bounds on it.

    Args:
        settings: the operator's.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        self._max_steps, self.are_accepted = settings.max_steps, settings.accept_shares
        self._newest: Share | None = None

    def take(self, payload: bytes) -> ShareSeen:
        """Take what came on the task's topic; nothing when it was cleared.

        Raises:
            WireError: it is no share. The one before stays.
        """
        share = wire.unpack_share(payload) if payload else None
        if share is not None and share.codec:
            try:
                pipeline_from_wire(share.codec)
            except WireError as error:
                log.warning("the share's codec cannot be used, the plan's is: %s", error)
                share = replace(share, codec="")
        self._newest = share
        if share is None:
            return ShareSeen(boot=0, wait=0.0, jitter=0.0)
        return ShareSeen(boot=share.boot, wait=share.wait, jitter=share.jitter)

    def task(self, task: Task, boot: int) -> Task:
        """The plan's work, but as many steps as are asked for and allowed.

        Args:
            task: as the plan has it.
            boot: of the aggregator's present life.
        """
        share = self._present(boot)
        return replace(task, steps=share.local_steps or None if share else None, max_steps=self._max_steps)

    def plan(self, plan: Plan, boot: int) -> Plan:
        """The plan, but with the codec that is asked for."""
        share = self._present(boot)
        return replace(plan, codec=share.codec) if share is not None and share.codec else plan

    def told(self, result: TrainResult, seconds: float, boot: int) -> TrainResult:
        """A result that also tells the aggregator what its allocation needs; where nothing is allocated, as it is.

        Args:
            result: the trainer's.
            seconds: for which it worked.
            boot: of the aggregator's present life.
        """
        more: dict[str, float] = {}
        if not self.are_accepted:
            more[ACCEPTS_SHARES] = 0.0
        elif self._present(boot) is not None:
            more[TRAIN_SECONDS] = seconds
        metrics = {**result.metrics, **more}
        return replace(result, metrics=metrics) if more and len(metrics) <= MAX_METRICS else result

    def _present(self, boot: int) -> Share | None:
        share = self._newest
        return share if share is not None and share.boot == boot else None
