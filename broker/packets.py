"""The MQTT control packets as values, and their encoding (MQTT 3.1.1 and 5, section 3).

Here live the packet classes and `encode`. Reading bytes is in `decoder`, properties are in `properties`.
QoS 2 has no packets here: the broker offers QoS 0 and 1, and refuses the rest with reason code 0x9B.

Under 3.1.1 the properties and reason codes of a packet are left out of its encoding; the return code of a
CONNACK is translated.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias, assert_never

from .errors import ProtocolError, ReasonCode, return_code
from .properties import NO_PROPERTIES, PacketType, Properties, pack_properties
from .wire import MAX_U16, Payload, malformed, pack_binary, pack_text, pack_u8, pack_u16, pack_varint


class Version(IntEnum):
    """The protocol levels that we speak."""

    V311 = 4
    V5 = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """The message that the broker publishes when a client goes away without saying so."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """CONNECT. `keep_alive` is in seconds, 0 for none."""

    version: Version
    client_id: str
    clean_start: bool = True
    keep_alive: int = 60
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Connack:
    """CONNACK. Under 3.1.1 `reason` is the return code when decoded, and is translated when encoded."""

    session_present: bool = False
    reason: int = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """PUBLISH. `packet_id` is None exactly for QoS 0; QoS 2 can be decoded, so that it can be refused."""

    topic: str
    payload: Payload
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int | None = None
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Puback:
    """PUBACK."""

    packet_id: int
    reason: int = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One topic filter with its options; `identifier` is the SUBSCRIBE's, 0 for none."""

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    identifier: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """SUBSCRIBE."""

    packet_id: int
    subscriptions: tuple[Subscription, ...]
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Suback:
    """SUBACK."""

    packet_id: int
    reasons: tuple[int, ...]
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribe:
    """UNSUBSCRIBE."""

    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsuback:
    """UNSUBACK; `reasons` is empty under 3.1.1."""

    packet_id: int
    reasons: tuple[int, ...] = ()
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Pingreq:
    """PINGREQ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pingresp:
    """PINGRESP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """DISCONNECT."""

    reason: int = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


Packet: TypeAlias = (
    Connect
    | Connack
    | Publish
    | Puback
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
)

PINGRESP: Final = b"\xd0\x00"


def check_packet_id(packet_id: int | None) -> int:
    """The packet identifier, if it is one.

    Raises:
        ProtocolError: it is missing, 0 or too large (MQTT 5, section 2.2.1).
    """
    if not packet_id or packet_id > MAX_U16:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"packet identifier {packet_id} where one is required")
    return packet_id


def _frame(packet_type: PacketType, body: bytes, flags: int = 0) -> bytes:
    return bytes((packet_type << 4 | flags,)) + pack_varint(len(body)) + body


def _optional(version: Version, properties: Properties) -> bytes:
    return pack_properties(properties) if version == Version.V5 else b""


def publish_head(
    topic: bytes, size: int, first: int, packet_id: int | None, properties: bytes | None
) -> bytes:
    """Everything of a PUBLISH before its payload.

    Args:
        topic: the topic as length-prefixed text.
        size: the payload's size in bytes.
        first: the first byte of the packet: type, DUP, QoS and RETAIN.
        packet_id: the packet identifier, None for QoS 0.
        properties: the property section without its length, None for 3.1.1.

    Raises:
        ProtocolError: the packet would be longer than MQTT can say.
    """
    middle = topic if packet_id is None else topic + pack_u16(packet_id)
    if properties is not None:
        middle += pack_varint(len(properties)) + properties
    return bytes((first,)) + pack_varint(len(middle) + size) + middle


def publish_flags(qos: int, *, retain: bool, dup: bool) -> int:
    """The first byte of a PUBLISH."""
    return 0x30 | dup << 3 | qos << 1 | retain


def _encode_connect(packet: Connect) -> bytes:
    will = packet.will
    flags = packet.clean_start << 1
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.retain << 5
    flags |= (packet.password is not None) << 6 | (packet.username is not None) << 7
    body = pack_text("MQTT") + bytes((packet.version, flags)) + pack_u16(packet.keep_alive)
    body += _optional(packet.version, packet.properties) + pack_text(packet.client_id)
    if will is not None:
        body += _optional(packet.version, will.properties) + pack_text(will.topic) + pack_binary(will.payload)
    if packet.username is not None:
        body += pack_text(packet.username)
    if packet.password is not None:
        body += pack_binary(packet.password)
    return _frame(PacketType.CONNECT, body)


def _encode_publish(packet: Publish, version: Version) -> bytes:
    if packet.qos not in (0, 1):
        raise malformed(f"a PUBLISH of QoS {packet.qos} cannot be encoded, only 0 and 1")
    packet_id = check_packet_id(packet.packet_id) if packet.qos else None
    body = pack_text(packet.topic) + (b"" if packet_id is None else pack_u16(packet_id))
    body += _optional(version, packet.properties) + packet.payload
    first = publish_flags(packet.qos, retain=packet.retain, dup=packet.dup)
    return _frame(PacketType.PUBLISH, body, first & 0x0F)


def _encode_subscribe(packet: Subscribe, version: Version) -> bytes:
    body = pack_u16(check_packet_id(packet.packet_id)) + _optional(version, packet.properties)
    for subscription in packet.subscriptions:
        options = subscription.qos
        if version == Version.V5:
            options |= subscription.no_local << 2 | subscription.retain_as_published << 3
            options |= subscription.retain_handling << 4
        body += pack_text(subscription.filter) + pack_u8(options)
    return _frame(PacketType.SUBSCRIBE, body, 0x02)


def encode_puback(packet_id: int, reason: int, version: Version) -> bytes:
    """A PUBACK without properties, in its shortest form (MQTT 5, section 3.4.2.1)."""
    if reason and version == Version.V5:
        return bytes((0x40, 3, packet_id >> 8, packet_id & 0xFF, reason))
    return bytes((0x40, 2, packet_id >> 8, packet_id & 0xFF))


def encode(packet: Packet, version: Version) -> bytes:
    """The bytes of a packet under one version of the protocol (a CONNECT carries its own).

    Raises:
        ProtocolError: a value in the packet has no encoding.
    """
    v5 = version == Version.V5
    match packet:
        case Connect():
            return _encode_connect(packet)
        case Connack():
            reason = packet.reason if v5 else return_code(packet.reason)
            body = bytes((packet.session_present,)) + pack_u8(reason) + _optional(version, packet.properties)
            return _frame(PacketType.CONNACK, body)
        case Publish():
            return _encode_publish(packet, version)
        case Puback():
            if v5 and packet.properties is not NO_PROPERTIES:
                body = pack_u16(check_packet_id(packet.packet_id)) + pack_u8(packet.reason)
                return _frame(PacketType.PUBACK, body + pack_properties(packet.properties))
            return encode_puback(check_packet_id(packet.packet_id), packet.reason, version)
        case Subscribe():
            return _encode_subscribe(packet, version)
        case Suback():
            reasons = packet.reasons if v5 else tuple(min(reason, 0x80) for reason in packet.reasons)
            body = pack_u16(packet.packet_id) + _optional(version, packet.properties)
            body += b"".join(map(pack_u8, reasons))
            return _frame(PacketType.SUBACK, body)
        case Unsubscribe():
            body = pack_u16(check_packet_id(packet.packet_id)) + _optional(version, packet.properties)
            return _frame(PacketType.UNSUBSCRIBE, body + b"".join(map(pack_text, packet.filters)), 0x02)
        case Unsuback():
            body = pack_u16(packet.packet_id)
            if v5:
                body += pack_properties(packet.properties) + b"".join(map(pack_u8, packet.reasons))
            return _frame(PacketType.UNSUBACK, body)
        case Pingreq():
            return b"\xc0\x00"
        case Pingresp():
            return PINGRESP
        case Disconnect():
            if not v5 or (not packet.reason and packet.properties is NO_PROPERTIES):
                return b"\xe0\x00"
            return _frame(PacketType.DISCONNECT, pack_u8(packet.reason) + pack_properties(packet.properties))
        case _:
            assert_never(packet)
