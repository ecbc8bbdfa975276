"""The port through which fedmq reaches a message broker.

A `Transport` is used by one thread: it publishes, subscribes and takes events with `poll`. Whatever happens
on the network becomes an `Event` in a queue; nothing calls back into fedmq. The three implementations
(`memory`, `mqtt` against the embedded broker, `mqtt` against mosquitto) pass the one suite in
`fedmq.testing.transport_contract`.

What holds for all of them:

* QoS 1: a publish is delivered at least once while the subscriber's session lives. Duplicates happen.
* A received message is acknowledged only when `Delivery.ack` is called, and only on the connection that
  brought it: an ack of an older connection is dropped, since brokers reuse packet ids (law 1).
* `PublishAccepted` means that the broker took the message, not that anyone will ever see it (law 4).
* Every publish ends in one `PublishAccepted` or `PublishRefused`, unless the transport is closed before. How
  many may wait for theirs to be polled is bounded.
* Reconnecting is the transport's own business; `Connected` and `Disconnected` tell of it. Subscriptions are
  the caller's: after `Connected(session_present=False)` it subscribes again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NewType, Protocol

from fedmq.errors import TransportError

PublishToken = NewType("PublishToken", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The broker accepted the connection.

    Attributes:
        session_present: the broker still holds this client's session: subscriptions and queued messages.
        receive_maximum: how many unacknowledged QoS 1 publishes the broker takes at once.
        maximum_packet_size: the largest packet in bytes that the broker accepts.
    """

    session_present: bool
    receive_maximum: int
    maximum_packet_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The connection is gone, or an attempt to connect failed. The transport goes on trying.

    Attributes:
        reason: why, in words for a log.
        taken_over: another client connected with the same client id (MQTT 5, reason code 0x8E).
    """

    reason: str
    taken_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAccepted:
    """The broker acknowledged a publish and had somewhere to put it."""

    token: PublishToken


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRefused:
    """The broker refused a publish, or accepted it and dropped it.

    Attributes:
        token: what `publish` returned.
        reason: the MQTT reason code's name, for instance "No matching subscribers" (0x10: nobody has ever
            subscribed, so the message went nowhere; a retained publish with this code counts as accepted,
            since the broker keeps it), "Not authorized" (0x87), "Quota exceeded" (0x97). Also "Packet too
            large" for one that was queued before the broker told its limit.
    """

    token: PublishToken
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRefused:
    """The broker refused a subscription (MQTT: a SUBACK with a reason code of 0x80 or above)."""

    topic_filter: str
    reason: str


# eq=False: two deliveries of equal bytes are still two deliveries, each with an ack of its own.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """One received message.

    Attributes:
        topic: where it was published.
        payload: its bytes, untrusted.
        retained: it was stored on the topic before we subscribed.
        duplicate: the broker marked it as sent before (DUP); a hint only, never relied on.
        acknowledge: tells the broker that it may forget the message; called through `ack`.
    """

    topic: str
    payload: bytes
    retained: bool = False
    duplicate: bool = False
    acknowledge: Callable[[], None] = field(repr=False, default=lambda: None)

    def ack(self) -> None:
        """Let the broker forget the message. Idempotent; nothing happens when its connection is gone."""
        self.acknowledge()


Event = Connected | Disconnected | PublishAccepted | PublishRefused | SubscriptionRefused | Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """The message that the broker publishes when this client vanishes without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What the connections of one client have carried since its start.

    Attributes:
        bytes_sent: everything inside TCP, from each CONNECT to each DISCONNECT: pings, what MQTT sends again and TLS
            included. The headers of TCP and IP are not in it, nor what TCP repeats by itself.
        bytes_received: likewise.
        payload_sent: how much of that were payloads of publishes; without those that a session which outlived its
            connection was sent again.
        payload_received: likewise, but all of them.
        topic_sent: how much were those publishes' topics, without the two bytes of length before each.
        topic_received: likewise.
        packets_sent: MQTT packets, without pings.
        packets_received: likewise.
        measured: the bytes are the operating system's own count. Otherwise some connection's were added up from the
            sizes of its packets, without pings and TLS.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    payload_sent: int = 0
    payload_received: int = 0
    topic_sent: int = 0
    topic_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    measured: bool = False


def check_expiry(expiry: float | None) -> None:
    """Refuse what MQTT's four bytes of seconds cannot say (MQTT 5 section 3.3.2.3.3).

    Raises:
        TransportError: not a number, not more than 0, or more than 136 years.
    """
    if expiry is not None and not 0 < expiry <= 0xFFFFFFFF:
        raise TransportError(f"expiry {expiry!r}: give None, or more than 0 and at most {0xFFFFFFFF} seconds")


class Transport(Protocol):
    """A connection to a broker that outlives its sockets."""

    @property
    def traffic(self) -> Traffic:
        """What went over the wire so far. Any thread may ask."""

    def start(self) -> None:
        """Begin to connect, and go on trying until `close`. Returns at once."""

    def poll(self, timeout: float | None = None) -> Event | None:
        """Take the next event.

        Args:
            timeout: seconds to wait; 0 returns at once; None waits for ever. The memory transport never
                waits: in its one thread nothing could happen meanwhile.

        Returns:
            The event, or None when none came in time, when `wake` was called, or after `close`.
        """

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry: float | None = None
    ) -> PublishToken:
        """Queue one QoS 1 publish; `PublishAccepted` or `PublishRefused` will carry the returned token.

        Publishes made while there is no connection are kept in memory, up to the transport's bound, and sent
        when there is one; after a reconnect the unacknowledged ones are sent again. An empty retained payload
        clears the topic.

        Args:
            topic: where to.
            payload: what.
            retain: keep it on the topic for later subscribers.
            expiry: seconds after which the broker may drop it (MQTT 5 message expiry).

        Raises:
            PacketTooLargeError: larger than the connected broker accepts.
            TransportError: too many outcomes were not polled yet, the topic is not one to publish to, the
                expiry cannot be sent, or the transport is closed.
        """

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1. Retained messages on matching topics arrive each time this is called.

        Without a connection it is kept for the next one, and sent again until the broker has answered.

        Raises:
            TransportError: not a valid topic filter.
        """

    def unsubscribe(self, topic_filter: str) -> None:
        """Stop receiving what matches."""

    def wake(self) -> None:
        """Make a waiting `poll` return None, now or when it comes to wait again.

        This and `traffic` are all that other threads may call.
        """

    def close(self) -> None:
        """Send what is queued as far as the connection allows within a second, disconnect, stop. Idempotent.

        A clean disconnect: the will is not sent. The session stays, as far as its expiry says.
        """
