"""Download: follows the model topic through a transport and hands out complete models.

What the agent and the evaluator share. Subscribing brings the retained head, the head says which objects are
missing, subscribing to their chunks brings those; each subscription ends when it has served (pull, not push).
"""

import logging
from collections.abc import Callable

from fedmq import wire
from fedmq.errors import WireError
from fedmq.layout import ParamLayout
from fedmq.topics import Topics
from fedmq.transport.base import Delivery, Transport
from fedmq.types import GlobalModel, ModelHead, ObjectRef

from .frames import FrameCache, FrameReader

log = logging.getLogger(__name__)


class Download:
    """The newest model, on request.

    Args:
        transport: where from.
        topics: of the federation.
        layout: the plan's.
        cache: where keyframes are kept.
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
        self._chunks: dict[str, tuple[ObjectRef, int]] = {}
        self._newest: tuple[int, int] | None = None
        self._active = False

    def start(self) -> None:
        """Ask for the newest model, and for each newer one until `stop`."""
        self._active = True
        self._transport.subscribe(self._topics.model)

    def stop(self) -> None:
        """Ask no more. What is still on its way will not be taken."""
        self._active = False
        self._drop_chunks()
        self._head = None
        self._transport.unsubscribe(self._topics.model)

    def reset(self) -> None:
        """The connection is gone, and with it every subscription."""
        self._active = False
        self._chunks.clear()
        self._head = None

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
        self._drop_chunks()
        missing = self._reader.begin(head)
        self._head, self._newest = head, key
        for ref, index in missing:
            topic = self._topics.object(ref.id, index)
            self._chunks[topic] = ref, index
            self._transport.subscribe(topic)
        if not missing:
            self._finish()

    def _take_chunk(self, topic: str, payload: bytes) -> None:
        if not payload:
            return  # a retired object; a newer head is on its way
        ref, index = self._chunks.pop(topic)
        self._transport.unsubscribe(topic)
        self._reader.add(ref, index, payload)
        if not self._chunks:
            self._finish()

    def _finish(self) -> None:
        if self._head is None:
            return
        self._head = None
        self._on_model(self._reader.assemble())

    def _drop_chunks(self) -> None:
        for topic in self._chunks:
            self._transport.unsubscribe(topic)
        self._chunks.clear()
