"""The properties of MQTT 5 (section 2.2.2): one value class, one table, and the codec that the table drives.

Here lives which property is of which type and in which packet it may stand. What a property means is decided
by whoever reads the packet.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Final, assert_never

from .errors import ProtocolError, ReasonCode
from .wire import Reader, pack_binary, pack_text, pack_u16, pack_u32, pack_varint


class PacketType(IntEnum):
    """The control packet types (MQTT 5, section 2.1.2); `WILL` stands for the will inside a CONNECT."""

    WILL = 0
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The properties of one packet; what is absent is None or empty. Times are in seconds."""

    payload_format: int | None = None
    message_expiry: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_ids: tuple[int, ...] = ()
    session_expiry: int | None = None
    assigned_client_id: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_available: int | None = None
    subscription_ids_available: int | None = None
    shared_available: int | None = None


NO_PROPERTIES: Final = Properties()


class _Kind(Enum):
    FLAG = auto()
    U16 = auto()
    NONZERO_U16 = auto()
    U32 = auto()
    NONZERO_U32 = auto()
    VARINT = auto()
    TEXT = auto()
    BINARY = auto()
    PAIR = auto()


_P: Final = PacketType
_ACKS: Final = (_P.PUBACK, _P.PUBREC, _P.PUBREL, _P.PUBCOMP, _P.SUBACK, _P.UNSUBACK)
_MESSAGE: Final = (_P.PUBLISH, _P.WILL)
_ANY: Final = (
    *_ACKS,
    *_MESSAGE,
    _P.CONNECT,
    _P.CONNACK,
    _P.SUBSCRIBE,
    _P.UNSUBSCRIBE,
    _P.DISCONNECT,
    _P.AUTH,
)

_TABLE: Final[dict[int, tuple[str, _Kind, tuple[PacketType, ...]]]] = {
    0x01: ("payload_format", _Kind.FLAG, _MESSAGE),
    0x02: ("message_expiry", _Kind.U32, _MESSAGE),
    0x03: ("content_type", _Kind.TEXT, _MESSAGE),
    0x08: ("response_topic", _Kind.TEXT, _MESSAGE),
    0x09: ("correlation_data", _Kind.BINARY, _MESSAGE),
    0x0B: ("subscription_ids", _Kind.VARINT, (_P.PUBLISH, _P.SUBSCRIBE)),
    0x11: ("session_expiry", _Kind.U32, (_P.CONNECT, _P.CONNACK, _P.DISCONNECT)),
    0x12: ("assigned_client_id", _Kind.TEXT, (_P.CONNACK,)),
    0x13: ("server_keep_alive", _Kind.U16, (_P.CONNACK,)),
    0x15: ("authentication_method", _Kind.TEXT, (_P.CONNECT, _P.CONNACK, _P.AUTH)),
    0x16: ("authentication_data", _Kind.BINARY, (_P.CONNECT, _P.CONNACK, _P.AUTH)),
    0x17: ("request_problem_information", _Kind.FLAG, (_P.CONNECT,)),
    0x18: ("will_delay", _Kind.U32, (_P.WILL,)),
    0x19: ("request_response_information", _Kind.FLAG, (_P.CONNECT,)),
    0x1A: ("response_information", _Kind.TEXT, (_P.CONNACK,)),
    0x1C: ("server_reference", _Kind.TEXT, (_P.CONNACK, _P.DISCONNECT)),
    0x1F: ("reason_string", _Kind.TEXT, (*_ACKS, _P.CONNACK, _P.DISCONNECT, _P.AUTH)),
    0x21: ("receive_maximum", _Kind.NONZERO_U16, (_P.CONNECT, _P.CONNACK)),
    0x22: ("topic_alias_maximum", _Kind.U16, (_P.CONNECT, _P.CONNACK)),
    0x23: ("topic_alias", _Kind.NONZERO_U16, (_P.PUBLISH,)),
    0x24: ("maximum_qos", _Kind.FLAG, (_P.CONNACK,)),
    0x25: ("retain_available", _Kind.FLAG, (_P.CONNACK,)),
    0x26: ("user_properties", _Kind.PAIR, _ANY),
    0x27: ("maximum_packet_size", _Kind.NONZERO_U32, (_P.CONNECT, _P.CONNACK)),
    0x28: ("wildcard_available", _Kind.FLAG, (_P.CONNACK,)),
    0x29: ("subscription_ids_available", _Kind.FLAG, (_P.CONNACK,)),
    0x2A: ("shared_available", _Kind.FLAG, (_P.CONNACK,)),
}
_REPEATABLE: Final = frozenset({"user_properties", "subscription_ids"})

_Value = int | str | bytes | tuple[str, str]


def _wrong(detail: str) -> ProtocolError:
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, detail)


def _read_value(reader: Reader, name: str, kind: _Kind) -> _Value:
    match kind:
        case _Kind.FLAG:
            flag = reader.u8()
            if flag > 1:
                raise _wrong(f"property {name} is {flag}, not 0 or 1")
            return flag
        case _Kind.U16 | _Kind.NONZERO_U16:
            number = reader.u16()
        case _Kind.U32 | _Kind.NONZERO_U32:
            number = reader.u32()
        case _Kind.VARINT:
            number = reader.varint()
        case _Kind.TEXT:
            return reader.text()
        case _Kind.BINARY:
            return reader.binary()
        case _Kind.PAIR:
            return reader.text(), reader.text()
        case _:
            assert_never(kind)
    if not number and kind in (_Kind.NONZERO_U16, _Kind.NONZERO_U32, _Kind.VARINT):
        alias = name == "topic_alias"
        raise ProtocolError(
            ReasonCode.TOPIC_ALIAS_INVALID if alias else ReasonCode.PROTOCOL_ERROR, f"property {name} is 0"
        )
    return number


def read_properties(reader: Reader, packet: PacketType) -> Properties:
    """Reads a property section with its length.

    Raises:
        ProtocolError: a property is unknown, not allowed in this packet, repeated or malformed.
    """
    length = reader.varint()
    if not length:
        return NO_PROPERTIES
    section = Reader(reader.take(length))
    values: dict[str, _Value] = {}
    pairs: list[tuple[str, str]] = []
    identifiers: list[int] = []
    while section.remaining:
        # The identifier is a variable byte integer, but every one that exists fits into one byte.
        identifier = section.varint()
        entry = _TABLE.get(identifier)
        if entry is None or packet not in entry[2]:
            raise ProtocolError(
                ReasonCode.MALFORMED_PACKET, f"property 0x{identifier:02X} is not one of {packet.name}"
            )
        name, kind, _ = entry
        value = _read_value(section, name, kind)
        if isinstance(value, tuple):
            pairs.append(value)
        elif kind is _Kind.VARINT and isinstance(value, int):
            if identifiers and packet is PacketType.SUBSCRIBE:
                raise _wrong("property subscription_ids stands twice in a SUBSCRIBE")
            identifiers.append(value)
        elif name in values:
            raise _wrong(f"property {name} stands twice")
        else:
            values[name] = value
    return Properties(user_properties=tuple(pairs), subscription_ids=tuple(identifiers), **values)  # type: ignore[arg-type]  # the table ties each name to its type


def _pack_value(kind: _Kind, value: _Value) -> bytes:
    match value:
        case int():
            if kind is _Kind.FLAG:
                return bytes((value & 1,))
            if kind is _Kind.VARINT:
                return pack_varint(value)
            return pack_u16(value) if kind in (_Kind.U16, _Kind.NONZERO_U16) else pack_u32(value)
        case str():
            return pack_text(value)
        case bytes():
            return pack_binary(value)
        case (key, text):
            return pack_text(key) + pack_text(text)
        case _:
            assert_never(value)


def pack_properties_body(properties: Properties) -> bytes:
    """The property section without its length.

    Raises:
        ProtocolError: a value has no encoding.
    """
    if properties is NO_PROPERTIES:
        return b""
    parts: list[bytes] = []
    for identifier, (name, kind, _) in _TABLE.items():
        value = getattr(properties, name)
        if value is None:
            continue
        items = value if name in _REPEATABLE else (value,)
        parts.extend(bytes((identifier,)) + _pack_value(kind, item) for item in items)
    return b"".join(parts)


def pack_properties(properties: Properties) -> bytes:
    """The property section with its length."""
    body = pack_properties_body(properties)
    return pack_varint(len(body)) + body
