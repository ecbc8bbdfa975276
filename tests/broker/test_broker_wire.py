"""What fedmq needs of any MQTT broker, asked over the wire of the embedded broker and of a real mosquitto."""

from collections.abc import Callable, Iterator

import pytest
from fedmq.broker import BrokerSettings, EmbeddedBroker
from fedmq.broker.errors import ReasonCode
from fedmq.broker.packets import Connack, Disconnect, Puback, Publish, Version, Will
from fedmq.broker.properties import Properties

FOR_EVER = Properties(session_expiry=3600)
V311, V5 = Version.V311, Version.V5


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(request: pytest.FixtureRequest) -> Iterator[object]:
    """One broker after the other."""
    if request.param == "mosquitto":
        yield request.getfixturevalue("real_mosquitto")
    else:
        with EmbeddedBroker(settings=BrokerSettings(max_packet=65_536, sys_interval=0.2)) as embedded:
            yield embedded


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A prefix of topics and client identifiers that no other test uses."""
    return request.node.name.replace("[", "-").replace("]", "").replace("+", "")


def persistent(version: Version) -> dict[str, object]:
    """How a client asks for a session that outlives its connection."""
    if version == V5:
        return {"version": V5, "clean_start": False, "properties": FOR_EVER}
    return {"version": V311, "clean_start": False}


both = pytest.mark.parametrize("version", [V311, V5], ids=["311", "v5"])


@both
def test_a_publish_reaches_its_subscriber_unchanged(broker, dial, name, version):
    """Topic and payload arrive as they were sent."""
    subscriber = dial(broker, f"{name}-s", version=version)
    subscriber.subscribe(f"{name}/+/x")
    publisher = dial(broker, f"{name}-p", version=version)

    publisher.publish(f"{name}/ä/x", bytes(range(256)))
    [received] = subscriber.deliveries(1)

    assert (f"{name}/ä/x", bytes(range(256)), 1, False) == (
        received.topic,
        bytes(received.payload),
        received.qos,
        received.dup,
    )


@both
def test_messages_wait_for_a_persistent_session(broker, dial, name, version):
    """A client that was away gets everything that was published meanwhile, in order."""
    away = dial(broker, name, **persistent(version))
    away.subscribe(f"{name}/#")
    away.disconnect()
    publisher = dial(broker, f"{name}-p", version=version)
    for index in range(5):
        publisher.publish(f"{name}/{index}", b"%d" % index)

    back = dial(broker, name, **persistent(version))

    assert back.connack.session_present
    assert [bytes(one.payload) for one in back.deliveries(5)] == [b"0", b"1", b"2", b"3", b"4"]


@both
def test_unacknowledged_messages_come_again_under_their_identifiers(broker, dial, name, version):
    """What was in flight when the connection broke is sent again with DUP, whatever order was acknowledged."""
    first = dial(broker, name, **persistent(version))
    first.subscribe(f"{name}/#")
    publisher = dial(broker, f"{name}-p", version=version)
    for index in range(5):
        publisher.publish(f"{name}/x", b"%d" % index)
    sent = first.deliveries(5, acknowledge=False)
    first.acknowledge(sent[3].packet_id)
    first.acknowledge(sent[0].packet_id)
    first.ping()
    first.vanish()

    second = dial(broker, name, **persistent(version))
    again = second.deliveries(3)

    expected = [(sent[index].packet_id, b"%d" % index, True) for index in (1, 2, 4)]
    assert expected == [(one.packet_id, bytes(one.payload), one.dup) for one in again]
    assert second.ping() == []


@pytest.mark.parametrize("window", [1, 5])
def test_the_receive_maximum_of_a_client_is_honoured(broker, dial, name, window):
    """No more than that many deliveries are under way, and acknowledging them lets the others go."""
    subscriber = dial(broker, name, properties=Properties(receive_maximum=window))
    subscriber.subscribe(f"{name}/#")
    publisher = dial(broker, f"{name}-p")
    for index in range(12):
        publisher.publish(f"{name}/x", b"%d" % index)

    under_way = subscriber.ping()
    for one in under_way:
        subscriber.acknowledge(one.packet_id)

    assert window == len(under_way)
    assert [b"%d" % index for index in range(window, 12)] == [
        bytes(one.payload) for one in subscriber.deliveries(12 - window)
    ]


def test_a_client_of_3_1_1_has_twenty_deliveries_under_way(broker, dial, name):
    """The default window bounds what an old client can be sent at once."""
    subscriber = dial(broker, name, version=V311)
    subscriber.subscribe(f"{name}/#")
    publisher = dial(broker, f"{name}-p")
    for _ in range(30):
        publisher.publish(f"{name}/x")

    assert len(subscriber.ping()) == 20


def test_a_session_ends_when_its_expiry_has_passed(broker, dial, name):
    """After that the client is told that there is no session."""
    short = {"clean_start": False, "properties": Properties(session_expiry=1)}
    watcher = dial(broker, f"{name}-w")
    watcher.subscribe("$SYS/broker/clients/expired", qos=0)
    [before] = watcher.deliveries(1)
    dial(broker, name, **short).disconnect()
    while [now := watcher.deliveries(1)[0]] and int(now.payload) <= int(before.payload):
        pass

    back = dial(broker, name, **short)

    assert not back.connack.session_present


def test_a_message_that_has_expired_is_not_delivered(broker, dial, name):
    """Both in a queue and retained; one that has not expired arrives with what is left of its time."""
    away = dial(broker, name, **persistent(V5))
    away.subscribe(f"{name}/#")
    away.disconnect()
    publisher = dial(broker, f"{name}-p")
    publisher.publish(f"{name}/stale", b"x", retain=True, properties=Properties(message_expiry=1))
    publisher.publish(f"{name}/fresh", b"x", properties=Properties(message_expiry=1000))
    watcher = dial(broker, f"{name}-w")
    watcher.subscribe("$SYS/broker/uptime", qos=0)
    seconds = [int(watcher.deliveries(1)[0].payload.split()[0])]
    while seconds[-1] < seconds[0] + 2:
        seconds.append(int(watcher.deliveries(1)[0].payload.split()[0]))

    back = dial(broker, name, **persistent(V5))
    [fresh] = back.deliveries(1)
    late = dial(broker, f"{name}-l")
    late.subscribe(f"{name}/#")

    assert f"{name}/fresh" == fresh.topic
    assert 900 < fresh.properties.message_expiry <= 999
    assert back.ping() == []
    assert late.ping() == []


@both
def test_retained_messages_are_found_by_wildcard(broker, dial, name, version):
    """A new subscriber gets the newest of each topic, marked as retained; an empty one removes it."""
    publisher = dial(broker, f"{name}-p", version=version)
    for topic, payload in (
        ("a/1", b"old"),
        ("a/1", b"new"),
        ("a/2", b"two"),
        ("b/1", b"no"),
        ("a/3", b"gone"),
    ):
        publisher.publish(f"{name}/{topic}", payload, retain=True)
    publisher.publish(f"{name}/a/3", b"", retain=True)

    late = dial(broker, name, version=version)
    late.subscribe(f"{name}/a/+")
    found = late.deliveries(2)

    assert {("a/1", b"new", True), ("a/2", b"two", True)} == {
        (one.topic.removeprefix(f"{name}/"), bytes(one.payload), one.retain) for one in found
    }
    assert late.ping() == []


def test_retain_handling_says_when_retained_messages_come(broker, dial, name):
    """0 always, 1 only for a new subscription, 2 never."""
    client = dial(broker, name)
    client.publish(f"{name}/x", b"kept", retain=True)

    def received(handling: int) -> int:
        client.subscribe(f"{name}/x", retain_handling=handling)
        return len(client.ping())

    assert [received(2), received(0), received(1)] == [0, 1, 0]


def test_retain_as_published_and_no_local_are_honoured(broker, dial, name):
    """The first keeps the retain flag of a live message, the second keeps a client's own messages away."""
    client = dial(broker, name)
    client.subscribe(f"{name}/own", no_local=True)
    client.subscribe(f"{name}/flag", retain_as_published=True)
    other = dial(broker, f"{name}-o")
    other.subscribe(f"{name}/flag")

    client.send(Publish(topic=f"{name}/own", payload=b"", qos=1, packet_id=9))
    client.send(Publish(topic=f"{name}/flag", payload=b"x", qos=1, packet_id=10, retain=True))
    own = [one for one in client.ping() if isinstance(one, Publish)]

    assert [(f"{name}/flag", True)] == [(one.topic, one.retain) for one in own]
    assert [one.retain for one in other.deliveries(1)] == [False]


def test_a_shared_subscription_splits_the_messages(broker, dial, name):
    """Each message goes to one member, and no member is left out."""
    members = [dial(broker, f"{name}-{index}") for index in range(2)]
    for member in members:
        member.subscribe(f"$share/group/{name}/#")
    publisher = dial(broker, f"{name}-p")
    for _ in range(10):
        publisher.publish(f"{name}/x")

    assert [len(member.ping()) for member in members] == [5, 5]


def test_a_publish_that_nobody_wants_is_answered_so(broker, dial, name):
    """PUBACK 0x10: without it an update would vanish unnoticed."""
    publisher = dial(broker, name)

    assert publisher.publish(f"{name}/nobody", b"x") == ReasonCode.NO_MATCHING_SUBSCRIBERS


def test_a_second_connection_takes_the_session_over(broker, dial, name):
    """The first has to go (mosquitto 2.0.11 does not say why), and nothing of its session is lost."""
    first = dial(broker, name, **persistent(V5))
    first.subscribe(f"{name}/#")

    second = dial(broker, name, **persistent(V5))

    assert first.receive() in (Disconnect(reason=ReasonCode.SESSION_TAKEN_OVER), None)
    assert first.receive() is None
    assert second.connack.session_present


@both
def test_a_will_is_published_when_the_connection_breaks(broker, dial, name, version):
    """And not when the client says goodbye."""
    watcher = dial(broker, f"{name}-w", version=version)
    watcher.subscribe(f"{name}/#")

    def mortal(end: Callable[..., None]) -> None:
        will = Will(topic=f"{name}/will", payload=end.__name__.encode(), qos=1)
        getattr(dial(broker, name, version=version, will=will), end.__name__)()

    mortal(type(watcher).disconnect)
    mortal(type(watcher).vanish)

    assert [bytes(one.payload) for one in watcher.deliveries(1)] == [b"vanish"]


def test_a_packet_that_is_too_large_ends_the_connection(broker, dial, name):
    """The limit is announced, and a client that breaks it is told why."""
    client = dial(broker, name)

    client.send(Publish(topic=name, payload=bytes(70_000), qos=1, packet_id=1))

    assert client.connack.properties.maximum_packet_size == 65_536
    assert client.receive().reason == ReasonCode.PACKET_TOO_LARGE
    assert client.receive() is None


def test_properties_of_a_publish_are_passed_on(broker, dial, name):
    """Content type, response topic, correlation data and user properties, in their order."""
    properties = Properties(
        payload_format=1,
        content_type="text/plain",
        response_topic="answer/here",
        correlation_data=b"\0\1",
        user_properties=(("a", "1"), ("a", "2"), ("b", "")),
    )
    subscriber = dial(broker, name)
    subscriber.subscribe(f"{name}/x")
    dial(broker, f"{name}-p").publish(f"{name}/x", b"text", properties=properties)

    [received] = subscriber.deliveries(1)

    assert properties == received.properties


@both
def test_a_clean_start_forgets_the_old_session(broker, dial, name, version):
    """Subscriptions and waiting messages are gone."""
    old = dial(broker, name, **persistent(version))
    old.subscribe(f"{name}/#")
    old.disconnect()
    dial(broker, f"{name}-p", version=version).publish(f"{name}/x", b"lost")

    new = dial(broker, name, version=version, clean_start=True)

    assert not new.connack.session_present
    assert new.ping() == []


@both
def test_a_topic_is_no_longer_delivered_after_unsubscribe(broker, dial, name, version):
    """The other subscriptions stay."""
    client = dial(broker, name, version=version)
    client.subscribe(f"{name}/a")
    client.subscribe(f"{name}/b")
    client.unsubscribe(f"{name}/a")
    publisher = dial(broker, f"{name}-p", version=version)
    publisher.publish(f"{name}/a")
    publisher.publish(f"{name}/b")

    assert [f"{name}/b"] == [one.topic for one in client.deliveries(1)]


def test_the_broker_counts_for_those_who_ask(broker, dial, name):
    """`$SYS` has the figures that show an overflow, and a plain wildcard does not see it."""
    client = dial(broker, name)
    client.subscribe("#")
    client.unsubscribe("#")
    plain = dial(broker, f"{name}-2")
    plain.subscribe("+/broker/version", qos=0)
    client.subscribe("$SYS/broker/publish/messages/dropped", qos=0)

    [dropped] = client.deliveries(1)

    assert int(bytes(dropped.payload)) >= 0
    assert plain.ping() == []


@both
def test_a_first_packet_that_is_no_connect_ends_the_connection(broker, dial, name, version):
    """Nothing is answered to someone who does not introduce himself, nor to two introductions."""
    client = dial(broker, name, version=version)
    client.send_bytes(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04twoc")

    packets = []
    while (packet := client.receive()) is not None:
        packets.append(packet)

    assert not any(isinstance(packet, Connack | Puback) for packet in packets)
