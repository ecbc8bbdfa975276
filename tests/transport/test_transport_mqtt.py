"""The traps of an MQTT client, against a server that plays each of them on purpose."""

import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedmq.errors import SettingError
from fedmq.testing.net import Server, Tap, TcpNet
from fedmq.testing.proxy import Proxy
from fedmq.transport import tcp_info
from fedmq.transport.base import (
    Connected,
    Delivery,
    Disconnected,
    PublishAccepted,
    PublishRefused,
    SubscriptionRefused,
    Will,
)
from fedmq.transport.flight import STRIKES
from fedmq.transport.mqtt import MqttSettings, MqttTransport, reconnect_delay

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14
DEADLINE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What the client sent: type, flags of the first byte, the rest, and its size on the wire."""

    kind: int
    flags: int
    body: bytes
    size: int

    @property
    def topic(self) -> str:
        length = int.from_bytes(self.body[:2], "big")
        return self.body[2 : 2 + length].decode()

    @property
    def packet_id(self) -> int:
        start = 2 + int.from_bytes(self.body[:2], "big") if self.kind == PUBLISH else 0
        return int.from_bytes(self.body[start : start + 2], "big")


class Line:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(DEADLINE)
        self.read = 0

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def take(self, *kinds: int) -> Packet:
        """The next packet, which must be of one of these kinds."""
        first = self._exactly(1)[0]
        length, shift, prefix = 0, 0, 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            prefix += 1
            if byte < 128:
                break
        self.read += 1 + prefix + length
        packet = Packet(
            kind=first >> 4, flags=first & 15, body=self._exactly(length), size=1 + prefix + length
        )
        assert packet.kind in kinds
        return packet

    def send(self, kind: int, body: bytes = b"", flags: int = 0, size: int | None = None) -> None:
        """Send one packet of less than 128 bytes, or with `size` as its length."""
        self.sock.sendall(bytes([kind << 4 | flags, len(body) if size is None else size]) + body)

    def welcome(self, *, session: bool = True, properties: bytes = b"") -> Packet:
        """Take the CONNECT and accept it."""
        packet = self.take(CONNECT)
        self.send(CONNACK, bytes([session, 0, len(properties)]) + properties)
        return packet

    def deliver(self, packet_id: int, payload: bytes, topic: bytes = b"t") -> None:
        """Send a QoS 1 PUBLISH."""
        body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", packet_id) + b"\0" + payload
        self.send(PUBLISH, body, flags=2)

    def close(self) -> None:
        self.sock.close()


class Scripted:
    """A server that does what the test says, one connection at a time."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self.port: int = self._listener.getsockname()[1]
        self._lines: list[Line] = []

    def accept(self, context: ssl.SSLContext | None = None) -> Line:
        """The client's next connection."""
        sock = self._listener.accept()[0]
        sock.settimeout(DEADLINE)
        line = Line(sock if context is None else context.wrap_socket(sock, server_side=True))
        self._lines.append(line)
        return line

    def close(self) -> None:
        self._listener.close()
        for line in self._lines:
            line.close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    """Where the client connects."""
    server = Scripted()
    yield server
    server.close()


Make = Callable[..., MqttTransport]


@pytest.fixture
def make(server: Scripted) -> Iterator[Make]:
    """Started clients of the scripted server."""
    made: list[MqttTransport] = []

    def make(**changes: Any) -> MqttTransport:
        settings = MqttSettings(
            host="127.0.0.1", port=server.port, client_id="c", reconnect_min=0.01, reconnect_max=0.02
        )
        transport = MqttTransport(replace(settings, **changes))
        made.append(transport)
        transport.start()
        return transport

    yield make
    server.close()
    for transport in made:
        transport.close()


def take(transport: MqttTransport, *kinds: type) -> Any:
    """The next event, which must be of one of these kinds."""
    event = transport.poll(timeout=DEADLINE)
    assert isinstance(event, kinds)
    return event


def test_a_persistent_client_never_asks_for_a_clean_start(server: Scripted, make: Make) -> None:
    """Paho's default wipes the queue of a restarted process; each CONNECT carries expiry and window."""
    make(session_expiry=3600, receive_maximum=7)
    wishes = b"\x11" + struct.pack("!I", 3600) + b"\x21" + struct.pack("!H", 7)
    for _ in range(2):
        line = server.accept()
        packet = line.welcome()
        line.close()

        assert packet.body[:7] == b"\0\4MQTT\5"
        assert packet.body[7] & 0x02 == 0
        assert packet.body[10:19] == bytes([len(wishes)]) + wishes


def test_a_clean_start_is_asked_for_at_every_connection(server: Scripted, make: Make) -> None:
    """Not at the first only."""
    make(clean_start=True)
    for _ in range(2):
        line = server.accept()
        packet = line.welcome(session=False)
        line.close()

        assert packet.body[7] & 0x02


def test_an_unacknowledged_publish_is_sent_again_with_its_id_and_dup(server: Scripted, make: Make) -> None:
    """Whether the broker knew the session or not."""
    transport = make()
    line = server.accept()
    line.welcome(session=False)
    token = transport.publish("t", b"x")
    first = line.take(PUBLISH)
    line.close()
    line = server.accept()
    line.welcome(session=False)
    again = line.take(PUBLISH)
    line.send(PUBACK, struct.pack("!H", again.packet_id))
    events = [take(transport, Connected, Disconnected, PublishAccepted) for _ in range(4)]

    assert (first.flags, again.flags) == (0x02, 0x0A)
    assert again.body == first.body
    assert events[-1] == PublishAccepted(token=token)


ALIASES = b"\x22\0\x0a"  # CONNACK: Topic Alias Maximum 10


def test_a_topic_that_is_published_to_again_gets_a_number(server: Scripted, make: Make) -> None:
    """With the second publish; from the third on the number stands alone, beside an expiry if there is one."""
    transport = make(clean_start=True)
    line = server.accept()
    line.welcome(session=False, properties=ALIASES)
    for expiry in (None, None, None, 60):
        transport.publish("some/topic", b"x", expiry=expiry)
    packets = [line.take(PUBLISH) for _ in range(4)]

    assert [packet.topic for packet in packets] == ["some/topic", "some/topic", "", ""]
    assert [packet.body[-1 - length :] for packet, length in zip(packets, (1, 4, 4, 9), strict=True)] == [
        b"\0x",
        b"\x03\x23\0\1x",
        b"\x03\x23\0\1x",
        b"\x08\x02\0\0\0\x3c\x23\0\1x",
    ]
    assert transport.traffic.topic_sent == 2 * len("some/topic")


def test_no_number_of_an_older_connection_is_sent(server: Scripted, make: Make) -> None:
    """A broker hangs up on one that it does not know, and would again. What was in flight goes out in full, as new."""
    transport = make(clean_start=True)
    line = server.accept()
    line.welcome(session=False, properties=ALIASES)
    tokens = [transport.publish("some/topic", b"%d" % number) for number in range(4)]
    for _ in tokens:
        line.take(PUBLISH)
    line.close()
    line = server.accept()
    line.welcome(session=False, properties=b"\x22\0\1")
    again = [line.take(PUBLISH) for _ in tokens]
    for packet in again:
        line.send(PUBACK, struct.pack("!H", packet.packet_id))
    events = [take(transport, Connected, Disconnected, PublishAccepted) for _ in range(7)]

    assert [packet.topic for packet in again] == ["some/topic", "some/topic", "", ""]
    assert [packet.body[-1:] for packet in again] == [b"0", b"1", b"2", b"3"]
    assert {packet.flags for packet in again} == {0x02}
    assert events[3:] == [PublishAccepted(token=token) for token in tokens]


@pytest.mark.parametrize(
    ("changes", "properties"),
    [
        ({"clean_start": False}, ALIASES),
        ({"clean_start": True}, b""),
        ({"clean_start": True, "protocol": "3.1.1"}, None),
    ],
    ids=["a lasting session", "a broker that takes none", "MQTT 3.1.1"],
)
def test_topics_stay_in_full(
    server: Scripted, make: Make, changes: dict[str, Any], properties: bytes | None
) -> None:
    """Where a packet may have to be sent again as it was, and where the broker would not understand."""
    transport = make(**changes)
    line = server.accept()
    if properties is None:
        line.take(CONNECT)
        line.send(CONNACK, b"\0\0")
    else:
        line.welcome(properties=properties)
    for _ in range(4):
        transport.publish("some/topic", b"x")

    assert [line.take(PUBLISH).topic for _ in range(4)] == ["some/topic"] * 4


def test_a_stale_ack_does_not_reach_the_message_that_has_its_id_now(server: Scripted, make: Make) -> None:
    """As rumqttd and RabbitMQ number anew at each connection."""
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    line.deliver(1, b"old")
    old = take(transport, Delivery)
    line.close()
    take(transport, Disconnected)
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    line.deliver(1, b"other")
    other = take(transport, Delivery)
    old.ack()
    transport.publish("after", b"")

    assert line.take(PUBLISH, PUBACK).kind == PUBLISH

    other.ack()

    assert line.take(PUBACK).packet_id == 1


def test_a_second_ack_does_not_reach_the_message_that_has_its_id_now(server: Scripted, make: Make) -> None:
    """A broker may use an id again as soon as it was acknowledged."""
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    line.deliver(1, b"first")
    first = take(transport, Delivery)
    first.ack()
    line.take(PUBACK)
    line.deliver(1, b"second")
    take(transport, Delivery)
    first.ack()
    transport.publish("after", b"")

    assert line.take(PUBLISH, PUBACK).kind == PUBLISH


def test_the_brokers_receive_maximum_bounds_what_is_in_flight(server: Scripted, make: Make) -> None:
    """Paho does not look at it. An acknowledgement lets in one more."""
    transport = make(max_inflight=20)
    line = server.accept()
    line.welcome(properties=b"\x21" + struct.pack("!H", 2))
    for number in range(4):
        transport.publish(f"t{number}", b"")
    sent = [line.take(PUBLISH), line.take(PUBLISH)]
    transport.subscribe("marker")

    assert line.take(PUBLISH, SUBSCRIBE).kind == SUBSCRIBE

    line.send(PUBACK, struct.pack("!H", sent[0].packet_id))

    assert line.take(PUBLISH).topic == "t2"


def test_a_smaller_window_at_the_next_connection_is_kept(server: Scripted, make: Make) -> None:
    """What paho would send again all at once is taken back, and goes out in order."""
    transport = make()
    line = server.accept()
    line.welcome()
    for number in range(4):
        transport.publish(f"t{number}", b"")
    for _ in range(4):
        line.take(PUBLISH)
    line.close()
    line = server.accept()
    line.welcome(properties=b"\x21" + struct.pack("!H", 1))
    topics = []
    for _ in range(4):
        packet = line.take(PUBLISH)
        topics.append(packet.topic)
        transport.subscribe("marker")
        assert line.take(PUBLISH, SUBSCRIBE).kind == SUBSCRIBE
        line.send(PUBACK, struct.pack("!H", packet.packet_id))

    assert topics == ["t0", "t1", "t2", "t3"]


def test_a_publish_in_flight_that_a_new_limit_forbids_is_refused(server: Scripted, make: Make) -> None:
    """The broker came back with a smaller maximum packet size: no poison loop."""
    transport = make()
    line = server.accept()
    line.welcome()
    large = transport.publish("large", bytes(100))
    small = transport.publish("small", b"")
    line.take(PUBLISH)
    line.take(PUBLISH)
    line.close()
    line = server.accept()
    line.welcome(properties=b"\x27" + struct.pack("!I", 50))
    packet = line.take(PUBLISH)
    line.send(PUBACK, struct.pack("!H", packet.packet_id))
    events = [transport.poll(timeout=DEADLINE) for _ in range(5)]

    assert packet.topic == "small"
    assert events[3:] == [
        PublishRefused(token=large, reason="Packet too large"),
        PublishAccepted(token=small),
    ]


@pytest.mark.parametrize("last_word", [b"", b"\xe0\x01\x95"], ids=["hangs up", "says packet too large"])
def test_a_poison_publish_is_given_up_and_what_follows_is_sent(
    server: Scripted, make: Make, last_word: bytes
) -> None:
    """A broker that announces no limit and breaks the connection over one message: not for ever."""
    transport = make()
    before = transport.publish("before", b"")
    poison = transport.publish("poison", bytes(100))
    after = transport.publish("after", b"")
    poisoned = 0
    for _ in range(STRIKES + 3):
        line = server.accept()
        line.welcome()
        packet = line.take(PUBLISH)
        while packet.topic not in ("poison", "after"):
            line.send(PUBACK, struct.pack("!H", packet.packet_id))
            packet = line.take(PUBLISH)
        if packet.topic == "after":
            break
        poisoned += 1
        line.sock.sendall(last_word)
        line.close()
    line.send(PUBACK, struct.pack("!H", packet.packet_id))
    outcomes = []
    while len(outcomes) < 3:
        event = take(transport, Connected, Disconnected, PublishAccepted, PublishRefused)
        if isinstance(event, PublishAccepted | PublishRefused):
            outcomes.append(event)

    # An acknowledgement on the first connection may have made that one look innocent.
    assert STRIKES <= poisoned <= STRIKES + 1
    assert outcomes == [
        PublishAccepted(token=before),
        PublishRefused(token=poison, reason=f"The connection broke {STRIKES} times while it was being sent"),
        PublishAccepted(token=after),
    ]


def test_a_flaky_line_is_not_taken_for_poison(server: Scripted, make: Make) -> None:
    """As long as each connection gets something through."""
    transport = make(max_inflight=2)
    tokens = [transport.publish(f"t{number}", b"") for number in range(STRIKES + 3)]
    for _ in tokens:
        line = server.accept()
        line.welcome()
        packet = line.take(PUBLISH)
        line.send(PUBACK, struct.pack("!H", packet.packet_id))
        line.take(PUBLISH) if packet.topic != f"t{len(tokens) - 1}" else None
        line.close()
    outcomes = []
    while len(outcomes) < len(tokens):
        event = take(transport, Connected, Disconnected, PublishAccepted)
        if isinstance(event, PublishAccepted):
            outcomes.append(event.token)

    assert outcomes == tokens


@pytest.mark.parametrize(
    ("code", "name"),
    [(0x10, "No matching subscribers"), (0x87, "Not authorized"), (0x97, "Quota exceeded")],
)
def test_a_refusal_carries_the_name_of_its_reason(server: Scripted, make: Make, code: int, name: str) -> None:
    """MQTT 5's reason codes in PUBACK."""
    transport = make()
    line = server.accept()
    line.welcome()
    token = transport.publish("t", b"")
    line.send(PUBACK, struct.pack("!HB", line.take(PUBLISH).packet_id, code))
    take(transport, Connected)

    assert take(transport, PublishRefused) == PublishRefused(token=token, reason=name)


def test_a_refused_subscription_is_an_event(server: Scripted, make: Make) -> None:
    """With its filter and the reason; a granted one is none."""
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    for topic_filter, code in (("granted", 1), ("secret/#", 0x87)):
        transport.subscribe(topic_filter)
        line.send(SUBACK, struct.pack("!HBB", line.take(SUBSCRIBE).packet_id, 0, code))

    assert take(transport, SubscriptionRefused) == SubscriptionRefused(
        topic_filter="secret/#", reason="Not authorized"
    )


def test_a_subscription_without_an_answer_is_made_again(server: Scripted, make: Make) -> None:
    """Else a session lives on without it, and says that it is present. One with an answer is not."""
    transport = make()
    line = server.accept()
    line.welcome()
    transport.subscribe("answered")
    line.send(SUBACK, struct.pack("!HBB", line.take(SUBSCRIBE).packet_id, 0, 1))
    transport.subscribe("unanswered")
    line.take(SUBSCRIBE)
    line.close()
    line = server.accept()
    line.welcome()

    assert b"unanswered" in line.take(SUBSCRIBE).body


def test_a_takeover_is_told_apart(server: Scripted, make: Make) -> None:
    """DISCONNECT with 0x8E; and the client goes on trying."""
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    line.send(DISCONNECT, b"\x8e")

    assert take(transport, Disconnected) == Disconnected(reason="Session taken over", taken_over=True)

    server.accept().welcome()
    take(transport, Connected)


@pytest.mark.parametrize(
    ("protocol", "answer", "words"),
    [
        ("5", b"\0\x86\0", "connection refused: Bad user name or password"),
        ("5", b"\0\x87\0", "connection refused: Not authorized"),
        ("3.1.1", b"\0\x04", "connection refused: Bad user name or password"),
    ],
)
def test_a_refused_connection_says_why_and_is_tried_again(
    server: Scripted, make: Make, protocol: str, answer: bytes, words: str
) -> None:
    """Once per attempt, for ever: the password may be set right at the broker's end."""
    transport = make(protocol=protocol)
    for _ in range(3):
        line = server.accept()
        line.take(CONNECT)
        line.send(CONNACK, answer)
        line.close()

        assert take(transport, Disconnected) == Disconnected(reason=words)


def test_a_connection_that_nobody_answers_is_given_up(server: Scripted, make: Make) -> None:
    """A server that accepts and stays silent must not hold the client until the keepalive."""
    transport = make(connect_timeout=0.1)
    server.accept()
    event = take(transport, Disconnected)
    server.accept().welcome()

    assert event == Disconnected(reason="no answer to CONNECT within 0.1 s")
    take(transport, Connected)


def test_pings_are_counted(server: Scripted, make: Make) -> None:
    """Nobody hands them to us: the system counts them."""
    transport = make(keepalive=1)
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    before = transport.traffic
    line.take(PINGREQ)
    after = transport.traffic

    assert after.measured
    assert after.bytes_sent == before.bytes_sent + 2 == line.read
    assert after.packets_sent == before.packets_sent


def test_a_silent_connection_is_given_up_after_the_keepalive(server: Scripted, make: Make) -> None:
    """Half-open connections are what NAT leaves behind."""
    transport = make(keepalive=1)
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    line.take(PINGREQ)

    assert take(transport, Disconnected) == Disconnected(reason="connection lost: Keep alive timeout")


def test_a_ping_does_not_wait_behind_the_whole_queue(server: Scripted, make: Make) -> None:
    """Publishes enter paho one by one, so a ping overtakes those that wait: no upload livelock."""
    transport = make(keepalive=1, max_inflight=100)
    line = server.accept()
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    line.welcome()
    take(transport, Connected)
    for number in range(60):
        transport.publish(f"t{number}", bytes(500_000))
        transport.poll(timeout=0.005)  # lets the network thread take them one by one

    assert transport.poll(timeout=1.5) is None  # the server reads nothing, and the line is full

    before_ping = 0
    while line.take(PUBLISH, PINGREQ).kind == PUBLISH:
        before_ping += 1

    assert before_ping < 30


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff\xff", b"\x20\x02\x00\x00", b"\x40\x01\x00", b"\x30\x02\xff\xff", b"\x90\x03\0\1\xff"],
)
def test_a_malformed_packet_costs_the_connection_and_no_more(
    server: Scripted, make: Make, garbage: bytes
) -> None:
    """The network thread survives what a broken server sends, and goes on."""
    transport = make()
    line = server.accept()
    line.welcome()
    line.sock.sendall(garbage)
    line.sock.shutdown(socket.SHUT_WR)
    line = server.accept()
    line.welcome()
    token = transport.publish("alive", b"")
    line.send(PUBACK, struct.pack("!H", line.take(PUBLISH).packet_id))
    events = []
    while not isinstance(event := transport.poll(timeout=DEADLINE), PublishAccepted):
        events.append(event)

    assert [type(event) for event in events] == [Connected, Disconnected, Connected]
    assert event.token == token


def test_a_topic_that_is_not_utf8_is_acknowledged_and_dropped(server: Scripted, make: Make) -> None:
    """It can never be handled, so it must not come again for ever."""
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    line.deliver(1, b"bad", topic=b"\xff\xfe")
    line.deliver(2, b"good")

    assert take(transport, Delivery).payload == b"good"
    assert line.take(PUBACK).packet_id == 1


def test_unread_messages_of_qos_0_are_bounded(server: Scripted, make: Make) -> None:
    """Nothing else bounds them: QoS 0 knows no window."""
    transport = make(max_queued=10)
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    for _ in range(30):
        line.send(PUBLISH, b"\0\1t\0x")
    deadline = time.monotonic() + DEADLINE
    while transport.traffic.packets_received < 31 and time.monotonic() < deadline:
        pass
    line.send(DISCONNECT, b"\x8b")
    payloads = []
    while isinstance(event := take(transport, Delivery, Disconnected), Delivery):
        payloads.append(event.payload)

    assert payloads == [b"x"] * 10


def test_unread_messages_of_qos_0_are_bounded_like_the_others(
    server: Scripted, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """By the Receive Maximum; what is dropped costs a line in the log each time that it has doubled."""
    transport = make(receive_maximum=5)
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    for _ in range(105):
        line.send(PUBLISH, b"\0\1t\0x")
    deadline = time.monotonic() + DEADLINE
    while transport.traffic.packets_received < 106 and time.monotonic() < deadline:
        pass
    payloads = [take(transport, Delivery).payload for _ in range(5)]
    counts = [record.args[0] for record in caplog.records if "QoS 0" in record.message]

    assert payloads == [b"x"] * 5
    assert counts == [1, 2, 4, 8, 16, 32, 64]


def test_the_largest_packet_is_told_to_a_broker_of_mqtt_5(server: Scripted, make: Make) -> None:
    """Property 0x27 of CONNECT; without the setting, and under 3.1.1, it is not there."""
    wish = b"\x27\0\0\x30\x39"
    connects = []
    for changes in ({"maximum_packet_size": 12345}, {}, {"maximum_packet_size": 12345, "protocol": "3.1.1"}):
        make(**changes)
        connects.append(server.accept().take(CONNECT).body)

    assert [wish in body for body in connects] == [True, False, False]
    with pytest.raises(SettingError, match="maximum_packet_size"):
        make(maximum_packet_size=10)


def test_a_publish_carries_no_properties_unless_it_expires(server: Scripted, make: Make) -> None:
    """Bytes matter. A part of a second counts as one."""
    transport = make()
    line = server.accept()
    line.welcome()
    transport.publish("t", b"x")
    transport.publish("t", b"x", expiry=1.5)

    assert line.take(PUBLISH).body[5:] == b"\0x"
    assert line.take(PUBLISH).body[5:] == b"\x05\x02\0\0\0\x02x"


def test_small_packets_are_not_held_back(server: Scripted, make: Make) -> None:
    """Paho never sets TCP_NODELAY, which costs 44 ms per hop."""
    transport = make()
    server.accept().welcome()
    take(transport, Connected)
    sock = transport._client.socket()

    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_credentials_and_will_are_in_every_connect_and_are_counted(server: Scripted, make: Make) -> None:
    """Under both protocols the computed size is the real one."""
    for protocol in ("5", "3.1.1"):
        transport = make(
            protocol=protocol,
            username="ü",
            password="secret",
            will=Will(topic="state", payload=b"gone", retain=True),
        )
        line = server.accept()
        packet = line.take(CONNECT)
        transport.close()

        assert packet.body.endswith(b"\0\5state\0\4gone\0\2\xc3\xbc\0\6secret")
        assert packet.body[7] & 0xFC == 0xC0 | 0x20 | 0x08 | 0x04
        assert packet.size == transport.traffic.bytes_sent - 2  # DISCONNECT


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_session_that_is_not_wanted_back_is_clean(server: Scripted, make: Make, protocol: str) -> None:
    """MQTT 3.1.1 has no expiry: a session of 0 seconds is a clean one there."""
    make(protocol=protocol, session_expiry=0)
    flags = server.accept().take(CONNECT).body[7]

    assert bool(flags & 0x02) == (protocol == "3.1.1")


def test_closing_does_not_wait_for_a_silent_broker(server: Scripted, make: Make) -> None:
    """What cannot be sent within a second stays unsent."""
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    transport.publish("t", b"x")
    line.take(PUBLISH)
    transport.close()

    assert not transport._thread.is_alive()
    assert line.take(DISCONNECT).body == b""


def test_a_goodbye_amid_deliveries_is_no_reset(server: Scripted, make: Make) -> None:
    """Closing a socket with unread data resets it, and a broker that is writing then sees a lost client.

    It would publish the will although we took our leave.
    """
    transport = make()
    line = server.accept()
    line.welcome()
    take(transport, Connected)
    flood = b"\x30\x07\0\1t\0xxx" * 10_000
    closing = threading.Thread(target=transport.close)
    line.sock.setblocking(False)
    seen = b""
    closing.start()
    while b"\xe0\x00" not in seen:
        for _ in range(50):
            with suppress(BlockingIOError):
                line.sock.send(flood)  # raises what a reset would do to a broker
        with suppress(BlockingIOError):
            seen += line.sock.recv(4096)
    line.close()
    closing.join()

    assert seen == b"\xe0\x00"


def test_agents_wait_differently_and_within_their_bounds() -> None:
    """A fleet that lost its broker at once must not come back at once."""
    fleet = [random.Random(f"agent{number}") for number in range(100)]
    for attempt in range(1, 12):
        delays = [reconnect_delay(attempt, 1.0, 60.0, generator) for generator in fleet]

        assert min(delays) >= 1.0
        assert max(delays) <= min(60.0, 2.0**attempt)
        assert len(set(delays)) == len(fleet)


def test_reconnecting_starts_slow_again_only_after_a_connection_that_held(
    server: Scripted, make: Make
) -> None:
    """Else a broker that accepts and hangs up would be called once a second by its whole fleet."""
    transport = make(reconnect_min=0.01, reconnect_max=10.0)
    for _ in range(4):
        line = server.accept()
        line.welcome()
        line.close()
    for _ in range(8):
        take(transport, Connected, Disconnected)

    assert transport._attempts >= 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("host", {"host": ""}),
        ("client_id", {"client_id": ""}),
        ("client_id", {"client_id": "x" * 65536}),
        ("port", {"port": 0}),
        ("port", {"port": 65536}),
        ("protocol", {"protocol": "4"}),
        ("username", {"password": "x"}),
        ("session_expiry", {"session_expiry": -1}),
        ("receive_maximum", {"receive_maximum": 0}),
        ("max_inflight", {"max_inflight": 65536}),
        ("max_queued", {"max_queued": 0}),
        ("keepalive", {"keepalive": 0}),
        ("connect_timeout", {"connect_timeout": 0.0}),
        ("reconnect_min", {"reconnect_min": 0.0}),
        ("reconnect_max", {"reconnect_max": 0.5}),
        ("tls", {"ca_file": Path("ca.pem")}),
        ("cert_file", {"tls": True, "key_file": Path("key.pem")}),
        ("will", {"will": Will(topic="a/#", payload=b"")}),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, changes: dict[str, Any]) -> None:
    """With its value and what would be allowed."""
    with pytest.raises(SettingError) as caught:
        replace(MqttSettings(host="h", client_id="c"), **changes)

    assert caught.value.name == name


def test_the_password_is_not_shown() -> None:
    """Settings end up in logs."""
    settings = MqttSettings(host="h", client_id="c", username="u", password="hunter2")

    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("name", ["ca_file", "cert_file"])
def test_a_tls_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    """Before anything is connected."""
    (tmp_path / "bad.pem").write_text("not a certificate")
    for path in (tmp_path / "missing.pem", tmp_path / "bad.pem"):
        settings = MqttSettings(host="h", client_id="c", tls=True)
        with pytest.raises(SettingError) as caught:
            MqttTransport(replace(settings, **{name: path}))

        assert (caught.value.name, caught.value.value) == (name, str(path))


@pytest.mark.parametrize("broker", ["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("measured", [True, False])
def test_the_traffic_is_the_real_one(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    broker: str,
    protocol: str,
    measured: bool,
) -> None:
    """Byte for byte, both ways, as a proxy on the line counts them: what the system says, and what is computed."""
    if not measured:
        monkeypatch.setattr(tcp_info, "carried", lambda sock, ended=False: None)
    net = TcpNet(request.getfixturevalue(broker), protocol=protocol)
    reader = Tap(net, "reader")
    writer = Tap(net, "writer", will=Will(topic="state", payload=b"gone"))
    reader.subscribe("a/#")
    writer.outcome(writer.transport.publish("kept", b"x" * 300, retain=True))
    reader.subscribe("kept")
    for number in range(30):
        writer.transport.publish(f"a/{number}", b"x" * (number * 37))
    writer.transport.publish("a/expiring", b"x", expiry=60)
    if protocol == "5":
        writer.transport.publish("nobody", b"")  # 0x10: a longer PUBACK
    reader.wait(lambda: len(reader.deliveries) == 32)
    reader.transport.unsubscribe("a/#")
    reader.settle()
    writer.settle()
    net.close()

    for tap in (reader, writer):
        proxy, traffic = net.proxy(tap.client_id), tap.transport.traffic
        assert traffic.measured == measured
        assert traffic.bytes_sent == proxy.bytes_up
        assert traffic.bytes_received == proxy.bytes_down
    assert writer.transport.traffic.payload_sent == sum(len(d.payload) for d in reader.deliveries) + len("1")


@pytest.mark.mosquitto
def test_a_poison_publish_under_mqtt_311_is_given_up(mosquitto: Server) -> None:
    """There the broker has no way to announce its limit: it just hangs up."""
    net = TcpNet(mosquitto, protocol="3.1.1")
    writer = Tap(net, "writer")
    poison = writer.transport.publish("a", bytes(30_000))
    small = writer.transport.publish("a", b"")
    reasons = (writer.outcome(poison), writer.outcome(small))
    net.close()

    assert isinstance(reasons[0], PublishRefused)
    assert isinstance(reasons[1], PublishAccepted)
    assert net.proxy("writer").connections == STRIKES + 1


def certificate(folder: Path, name: str, *, signer: str | None = None) -> None:
    """Make `name`.pem and `name`.key with openssl, self-signed or signed by another."""
    signing = ["-CA", f"{signer}.pem", "-CAkey", f"{signer}.key"] if signer else []
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", *key, *names, "-keyout", f"{name}.key", "-out", f"{name}.pem", *signing],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_tls_checks_both_sides(tmp_path: Path, server: Scripted) -> None:
    """A client whose authority did not sign the broker's certificate says so, and sends it nothing."""
    certificate(tmp_path, "ca")
    certificate(tmp_path, "broker", signer="ca")
    certificate(tmp_path, "device", signer="ca")
    certificate(tmp_path, "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "broker.pem", tmp_path / "broker.key")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    settings = MqttSettings(
        host="localhost",
        port=server.port,
        client_id="device",
        tls=True,
        ca_file=tmp_path / "ca.pem",
        cert_file=tmp_path / "device.pem",
        key_file=tmp_path / "device.key",
    )
    transport = MqttTransport(settings)
    transport.start()
    line = server.accept(context)
    line.welcome()
    transport.publish("t", bytes(300_000))
    sent = line.take(PUBLISH)
    line.send(PUBACK, struct.pack("!H", sent.packet_id))
    # Two packets in one TLS record: the second is decrypted already when the first is read.
    line.send(PUBLISH, b"\0\1t\0one" + b"\x30\x07\0\1t\0two", size=7)
    events = [take(transport, Connected, PublishAccepted, Delivery) for _ in range(4)]
    transport.close()

    assert sent.body.endswith(bytes(300_000))
    assert [event.payload for event in events[2:]] == [b"one", b"two"]

    stranger = MqttTransport(replace(settings, ca_file=tmp_path / "stranger.pem"))
    stranger.start()
    with pytest.raises(ssl.SSLError):
        server.accept(context)
    refused = take(stranger, Disconnected)
    stranger.close()

    assert "CERTIFICATE_VERIFY_FAILED" in refused.reason


def test_tls_is_counted_a_failed_handshake_included(tmp_path: Path, server: Scripted) -> None:
    """As a proxy on the line counts it: far more than the packets."""
    certificate(tmp_path, "broker")
    certificate(tmp_path, "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "broker.pem", tmp_path / "broker.key")
    settings = MqttSettings(host="127.0.0.1", client_id="c", tls=True, reconnect_min=DEADLINE)
    for name in ("stranger", "broker"):
        with Proxy(server.port) as proxy:
            transport = MqttTransport(replace(settings, port=proxy.port, ca_file=tmp_path / f"{name}.pem"))
            transport.start()
            if name == "broker":
                line = server.accept(context)
                line.welcome()
                line.send(PUBLISH, b"\0\1t\0" + bytes(50))
                take(transport, Connected)
                take(transport, Delivery)
                line.close()
            else:
                with pytest.raises(ssl.SSLError):
                    server.accept(context)
            take(transport, Disconnected)
            transport.close()
        traffic = transport.traffic

        assert traffic.measured
        assert (traffic.bytes_sent, traffic.bytes_received) == (proxy.bytes_up, proxy.bytes_down)
        assert traffic.bytes_sent > 200
        assert traffic.bytes_received > 500


def test_a_frozen_line_counts_nothing_until_it_thaws(server: Scripted) -> None:
    """The proxy itself: it holds back, and then forwards all."""
    with Proxy(server.port) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        line = server.accept()
        proxy.freeze()
        client.sendall(b"\xc0\x00")
        assert proxy.bytes_up == 0
        proxy.thaw()

        assert line.take(PINGREQ).size == 2
