"""The evaluator: takes the retained model like any edge, measures it, and publishes what it found.

So the aggregator needs neither data nor torch. The result is small JSON on the stats topic, for dashboards and the
demo; always the newest version, and never two at a time.
"""

import json
import logging
import math
import time
from collections.abc import Callable

from fedmq import wire
from fedmq.errors import FedmqError, TransportError, WireError
from fedmq.eventlog import EventLog
from fedmq.mask import Mask
from fedmq.plan import Plan
from fedmq.topics import Topics, check_name
from fedmq.transport.base import Connected, Delivery, Disconnected, SubscriptionRefused, Transport
from fedmq.types import GlobalModel

from .download import Download
from .frames import FrameCache
from .settings import EvaluatorSettings
from .trainer import Trainer, TrainerFactory, make_trainer, plain_metrics, plan_mask

log = logging.getLogger(__name__)


class Evaluator:
    """One evaluator.

    Args:
        settings: what its operator says.
        connect: makes the transport from the client id.
        factory: makes the trainer; None looks it up by `settings.trainer.factory` or the plan's name.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: EvaluatorSettings,
        connect: Callable[[str], Transport],
        factory: TrainerFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_name("name", settings.name)
        self._settings, self._factory, self._clock = settings, factory, clock
        self._topics = Topics(settings.federation)
        self._events = EventLog(settings.events)
        self.transport = connect(f"{settings.federation}-evaluator-{settings.name}")
        self._cache = FrameCache(settings.folder)
        self._download: Download | None = None
        self._trainer: Trainer | None = None
        self._plan: Plan | None = None
        self._mask: Mask | None = None
        self._plan_message = b""
        self._model: GlobalModel | None = None
        self._measured: tuple[int, int] | None = None
        self._measured_at = -1e9
        self._stopping = False

    def stop(self) -> None:
        """Let `run` end soon. The one method that other threads and signals may call."""
        self._stopping = True
        self.transport.wake()

    def run(self) -> None:
        """Measure each new version until `stop`."""
        self.transport.start()
        try:
            while not self._stopping:
                self.turn()
        finally:
            self.transport.close()
            self._events.close()

    def turn(self) -> None:
        """Take what has come, then measure the newest model."""
        due = self._measured_at + self._settings.min_interval if self._model is not None else math.inf
        event = self.transport.poll(min(max(due - self._clock(), 0.0), 60.0))
        match event:
            case Connected():
                log.info("connected to the broker")
                self.transport.subscribe(self._topics.plan)
                if self._download is not None:
                    self._download.start()
            case Disconnected(reason=reason, taken_over=taken_over):
                log.warning("no connection to the broker: %s", reason)
                if taken_over:
                    log.error("another evaluator is called %s: give each its own name", self._settings.name)
                if self._download is not None:
                    self._download.reset()
            case Delivery():
                self._take(event)
                event.ack()
            case SubscriptionRefused(topic_filter=topic_filter, reason=reason):
                log.error("the broker refuses the subscription to %s: %s", topic_filter, reason)
            case None if self._model is not None and self._clock() >= due and not self._stopping:
                self._measure(self._model)

    def _take(self, delivery: Delivery) -> None:
        if delivery.topic == self._topics.plan:
            if delivery.payload and delivery.payload != self._plan_message:
                self._adopt(delivery.payload)
        elif self._download is not None:
            self._download.take(delivery)

    def _adopt(self, payload: bytes) -> None:
        try:
            plan = wire.unpack_plan(payload)
            if plan.has_only_another_mask(self._plan):
                self._mask = plan_mask(plan)
                self._plan, self._plan_message = plan, payload
                return
        except WireError as error:
            log.warning("ignored a plan: %s", error)
            return
        if self._download is not None:
            self._download.stop()
        self._plan = self._download = self._model = None
        self._plan_message = b""
        own = self._settings.trainer
        try:
            trainer = make_trainer(plan, own.factory, own.settings, self._factory)
            self._mask = plan_mask(plan)
        except FedmqError as error:
            log.error("this evaluator cannot satisfy the plan: %s", error)
            return
        self._trainer, self._plan, self._plan_message = trainer, plan, payload
        self._download = Download(self.transport, self._topics, plan.layout, self._cache, self._keep)
        self._download.start()

    def _keep(self, model: GlobalModel) -> None:
        if (model.epoch, model.version) != self._measured:
            self._model = model

    def _measure(self, model: GlobalModel) -> None:
        self._model = None
        self._measured, self._measured_at = (model.epoch, model.version), self._clock()
        if self._trainer is None:
            return
        vector = model.vector if self._mask is None else self._mask.applied(model.vector)
        try:
            metrics = plain_metrics(self._trainer.evaluate(vector))
        except Exception:
            log.exception("version %d could not be evaluated", model.version)
            return
        self._events.write("evaluation", version=model.version, **metrics)
        # JSON has no NaN: other languages' readers would refuse the whole message
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self.transport.publish(
                self._topics.stats(self._settings.name),
                json.dumps({"version": model.version, "time": time.time(), **finite}).encode(),
                retain=True,
            )
        except TransportError as error:
            log.error("the evaluation was not published: %s", error)
