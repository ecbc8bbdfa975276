"""What the memory broker can do to its clients, beyond the contract."""

from fedmq.testing.net import MemoryNet, Tap
from fedmq.transport.base import (
    Connected,
    Delivery,
    Disconnected,
    Event,
    PublishAccepted,
    PublishRefused,
    SubscriptionRefused,
    Transport,
    Will,
)
from fedmq.transport.memory import DeadLetter, MemoryBroker, MemoryTransport


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def started(broker: MemoryBroker, client_id: str, **options: object) -> MemoryTransport:
    """A connected transport that has told so."""
    transport = MemoryTransport(broker, client_id, **options)  # type: ignore[arg-type]
    transport.start()
    assert isinstance(transport.poll(), Connected)
    return transport


def drain(transport: Transport) -> list[Event]:
    """All events that are there."""
    events = []
    while (event := transport.poll(timeout=0)) is not None:
        events.append(event)
    return events


def test_the_transport_is_a_transport() -> None:
    """As the port has it."""
    transport: Transport = MemoryTransport(MemoryBroker(clock=Clock()), "c")

    assert transport.traffic.bytes_sent == 0


def test_polling_never_waits() -> None:
    """Not even when it is asked to wait for ever: nothing could happen meanwhile."""
    transport = MemoryTransport(MemoryBroker(clock=Clock()), "c")

    assert transport.poll(timeout=None) is None


def test_an_acknowledgement_that_was_not_polled_is_lost_with_the_connection() -> None:
    """So the publish is made again, and its reader gets it twice: as it is with a real network."""
    broker = MemoryBroker(clock=Clock())
    reader, writer = started(broker, "reader"), started(broker, "writer")
    reader.subscribe("a")
    token = writer.publish("a", b"x")
    broker.disconnect("writer")
    events = drain(writer)

    assert [type(event) for event in events] == [Disconnected, Connected, PublishAccepted]
    assert events[-1] == PublishAccepted(token=token)
    assert [event.payload for event in drain(reader) if isinstance(event, Delivery)] == [b"x", b"x"]


def test_a_message_that_was_not_polled_comes_again_after_the_reconnect() -> None:
    """Marked as a duplicate, since the broker cannot know how far it came."""
    broker = MemoryBroker(clock=Clock())
    reader, writer = started(broker, "reader"), started(broker, "writer")
    reader.subscribe("a")
    writer.publish("a", b"x")
    broker.disconnect("reader")
    deliveries = [event for event in drain(reader) if isinstance(event, Delivery)]

    assert [(d.payload, d.duplicate) for d in deliveries] == [(b"x", True)]


def test_payloads_are_copied() -> None:
    """A caller that reuses its buffer changes nothing that was sent."""
    broker = MemoryBroker(clock=Clock())
    reader, writer = started(broker, "reader"), started(broker, "writer")
    reader.subscribe("a")
    buffer = bytearray(b"before")
    writer.publish("a", buffer)
    buffer[:] = b"after!"

    assert [event.payload for event in drain(reader) if isinstance(event, Delivery)] == [b"before"]


def test_duplicates_come_at_the_rate_and_by_the_seed() -> None:
    """The same seed gives the same duplicates; acknowledging both copies is harmless."""

    def run(seed: int) -> list[bytes]:
        broker = MemoryBroker(clock=Clock(), duplicate_rate=0.3, seed=seed)
        reader, writer = started(broker, "reader"), started(broker, "writer")
        reader.subscribe("a")
        for number in range(200):
            writer.publish("a", b"%d" % number)
        payloads = []
        while isinstance(event := reader.poll(), Delivery):
            payloads.append(event.payload)
            event.ack()
        assert broker.drained
        return payloads

    first = run(seed=1)

    assert first == run(seed=1)
    assert first != run(seed=2)
    assert 230 < len(first) < 290
    assert len(set(first)) == 200


def test_a_blocked_client_stays_away_until_it_is_unblocked() -> None:
    """Its messages wait."""
    broker = MemoryBroker(clock=Clock())
    reader, writer = started(broker, "reader"), started(broker, "writer")
    reader.subscribe("a")
    broker.block("reader")
    writer.publish("a", b"x")

    assert drain(reader) == [Disconnected(reason="connection lost")]
    assert broker.pending("reader") == 1
    assert broker.drained

    broker.unblock("reader")

    assert [type(event) for event in drain(reader)] == [Connected, Delivery]
    assert not broker.drained


def test_a_stopped_broker_keeps_its_state_if_it_is_to() -> None:
    """Sessions with their subscriptions and queues, and what is retained; and it publishes no will."""
    broker = MemoryBroker(clock=Clock())
    reader = started(broker, "reader", will=Will(topic="state", payload=b"gone"))
    writer = started(broker, "writer")
    reader.subscribe("a")
    writer.publish("model", b"v1", retain=True)
    writer.publish("a", b"x")
    broker.stop(forget=False)

    assert drain(reader) == [Disconnected(reason="broker stopped")]

    broker.start()
    reader.subscribe("#")
    topics = [(event.topic, event.retained) for event in drain(reader) if isinstance(event, Delivery)]

    assert topics == [("a", False), ("model", True)]


def test_a_broker_that_forgets_buries_what_waited() -> None:
    """Nothing disappears unseen."""
    broker = MemoryBroker(clock=Clock())
    reader, writer = started(broker, "reader"), started(broker, "writer")
    reader.subscribe("a")
    writer.publish("a", b"x")
    broker.stop(forget=True)

    assert list(broker.dead_letters) == [
        DeadLetter(topic="a", payload=b"x", client_id="reader", reason="broker lost its state")
    ]


def test_a_session_ends_when_its_expiry_is_over() -> None:
    """Not a moment earlier."""
    clock = Clock()
    broker = MemoryBroker(clock=clock)
    reader, writer = started(broker, "reader", session_expiry=10.0), started(broker, "writer")
    reader.subscribe("a")
    broker.block("reader")
    clock.now = 9.9
    kept = writer.publish("a", b"kept")
    clock.now = 10.0
    late = writer.publish("a", b"late")
    broker.unblock("reader")
    events = drain(reader)

    assert drain(writer) == [
        PublishAccepted(token=kept),
        PublishRefused(token=late, reason="No matching subscribers"),
    ]
    assert [event.session_present for event in events if isinstance(event, Connected)] == [False]
    assert [letter.reason for letter in broker.dead_letters] == ["session ended", "no subscriber"]


def test_a_session_without_expiry_ends_with_its_connection() -> None:
    """As an MQTT session of 0 seconds does."""
    broker = MemoryBroker(clock=Clock())
    transport = started(broker, "c", session_expiry=0.0)
    transport.subscribe("a")
    broker.disconnect("c")

    assert [event.session_present for event in drain(transport) if isinstance(event, Connected)] == [False]


def test_an_expired_retained_message_is_buried() -> None:
    """It waits like any other, and by the clock that was passed in."""
    clock = Clock()
    broker = MemoryBroker(clock=clock)
    client = started(broker, "c")
    client.publish("model", b"old", retain=True, expiry=5.0)
    clock.now = 5.0
    client.subscribe("model")

    assert [event for event in drain(client) if isinstance(event, Delivery)] == []
    assert [letter.reason for letter in broker.dead_letters] == ["expired"]


def test_a_full_queue_drops_the_newest_and_accepts_it_all_the_same() -> None:
    """As mosquitto does, which is why nothing may rely on an accepted publish."""
    broker = MemoryBroker(clock=Clock(), session_queue=2)
    reader, writer = started(broker, "reader"), started(broker, "writer")
    reader.subscribe("a")
    broker.block("reader")
    for number in range(3):
        writer.publish("a", b"%d" % number)
    broker.unblock("reader")

    assert [type(event) for event in drain(writer)] == [PublishAccepted] * 3
    assert [event.payload for event in drain(reader) if isinstance(event, Delivery)] == [b"0", b"1"]
    assert [letter.payload for letter in broker.dead_letters] == [b"2"]


def test_overlapping_subscriptions_bring_one_copy() -> None:
    """However many of a client's filters match."""
    broker = MemoryBroker(clock=Clock())
    client = started(broker, "c")
    client.subscribe("a/#")
    client.subscribe("a/+")
    client.publish("a/b", b"x")

    assert [event.payload for event in drain(client) if isinstance(event, Delivery)] == [b"x"]


def test_a_shared_subscription_is_refused() -> None:
    """With the reason that MQTT has for it."""
    client = started(MemoryBroker(clock=Clock()), "c")
    client.subscribe("$share/group/a")

    assert drain(client) == [
        SubscriptionRefused(topic_filter="$share/group/a", reason="Shared Subscriptions not supported")
    ]


def test_two_clients_of_one_name_take_the_session_from_each_other() -> None:
    """For as long as both poll, and each time the loser is told."""
    broker = MemoryBroker(clock=Clock())
    first, second = started(broker, "name"), started(broker, "name")

    for loser in (first, second, first):
        assert loser.poll() == Disconnected(reason="Session taken over", taken_over=True)
        assert isinstance(loser.poll(), Connected)


def test_the_same_calls_give_the_same_events() -> None:
    """With cuts, a restart and duplicates: what the simulator rests on."""

    def run() -> list[str]:
        net = MemoryNet(duplicate_rate=0.2)
        taps = [Tap(net, f"agent{number}", receive_maximum=3) for number in range(5)]
        for tap in taps:
            tap.subscribe("all/#")
        for step in range(100):
            taps[step % 5].transport.publish(f"all/{step % 7}", b"%d" % step)
            if step % 11 == 0:
                net.cut(f"agent{step % 3}")
            taps[step % 4].pump()
        net.restart_empty()
        for tap in taps:
            tap.pump()
        return [repr(tap.events) for tap in taps]

    assert run() == run()
