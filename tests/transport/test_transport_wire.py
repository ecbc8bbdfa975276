"""Wires that take their time, between the memory transport and its broker."""

from collections.abc import Callable

from fedmq.transport import packet_size
from fedmq.transport.base import Connected, Delivery, Disconnected, PublishAccepted
from fedmq.transport.memory import MemoryBroker, MemoryTransport


class SlowWire:
    """Packets arrive when the test says so."""

    def __init__(self) -> None:
        self.ups: list[tuple[int, Callable[[], None]]] = []
        self.downs: list[tuple[int, Callable[[], None]]] = []

    def up(self, size: int, arrive: Callable[[], None]) -> None:
        self.ups.append((size, arrive))

    def down(self, size: int, arrive: Callable[[], None]) -> None:
        self.downs.append((size, arrive))

    def carry(self) -> int:
        """Let all that is on its way arrive; returns how many packets that were."""
        packets, self.ups, self.downs = self.ups + self.downs, [], []
        for _, arrive in packets:
            arrive()
        return len(packets)


def joined(broker: MemoryBroker, wire: SlowWire, **options: object) -> MemoryTransport:
    """A connected client over a slow wire."""
    transport = MemoryTransport(broker, "slow", wire=wire, **options)  # type: ignore[arg-type]
    transport.start()
    wire.carry()
    wire.carry()

    assert isinstance(transport.poll(), Connected)
    return transport


def test_nothing_has_arrived_before_it_arrives() -> None:
    """CONNECT, SUBSCRIBE, PUBLISH, and what comes back, each in its time."""
    broker, wire = MemoryBroker(clock=lambda: 0.0), SlowWire()
    transport = MemoryTransport(broker, "slow", wire=wire)
    transport.start()

    assert transport.poll() is None
    assert transport.poll() is None
    assert [1, 0] == [len(wire.ups), len(wire.downs)]  # one CONNECT, however often it is polled
    wire.carry()
    assert transport.poll() is None
    wire.carry()
    assert isinstance(transport.poll(), Connected)
    transport.subscribe("a")
    token = transport.publish("a", b"hello")
    assert transport.poll() is None
    wire.carry()
    assert transport.poll() is None
    wire.carry()
    events = [transport.poll(), transport.poll()]
    assert {Delivery, PublishAccepted} == set(map(type, events))
    assert PublishAccepted(token=token) in events


def test_what_is_on_the_wire_when_the_connection_breaks_is_lost_and_sent_again() -> None:
    """A publish on its way up, and a message on its way down."""
    broker, wire = MemoryBroker(clock=lambda: 0.0), SlowWire()
    transport = joined(broker, wire, session_expiry=100.0)
    transport.subscribe("a")
    wire.carry()
    wire.carry()
    broker.publish("a", b"down", retain=False, expiry=None)
    token = transport.publish("b", b"up", retain=True)
    broker.disconnect("slow")
    wire.carry()

    assert broker.retained("b") is None
    assert isinstance(transport.poll(), Disconnected)
    assert transport.poll() is None  # it has begun to connect
    for _ in range(3):
        wire.carry()
    events = [transport.poll() for _ in range(3)]
    assert b"up" == broker.retained("b")
    assert [b"down"] == [event.payload for event in events if isinstance(event, Delivery)]
    assert PublishAccepted(token=token) in events


def test_an_acknowledgement_counts_when_it_has_arrived() -> None:
    """Until then the broker would send the message again; acknowledging twice sends one packet."""
    broker, wire = MemoryBroker(clock=lambda: 0.0), SlowWire()
    transport = joined(broker, wire)
    transport.subscribe("a")
    wire.carry()
    wire.carry()
    broker.publish("a", b"x", retain=False, expiry=None)
    wire.carry()
    delivery = transport.poll()
    assert isinstance(delivery, Delivery)
    delivery.ack()
    delivery.ack()

    assert 1 == len(wire.ups)
    assert 1 == broker.pending("slow")
    wire.carry()
    assert 0 == broker.pending("slow")


def test_the_wire_is_told_the_size_of_each_packet() -> None:
    """The same ones that are counted."""
    broker, wire = MemoryBroker(clock=lambda: 0.0), SlowWire()
    transport = joined(broker, wire)
    before = transport.traffic
    transport.publish("topic", b"payload")
    sizes = [size for size, _ in wire.ups]
    wire.carry()
    puback = [size for size, _ in wire.downs]
    wire.carry()
    after = transport.traffic

    assert [packet_size.publish("topic", 7, properties=1)] == sizes
    assert sum(sizes) == after.bytes_sent - before.bytes_sent
    assert sum(puback) == after.bytes_received - before.bytes_received
    assert (7, 5) == (after.payload_sent, after.topic_sent)


def test_a_topic_is_abbreviated_from_the_third_publish_on() -> None:
    """When the session ends with its connection, and the broker takes aliases; the second one tells the number."""
    topic, sizes = "a/rather/long/topic", []
    for aliases, clean in ((10, True), (10, False), (0, True)):
        broker, wire = MemoryBroker(clock=lambda: 0.0, topic_alias_maximum=aliases), SlowWire()
        transport = joined(broker, wire, clean_start=clean, session_expiry=0.0 if clean else 100.0)
        for _ in range(4):
            transport.publish(topic, b"x", retain=True)
        sizes.append([size for size, _ in wire.ups])
        wire.carry()

        assert b"x" == broker.retained(topic)
    plain = packet_size.publish(topic, 1, properties=1)
    short = packet_size.publish("", 1, properties=4)

    assert [[plain, plain + 3, short, short], [plain] * 4, [plain] * 4] == sizes


def test_what_is_retained_can_be_asked_for() -> None:
    """Until it expires, or is cleared."""
    now = 0.0
    broker = MemoryBroker(clock=lambda: now)
    broker.publish("a", b"x", retain=True, expiry=5.0)
    broker.publish("b", b"y", retain=True, expiry=None)
    now = 6.0

    assert [None, b"y", None] == [broker.retained(topic) for topic in "abc"]
    broker.publish("b", b"", retain=True, expiry=None)
    assert broker.retained("b") is None
