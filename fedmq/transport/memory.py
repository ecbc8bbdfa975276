"""The transport of tests and of the simulator: a broker and its clients in one process and one thread.

What lives here: `MemoryTransport`, the client's half of the honest fake; `MemoryBroker` is the other. What
must not: threads, sockets and clocks.

How it works: a publish is routed the moment it is made, and what it causes waits in the subscribers'
transports until they `poll`. What was not polled yet is still on the wire: when a connection breaks it is lost,
whether it was a message (the broker sends it again) or the acknowledgement of a publish (the transport
publishes again). So duplicates arise as they do in life, and the same calls always give the same events. The
fake is strict where brokers differ: packet ids start again at 1 on each connection, as rumqttd's and RabbitMQ's
do, so that an acknowledgement that belongs to an older connection would hit another message.

A transport reconnects in `poll`, after its caller took the `Disconnected`. `poll` never blocks, whatever its
timeout: in a single thread nothing could happen meanwhile.

Every packet passes a `Wire`. Tests' wires carry it at once; a simulator's take virtual time. A few lines over 350:
what the client's half of a connection does is one noun.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from fedmq.errors import PacketTooLargeError, TransportError
from fedmq.transport import packet_size
from fedmq.transport.base import (
    Connected,
    Delivery,
    Disconnected,
    Event,
    PublishAccepted,
    PublishRefused,
    PublishToken,
    SubscriptionRefused,
    Traffic,
    Will,
    check_expiry,
)
from fedmq.transport.filters import check_filter, check_topic
from fedmq.transport.memory_broker import DeadLetter, MemoryBroker
from fedmq.transport.topic_alias import TopicAliases

__all__ = ["DeadLetter", "InstantWire", "MemoryBroker", "MemoryTransport", "Wire"]

_RECEIVE_MAXIMUM = 65535  # MQTT 5 section 3.2.2.3.3: what a broker that announces nothing takes
_NO_SUBSCRIBERS = "No matching subscribers"
_PACKET_TOO_LARGE = "Packet too large"


class Wire(Protocol):
    """What lies between one client and the broker. Packets of one direction arrive in the order in which they left.

    It may carry what belongs to a connection that has ended meanwhile: the transport drops it on arrival.
    """

    def up(self, size: int, arrive: Callable[[], None]) -> None:
        """Carry a packet of `size` bytes to the broker: there, `arrive` is called."""

    def down(self, size: int, arrive: Callable[[], None]) -> None:
        """Carry a packet of `size` bytes to the client: there, `arrive` is called."""


class InstantWire:
    """Everything arrives at once."""

    def up(self, size: int, arrive: Callable[[], None]) -> None:
        """Arrive."""
        arrive()

    def down(self, size: int, arrive: Callable[[], None]) -> None:
        """Arrive."""
        arrive()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    expiry: float | None
    size: int


class MemoryTransport:
    """A `Transport` to a `MemoryBroker`.

    Args:
        broker: where to connect.
        client_id: which session.
        clean_start: end an existing session at each connection.
        session_expiry: seconds that the broker keeps the session after the connection.
        receive_maximum: unacknowledged deliveries at once.
        max_queued: publishes whose outcome was not polled yet.
        will: sent when the connection breaks.
        wire: between here and the broker.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        clean_start: bool = False,
        session_expiry: float = 7 * 86400.0,
        receive_maximum: int = 64,
        max_queued: int = 1024,
        will: Will | None = None,
        wire: Wire | None = None,
    ) -> None:
        self.client_id = client_id
        self.clean_start = clean_start
        self.session_expiry = session_expiry
        self.receive_maximum = receive_maximum
        self.will = will
        self._broker = broker
        self._wire = wire or InstantWire()
        self._max_queued = max_queued
        self._events: deque[Event] = deque()
        self._outcome_awaited: dict[PublishToken, _Outgoing] = {}
        self._requests: dict[str, bool] = {}  # filter -> subscribe or unsubscribe, made while disconnected
        self._unacknowledged: set[int] = set()  # packet ids that came on this connection
        self._aliases = TopicAliases(0)
        self._last_token = 0
        self._generation = 0
        self._connecting = False
        self._online = False
        self._started = False
        self._closed = False
        self._woken = False
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """What MQTT 5 would have sent, by the sizes of its packets."""
        return replace(self._traffic)

    def start(self) -> None:
        """Begin to connect."""
        self._started = True
        self._reconnect()

    def poll(self, timeout: float | None = None) -> Event | None:
        """Take the next event. Returns None at once when there is none, whatever the timeout."""
        if self._woken:
            self._woken = False
            return None
        if not self._events:
            self._reconnect()
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, PublishAccepted | PublishRefused):
            del self._outcome_awaited[event.token]
        return event

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry: float | None = None
    ) -> PublishToken:
        """Publish now, or when there is a connection."""
        check_topic(topic)
        check_expiry(expiry)
        if self._closed:
            raise TransportError(f"publish to {topic!r} after close")
        if len(self._outcome_awaited) >= self._max_queued:
            raise TransportError(
                f"{self._max_queued} publishes already wait for their outcome: poll before publishing more"
            )
        size = packet_size.publish(topic, len(payload), properties=_properties(expiry, None))
        largest = self._broker.maximum_packet_size if self._online else packet_size.LARGEST_PACKET
        if size > largest:
            raise PacketTooLargeError(topic, size, largest)
        self._last_token += 1
        token = PublishToken(self._last_token)
        outgoing = _Outgoing(topic=topic, payload=bytes(payload), retain=retain, expiry=expiry, size=size)
        self._outcome_awaited[token] = outgoing
        if self._online:
            self._send(token, outgoing)
        return token

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe now, or when there is a connection."""
        check_filter(topic_filter)
        self._request(topic_filter, wanted=True)

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe now, or when there is a connection."""
        check_filter(topic_filter)
        self._request(topic_filter, wanted=False)

    def wake(self) -> None:
        """Make the next `poll` return None."""
        self._woken = True

    def close(self) -> None:
        """Leave with a goodbye. Idempotent."""
        self._closed = True
        if self._online:
            self._count(sent=packet_size.disconnect(reason=0, properties=1))
            self._broker.leave(self.client_id)

    # What the broker calls.

    def connected(self, *, session_present: bool) -> None:
        """The broker took the connection."""
        self._online = True
        self._generation += 1
        self._unacknowledged.clear()
        # As over MQTT: a publish of a session that outlives its connection is sent again as it was.
        self._aliases = TopicAliases(self._broker.topic_alias_maximum if self.clean_start else 0)
        self._count(sent=self._connect_bytes)
        self._down(
            packet_size.connack(properties=1),
            Connected(
                session_present=session_present,
                receive_maximum=_RECEIVE_MAXIMUM,
                maximum_packet_size=self._broker.maximum_packet_size,
            ),
        )

    def disconnected(self, event: Disconnected) -> None:
        """The connection is gone, and with it what had not been polled."""
        self._online = False
        on_the_wire = Delivery | PublishAccepted | PublishRefused
        self._events = deque(waiting for waiting in self._events if not isinstance(waiting, on_the_wire))
        if not self._closed:
            self._events.append(event)

    def deliver(self, packet_id: int, *, topic: str, payload: bytes, retained: bool, duplicate: bool) -> None:
        """A message for this client."""
        self._unacknowledged.add(packet_id)
        self._down(
            packet_size.publish(topic, len(payload), properties=_properties(None, None)),
            Delivery(
                topic=topic,
                payload=payload,
                retained=retained,
                duplicate=duplicate,
                acknowledge=partial(self._acknowledge, self._generation, packet_id),
            ),
        )

    # How it works.

    @property
    def _connect_bytes(self) -> int:
        will = self.will
        return packet_size.connect(
            self.client_id,
            properties=1 + 5 + 3,  # session expiry and receive maximum
            will=0 if will is None else packet_size.will(will.topic, len(will.payload), properties=1),
        )

    def _reconnect(self) -> None:
        if self._started and not self._closed and not self._online and not self._connecting:
            self._connecting = True
            self._wire.up(self._connect_bytes, self._knock)

    def _knock(self) -> None:
        """The CONNECT is at the broker."""
        self._connecting = False
        if self._closed or not self._broker.connect(self):
            return
        requests, self._requests = self._requests, {}
        for topic_filter, wanted in requests.items():
            self._request(topic_filter, wanted=wanted)
        for token, outgoing in list(self._outcome_awaited.items()):
            self._send(token, outgoing)

    def _send(self, token: PublishToken, outgoing: _Outgoing) -> None:
        if outgoing.size > self._broker.maximum_packet_size:
            self._events.append(PublishRefused(token=token, reason=_PACKET_TOO_LARGE))
            return
        topic, alias = self._aliases.spell(outgoing.topic)
        self._aliases.sent(outgoing.topic, alias)
        payload_bytes = len(outgoing.payload)
        properties = _properties(outgoing.expiry, alias)
        self._traffic.payload_sent += payload_bytes
        self._traffic.topic_sent += len(topic.encode())
        self._up(
            packet_size.publish(topic, payload_bytes, properties=properties),
            partial(self._route, token, outgoing),
        )

    def _route(self, token: PublishToken, outgoing: _Outgoing) -> None:
        """A PUBLISH is at the broker."""
        routed = self._broker.publish(
            outgoing.topic, outgoing.payload, retain=outgoing.retain, expiry=outgoing.expiry
        )
        accepted = routed or outgoing.retain
        self._down(
            packet_size.puback(reason=0 if routed else 0x10, properties=1),
            PublishAccepted(token=token) if accepted else PublishRefused(token=token, reason=_NO_SUBSCRIBERS),
        )

    def _request(self, topic_filter: str, *, wanted: bool) -> None:
        if not self._online:
            self._requests[topic_filter] = wanted
        elif wanted:
            size = packet_size.subscribe(topic_filter, properties=1)
            self._up(size, partial(self._subscribe, topic_filter))
        else:
            size = packet_size.unsubscribe(topic_filter, properties=1)
            self._up(size, partial(self._unsubscribe, topic_filter))

    def _subscribe(self, topic_filter: str) -> None:
        """A SUBSCRIBE is at the broker."""
        refusal = self._broker.subscribe(self.client_id, topic_filter)
        refused = None if refusal is None else SubscriptionRefused(topic_filter=topic_filter, reason=refusal)
        self._down(packet_size.suback(properties=1), refused)

    def _unsubscribe(self, topic_filter: str) -> None:
        """An UNSUBSCRIBE is at the broker."""
        self._broker.unsubscribe(self.client_id, topic_filter)
        self._down(packet_size.suback(properties=1), None)

    def _acknowledge(self, generation: int, packet_id: int) -> None:
        if self._online and generation == self._generation and packet_id in self._unacknowledged:
            self._unacknowledged.discard(packet_id)
            self._up(
                packet_size.puback(reason=0, properties=1),
                partial(self._broker.acknowledge, self.client_id, packet_id),
            )

    def _up(self, size: int, arrived: Callable[[], object]) -> None:
        """Send a packet; what it leads to at the broker is void when this connection has ended by then."""
        generation = self._generation

        def arrive() -> None:
            if self._online and generation == self._generation:
                arrived()

        self._count(sent=size)
        self._wire.up(size, arrive)

    def _down(self, size: int, event: Event | None) -> None:
        """Be sent a packet, likewise."""
        generation = self._generation

        def arrive() -> None:
            if self._online and generation == self._generation:
                self._count(received=size)
                if isinstance(event, Delivery):
                    self._traffic.payload_received += len(event.payload)
                    self._traffic.topic_received += len(event.topic.encode())
                if event is not None:
                    self._events.append(event)

        self._wire.down(size, arrive)

    def _count(self, *, sent: int = 0, received: int = 0) -> None:
        self._traffic.bytes_sent += sent
        self._traffic.bytes_received += received
        self._traffic.packets_sent += sent > 0
        self._traffic.packets_received += received > 0


def _properties(expiry: float | None, alias: int | None) -> int:
    """What a PUBLISH's properties take, with the byte of their length."""
    return (
        1
        + (0 if expiry is None else packet_size.MESSAGE_EXPIRY_PROPERTY)
        + (0 if alias is None else packet_size.TOPIC_ALIAS_PROPERTY)
    )
