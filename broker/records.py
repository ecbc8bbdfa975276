"""What the log records, and how a broker's state becomes records and is made of them again.

Here live the `Record`, its encoding, `snapshot` (state to records) and `replay` (records to state). Files are
in `log`. Messages and subscriptions are recorded as the MQTT 5 packets that they are.

A record is `>BHIQd` (kind, length of the client identifier, length of the data, number, time) followed by the
client identifier in UTF-8 and the data. Times are seconds since 1970.
"""

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, assert_never

from .decoder import decode_packet
from .errors import ProtocolError
from .packets import Publish, Subscribe, Subscription, Unsubscribe, Version, encode
from .properties import NO_PROPERTIES, Properties
from .session import NEVER, Delivery, Message, Session
from .state import BrokerState

_HEADER: Final = struct.Struct(">BHIQd")
_DELIVERY: Final = struct.Struct(">BH")
_ID: Final = struct.Struct(">I")
_NEVER: Final = math.inf


class RecordKind(IntEnum):
    """What happened. `number` is a session's expiry in SESSION, and a message's number elsewhere."""

    SESSION = 1  # opened, taken up or left; time: when it was left, infinity while connected; data: user
    SESSION_END = 2
    SUBSCRIBE = 3  # data: a SUBSCRIBE
    UNSUBSCRIBE = 4  # data: an UNSUBSCRIBE
    MESSAGE = 5  # data: a PUBLISH; time: when it expires
    RETAIN = 6  # the message becomes its topic's retained one, or clears it
    QUEUE = 7  # the message waits for the client; data: options, packet identifier, subscription identifiers
    SENT = 8  # the message went to the client; time: the packet identifier
    DONE = 9  # the client has it, or it was dropped; time: the packet identifier, 0 if it was never sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of the log."""

    kind: RecordKind
    client: str = ""
    number: int = 0
    time: float = _NEVER
    data: bytes = b""

    def encode(self) -> bytes:
        """The record's bytes."""
        client = self.client.encode()
        return (
            _HEADER.pack(self.kind, len(client), len(self.data), self.number, self.time) + client + self.data
        )


def decode_records(body: memoryview) -> Iterator[Record]:
    """The records of one frame.

    Raises:
        ValueError: the bytes are not records.
    """
    position = 0
    while position < len(body):
        if len(body) - position < _HEADER.size:
            raise ValueError("a record's header is cut short")
        kind, client_size, size, number, time = _HEADER.unpack_from(body, position)
        start = position + _HEADER.size
        position = start + client_size + size
        if position > len(body):
            raise ValueError("a record is cut short")
        client = str(body[start : start + client_size], "utf-8")
        data = bytes(body[start + client_size : position])
        yield Record(kind=RecordKind(kind), client=client, number=number, time=time, data=data)


def session_record(session: Session, now: float) -> Record:
    """A session as it is now."""
    left = _NEVER if session.channel is not None else now
    user = b"" if session.user is None else b"u" + session.user.encode()
    return Record(
        kind=RecordKind.SESSION, client=session.client_id, number=session.expiry, time=left, data=user
    )


def subscribe_record(client: str, subscription: Subscription) -> Record:
    """A subscription that was made."""
    identifier = subscription.identifier
    properties = Properties(subscription_ids=(identifier,)) if identifier else NO_PROPERTIES
    packet = Subscribe(packet_id=1, subscriptions=(subscription,), properties=properties)
    return Record(kind=RecordKind.SUBSCRIBE, client=client, data=encode(packet, Version.V5))


def unsubscribe_record(client: str, topic_filter: str) -> Record:
    """A subscription that was ended."""
    data = encode(Unsubscribe(packet_id=1, filters=(topic_filter,)), Version.V5)
    return Record(kind=RecordKind.UNSUBSCRIBE, client=client, data=data)


def message_record(message: Message) -> Record:
    """A message, before whatever refers to it."""
    packet = Publish(
        topic=message.topic,
        payload=message.payload,
        qos=message.qos,
        retain=message.retain,
        packet_id=1 if message.qos else None,
        properties=message.properties,
    )
    time = _NEVER if message.expires_at is None else message.expires_at
    return Record(kind=RecordKind.MESSAGE, number=message.number, time=time, data=encode(packet, Version.V5))


def queue_record(client: str, delivery: Delivery) -> Record:
    """A delivery, waiting or, with a packet identifier, in flight."""
    options = delivery.qos | delivery.retain << 2
    data = _DELIVERY.pack(options, delivery.packet_id) + b"".join(map(_ID.pack, delivery.identifiers))
    return Record(kind=RecordKind.QUEUE, client=client, number=delivery.message.number, data=data)


def sent_record(client: str, delivery: Delivery) -> Record:
    """A delivery that went out under its packet identifier."""
    return Record(
        kind=RecordKind.SENT, client=client, number=delivery.message.number, time=float(delivery.packet_id)
    )


def done_record(client: str, delivery: Delivery) -> Record:
    """A delivery that is over."""
    return Record(
        kind=RecordKind.DONE, client=client, number=delivery.message.number, time=float(delivery.packet_id)
    )


def snapshot(state: BrokerState, now: float) -> Iterator[Record]:
    """The records that make this state anew; messages without a number are not kept."""
    written: set[int] = set()

    def message(one: Message) -> Iterator[Record]:
        if one.number not in written:
            written.add(one.number)
            yield message_record(one)

    for session in state.sessions.values():
        if not session.persistent:
            continue
        yield session_record(session, now)
        for subscription in session.subscriptions.values():
            yield subscribe_record(session.client_id, subscription)
        for delivery in (*session.inflight.values(), *session.queue):
            if delivery.message.number:
                yield from message(delivery.message)
                yield queue_record(session.client_id, delivery)
    for retained in state.retained.values():
        if retained.number:
            yield from message(retained)
            yield Record(kind=RecordKind.RETAIN, number=retained.number)


def _packet(data: bytes) -> object:
    """The packet in a record: first byte, remaining length, body."""
    start = 2
    while data[start - 1] & 0x80:
        start += 1
    return decode_packet(data[0], memoryview(data)[start:], Version.V5)


class _Replay:
    """Applies records, in order, to an empty state."""

    def __init__(self, now: float) -> None:
        self.state = BrokerState()
        self._now = now
        self._messages: dict[int, Message] = {}
        # One client may wait for the same message more than once, so each entry is a list.
        self._waiting: dict[tuple[str, int], list[Delivery]] = {}

    def apply(self, record: Record) -> None:
        match record.kind:
            case RecordKind.SESSION:
                self._session(record)
            case RecordKind.SESSION_END:
                for left in self.state.end_session(self.state.sessions[record.client]):
                    self._waiting.pop((record.client, left.message.number), None)
            case RecordKind.SUBSCRIBE | RecordKind.UNSUBSCRIBE:
                session = self.state.sessions[record.client]
                match _packet(record.data):
                    case Subscribe(subscriptions=(subscription,)):
                        self.state.subscribe(session, subscription)
                    case Unsubscribe(filters=(topic_filter,)):
                        self.state.unsubscribe(session, topic_filter)
                    case other:
                        raise ValueError(f"a subscription record holds {type(other).__name__}")
            case RecordKind.MESSAGE:
                self._message(record)
            case RecordKind.RETAIN:
                self.state.retain(self._messages[record.number])
            case RecordKind.QUEUE:
                self._queue(record)
            case RecordKind.SENT:
                session, delivery = self._take(record, 0)
                session.resume(delivery, int(record.time))
                self._waiting.setdefault((record.client, record.number), []).append(delivery)
            case RecordKind.DONE:
                _, delivery = self._take(record, int(record.time))
                self.state.release(delivery.message)
            case _:
                assert_never(record.kind)

    def _session(self, record: Record) -> None:
        user = record.data[1:].decode() if record.data else None
        session = self.state.sessions.get(record.client) or self.state.open_session(record.client, user)
        session.user, session.expiry = user, record.number
        left = self._now if record.time == _NEVER else record.time
        session.expires_at = None if record.number == NEVER else left + record.number

    def _message(self, record: Record) -> None:
        packet = _packet(record.data)
        if not isinstance(packet, Publish):
            raise ValueError(f"a message record holds {type(packet).__name__}")
        message = self._messages[record.number] = Message(
            packet.topic,
            packet.payload,
            qos=packet.qos,
            retain=packet.retain,
            properties=packet.properties,
            expires_at=None if record.time == _NEVER else record.time,
        )
        message.number = record.number
        self.state.last_number = max(self.state.last_number, record.number)

    def _queue(self, record: Record) -> None:
        options, packet_id = _DELIVERY.unpack_from(record.data)
        identifiers = tuple(number for (number,) in _ID.iter_unpack(record.data[_DELIVERY.size :]))
        message = self._messages[record.number]
        delivery = Delivery(message, qos=options & 3, retain=bool(options & 4), identifiers=identifiers)
        session = self.state.sessions[record.client]
        self._waiting.setdefault((record.client, record.number), []).append(delivery)
        if packet_id:
            self.state.hold(message)
            session.resume(delivery, packet_id)
        else:
            self.state.enqueue(session, delivery)

    def _take(self, record: Record, packet_id: int) -> tuple[Session, Delivery]:
        """Takes the one delivery that a record means out of the queue or the flight."""
        key = record.client, record.number
        waiting = self._waiting[key]
        index = [delivery.packet_id for delivery in waiting].index(packet_id)
        delivery = waiting.pop(index)
        if not waiting:
            del self._waiting[key]
        session = self.state.sessions[record.client]
        if packet_id:
            session.acknowledge(packet_id)
        else:
            session.queue.remove(delivery)
            session.queued_bytes -= delivery.message.size
        return session, delivery


def replay(records: Iterable[Record], now: float) -> BrokerState:
    """The state that records lead to; whoever was connected counts as having left at `now`.

    Raises:
        ValueError: a record contradicts those before it.
    """
    machine = _Replay(now)
    for record in records:
        try:
            machine.apply(record)
        except (KeyError, IndexError, ValueError, OverflowError, struct.error, ProtocolError) as error:
            raise ValueError(f"a {record.kind.name} record does not fit: {error!r}") from error
    return machine.state
