"""The MQTT codec: bytes worked out by hand from the specification, round trips, and any bytes at all."""

import contextlib
from dataclasses import is_dataclass

import pytest
from fedmq.broker.decoder import Decoder
from fedmq.broker.errors import ProtocolError, ReasonCode
from fedmq.broker.packets import (
    Connack,
    Connect,
    Disconnect,
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
    encode,
)
from fedmq.broker.properties import Properties
from fedmq.broker.wire import Reader, pack_varint
from hypothesis import given
from hypothesis import strategies as st

V311, V5 = Version.V311, Version.V5


def decode(data: bytes, version: Version | None) -> list:
    """All packets in some bytes."""
    return list(Decoder(1 << 20, version).feed(data))


GOLDEN = {
    "connect 3.1.1": (
        V311,
        Connect(version=V311, client_id="ab", keep_alive=10),
        "100e00044d5154540402000a00026162",
    ),
    "connect 5 with everything": (
        V5,
        Connect(
            version=V5,
            client_id="c",
            clean_start=False,
            keep_alive=60,
            username="u",
            password=b"p",
            will=Will(topic="w", payload=b"x", qos=1, retain=True, properties=Properties(will_delay=5)),
            properties=Properties(session_expiry=10, receive_maximum=3),
        ),
        "10 28 0004 4d515454 05 ec 003c 08 110000000a 210003 0001 63 05 1800000005 0001 77 0001 78 0001 75 0001 70",
    ),
    "connack 5": (
        V5,
        Connack(session_present=True, reason=0x87, properties=Properties(maximum_qos=1, reason_string="no")),
        "20 0a 01 87 07 1f 0002 6e6f 24 01",
    ),
    "connack 3.1.1": (V311, Connack(reason=0), "20020000"),
    "publish 0": (V311, Publish(topic="a/b", payload=b"hi"), "30 07 0003 612f62 6869"),
    "publish 1 of 5": (
        V5,
        Publish(
            topic="t",
            payload=b"",
            qos=1,
            retain=True,
            dup=True,
            packet_id=10,
            properties=Properties(message_expiry=1, user_properties=(("k", "v"),)),
        ),
        "3b 12 0001 74 000a 0c 0200000001 26 0001 6b 0001 76",
    ),
    "puback": (V5, Puback(packet_id=0x1234), "40021234"),
    "puback with a reason": (V5, Puback(packet_id=1, reason=0x10), "4003000110"),
    "subscribe 5": (
        V5,
        Subscribe(
            packet_id=2,
            subscriptions=(
                Subscription(
                    filter="a/#",
                    qos=1,
                    no_local=True,
                    retain_as_published=True,
                    retain_handling=2,
                    identifier=200,
                ),
            ),
            properties=Properties(subscription_ids=(200,)),
        ),
        "82 0c 0002 03 0bc801 0003 612f23 2d",
    ),
    "suback 5": (V5, Suback(packet_id=2, reasons=(1, 0x8F)), "90 05 0002 00 01 8f"),
    "unsubscribe 3.1.1": (
        V311,
        Unsubscribe(packet_id=3, filters=("a", "+/b")),
        "a2 0a 0003 0001 61 0003 2b2f62",
    ),
    "unsuback 5": (V5, Unsuback(packet_id=3, reasons=(0, 0x11)), "b0 05 0003 00 00 11"),
    "unsuback 3.1.1": (V311, Unsuback(packet_id=3), "b0020003"),
    "pingreq": (V5, Pingreq(), "c000"),
    "pingresp": (V311, Pingresp(), "d000"),
    "disconnect": (V5, Disconnect(), "e000"),
    "disconnect with a reason": (V5, Disconnect(reason=0x8E), "e0028e00"),
}


@pytest.mark.parametrize(("version", "packet", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_packets_have_the_bytes_that_the_specification_gives_them(version, packet, expected):
    """Encoding gives these bytes, and decoding them gives the packet back."""
    data = bytes.fromhex(expected)

    assert data.hex() == encode(packet, version).hex()
    assert [packet] == decode(data, version)


BROKEN = {
    "remaining length of five bytes": ("30ffffffffff01", 0x81),
    "remaining length longer than needed": ("c08000", 0x81),
    "packet type 0": ("0000", 0x81),
    "flags in a PINGREQ": ("c100", 0x81),
    "SUBSCRIBE without its flag": ("80080001000003612f2301", 0x81),
    "QoS 3": ("36050001740001", 0x81),
    "DUP with QoS 0": ("38040001 7400", 0x82),
    "packet identifier 0": ("3206 000174 0000 00", 0x82),
    "wildcard in a topic": ("3005 0002 612b 00", 0x90),
    "empty topic without alias": ("3003 0000 00", 0x90),
    "topic that is not UTF-8": ("3005 0002 c328 00", 0x81),
    "topic with a surrogate": ("3006 0003 eda080 00", 0x81),
    "topic with U+0000": ("3005 0002 6100 00", 0x81),
    "topic longer than the packet": ("3003 0009 61", 0x81),
    "property twice": ("300a 0001 74 06 2300012300 01", 0x82),
    "property of another packet": ("3006 0001 74 02 2401", 0x81),
    "unknown property": ("3006 0001 74 02 7f01", 0x81),
    "topic alias 0": ("3007 0001 74 03 230000", 0x94),
    "flag property of 2": ("3006 0001 74 02 0102", 0x82),
    "subscription identifier 0": ("8209 0001 02 0b00 0001 61 00", 0x82),
    "SUBSCRIBE without a filter": ("8203 0001 00", 0x82),
    "subscription options with reserved bits": ("8207 0001 00 0001 61 40", 0x81),
    "retain handling 3": ("8207 0001 00 0001 61 30", 0x81),
    "no local on a shared subscription": ("8210 0001 00 000a 2473686172652f672f61 05", 0x82),
    "shared subscription without a group": ("820f 0001 00 0009 2473686172652f2f61 00", 0x8F),
    "hash in the middle of a filter": ("8209 0001 00 0003 232f61 00", 0x8F),
    "plus beside a letter": ("8208 0001 00 0002 612b 00", 0x8F),
    "bytes after the end": ("c00100", 0x81),
    "QoS 2 handshake": ("50020001", 0x9B),
    "AUTH": ("f000", 0x8C),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_packets_are_refused_with_their_reason(data, reason):
    """One error, with the reason code that the specification has for it."""
    with pytest.raises(ProtocolError) as caught:
        decode(bytes.fromhex(data), V5)

    assert reason == caught.value.reason_code


BROKEN_CONNECTS = {
    "another protocol": ("100f 0004 4d515458 05 02 0000 00 0001 6100", 0x84),
    "MQTT 3.1": ("100f 0006 4d5149736470 03 02 003c 0001 61", 0x84),
    "reserved flag": ("100d 0004 4d515454 04 03 0000 0001 61", 0x81),
    "will QoS without a will": ("100d 0004 4d515454 04 0a 0000 0001 61", 0x81),
    "password without a user in 3.1.1": ("1010 0004 4d515454 04 42 0000 0001 61 0001 70", 0x81),
    "not a CONNECT": ("c000", 0x82),
    "receive maximum 0": ("1011 0004 4d515454 05 02 0000 03 210000 0001 61", 0x82),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN_CONNECTS.values(), ids=BROKEN_CONNECTS)
def test_broken_introductions_are_refused_with_their_reason(data, reason):
    """The first packet of a connection is judged by the same standard."""
    with pytest.raises(ProtocolError) as caught:
        decode(bytes.fromhex(data), None)

    assert reason == caught.value.reason_code


def test_a_packet_that_is_too_large_is_refused_by_its_header_alone():
    """Five bytes that announce 256 MiB are enough, and nothing is kept for what never comes."""
    decoder = Decoder(1000, V5)

    with pytest.raises(ProtocolError) as caught:
        list(decoder.feed(bytes.fromhex("30ffffff7f")))

    assert caught.value.reason_code == ReasonCode.PACKET_TOO_LARGE


def test_the_size_limit_is_that_of_the_whole_packet():
    """A packet of exactly the maximum passes, one byte more does not."""
    packet = encode(Publish(topic="t", payload=bytes(100)), V311)

    assert len(list(Decoder(len(packet), V311).feed(packet))) == 1
    with pytest.raises(ProtocolError):
        list(Decoder(len(packet) - 1, V311).feed(packet))


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
topics = text.filter(lambda topic: topic and "+" not in topic and "#" not in topic)
u16, u32 = st.integers(1, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
pairs = st.lists(st.tuples(text, text), max_size=3).map(tuple)
publish_properties = st.builds(
    Properties,
    payload_format=st.none() | st.integers(0, 1),
    message_expiry=st.none() | u32,
    content_type=st.none() | text,
    response_topic=st.none() | topics,
    correlation_data=st.none() | st.binary(max_size=9),
    subscription_ids=st.lists(st.integers(1, 268_435_455), max_size=3).map(tuple),
    user_properties=pairs,
)
publishes = st.builds(
    lambda qos, dup, packet_id, **fields: Publish(
        qos=qos, dup=dup and qos > 0, packet_id=packet_id if qos else None, **fields
    ),
    qos=st.integers(0, 1),
    dup=st.booleans(),
    packet_id=u16,
    topic=topics,
    payload=st.binary(max_size=300),
    retain=st.booleans(),
    properties=publish_properties,
)
connects = st.builds(
    Connect,
    version=st.just(V5),
    client_id=text,
    clean_start=st.booleans(),
    keep_alive=st.integers(0, 0xFFFF),
    username=st.none() | text,
    password=st.none() | st.binary(max_size=9),
    will=st.none()
    | st.builds(
        Will,
        topic=topics,
        payload=st.binary(max_size=9),
        qos=st.integers(0, 2),
        retain=st.booleans(),
        properties=st.builds(Properties, will_delay=st.none() | u32, user_properties=pairs),
    ),
    properties=st.builds(
        Properties,
        session_expiry=st.none() | u32,
        receive_maximum=st.none() | u16,
        maximum_packet_size=st.none() | u32.filter(bool),
        user_properties=pairs,
    ),
)


@given(packets=st.lists(publishes, max_size=5), cuts=st.lists(st.integers(1, 50)))
def test_packets_survive_any_way_of_cutting_the_stream(packets, cuts):
    """However the bytes are split into chunks, the same packets come out."""
    stream = b"".join(encode(packet, V5) for packet in packets)
    decoder = Decoder(1 << 20, V5)
    found = []
    for cut in (*cuts, len(stream)):
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]

    assert packets == found


@given(connects)
def test_an_introduction_survives_the_wire(packet):
    """CONNECT with will, credentials and properties."""
    assert [packet] == decode(encode(packet, V5), None)


@given(data=st.binary(max_size=200), version=st.sampled_from([None, V311, V5]))
def test_any_bytes_give_packets_or_one_error(data, version):
    """Nothing but ProtocolError ever comes out of the decoder."""
    with contextlib.suppress(ProtocolError):
        assert all(is_dataclass(packet) for packet in decode(data, version))


@given(packet=publishes | connects, change=st.tuples(st.integers(0, 400), st.integers(1, 255)))
def test_a_packet_with_one_wrong_byte_gives_packets_or_one_error(packet, change):
    """Bytes that are nearly right reach deeper into the decoder than noise does."""
    data = bytearray(encode(packet, V5))
    data[change[0] % len(data)] ^= change[1]
    with contextlib.suppress(ProtocolError):
        assert all(
            is_dataclass(packet)
            for packet in decode(bytes(data), None if isinstance(packet, Connect) else V5)
        )


@given(st.integers(0, 268_435_455))
def test_variable_byte_integers_survive_the_wire(value):
    """And take the fewest bytes, up to four."""
    data = pack_varint(value)
    reader = Reader(memoryview(data))

    assert value == reader.varint()
    assert len(data) == 1 + (value > 127) + (value > 16_383) + (value > 2_097_151)


@pytest.mark.parametrize(
    "packet",
    [
        Publish(topic="x" * 65_536, payload=b""),
        Publish(topic="\ud800", payload=b""),
        Publish(topic="t", payload=b"", qos=1),
        Publish(topic="t", payload=b"", qos=2, packet_id=1),
        Subscribe(packet_id=0, subscriptions=(Subscription(filter="a"),)),
        Puback(packet_id=70_000),
        Puback(packet_id=1, reason=256, properties=Properties(reason_string="")),
        Disconnect(reason=-1),
        Suback(packet_id=1, reasons=(300,)),
        Subscribe(packet_id=1, subscriptions=(Subscription(filter="a", qos=256),)),
    ],
)
def test_values_without_an_encoding_are_refused(packet):
    """Encoding fails with the same one error."""
    with pytest.raises(ProtocolError):
        encode(packet, V5)


def test_a_payload_that_spans_chunks_is_not_copied_again():
    """It views the buffer in which it was gathered; one that came whole is a copy that frees the chunk."""
    packet = encode(Publish(topic="t", payload=bytes(1000)), V5)
    decoder = Decoder(1 << 20, V5)
    [whole] = decoder.feed(packet)
    [spanning] = [*decoder.feed(packet[:500]), *decoder.feed(packet[500:])]

    assert (bytes, memoryview) == (type(whole.payload), type(spanning.payload))
    assert spanning.payload.readonly
