"""Download: follows the model topic through a transport and hands out complete models.

What the agent and the evaluator share. Subscribing brings the retained head, the head says which objects are
missing, subscribing to their chunks brings those; each subscription ends when it has served (pull, not push).
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from fedmq import wire
from fedmq.errors import WireError
from fedmq.layout import ParamLayout
from fedmq.topics import Topics
from fedmq.transport.base import Delivery, Transport
from fedmq.types import GlobalModel, ModelHead, ObjectRef

from .frames import FrameCache, FrameReader

log = logging.getLogger(__name__)

#: Chunks asked for at a time. A broker queues so many messages for one client and drops the others, mosquitto 1000
#: by default, and a device has to hold what comes.
WINDOW: Final = 32


class Download:
    """The newest model, on request.

    Args:
        transport: where from.
        topics: of the federation.
        layout: the plan's.
        cache: where frames are kept.
        on_model: called with each complete model.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        layout: ParamLayout,
        cache: FrameCache,
        on_model: Callable[[GlobalModel], None],
    ) -> None:
        self._transport, self._topics, self._on_model = transport, topics, on_model
        self._reader = FrameReader(layout, cache)
        self._head: ModelHead | None = None
        # By topic: the chunks that were asked for, and those that will be when these have come.
        self._chunks: dict[str, tuple[ObjectRef, int]] = {}
        self._later: deque[tuple[str, tuple[ObjectRef, int]]] = deque()
        self._newest: tuple[int, int] | None = None
        self._active = False

    def start(self) -> None:
        """Ask for the newest model, and for each newer one until `stop`."""
        self._active = True
        self._transport.subscribe(self._topics.model)

    def stop(self) -> None:
        """Ask no more. What is still on its way will not be taken."""
        self._active = False
        for topic in self._chunks:
            self._transport.unsubscribe(topic)
        self._forget()
        self._transport.unsubscribe(self._topics.model)

    def reset(self) -> None:
        """The connection is gone, and with it every subscription."""
        self._active = False
        self._forget()

    def take(self, delivery: Delivery) -> bool:
        """Take a message if it belongs to a model.

        Returns:
            Whether it did; what is wrong with it is logged.
        """
        try:
            if self._active and delivery.topic == self._topics.model:
                self._take_head(delivery.payload)
            elif delivery.topic in self._chunks:
                self._take_chunk(delivery.topic, delivery.payload)
            else:
                return False
        except WireError as error:
            log.warning("the model cannot be used: %s", error)
        return True

    def _take_head(self, payload: bytes) -> None:
        if not payload:
            return  # the topic was cleared
        head = wire.unpack_head(payload)
        key = head.epoch, head.version
        # Law 9: a broker that crashed may bring an older model back; versions do not run backwards.
        if self._newest is not None and head.epoch == self._newest[0] and head.version < self._newest[1]:
            log.warning("ignored version %d: version %d was seen before", head.version, self._newest[1])
            return
        missing = {
            self._topics.object(ref.id, index): (ref, index) for ref, index in self._reader.begin(head)
        }
        self._head, self._newest = head, key
        # What was asked for and is wanted still is on its way already.
        for topic in self._chunks.keys() - missing.keys():
            self._transport.unsubscribe(topic)
        self._chunks = {topic: missing.pop(topic) for topic in self._chunks if topic in missing}
        self._later = deque(missing.items())
        self._ask()
        if not self._chunks:
            self._finish()

    def _take_chunk(self, topic: str, payload: bytes) -> None:
        if not payload:
            return  # a retired object; a newer head is on its way
        ref, index = self._chunks.pop(topic)
        self._transport.unsubscribe(topic)
        self._ask()
        self._reader.add(ref, index, payload)
        if not self._chunks:
            self._finish()

    def _ask(self) -> None:
        while self._later and len(self._chunks) < WINDOW:
            topic, chunk = self._later.popleft()
            self._chunks[topic] = chunk
            self._transport.subscribe(topic)

    def _finish(self) -> None:
        if self._head is None:
            return
        self._head = None
        self._on_model(self._reader.assemble())

    def _forget(self) -> None:
        self._chunks.clear()
        self._later.clear()
        self._head = None
