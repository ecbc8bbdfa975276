"""Upload: publishes updates of the outbox through a transport and tells what became of them.

The counterpart of `download`. An update that does not fit the plan's `chunk_bytes` goes in chunks, a few on their way
at a time, so that neither memory nor the transport's queue grows with the update. It is taken once the broker has
acknowledged all of them; whether it counts is the receipt's to say (law 4).

Small updates overlap. Large ones go one after the other: the aggregator keeps few unfinished updates of a client, and
would drop the chunks of the others.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fedmq import wire
from fedmq.chunks import checksum, split
from fedmq.errors import StoreError, TransportError
from fedmq.plan import DEFAULT_CHUNK_BYTES
from fedmq.transport.base import PublishAccepted, PublishRefused, PublishToken, Transport
from fedmq.types import Chunk, ClientId, UpdateId

from .events import NotTaken, Taken
from .outbox import Outbox

log = logging.getLogger(__name__)

#: Chunks of one update on their way at a time; an MQTT client's own window is 20.
WINDOW: Final = 32
#: Smaller chunks are not made, whatever a plan says: an update in one-byte pieces is an attack on ourselves.
MIN_CHUNK_BYTES: Final = 1024
#: Room for a chunk's header and envelope beside its data.
_HEADER_BYTES: Final = 256


@dataclass(slots=True, kw_only=True, eq=False)
class _Sending:
    """One update on its way: the packets still to be published, and the outcomes still to come."""

    packets: Iterator[bytes]
    tokens: set[PublishToken] = field(default_factory=set)


class Upload:
    """The way of updates to the broker.

    Args:
        transport: where to.
        topic: likewise.
        outbox: where they are.
        client: whose they are.

    Attributes:
        chunk_bytes: largest payload of one publish; as the plan says, once there is one.
    """

    def __init__(self, transport: Transport, topic: str, outbox: Outbox, client: ClientId) -> None:
        self._transport, self._topic, self._outbox, self._client = transport, topic, outbox, client
        self.chunk_bytes = DEFAULT_CHUNK_BYTES
        self._sending: dict[int, _Sending] = {}
        self._owners: dict[PublishToken, int] = {}
        # The update in chunks that has some yet to be published, and those that wait for it.
        self._unfinished: int | None = None
        self._waiting: deque[int] = deque()

    def send(self, seq: int) -> NotTaken | None:
        """Begin to publish an update, or let it wait for its turn.

        Args:
            seq: its number; not on its way already.

        Returns:
            NotTaken when it cannot be published now; the log says why.
        """
        try:
            message = self._outbox.get(seq).message
        except StoreError as error:
            log.error("%s Update %d is not sent; trying again.", error, seq)
            return NotTaken(seq=seq)
        if len(message) > self.chunk_bytes and self._unfinished is not None:
            self._waiting.append(seq)
            return None
        self._sending[seq] = _Sending(packets=self._packets(seq, message))
        return self._publish_more(seq)

    def take(self, event: PublishAccepted | PublishRefused) -> Taken | NotTaken | None:
        """Take the outcome of a publish.

        Returns:
            What became of an update, if that is known now.
        """
        outcome = self._settle(event)
        return self._send_waiting() if outcome is None else outcome

    def _settle(self, event: PublishAccepted | PublishRefused) -> Taken | NotTaken | None:
        seq = self._owners.pop(event.token, None)
        if seq is None:
            return None  # not an update's, or one of an attempt that was given up
        if isinstance(event, PublishRefused):
            log.warning("the broker did not take update %d: %s", seq, event.reason)
            return self._give_up(seq)
        sending = self._sending[seq]
        sending.tokens.discard(event.token)
        failure = self._publish_more(seq)
        if failure is not None or sending.tokens:
            return failure
        del self._sending[seq]
        return Taken(seq=seq)

    def _send_waiting(self) -> NotTaken | None:
        """Begin with those that wait, as far as their turn has come; after a failure the next event goes on."""
        while self._waiting and self._unfinished is None:
            seq = self._waiting.popleft()
            # It may have been settled meanwhile: by a receipt for an earlier attempt.
            if seq in self._outbox and (failure := self.send(seq)) is not None:
                return failure
        return None

    def _publish_more(self, seq: int) -> NotTaken | None:
        sending = self._sending[seq]
        while len(sending.tokens) < WINDOW:
            packet = next(sending.packets, None)
            if packet is None:
                if self._unfinished == seq:
                    self._unfinished = None
                return None
            try:
                token = self._transport.publish(self._topic, packet)
            except TransportError as error:
                log.error("update %d is not published to %s: %s", seq, self._topic, error)
                return self._give_up(seq)
            sending.tokens.add(token)
            self._owners[token] = seq
        self._unfinished = seq
        return None

    def _give_up(self, seq: int) -> NotTaken:
        """Forget this attempt; what is still on its way of it changes nothing."""
        if self._unfinished == seq:
            self._unfinished = None
        for token in self._sending.pop(seq).tokens:
            self._owners.pop(token, None)
        return NotTaken(seq=seq)

    def _packets(self, seq: int, message: bytes) -> Iterator[bytes]:
        if len(message) <= self.chunk_bytes:
            yield message
            return
        pieces = split(message, max(self.chunk_bytes, MIN_CHUNK_BYTES) - _HEADER_BYTES)
        update_id = UpdateId(client=self._client, epoch=self._outbox.epoch, seq=seq)
        digest = checksum(message)
        for index, piece in enumerate(pieces):
            chunk = Chunk(
                id=update_id,
                index=index,
                count=len(pieces),
                size=len(message),
                digest=digest,
                data=piece,
            )
            yield wire.pack_chunk(chunk)
