"""Bytes to packets: an incremental, strict decoder for both versions of MQTT.

The law: for any bytes, `Decoder.feed` yields packets or raises `ProtocolError`, and nothing else. A packet
longer than the maximum is refused when its header has been read, before any of its body is kept.

A packet that lies whole in one chunk has its payload copied once, so that a small message does not keep a
large chunk alive. A packet that spans chunks is gathered in a buffer of its own, which its payload then
views: also one copy.
"""

from collections.abc import Callable, Iterator
from typing import Final

from .errors import ProtocolError, ReasonCode
from .packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
    Will,
    check_packet_id,
)
from .properties import NO_PROPERTIES, PacketType, Properties, read_properties
from .topics import check_filter, check_topic
from .wire import Reader, malformed

_MAX_HEADER: Final = 5


def _wrong(detail: str) -> ProtocolError:
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, detail)


def _properties(reader: Reader, packet: PacketType, version: Version) -> Properties:
    return read_properties(reader, packet) if version == Version.V5 else NO_PROPERTIES


def _connect(reader: Reader) -> Connect:
    protocol = reader.text()
    level = reader.u8()
    if protocol != "MQTT" or level not in (4, 5):
        raise ProtocolError(
            ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
            f"protocol {protocol[:16]!r} level {level}, not MQTT 4 or 5",
        )
    version = Version(level)
    flags = reader.u8()
    has_will, will_qos, will_retain = bool(flags & 0x04), flags >> 3 & 3, bool(flags & 0x20)
    if flags & 0x01 or will_qos == 3 or (not has_will and (will_qos or will_retain)):
        raise malformed(f"CONNECT flags 0x{flags:02X} are not valid")
    if version == Version.V311 and flags & 0x40 and not flags & 0x80:
        raise malformed("a CONNECT of 3.1.1 has a password and no user name")
    keep_alive = reader.u16()
    properties = _properties(reader, PacketType.CONNECT, version)
    if properties.authentication_data is not None and properties.authentication_method is None:
        raise _wrong("authentication data without an authentication method")
    client_id = reader.text()
    will = None
    if has_will:
        will_properties = _properties(reader, PacketType.WILL, version)
        topic = reader.text()
        check_topic(topic)
        will = Will(
            topic=topic,
            payload=reader.binary(),
            qos=will_qos,
            retain=will_retain,
            properties=will_properties,
        )
    username = reader.text() if flags & 0x80 else None
    password = reader.binary() if flags & 0x40 else None
    return Connect(
        version=version,
        client_id=client_id,
        clean_start=bool(flags & 0x02),
        keep_alive=keep_alive,
        username=username,
        password=password,
        will=will,
        properties=properties,
    )


def _connack(reader: Reader, version: Version) -> Connack:
    flags = reader.u8()
    if flags > 1:
        raise malformed(f"CONNACK flags 0x{flags:02X} are not valid")
    reason = reader.u8()
    return Connack(
        session_present=bool(flags),
        reason=reason,
        properties=_properties(reader, PacketType.CONNACK, version),
    )


def _publish(reader: Reader, flags: int, version: Version, *, owned: bool) -> Publish:
    qos = flags >> 1 & 3
    if qos == 3:
        raise malformed("a PUBLISH of QoS 3")
    if flags & 0x08 and not qos:
        raise _wrong("a PUBLISH of QoS 0 with DUP")
    topic = reader.text()
    packet_id = check_packet_id(reader.u16()) if qos else None
    properties = _properties(reader, PacketType.PUBLISH, version)
    if topic or properties.topic_alias is None:
        check_topic(topic)
    if properties.response_topic is not None:
        check_topic(properties.response_topic)
    payload = reader.take(reader.remaining)
    return Publish(
        topic=topic,
        payload=payload.toreadonly() if owned else bytes(payload),
        qos=qos,
        retain=bool(flags & 1),
        dup=bool(flags & 0x08),
        packet_id=packet_id,
        properties=properties,
    )


def _puback(reader: Reader, version: Version) -> Puback:
    packet_id = check_packet_id(reader.u16())
    if version == Version.V311 or not reader.remaining:
        return Puback(packet_id=packet_id)
    reason = reader.u8()
    properties = read_properties(reader, PacketType.PUBACK) if reader.remaining else NO_PROPERTIES
    return Puback(packet_id=packet_id, reason=reason, properties=properties)


def _subscribe(reader: Reader, version: Version) -> Subscribe:
    packet_id = check_packet_id(reader.u16())
    properties = _properties(reader, PacketType.SUBSCRIBE, version)
    identifier = properties.subscription_ids[0] if properties.subscription_ids else 0
    subscriptions: list[Subscription] = []
    while reader.remaining:
        topic_filter = reader.text()
        check_filter(topic_filter)
        options = reader.u8()
        reserved = 0xC0 if version == Version.V5 else 0xFC
        if options & reserved or options & 3 == 3 or options >> 4 & 3 == 3:
            raise malformed(f"subscription options 0x{options:02X} are not valid")
        if options & 0x04 and topic_filter.startswith("$share/"):
            raise _wrong("no local on a shared subscription")
        subscriptions.append(
            Subscription(
                filter=topic_filter,
                qos=options & 3,
                no_local=bool(options & 0x04),
                retain_as_published=bool(options & 0x08),
                retain_handling=options >> 4 & 3,
                identifier=identifier,
            )
        )
    if not subscriptions:
        raise _wrong("a SUBSCRIBE without a topic filter")
    return Subscribe(packet_id=packet_id, subscriptions=tuple(subscriptions), properties=properties)


def _suback(reader: Reader, version: Version) -> Suback:
    packet_id = check_packet_id(reader.u16())
    properties = _properties(reader, PacketType.SUBACK, version)
    return Suback(packet_id=packet_id, reasons=tuple(reader.take(reader.remaining)), properties=properties)


def _unsubscribe(reader: Reader, version: Version) -> Unsubscribe:
    packet_id = check_packet_id(reader.u16())
    properties = _properties(reader, PacketType.UNSUBSCRIBE, version)
    filters: list[str] = []
    while reader.remaining:
        filters.append(reader.text())
        check_filter(filters[-1])
    if not filters:
        raise _wrong("an UNSUBSCRIBE without a topic filter")
    return Unsubscribe(packet_id=packet_id, filters=tuple(filters), properties=properties)


def _unsuback(reader: Reader, version: Version) -> Unsuback:
    packet_id = check_packet_id(reader.u16())
    properties = _properties(reader, PacketType.UNSUBACK, version)
    reasons = tuple(reader.take(reader.remaining)) if version == Version.V5 else ()
    return Unsuback(packet_id=packet_id, reasons=reasons, properties=properties)


def _disconnect(reader: Reader, version: Version) -> Disconnect:
    if version == Version.V311 or not reader.remaining:
        return Disconnect()
    reason = reader.u8()
    properties = read_properties(reader, PacketType.DISCONNECT) if reader.remaining else NO_PROPERTIES
    return Disconnect(reason=reason, properties=properties)


_READERS: Final[dict[int, Callable[[Reader, Version], Packet]]] = {
    PacketType.CONNACK: _connack,
    PacketType.PUBACK: _puback,
    PacketType.SUBSCRIBE: _subscribe,
    PacketType.SUBACK: _suback,
    PacketType.UNSUBSCRIBE: _unsubscribe,
    PacketType.UNSUBACK: _unsuback,
    PacketType.PINGREQ: lambda _reader, _version: Pingreq(),
    PacketType.PINGRESP: lambda _reader, _version: Pingresp(),
    PacketType.DISCONNECT: _disconnect,
}
_FLAGS: Final = {PacketType.SUBSCRIBE: 0x02, PacketType.UNSUBSCRIBE: 0x02, PacketType.PUBREL: 0x02}


def decode_packet(first: int, body: memoryview, version: Version, *, owned: bool = False) -> Packet:
    """One packet from its first byte and its body.

    Args:
        first: the packet's first byte: type and flags.
        body: what follows the fixed header.
        version: the connection's protocol version (a CONNECT carries its own).
        owned: nobody else holds `body`, so that a payload may view it instead of being copied.

    Raises:
        ProtocolError: whatever is wrong with it.
    """
    packet_type, flags = first >> 4, first & 0x0F
    reader = Reader(body)
    if packet_type == PacketType.PUBLISH:
        return _publish(reader, flags, version, owned=owned)
    if flags != _FLAGS.get(PacketType(packet_type), 0):
        raise malformed(f"reserved flags 0x{flags:X} in packet type {packet_type}")
    if packet_type == PacketType.CONNECT:
        packet: Packet = _connect(reader)
    elif packet_type in (PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP):
        raise ProtocolError(ReasonCode.QOS_NOT_SUPPORTED, "a packet of QoS 2, which is not offered")
    elif packet_type == PacketType.AUTH:
        raise ProtocolError(ReasonCode.BAD_AUTHENTICATION_METHOD, "AUTH, and no method is offered")
    else:
        read = _READERS.get(packet_type)
        if read is None:
            raise malformed(f"packet type {packet_type} does not exist")
        packet = read(reader, version)
    reader.finish()
    return packet


class Decoder:
    """Cuts a byte stream into packets.

    A server's decoder starts without a version and takes it from the CONNECT, which must be the first packet;
    a client's decoder is given the version.

    Args:
        max_packet: the largest packet accepted, in bytes with its header; may be changed between packets.
        version: the connection's version, None to expect a CONNECT first.
    """

    def __init__(self, max_packet: int, version: Version | None = None) -> None:
        self.max_packet = max_packet
        self.version = version
        self._head = b""  # an incomplete fixed header
        self._first = 0
        self._missing = 0  # bytes of the current body that have not arrived
        self._body = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Yields the packets that `data` completes; the rest is kept for the next call.

        Raises:
            ProtocolError: the stream is broken or a packet is too large; the decoder is of no use afterwards.
        """
        if self._head:
            data = self._head + data
            self._head = b""
        view = memoryview(data)
        size = len(data)
        position = 0
        while position < size:
            if self._missing:
                taken = min(self._missing, size - position)
                self._body += view[position : position + taken]
                position += taken
                self._missing -= taken
                if not self._missing:
                    body, self._body = self._body, bytearray()
                    yield self._decode(self._first, memoryview(body), owned=True)
                continue
            first = data[position]
            length = shift = 0
            for index in range(position + 1, position + _MAX_HEADER):
                if index == size:
                    self._head = data[position:]
                    return
                byte = data[index]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            else:
                raise malformed("the remaining length has more than four bytes")
            if index > position + 1 and not byte:
                raise malformed("the remaining length is longer than it needs to be")
            start = index + 1
            if start - position + length > self.max_packet:
                raise ProtocolError(
                    ReasonCode.PACKET_TOO_LARGE,
                    f"a packet of {start - position + length} bytes, {self.max_packet} are allowed",
                )
            if self.version is None and first != PacketType.CONNECT << 4:
                raise _wrong(f"the first packet begins with 0x{first:02X} and is not a CONNECT")
            if size - start < length:
                self._first, self._missing = first, length
                position = start
                continue
            position = start + length
            yield self._decode(first, view[start:position], owned=False)

    def _decode(self, first: int, body: memoryview, *, owned: bool) -> Packet:
        packet = decode_packet(first, body, self.version or Version.V5, owned=owned)
        if isinstance(packet, Connect) and self.version is None:
            self.version = packet.version
        return packet
