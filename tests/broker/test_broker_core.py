"""The broker's decisions, with a manual clock and without a socket."""

from dataclasses import replace

import pytest
from fedmq.broker import BrokerSettings, Fault, FaultAction, FaultPlan
from fedmq.broker.core import BrokerCore
from fedmq.broker.decoder import Decoder
from fedmq.broker.errors import BrokerSettingError, ProtocolError, ReasonCode
from fedmq.broker.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Puback,
    Publish,
    Subscribe,
    Subscription,
    Unsubscribe,
    Version,
    Will,
)
from fedmq.broker.properties import Properties
from hypothesis import given
from hypothesis import strategies as st

V311, V5 = Version.V311, Version.V5
KEPT = Properties(session_expiry=100)


class Bench:
    """A core, the time, and clients whose packets can be read."""

    def __init__(self, *, faults: FaultPlan | None = None, **settings: object) -> None:
        self.now = 1_000.0
        self.core = BrokerCore(
            BrokerSettings(**{"sys_interval": 0, **settings}),
            self.now,
            faults=faults,
            new_id=lambda: "made-up",
        )

    def client(self, client_id: str = "c", version: Version = V5, **fields: object) -> "Client":
        return Client(self, Connect(version=version, client_id=client_id, **fields))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)


class Client:
    def __init__(self, bench: Bench, connect: Connect) -> None:
        self.bench, self.core = bench, bench.core
        self.channel = bench.core.open(bench.now)
        self.decoder = Decoder(1 << 28, connect.version)
        self.send(connect)
        first = self.read()
        self.connack = first[0] if first else None
        self.early = first[1:]

    def send(self, packet: object) -> None:
        try:
            self.core.receive(self.channel, packet, self.bench.now)
        except ProtocolError as error:
            self.core.failed(self.channel, error, self.bench.now)
        self.core.commit(self.bench.now)

    def read(self) -> list:
        """What the core has for this client; a flush makes room, so until there is no more."""
        found = []
        while self.channel.out:
            found += self.decoder.feed(b"".join(self.channel.take()))
            self.core.writable(self.channel, self.bench.now)
        return found

    def publish(self, topic: str, payload: bytes = b"x", packet_id: int | None = 1, **fields: object) -> list:
        self.send(
            Publish(
                topic=topic, payload=payload, qos=int(packet_id is not None), packet_id=packet_id, **fields
            )
        )
        return self.read()

    def subscribe(self, *filters: str, **options: object) -> tuple[int, ...]:
        subscriptions = tuple(Subscription(filter=one, **{"qos": 1, **options}) for one in filters)
        self.send(Subscribe(packet_id=1, subscriptions=subscriptions))
        packets = self.read()
        self.early = packets[1:]
        return packets[0].reasons

    def leave(self) -> None:
        self.send(Disconnect())
        self.core.lost(self.channel, self.bench.now)

    def vanish(self) -> None:
        self.core.lost(self.channel, self.bench.now)


def payloads(packets: list) -> list[bytes]:
    """The payloads of the publishes among packets."""
    return [bytes(one.payload) for one in packets if isinstance(one, Publish)]


def test_the_limits_are_announced():
    """A client of MQTT 5 learns what it may do before it does it."""
    limits = {"receive_maximum": 7, "max_packet": 9_000, "topic_aliases": 3, "max_session_expiry": 50}
    client = Bench(**limits).client(properties=KEPT)

    expected = Properties(
        receive_maximum=7, maximum_qos=1, maximum_packet_size=9_000, topic_alias_maximum=3, session_expiry=50
    )
    assert Connack(properties=expected) == client.connack


def test_a_client_without_a_name_is_given_one():
    """And is told which."""
    assert Bench().client("").connack.properties.assigned_client_id == "made-up"


REFUSALS = {
    "no password": ({"users": {"u": "p"}}, {"username": "u"}, 0x86),
    "wrong password": ({"users": {"u": "p"}}, {"username": "u", "password": b"q"}, 0x86),
    "unknown user": ({"users": {"u": "p"}}, {"username": "", "password": b""}, 0x86),
    "authentication method": ({}, {"properties": Properties(authentication_method="x")}, 0x8C),
    "will of QoS 2": ({}, {"will": Will(topic="w", payload=b"", qos=2)}, 0x9B),
    "will of too many levels": ({}, {"will": Will(topic="a/" * 40, payload=b"")}, 0x90),
    "will on a topic of ours": ({}, {"will": Will(topic="$SYS/x", payload=b"")}, 0x87),
}


@pytest.mark.parametrize(("settings", "fields", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_clients_are_refused_with_a_reason(settings, fields, reason):
    """And are disconnected."""
    client = Bench(**settings).client(**fields)

    assert reason == client.connack.reason
    assert client.channel.closing


def test_an_old_client_is_refused_with_the_nearest_return_code():
    """3.1.1 has five of them; one without a name cannot have a session that outlives it."""
    bench = Bench(users={"u": "p"})

    assert bench.client(version=V311).connack.reason == 4
    assert Bench().client("", version=V311, clean_start=False).connack.reason == 2


def test_the_right_password_opens_the_door():
    """And only the user who opened a session may take it up."""
    bench = Bench(users={"u": "p", "v": "q"})
    assert bench.client(username="u", password=b"p", properties=KEPT).connack.reason == 0

    assert bench.client(username="v", password=b"q").connack.reason == ReasonCode.NOT_AUTHORIZED


def test_there_is_room_for_so_many_clients_and_sessions():
    """The next is told so; one that takes over its own session needs no room."""
    bench = Bench(max_clients=2, max_sessions=3)
    for name in "ab":
        bench.client(name, properties=KEPT)

    assert bench.client("c").connack.reason == ReasonCode.QUOTA_EXCEEDED
    last = bench.client("b", clean_start=False, properties=KEPT)
    assert last.connack.reason == 0
    last.leave()
    bench.client("c", properties=KEPT).leave()
    assert bench.client("d").connack.reason == ReasonCode.QUOTA_EXCEEDED


def test_a_session_taken_over_is_told_so():
    """The old connection gets 0x8E and its will is published; the new one goes on with the session."""
    bench = Bench()
    watcher = bench.client("w")
    watcher.subscribe("will")
    old = bench.client(properties=KEPT, will=Will(topic="will", payload=b"gone"))
    new = bench.client(clean_start=False, properties=KEPT)

    assert [Disconnect(reason=0x8E)] == old.read()
    assert old.channel.closing
    assert new.connack.session_present
    assert payloads(watcher.read()) == [b"gone"]
    assert bench.core.counters.connected == 2


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Connect(version=V5, client_id="again"), 0x82),
        (Connack(), 0x82),
        (Publish(topic="t", payload=b"", qos=2, packet_id=1), 0x9B),
        (Publish(topic="t", payload=b"", properties=Properties(topic_alias=11)), 0x94),
        (Publish(topic="", payload=b"", properties=Properties(topic_alias=10)), 0x82),
        (Publish(topic="t", payload=b"", properties=Properties(subscription_ids=(1,))), 0x82),
        (Disconnect(properties=Properties(session_expiry=9)), 0x82),
    ],
)
def test_what_a_client_must_not_send_ends_its_connection(packet, reason):
    """With the reason the specification has for it."""
    client = Bench().client()
    client.send(packet)

    assert [Disconnect(reason=reason)] == client.read()
    assert client.channel.closing


def test_a_topic_alias_stands_for_its_topic_until_it_gets_another():
    """On the connection that gave it, and in nothing that is passed on."""
    bench = Bench()
    watcher, client = bench.client("watcher"), bench.client()
    watcher.subscribe("#")
    one = {"properties": Properties(topic_alias=1)}
    for topic, payload in (("a", b"1"), ("", b"2"), ("b", b"3"), ("", b"4")):
        client.publish(topic, payload, **one)
    received = watcher.read()
    client.vanish()
    again = bench.client()

    assert [(one.topic, bytes(one.payload)) for one in received] == [
        ("a", b"1"),
        ("a", b"2"),
        ("b", b"3"),
        ("b", b"4"),
    ]
    assert {one.properties for one in received} == {Properties()}
    assert [Disconnect(reason=0x82)] == again.publish("", b"5", **one)


def test_a_broker_may_take_no_aliases():
    """The first is one too many."""
    client = Bench(topic_aliases=0).client()

    assert client.connack.properties.topic_alias_maximum == 0
    assert [Disconnect(reason=0x94)] == client.publish("t", properties=Properties(topic_alias=1))


def test_more_publishes_than_the_receive_maximum_end_the_connection():
    """Acknowledgements that were handed to the socket make room again."""
    client = Bench(receive_maximum=3).client()
    for _ in range(5):
        client.publish("t")  # each is acknowledged before the next
    for index in range(4):
        client.send(Publish(topic="t", payload=b"", qos=1, packet_id=index + 1))

    assert Disconnect(reason=ReasonCode.RECEIVE_MAXIMUM_EXCEEDED) == client.read()[-1]


@pytest.mark.parametrize(("topic", "reason"), [("$SYS/x", 0x87), ("a/" * 40, 0x90), ("nobody", 0x10)])
def test_publishes_that_cannot_be_delivered_are_answered_so(topic, reason):
    """The client goes on."""
    client = Bench().client()

    assert [Puback(packet_id=1, reason=reason)] == client.publish(topic)
    assert not client.channel.closing


def test_a_queue_has_a_largest_number_and_a_largest_size():
    """The newest is dropped and counted, and if it was for nobody else its sender is told."""
    bench = Bench(max_queued_messages=2)
    away = bench.client(properties=KEPT)
    away.subscribe("t")
    away.leave()
    sender = bench.client("s")
    answers = [sender.publish("t", b"%d" % index)[0].reason for index in range(3)]
    back = bench.client(clean_start=False, properties=KEPT)

    assert answers == [0, 0, ReasonCode.QUOTA_EXCEEDED]
    assert payloads(back.early) == [b"0", b"1"]
    assert bench.core.counters.publishes_dropped == 1


@pytest.mark.parametrize("bound", ["max_queued_bytes", "max_stored_bytes"])
def test_queues_are_bounded_by_size(bound):
    """Alone and all together."""
    bench = Bench(**{bound: 10_000})
    away = bench.client(properties=KEPT)
    away.subscribe("t")
    away.leave()
    sender = bench.client("s")

    reasons = [sender.publish("t", bytes(4_000))[0].reason for _ in range(3)]

    assert reasons == [0, 0, ReasonCode.QUOTA_EXCEEDED]
    assert bench.core.state.stored_bytes <= 10_000


@pytest.mark.parametrize("bound", [{"max_retained_messages": 2}, {"max_retained_bytes": 9_000}])
def test_retained_messages_are_bounded(bound):
    """A topic that has one may change it; one that has none is refused."""
    client = Bench(**bound).client()
    reasons = [client.publish(topic, bytes(4_000), retain=True)[0].reason for topic in ("a", "b", "c", "a")]

    assert reasons == [0x10, 0x10, ReasonCode.QUOTA_EXCEEDED, 0x10]


def test_a_client_has_a_largest_number_of_subscriptions():
    """Those that it has, it may change."""
    client = Bench(max_subscriptions=2, max_topic_levels=3).client()

    assert client.subscribe("a", "b", "c", "a") == (1, 1, 0x97, 1)
    assert client.subscribe("a/b/c/d") == (0x8F,)


def test_a_message_for_two_copies_of_a_filter_arrives_once():
    """With the higher QoS and the identifiers of both."""
    bench = Bench()
    client = bench.client()
    client.subscribe("a/#", qos=0, identifier=3)
    client.subscribe("a/+", qos=1, identifier=5)
    bench.client("s").publish("a/b")

    [received] = client.read()

    assert (received.qos, tuple(sorted(received.properties.subscription_ids))) == (1, (3, 5))


def test_a_smaller_window_holds_for_what_is_sent_again():
    """A client that comes back with less room is not overrun, and identifiers stay."""
    bench = Bench()
    first = bench.client(properties=replace(KEPT, receive_maximum=5))
    first.subscribe("t")
    sender = bench.client("s")
    for index in range(6):
        sender.publish("t", b"%d" % index)
    sent = first.read()
    first.vanish()

    second = bench.client(clean_start=False, properties=replace(KEPT, receive_maximum=2))
    received = [*second.early]
    for index in range(4):
        second.send(Puback(packet_id=received[index].packet_id))
        received += second.read()

    assert payloads(sent) == [b"0", b"1", b"2", b"3", b"4"]
    assert payloads(received) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert [one.dup for one in received] == [True] * 5 + [False]
    assert [one.packet_id for one in sent] == [one.packet_id for one in received[:5]]


def test_an_acknowledgement_of_nothing_changes_nothing():
    """Neither an unknown identifier nor a second acknowledgement opens the window further."""
    bench = Bench()
    client = bench.client(properties=Properties(receive_maximum=1))
    client.subscribe("t")
    sender = bench.client("s")
    for index in range(3):
        sender.publish("t", b"%d" % index)
    [first] = client.read()
    client.send(Puback(packet_id=first.packet_id))
    client.send(Puback(packet_id=first.packet_id))
    client.send(Puback(packet_id=999))

    assert payloads(client.read()) == [b"1"]


def test_packet_identifiers_go_round_past_those_in_flight():
    """After 65535 comes the first that is free."""
    bench = Bench()
    client = bench.client(properties=Properties(receive_maximum=2))
    client.subscribe("t")
    sender = bench.client("s")
    sender.publish("t")
    [held] = client.read()
    session = bench.core.state.sessions["c"]
    session._last_id = 65_535
    sender.publish("t")
    [next_one] = client.read()

    assert (held.packet_id, next_one.packet_id) == (1, 2)


def test_a_message_larger_than_the_client_takes_is_not_sent():
    """It counts as dropped, and the next one comes."""
    bench = Bench()
    client = bench.client(properties=Properties(maximum_packet_size=100))
    client.subscribe("t")
    sender = bench.client("s")
    sender.publish("t", bytes(200))
    sender.publish("t", b"small")

    assert payloads(client.read()) == [b"small"]
    assert bench.core.counters.publishes_dropped == 1
    assert bench.core.state.stored_messages == 1


def test_messages_expire_in_queues_and_while_retained():
    """And what is delivered says how long it is still good for."""
    bench = Bench()
    away = bench.client(properties=KEPT)
    away.subscribe("t/#")
    away.leave()
    sender = bench.client("s")
    sender.publish("t/short", retain=True, properties=Properties(message_expiry=10))
    sender.publish("t/long", retain=True, properties=Properties(message_expiry=60))
    bench.pass_time(20)
    back = bench.client(clean_start=False, properties=KEPT)
    late = bench.client("l")
    late.subscribe("t/#")

    assert [(one.topic, one.properties.message_expiry) for one in back.early] == [("t/long", 40)]
    assert [(one.topic, one.properties.message_expiry) for one in late.early] == [("t/long", 40)]
    assert len(bench.core.state.retained) == 1


def test_what_has_expired_makes_room_for_what_is_fresh():
    """A queue full of stale messages does not stay full, and neither do the retained ones."""
    bench = Bench(max_queued_messages=2)
    away = bench.client(properties=KEPT)
    away.subscribe("t")
    away.leave()
    sender = bench.client("s", keep_alive=0)
    for index in range(2):
        sender.publish("t", b"stale%d" % index, retain=True, properties=Properties(message_expiry=5))
    before = sender.publish("t", b"dropped")[0].reason
    bench.pass_time(31)
    after = sender.publish("t", b"fresh")[0].reason

    assert (before, after) == (ReasonCode.QUOTA_EXCEEDED, 0)
    assert (bench.core.state.stored_messages, len(bench.core.state.retained)) == (1, 0)
    assert payloads(bench.client(clean_start=False, properties=KEPT).early) == [b"fresh"]


def test_a_session_that_is_over_is_over_to_the_second():
    """Also when its client comes back before anybody has looked."""
    bench = Bench()
    bench.client(properties=KEPT).leave()
    bench.now += 100

    assert not bench.client(clean_start=False, properties=KEPT).connack.session_present


def test_sessions_expire_and_give_back_what_they_held():
    """Queue, flight and subscriptions are gone, and the counter says so."""
    bench = Bench()
    client = bench.client(properties=replace(KEPT, receive_maximum=1))
    client.subscribe("t")
    sender = bench.client("s", keep_alive=0)
    for _ in range(3):
        sender.publish("t")
    client.vanish()
    bench.pass_time(99)
    assert bench.core.state.stored_messages == 3
    bench.pass_time(2)

    assert ({"s"}, 0, 0, 0) == (
        set(bench.core.state.sessions),
        bench.core.state.stored_messages,
        bench.core.state.stored_bytes,
        bench.core.state.subscriptions.count,
    )
    assert bench.core.counters.expired_sessions == 1


def test_a_session_that_never_expires_is_bounded_by_the_settings():
    """0xFFFFFFFF becomes the longest that is allowed, and 3.1.1's sessions last as long."""
    bench = Bench(max_session_expiry=50)
    bench.client("five", properties=Properties(session_expiry=0xFFFFFFFF)).leave()
    bench.client("old", version=V311, clean_start=False).leave()
    bench.pass_time(49)
    assert len(bench.core.state.sessions) == 2
    bench.pass_time(2)

    assert len(bench.core.state.sessions) == 0


def test_a_client_may_shorten_its_session_when_it_leaves():
    """An expiry of 0 in DISCONNECT ends it at once."""
    bench = Bench()
    client = bench.client(properties=KEPT)
    client.send(Disconnect(properties=Properties(session_expiry=0)))

    assert bench.core.state.sessions == {}


def wills(bench: Bench, *, delay: int, **fields: object) -> tuple[Client, Client]:
    """A watcher of wills, and a client that has one."""
    watcher = bench.client("w")
    watcher.subscribe("will")
    will = Will(topic="will", payload=b"gone", qos=1, properties=Properties(will_delay=delay))
    return watcher, bench.client(properties=KEPT, will=will, **fields)


def test_a_will_waits_for_its_delay():
    """And not longer."""
    bench = Bench()
    watcher, client = wills(bench, delay=10)
    client.vanish()
    bench.pass_time(9)
    assert watcher.read() == []
    bench.pass_time(2)

    assert payloads(watcher.read()) == [b"gone"]
    bench.pass_time(20)
    assert watcher.read() == []


def test_a_client_that_comes_back_in_time_has_not_died():
    """Its will is forgotten."""
    bench = Bench()
    watcher, client = wills(bench, delay=10)
    client.vanish()
    bench.client(clean_start=False, properties=KEPT)
    bench.pass_time(20)

    assert watcher.read() == []


def test_a_will_does_not_outwait_its_session():
    """A clean start ends the session, and the will that still waited is published."""
    bench = Bench()
    watcher, client = wills(bench, delay=10)
    client.vanish()
    bench.client(clean_start=True)

    assert payloads(watcher.read()) == [b"gone"]


def test_a_client_may_leave_and_have_its_will_published():
    """DISCONNECT with reason 0x04."""
    bench = Bench()
    watcher, client = wills(bench, delay=0)
    client.send(Disconnect(reason=0x04))

    assert payloads(watcher.read()) == [b"gone"]


def test_a_silent_client_is_disconnected_after_one_and_a_half_keep_alives():
    """A PINGREQ in time keeps it; so does any packet."""
    bench = Bench()
    client, silent = bench.client("a", keep_alive=10), bench.client("b", keep_alive=10)
    for_ever = bench.client("c", keep_alive=0)
    bench.pass_time(14)
    client.channel.last_seen = bench.now
    client.send(Pingreq())
    bench.pass_time(2)

    assert Disconnect(reason=ReasonCode.KEEP_ALIVE_TIMEOUT) == silent.read()[-1]
    assert (client.channel.closing, silent.channel.closing, for_ever.channel.closing) == (False, True, False)


def test_a_connection_that_never_introduces_itself_is_closed():
    """After `connect_timeout`."""
    bench = Bench(connect_timeout=5)
    channel = bench.core.open(bench.now)
    bench.pass_time(4)
    assert not channel.closing
    bench.pass_time(2)

    assert channel.closing


def test_a_slow_reader_gets_what_fits_and_the_rest_waits_within_bounds():
    """QoS 1 waits in the queue and QoS 0 behind it; nothing is sent beyond the write buffer."""
    bench = Bench(write_buffer=2_000, max_queued_messages=5)
    reader = bench.client()
    reader.subscribe("t")
    sender = bench.client("s")
    for index in range(10):
        sender.publish("t", bytes(990) + b"%d" % index, packet_id=1 if index % 2 else None)
    assert reader.channel.out_bytes < 4_000

    received = [payload[-1:] for payload in payloads(reader.read())]

    assert [b"%d" % index for index in range(len(received))] == received
    assert len(received) + bench.core.counters.publishes_dropped == 10


def test_qos_0_does_not_wait_for_a_client_that_left():
    """What had waited behind a slow connection is gone with it."""
    bench = Bench(write_buffer=100)
    reader = bench.client(properties=KEPT)
    reader.subscribe("t")
    sender = bench.client("s")
    for packet_id in (1, None, 1):
        sender.publish("t", bytes(200), packet_id=packet_id)
    reader.vanish()

    assert bench.core.state.stored_messages == 2
    assert [one.qos for one in bench.client(clean_start=False, properties=KEPT).early] == [1, 1]


def test_members_of_a_group_that_are_away_get_nothing_while_others_are_there():
    """And the last one's messages wait for it."""
    bench = Bench()
    members = [bench.client(name, properties=KEPT) for name in "ab"]
    for member in members:
        member.subscribe("$share/g/t")
    sender = bench.client("s")
    members[0].vanish()
    for _ in range(4):
        sender.publish("t")
    assert len(members[1].read()) == 4
    members[1].vanish()
    assert sender.publish("t", b"last")[0].reason == 0

    waiting = [payloads(bench.client(name, clean_start=False, properties=KEPT).early) for name in "ab"]
    assert waiting == [[b"last"], [b"x"] * 4]


def test_counters_are_published_for_those_who_ask():
    """Every interval, retained, and with names that mosquitto has too."""
    bench = Bench(sys_interval=10)
    bench.core.tick(bench.now)
    client = bench.client()
    client.subscribe("$SYS/broker/clients/connected", "$SYS/broker/uptime", qos=0)
    first = payloads(client.early)
    bench.pass_time(10)
    bench.pass_time(10)

    assert first == [b"0", b"0 seconds"]
    assert payloads(client.read()) == [b"10 seconds", b"1", b"20 seconds", b"1"]


def fault(action: FaultAction, **fields: object) -> FaultPlan:
    """A plan with one fault."""
    return FaultPlan([Fault(action=action, topic="t", **fields)])


FAULTS = {
    FaultAction.LOSE_BEFORE_PUBACK: ([2, 3], [b"2", b"3"]),
    FaultAction.LOSE_AFTER_PUBACK: ([1, 2, 3], [b"2", b"3"]),
    FaultAction.DUPLICATE: ([1, 2, 3], [b"1", b"1", b"2", b"3"]),
    FaultAction.REORDER: ([2, 1, 3], [b"2", b"1", b"3"]),
    FaultAction.DELAY: ([2, 3, 1], [b"2", b"3", b"1"]),
    FaultAction.DISCONNECT_BEFORE: ([], []),
    FaultAction.DISCONNECT_AFTER: ([], [b"1"]),
}


@pytest.mark.parametrize(
    ("action", "expected"), FAULTS.items(), ids=lambda value: getattr(value, "name", None)
)
def test_each_fault_does_what_it_says(action, expected):
    """Which publishes are acknowledged, and which arrive, when the first of three is struck."""
    plan = fault(action, seconds=5.0)
    bench = Bench(faults=plan)
    receiver, sender = bench.client("r"), bench.client("s")
    receiver.subscribe("t")
    acknowledged = []
    for index in (1, 2, 3):
        acknowledged += sender.publish("t", b"%d" % index, packet_id=index)
    bench.pass_time(6)
    acknowledged += sender.read()

    assert expected == ([one.packet_id for one in acknowledged], payloads(receiver.read()))
    assert {action: 1} == dict(plan.struck)


def test_faults_strike_by_count_client_and_a_seeded_coin():
    """The same plan on the same traffic strikes the same publishes."""
    plan = FaultPlan([Fault(action=FaultAction.DUPLICATE, client="a", skip=1, times=2)])
    counted = [plan.decide(client, "t") is not None for client in "aabaaa"]

    def coin(seed: int) -> list[bool]:
        plan = FaultPlan([Fault(action=FaultAction.DELAY, probability=0.5, times=None)], seed=seed)
        return [plan.decide("c", "t") is not None for _ in range(64)]

    assert counted == [False, True, False, True, False, False]
    assert coin(1) == coin(1)
    assert coin(1) != coin(2)
    assert 16 < sum(coin(1)) < 48


def test_settings_that_cannot_be_are_refused():
    """With the name, the value and what is allowed."""
    for name, value in (
        ("max_packet", 10),
        ("receive_maximum", 70_000),
        ("max_clients", 0),
        ("sys_interval", -1),
    ):
        with pytest.raises(BrokerSettingError, match=name):
            BrokerSettings(**{name: value})


packets = st.one_of(
    st.builds(
        Publish,
        topic=st.sampled_from(["a", "a/b", "$SYS/x"]),
        payload=st.binary(max_size=4),
        qos=st.just(1),
        packet_id=st.integers(1, 3),
        retain=st.booleans(),
    ),
    st.builds(
        Publish, topic=st.sampled_from(["a", "a/b"]), payload=st.binary(max_size=4), retain=st.booleans()
    ),
    st.builds(Puback, packet_id=st.integers(1, 5)),
    st.builds(
        Subscribe,
        packet_id=st.just(1),
        subscriptions=st.tuples(
            st.builds(
                Subscription, filter=st.sampled_from(["#", "a", "a/+", "$share/g/a"]), qos=st.integers(0, 1)
            )
        ),
    ),
    st.builds(Unsubscribe, packet_id=st.just(1), filters=st.tuples(st.sampled_from(["#", "a", "a/+"]))),
    st.builds(Disconnect, reason=st.sampled_from([0, 4])),
    st.builds(
        Connect,
        version=st.sampled_from([V311, V5]),
        client_id=st.sampled_from(["x", "y", "z"]),
        clean_start=st.booleans(),
        properties=st.sampled_from([Properties(), KEPT, Properties(session_expiry=1, receive_maximum=1)]),
        will=st.none() | st.just(Will(topic="a", payload=b"w", properties=Properties(will_delay=2))),
    ),
)


@given(
    st.lists(st.tuples(st.integers(0, 2), packets | st.sampled_from(["vanish", "wait", "read"])), max_size=40)
)
def test_whatever_clients_do_the_books_balance(steps):
    """Counts and sizes are those of what is really held, and nothing is held twice or for nobody."""
    bench = Bench(max_queued_messages=4, receive_maximum=3)
    clients: dict[int, Client] = {}
    for number, step in steps:
        client = clients.get(number)
        if step == "wait":
            bench.pass_time(1.5)
        elif isinstance(step, Connect) and (client is None or client.channel.closing):
            if client is not None:
                client.vanish()
            clients[number] = Client(bench, step)
        elif client is None:
            continue
        elif step == "vanish":
            clients.pop(number).vanish()
        elif step == "read":
            client.read()
        else:
            client.send(step)

    state = bench.core.state
    held = [
        delivery.message
        for session in state.sessions.values()
        for delivery in (*session.inflight.values(), *session.queue)
    ] + list(state.retained.values())
    distinct = {id(message): message for message in held}
    connected = [session for session in state.sessions.values() if session.channel is not None]

    assert len(distinct) == state.stored_messages
    assert sum(message.size for message in distinct.values()) == state.stored_bytes
    assert len(held) == sum(message.references for message in distinct.values())
    assert sum(message.size for message in state.retained.values()) == state.retained_bytes
    assert sum(len(session.subscriptions) for session in state.sessions.values()) == state.subscriptions.count
    assert len(connected) == bench.core.counters.connected
    for session in state.sessions.values():
        assert sum(delivery.message.size for delivery in session.queue) == session.queued_bytes
        assert len(session.queue) <= 4
        assert session.persistent or session.channel is not None
