"""The evaluator: takes the retained model like any edge, measures it, and publishes what it found.

So the aggregator needs neither data nor torch. The result is small JSON on the stats topic, for dashboards and the
demo; always the newest version, and never two at a time.
"""

import json
import logging
import time
from collections.abc import Callable

from fedmq import wire
from fedmq.errors import FedmqError, TransportError, WireError
from fedmq.eventlog import EventLog
from fedmq.topics import Topics, check_name
from fedmq.transport.base import Connected, Delivery, Disconnected, SubscriptionRefused, Transport
from fedmq.types import GlobalModel

from .download import Download
from .frames import FrameCache
from .settings import EvaluatorSettings
from .trainer import Trainer, TrainerFactory, find_factory

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
        timeout = 60.0
        if self._model is not None:
            timeout = max(self._measured_at + self._settings.min_interval - self._clock(), 0.0)
        event = self.transport.poll(timeout)
        match event:
            case Connected():
                self.transport.subscribe(self._topics.plan)
                if self._download is not None:
                    self._download.start()
            case Disconnected(reason=reason):
                log.warning("no connection to the broker: %s", reason)
                if self._download is not None:
                    self._download.reset()
            case Delivery():
                self._take(event)
                event.ack()
            case SubscriptionRefused(topic_filter=topic_filter, reason=reason):
                log.error("the broker refuses the subscription to %s: %s", topic_filter, reason)
            case None if self._model is not None:
                self._measure(self._model)

    def _take(self, delivery: Delivery) -> None:
        if delivery.topic == self._topics.plan:
            if delivery.payload and delivery.payload != self._plan_message:
                self._adopt(delivery.payload)
        elif self._download is not None:
            self._download.take(delivery)

    def _adopt(self, payload: bytes) -> None:
        if self._download is not None:
            self._download.stop()
        self._download = self._model = None
        try:
            plan = wire.unpack_plan(payload)
            name = self._settings.trainer.factory or plan.trainer
            factory = self._factory or find_factory(name)
            trainer = factory(dict(plan.trainer_settings), **dict(self._settings.trainer.settings))
        except WireError as error:
            log.warning("ignored a plan: %s", error)
            return
        except FedmqError as error:
            log.error("this evaluator cannot satisfy the plan: %s", error)
            return
        difference = trainer.layout.difference(plan.layout)
        if difference:
            log.error("trainer %s has another model than the plan: %s", name, difference)
            return
        self._trainer, self._plan_message = trainer, payload
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
        metrics = self._trainer.evaluate(model.vector)
        self._events.write("evaluation", version=model.version, **dict(metrics))
        try:
            self.transport.publish(
                self._topics.stats(self._settings.name),
                json.dumps({"version": model.version, "time": time.time(), **metrics}).encode(),
                retain=True,
            )
        except TransportError as error:
            log.error("the evaluation was not published: %s", error)
