"""One client's session: what waits for it, what is under way to it, and under which packet identifiers.

Here live `Message` (one publish as it is kept, shared by everyone it waits for), `Delivery` (a message on
its way to one client) and `Session`. A session knows no sockets and no other sessions.

Theory of operation. A delivery of QoS 1 enters the queue. While fewer than `window` deliveries are outstanding
on this connection it moves to `inflight` under a packet identifier, and stays there until that identifier is
acknowledged, in whatever order. When the client comes back, everything in flight is sent again first, in the
old order, under the old identifiers and with DUP; the window holds for these too, so a client that returns
with a smaller Receive Maximum is not overrun (MQTT 5, sections 4.4 and 4.9).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .packets import Subscription, Will
from .properties import NO_PROPERTIES, Properties, pack_properties_body
from .wire import MAX_U16, Payload, pack_text

if TYPE_CHECKING:
    from .channel import Channel

NEVER: Final = 0xFFFF_FFFF  # a session expiry that means: never (MQTT 5, section 3.1.2.11.2)
_OVERHEAD: Final = 256  # bytes of Python objects around a stored message, about


class Message:
    """A publish as the broker keeps it.

    Attributes:
        head: the topic as it stands in a PUBLISH.
        forwarded: the properties that are passed on unchanged, encoded.
        expires_at: when it stops being worth delivering; None for never.
        number: its number in the log, 0 while it is not there.
        references: how many queues, flights and retained slots hold it.
    """

    __slots__ = (
        "expires_at",
        "forwarded",
        "head",
        "number",
        "payload",
        "properties",
        "qos",
        "references",
        "retain",
        "size",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        payload: Payload,
        *,
        qos: int,
        retain: bool,
        properties: Properties = NO_PROPERTIES,
        expires_at: float | None = None,
    ) -> None:
        self.topic, self.payload, self.qos, self.retain = topic, payload, qos, retain
        self.properties = NO_PROPERTIES if properties is NO_PROPERTIES else _passed_on(properties)
        self.expires_at = expires_at
        self.number = self.references = 0
        self.head = pack_text(topic)
        self.forwarded = pack_properties_body(self.properties)
        self.size = len(payload) + len(self.head) + len(self.forwarded) + _OVERHEAD

    def expired(self, now: float) -> bool:
        """Whether its time has passed."""
        return self.expires_at is not None and self.expires_at <= now


def _passed_on(properties: Properties) -> Properties:
    """What section 3.3.2.3 of MQTT 5 has a server forward unaltered."""
    return Properties(
        payload_format=properties.payload_format,
        content_type=properties.content_type,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
        user_properties=properties.user_properties,
    )


def message_of_will(will: Will, now: float) -> Message:
    """The message that a will becomes when it is published."""
    expiry = will.properties.message_expiry
    return Message(
        will.topic,
        will.payload,
        qos=will.qos,
        retain=will.retain,
        properties=replace(will.properties, will_delay=None),
        expires_at=None if expiry is None else now + expiry,
    )


class Delivery:
    """A message on its way to one client; `packet_id` is 0 until it has been sent with QoS 1."""

    __slots__ = ("identifiers", "message", "packet_id", "qos", "retain")

    def __init__(
        self, message: Message, *, qos: int, retain: bool, identifiers: tuple[int, ...] = ()
    ) -> None:
        self.message, self.qos, self.retain, self.identifiers = message, qos, retain, identifiers
        self.packet_id = 0


def delivery_for(message: Message, subscriptions: tuple[Subscription, ...]) -> Delivery:
    """One copy for all of a client's subscriptions that match (MQTT 5, section 3.3.4)."""
    if len(subscriptions) == 1:
        (one,) = subscriptions
        return Delivery(
            message,
            qos=min(message.qos, one.qos),
            retain=message.retain and one.retain_as_published,
            identifiers=(one.identifier,) if one.identifier else (),
        )
    return Delivery(
        message,
        qos=min(message.qos, max(one.qos for one in subscriptions)),
        retain=message.retain and any(one.retain_as_published for one in subscriptions),
        identifiers=tuple(one.identifier for one in subscriptions if one.identifier),
    )


class Session:
    """The state that outlives a connection (MQTT 5, section 4.1).

    Attributes:
        user: who opened it; None without authentication.
        expiry: how many seconds it lives without a connection, 0 to end with it, `NEVER`.
        expires_at: when it ends; None while connected or when it never does.
        will: what to publish when the connection is lost, or, with `will_due`, when that time has come.
        window: how many deliveries may be outstanding on this connection.
    """

    def __init__(self, client_id: str, user: str | None = None) -> None:
        self.client_id = client_id
        self.user = user
        self.expiry = 0
        self.expires_at: float | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.queue: deque[Delivery] = deque()
        self.queued_bytes = 0
        self.inflight: dict[int, Delivery] = {}
        self.channel: Channel | None = None
        self.will: Will | None = None
        self.will_due: float | None = None
        self.window = 0
        self._redeliver: deque[int] = deque()
        self._outstanding: set[int] = set()
        self._last_id = 0

    @property
    def persistent(self) -> bool:
        """Whether it survives its connection."""
        return self.expiry > 0

    def expired(self, now: float) -> bool:
        """Whether it has been without a connection for too long."""
        return self.expires_at is not None and self.expires_at <= now

    @property
    def has_room(self) -> bool:
        """Whether one more delivery may be outstanding."""
        return len(self._outstanding) < self.window

    def attach(self, channel: "Channel", window: int) -> None:
        """A connection takes the session up: everything in flight has to be sent again."""
        self.channel, self.window = channel, window
        self.expires_at = self.will_due = None
        self._redeliver = deque(self.inflight)
        self._outstanding.clear()

    def enqueue(self, delivery: Delivery) -> None:
        """Lets a delivery wait for its turn."""
        self.queue.append(delivery)
        self.queued_bytes += delivery.message.size

    def take_redelivery(self) -> Delivery | None:
        """The next delivery to be sent again, if one is left."""
        while self._redeliver:
            packet_id = self._redeliver.popleft()
            delivery = self.inflight.get(packet_id)
            if delivery is not None:
                self._outstanding.add(packet_id)
                return delivery
        return None

    def take_queued(self) -> Delivery:
        """The next delivery that waits, of which there must be one; it is in neither place until `begin`."""
        delivery = self.queue.popleft()
        self.queued_bytes -= delivery.message.size
        return delivery

    def begin(self, delivery: Delivery) -> int:
        """Puts a delivery in flight and returns its packet identifier."""
        packet_id = self._last_id
        while True:
            packet_id = packet_id % MAX_U16 + 1
            if packet_id not in self.inflight:
                break
        self._last_id = packet_id
        self.resume(delivery, packet_id)
        self._outstanding.add(packet_id)
        return packet_id

    def resume(self, delivery: Delivery, packet_id: int) -> None:
        """Puts a delivery in flight under the identifier that it had before a restart."""
        delivery.packet_id = packet_id
        self.inflight[packet_id] = delivery
        self._last_id = packet_id

    def acknowledge(self, packet_id: int) -> Delivery | None:
        """The client has it: ends the flight and returns the delivery, None when there is no such flight."""
        self._outstanding.discard(packet_id)
        return self.inflight.pop(packet_id, None)

    def drop_queued(self, condition: Callable[[Delivery], bool]) -> list[Delivery]:
        """Takes out of the queue all deliveries of which a condition is true, and returns them."""
        dropped = [delivery for delivery in self.queue if condition(delivery)]
        if dropped:
            self.queue = deque(delivery for delivery in self.queue if not condition(delivery))
            self.queued_bytes -= sum(delivery.message.size for delivery in dropped)
        return dropped

    def clear(self) -> list[Delivery]:
        """Forgets all deliveries and returns them."""
        left = [*self.inflight.values(), *self.queue]
        self.inflight.clear()
        self.queue.clear()
        self._redeliver.clear()
        self._outstanding.clear()
        self.queued_bytes = 0
        return left
