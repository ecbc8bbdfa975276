"""The outlet: everything that the aggregator says, in an order and at a pace that the broker can take.

Plan, frames, model head and birth go through one queue, since a head must not overtake its objects; receipts and
shares wait in sets, where a newer one of the same client replaces the older; statistics are sent as they come. Each
kind has a window of publishes on their way, so that a slow broker costs time and not memory.

A head goes out only if the broker takes all of its objects: who finds a head whose objects are not there asks for
them in vain, for ever, while the head before is as good as it was.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fedmq import wire
from fedmq.errors import PacketTooLargeError, TransportError, WireError
from fedmq.share import Share
from fedmq.topics import Topics
from fedmq.transport.base import PublishToken, Transport
from fedmq.types import GlobalModel, ObjectRef, Receipt, Refusal

from .ledger import Key
from .publisher import Publisher

log = logging.getLogger(__name__)

#: Receipts on their way at a time; further ones wait, and newer ones of the same client replace them.
_RECEIPT_WINDOW: Final = 256
#: Publishes of plan, objects and heads on their way at a time. Both windows leave room in the transport's queue.
_MODEL_WINDOW: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What publishing one version put on the queue, in bytes."""

    version: int
    frame_bytes: int
    delta_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    """A retained message that waits; `of_model` for objects, head, and what is cleared behind it."""

    topic: str
    payload: bytes
    of_model: bool


class Outlet:
    """What goes out.

    Args:
        transport: where to.
        topics: of the federation.
        publisher: turns versions into frames and deltas.
        receipt: looks a receipt up.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        publisher: Publisher,
        receipt: Callable[[Key], Receipt],
    ) -> None:
        self._transport, self._topics, self._publisher, self._receipt = transport, topics, publisher, receipt
        self._owed: dict[Key, None] = {}
        self._notices: dict[str, Refusal] = {}
        self._shares: dict[str, Share | None] = {}
        self._receipts_out: set[PublishToken] = set()
        # Plan, objects, head, presence, in the order in which a client may find them.
        self._queue: deque[_Queued] = deque()
        self._queued_out: set[PublishToken] = set()
        # Whether the broker takes no packets as large as the model's, and whether the log has said so.
        self._too_large = self._told = False
        self.version = -1

    @property
    def is_busy(self) -> bool:
        """Whether a version is still on its way, or cannot be; the next one waits, and the newest wins."""
        return bool(self._queue) or self._too_large

    @property
    def owes(self) -> bool:
        """Whether there are receipts to send and room to send them."""
        return bool(self._owed or self._shares) and len(self._receipts_out) < _RECEIPT_WINDOW

    def restart(self) -> None:
        """The connection is new: nothing of before is on its way, and everything will be published again."""
        self._receipts_out.clear()
        self._queued_out.clear()
        self._queue.clear()
        self._too_large = False
        self.version = -1

    def settle(self, token: PublishToken) -> None:
        """A publish came to its end."""
        self._receipts_out.discard(token)
        self._queued_out.discard(token)

    def owe(self, answers: Iterable[Key]) -> None:
        """Receipts are to be sent."""
        self._owed.update(dict.fromkeys(answers))

    def owe_notice(self, key: Key, client: str, refusal: Refusal) -> None:
        """A client is to be told that a message of its was dropped."""
        self._notices[client] = refusal
        self._owed[key] = None

    def owe_shares(self, shares: Iterable[tuple[str, Share | None]]) -> None:
        """Clients are to be told their share of the work, or to forget it."""
        self._shares.update(shares)

    def queue(self, topic: str, payload: bytes) -> None:
        """Put a retained message into the queue."""
        self._queue.append(_Queued(topic=topic, payload=payload, of_model=False))

    def queue_frames(self) -> None:
        """Put the frames' chunks into the queue, for a broker that may have lost them."""
        for ref, chunks in self._publisher.frame_objects():
            self._queue_object(ref, chunks)

    def adopt(self, payload: bytes) -> None:
        """Let the next publish clear what a retained head refers to that is not ours; unreadable ones are let be."""
        try:
            self._publisher.adopt(wire.unpack_head(payload))
        except WireError as error:
            log.warning("the retained model cannot be read: %s", error)

    def queue_model(self, model: GlobalModel) -> Published:
        """Put a version into the queue: objects, head, then what no head refers to any more is cleared."""
        publication = self._publisher.publish(model)
        for ref, chunks in publication.objects:
            self._queue_object(ref, chunks)
        head = wire.pack_head(publication.head)
        self._queue_part(self._topics.model, head)
        for ref in publication.retired:
            self._queue_object(ref, [b""] * ref.chunks)
        self.version = model.version
        objects = sum(ref.size for ref, _ in publication.objects)
        is_frame = publication.head.delta is None
        return Published(
            version=model.version,
            frame_bytes=objects if is_frame else 0,
            delta_bytes=len(head) + (0 if is_frame else objects),
        )

    def flush(self) -> None:
        """Send what is queued, as far as the window allows."""
        while self._queue and len(self._queued_out) < _MODEL_WINDOW:
            first = self._queue[0]
            try:
                self._queued_out.add(self._transport.publish(first.topic, first.payload, retain=True))
            except PacketTooLargeError as error:
                if first.of_model:
                    self._withhold(error)
                    continue
                log.error("%s", error)
            except TransportError as error:
                log.warning("not published to %s yet: %s", first.topic, error)
                return
            self._queue.popleft()
            if first.topic == self._topics.model:
                self._told = False

    def _withhold(self, error: PacketTooLargeError) -> None:
        """Publish no version on this connection: the next one would name the same frames, or others cut as large."""
        self._too_large = True
        self._queue = deque(message for message in self._queue if not message.of_model)
        if not self._told:
            self._told = True
            log.error(
                "%s. No model is published until then, and the one before stays: restart with a lower "
                "publish.chunk_bytes",
                error,
            )

    def send_receipts(self) -> None:
        """Send the shares and receipts owed, as far as the window allows.

        Shares go first: with its receipt a client begins the next piece of work.
        """
        while self._shares and self.owes:
            client, share = next(iter(self._shares.items()))
            token = self.send(self._topics.task(client), wire.pack_share(share) if share is not None else b"")
            if token is None:
                return
            del self._shares[client]
            self._receipts_out.add(token)
        while self._owed and self.owes:
            key = next(iter(self._owed))
            client, _ = key
            receipt = replace(self._receipt(key), notice=self._notices.get(client))
            token = self.send(self._topics.receipt(client), wire.pack_receipt(receipt))
            if token is None:
                return
            del self._owed[key]
            self._notices.pop(client, None)
            self._receipts_out.add(token)

    def send_stats(self, stats: Mapping[str, object]) -> None:
        """Send the statistics."""
        self.send(self._topics.stats("aggregator"), json.dumps(stats).encode())

    def send(self, topic: str, payload: bytes) -> PublishToken | None:
        """Publish one retained message now; None when the transport does not take it."""
        try:
            return self._transport.publish(topic, payload, retain=True)
        except TransportError as error:
            log.error("not published to %s: %s", topic, error)
            return None

    def _queue_object(self, ref: ObjectRef, chunks: Sequence[bytes]) -> None:
        for index, chunk in enumerate(chunks):
            self._queue_part(self._topics.object(ref.id, index), chunk)

    def _queue_part(self, topic: str, payload: bytes) -> None:
        self._queue.append(_Queued(topic=topic, payload=payload, of_model=True))
