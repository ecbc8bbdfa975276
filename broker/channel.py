"""A connection as the broker core sees it: what has to be sent, and what the client said of itself.

No socket here: the core fills `out`, the shell takes it and writes it. A publish is encoded straight into
the buffer, header and payload apart, so that a payload is never copied for a client.
"""

import math
from typing import Final

from .packets import Disconnect, Packet, Version, encode, encode_puback, publish_flags, publish_head
from .session import Delivery, Session
from .wire import MAX_VARINT, Payload, pack_u32, pack_varint

_EXPIRY: Final = b"\x02"
_SUBSCRIPTION: Final = b"\x0b"


class Channel:
    """One connection.

    Attributes:
        version: None until its CONNECT was accepted.
        session: the session it has taken up.
        out: what has to be sent; its size in bytes is `out_bytes`.
        closing: nothing more is read from it or queued to it, and it is closed when `out` is written.
        writable: False while the socket takes no more.
        last_seen: when something last arrived, on the core's clock.
        keep_alive: seconds of silence after which it is closed, 0 for never.
        max_packet: the largest packet that the client takes.
        unacknowledged: publishes of QoS 1 whose PUBACK has not been handed to the socket.
        aliases: the topics that its client has given numbers to (MQTT 5, section 3.3.2.3.4).
    """

    __slots__ = (
        "aliases",
        "closing",
        "keep_alive",
        "last_seen",
        "max_packet",
        "opened",
        "out",
        "out_bytes",
        "session",
        "unacknowledged",
        "version",
        "writable",
        "write_buffer",
    )

    def __init__(self, now: float, write_buffer: int) -> None:
        self.version: Version | None = None
        self.session: Session | None = None
        self.out: list[Payload] = []
        self.out_bytes = 0
        self.closing = False
        self.writable = True
        self.opened = self.last_seen = now
        self.keep_alive = 0.0
        self.max_packet = MAX_VARINT
        self.unacknowledged = 0
        self.aliases: dict[int, str] = {}
        self.write_buffer = write_buffer

    @property
    def ready(self) -> bool:
        """Whether more deliveries may be queued to it now."""
        return self.writable and not self.closing and self.out_bytes < self.write_buffer

    def take(self) -> list[Payload]:
        """Hands what has to be sent to the shell."""
        out, self.out = self.out, []
        self.out_bytes = self.unacknowledged = 0
        return out

    def write(self, data: Payload) -> None:
        """Queues encoded bytes."""
        self.out.append(data)
        self.out_bytes += len(data)

    def send(self, packet: Packet) -> None:
        """Queues a packet, unless the connection is closing."""
        if not self.closing:
            self.write(encode(packet, self.version or Version.V5))

    def acknowledge(self, packet_id: int, reason: int) -> None:
        """Queues a PUBACK."""
        if not self.closing and self.version is not None:
            self.write(encode_puback(packet_id, reason, self.version))

    def close(self, reason: int | None = None) -> None:
        """Ends the connection once `out` is written; `reason` is told to a client of MQTT 5."""
        if not self.closing and reason is not None and self.version == Version.V5:
            self.send(Disconnect(reason=reason))
        self.closing = True

    def deliver(self, delivery: Delivery, now: float, *, dup: bool) -> bool:
        """Queues a PUBLISH; False when it is larger than the client takes."""
        message = delivery.message
        properties = None
        if self.version == Version.V5:
            properties = message.forwarded
            if message.expires_at is not None:
                properties += _EXPIRY + pack_u32(max(0, math.ceil(message.expires_at - now)))
            for identifier in delivery.identifiers:
                properties += _SUBSCRIPTION + pack_varint(identifier)
        head = publish_head(
            message.head,
            len(message.payload),
            publish_flags(delivery.qos, retain=delivery.retain, dup=dup),
            delivery.packet_id if delivery.qos else None,
            properties,
        )
        if len(head) + len(message.payload) > self.max_packet:
            return False
        self.write(head)
        if message.payload:
            self.write(message.payload)
        return True
