"""What every `Transport` must do, as one suite for all of them.

What lives here: `TransportContract`, whose subclass gives a fixture `net` and thereby gets all the tests. What
must not: what only one implementation does. Longer than 350 lines because it is a list.
"""

import pytest

from fedmq.errors import PacketTooLargeError, TransportError
from fedmq.testing.net import MAX_QUEUED, MAXIMUM_PACKET_SIZE, Net, Tap, wait
from fedmq.transport.base import (
    Connected,
    Disconnected,
    PublishAccepted,
    PublishRefused,
    PublishToken,
    Will,
)


class TransportContract:
    """Inherit it, and give a fixture `net`."""

    def test_what_is_published_reaches_its_subscriber(self, net: Net) -> None:
        """The payload comes unchanged, with its topic."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a/b")
        token = writer.transport.publish("a/b", b"\x00\xff bytes")
        reader.wait(lambda: bool(reader.deliveries))

        assert [(d.topic, d.payload) for d in reader.deliveries] == [("a/b", b"\x00\xff bytes")]
        assert PublishAccepted(token=token) == writer.outcome(token)

    def test_connected_comes_first_and_tells_the_limits(self, net: Net) -> None:
        """Who connects anew has no session, and learns how large a packet may be."""
        connected = Tap(net, "client").connected()

        assert not connected.session_present
        assert connected.maximum_packet_size == MAXIMUM_PACKET_SIZE
        assert connected.receive_maximum >= 1

    def test_a_retained_message_meets_each_later_subscription(self, net: Net) -> None:
        """It is marked as retained, and comes again when one subscribes again."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        assert isinstance(
            writer.outcome(writer.transport.publish("model", b"v1", retain=True)), PublishAccepted
        )
        reader.subscribe("model")
        reader.subscribe("model")
        reader.wait(lambda: len(reader.deliveries) == 2)

        assert [(d.payload, d.retained) for d in reader.deliveries] == [(b"v1", True)] * 2

    def test_an_empty_payload_clears_what_was_retained(self, net: Net) -> None:
        """Nothing is there for the next subscriber."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        writer.transport.publish("model", b"v1", retain=True)
        writer.outcome(writer.transport.publish("model", b"", retain=True))
        reader.subscribe("model")

        assert reader.deliveries == []

    def test_a_message_to_a_live_subscriber_is_not_marked_as_retained(self, net: Net) -> None:
        """Only what was stored before the subscription is."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("model")
        writer.transport.publish("model", b"v1", retain=True)
        reader.wait(lambda: bool(reader.deliveries))

        assert [d.retained for d in reader.deliveries] == [False]

    def test_a_session_queues_while_its_client_is_away(self, net: Net) -> None:
        """A second transport of the same name, later, gets what the first one missed, in order."""
        first, writer = Tap(net, "reader"), Tap(net, "writer")
        first.subscribe("a")
        first.transport.close()
        for number in range(5):
            writer.outcome(writer.transport.publish("a", b"%d" % number))
        second = Tap(net, "reader")
        second.wait(lambda: len(second.deliveries) >= 5)

        assert second.connected().session_present
        assert second.payloads == [b"0", b"1", b"2", b"3", b"4"]

    def test_a_clean_start_ends_the_session(self, net: Net) -> None:
        """Nothing that was queued comes, and nothing is subscribed."""
        first, writer = Tap(net, "reader"), Tap(net, "writer")
        first.subscribe("a")
        first.transport.close()
        second = Tap(net, "reader", clean_start=True)

        assert not second.connected().session_present
        assert isinstance(writer.outcome(writer.transport.publish("a", b"x")), PublishRefused)

    def test_what_was_not_acknowledged_comes_again_after_a_reconnect(self, net: Net) -> None:
        """And what was acknowledged does not."""
        reader, writer = Tap(net, "reader", acks=False), Tap(net, "writer")
        reader.subscribe("a")
        for payload in (b"first", b"second"):
            writer.transport.publish("a", payload)
        wait(lambda: len(reader.deliveries) == 2, reader, writer)
        reader.deliveries[0].ack()
        reader.settle()
        net.cut("reader")
        reader.connected(times=2)
        reader.wait(lambda: len(reader.deliveries) == 3)
        reader.settle()

        assert reader.payloads == [b"first", b"second", b"second"]

    def test_an_ack_from_before_a_reconnect_is_dropped(self, net: Net) -> None:
        """It would reach another message, wherever the broker numbers them anew."""
        reader, writer = Tap(net, "reader", acks=False), Tap(net, "writer")
        reader.subscribe("a")
        for number in range(3):
            writer.transport.publish("a", b"%d" % number)
        wait(lambda: len(reader.deliveries) == 3, reader, writer)
        net.cut("reader")
        reader.wait(lambda: len(reader.deliveries) == 6)
        for delivery in reader.deliveries[:3]:
            delivery.ack()
        reader.settle()
        net.cut("reader")
        reader.wait(lambda: len(reader.deliveries) == 9)

        assert reader.payloads[6:] == [b"0", b"1", b"2"]

    def test_a_second_ack_acknowledges_nothing_else(self, net: Net) -> None:
        """Whatever ids the broker reuses: the other message still comes again."""
        reader, writer = Tap(net, "reader", acks=False), Tap(net, "writer")
        reader.subscribe("a")
        writer.transport.publish("a", b"first")
        wait(lambda: len(reader.deliveries) == 1, reader, writer)
        reader.deliveries[0].ack()
        reader.settle()
        writer.transport.publish("a", b"second")
        wait(lambda: len(reader.deliveries) == 2, reader, writer)
        reader.deliveries[0].ack()
        reader.settle()
        net.cut("reader")
        reader.wait(lambda: len(reader.deliveries) == 3)

        assert reader.payloads == [b"first", b"second", b"second"]

    def test_a_cut_publisher_loses_nothing_and_each_publish_has_one_outcome(self, net: Net) -> None:
        """Duplicates may come; a hole may not."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a")
        writer.connected()
        tokens = []
        for number in range(60):
            tokens.append(writer.transport.publish("a", b"%d" % number))
            if number % 20 == 10:
                net.cut("writer")
        wait(
            lambda: len(writer.of(PublishAccepted)) == 60 and len(set(reader.payloads)) == 60, reader, writer
        )
        writer.settle()

        assert sorted(tokens) == sorted(event.token for event in writer.of(PublishAccepted))[:60]
        assert {b"%d" % number for number in range(60)} == set(reader.payloads)

    def test_a_publish_that_nobody_subscribed_to_is_refused(self, net: Net) -> None:
        """MQTT's 0x10: the broker took it and threw it away."""
        writer = Tap(net, "writer")
        token = writer.transport.publish("nobody/listens", b"x")

        assert PublishRefused(token=token, reason="No matching subscribers") == writer.outcome(token)

    def test_a_retained_publish_that_nobody_subscribed_to_is_accepted(self, net: Net) -> None:
        """The broker keeps it for whoever will, though mosquitto answers 0x10."""
        writer = Tap(net, "writer")
        token = writer.transport.publish("model", b"x", retain=True)

        assert PublishAccepted(token=token) == writer.outcome(token)

    def test_a_publish_larger_than_the_broker_takes_raises(self, net: Net) -> None:
        """One byte decides, and the connection does not suffer."""
        writer = Tap(net, "writer")
        writer.connected()
        writer.subscribe("a")
        overhead = 1 + 3 + 2 + 1 + 2 + 1  # type, length in three bytes, topic with its length, id, properties
        writer.transport.publish("a", bytes(MAXIMUM_PACKET_SIZE - overhead))
        with pytest.raises(PacketTooLargeError) as caught:
            writer.transport.publish("a", bytes(MAXIMUM_PACKET_SIZE - overhead + 1))
        writer.wait(lambda: bool(writer.deliveries))

        assert (caught.value.size, caught.value.maximum) == (MAXIMUM_PACKET_SIZE + 1, MAXIMUM_PACKET_SIZE)
        assert writer.of(Disconnected) == []

    def test_a_publish_queued_before_its_limit_was_known_is_refused(self, net: Net) -> None:
        """It neither blocks those behind it nor ends the connection."""
        net.block("writer")
        writer = Tap(net, "writer")
        large = writer.transport.publish("a", bytes(MAXIMUM_PACKET_SIZE), retain=True)
        small = writer.transport.publish("a", b"small", retain=True)
        net.unblock("writer")

        assert PublishRefused(token=large, reason="Packet too large") == writer.outcome(large)
        assert PublishAccepted(token=small) == writer.outcome(small)
        assert len(writer.of(Connected)) == 1

    def test_a_lost_client_leaves_its_will(self, net: Net) -> None:
        """The broker publishes it when the connection breaks."""
        watcher = Tap(net, "watcher")
        watcher.subscribe("state")
        lost = Tap(net, "lost", will=Will(topic="state", payload=b"gone", retain=False))
        lost.connected()
        net.block("lost")
        watcher.wait(lambda: bool(watcher.deliveries))

        assert watcher.payloads == [b"gone"]

    def test_a_client_that_closes_leaves_no_will(self, net: Net) -> None:
        """Nor does it when deliveries are still on their way to it: those must not turn the goodbye into a reset."""
        watcher, writer = Tap(net, "watcher"), Tap(net, "writer")
        watcher.subscribe("state")
        leaver = Tap(net, "leaver", will=Will(topic="state", payload=b"gone", retain=False))
        leaver.subscribe("flood")
        for _ in range(MAX_QUEUED):
            writer.transport.publish("flood", bytes(10_000))
        leaver.transport.close()
        writer.wait(lambda: len(writer.of(PublishAccepted)) == MAX_QUEUED)
        watcher.settle()

        assert watcher.payloads == []

    def test_a_retained_will_is_there_for_later_subscribers(self, net: Net) -> None:
        """So that who comes later still learns of the loss."""
        watcher = Tap(net, "watcher")
        watcher.subscribe("state")
        lost = Tap(net, "lost", will=Will(topic="state", payload=b"gone", retain=True))
        lost.connected()
        net.block("lost")
        watcher.wait(lambda: bool(watcher.deliveries))
        late = Tap(net, "late")
        late.subscribe("state")

        assert [(d.payload, d.retained) for d in late.deliveries] == [(b"gone", True)]

    def test_a_takeover_is_reported(self, net: Net) -> None:
        """The loser learns that another client has its name, where the broker tells it."""
        loser = Tap(net, "name")
        loser.connected()
        Tap(net, "name").connected()
        loser.wait(lambda: bool(loser.of(Disconnected)))
        loser.transport.close()

        assert not net.strict or loser.of(Disconnected)[0].taken_over

    def test_no_more_than_the_window_is_unacknowledged(self, net: Net) -> None:
        """A receive maximum of 5 holds back the sixth, and each ack brings one more."""
        reader, writer = Tap(net, "reader", acks=False, receive_maximum=5), Tap(net, "writer")
        reader.subscribe("a")
        for number in range(12):
            writer.outcome(writer.transport.publish("a", b"%d" % number))
        reader.wait(lambda: len(reader.deliveries) >= 5)
        # The echo is a sixth delivery, so it cannot come: a connection's other packets must tell.
        reader.transport.unsubscribe("never")
        reader.outcome(reader.transport.publish("state", b"x", retain=True))
        window = len(reader.deliveries)
        for number in range(12):
            reader.wait(lambda wanted=number: len(reader.deliveries) > wanted)  # type: ignore[misc]  # mypy cannot infer it
            reader.deliveries[number].ack()
            assert not net.strict or len(reader.deliveries) - number <= 5

        assert window == 5
        assert [b"%d" % number for number in range(12)] == reader.payloads

    def test_an_expired_message_does_not_come(self, net: Net) -> None:
        """One that waits longer than its expiry is dropped; one without waits on."""
        first, writer = Tap(net, "reader"), Tap(net, "writer")
        first.subscribe("a")
        first.transport.close()
        writer.outcome(writer.transport.publish("a", b"perishable", expiry=1))
        writer.outcome(writer.transport.publish("a", b"durable"))
        net.advance(2.1)
        second = Tap(net, "reader")
        second.settle()

        assert second.payloads == [b"durable"]

    def test_wildcards_match_as_the_specification_says(self, net: Net) -> None:
        """One level for +, any number for #, the level above it included."""
        plus, hash_, writer = Tap(net, "plus"), Tap(net, "hash"), Tap(net, "writer")
        plus.subscribe("up/+/u")
        hash_.subscribe("up/#")
        for topic in ("up", "up/a/u", "up/a/b/u", "other/a/u", "up/b/u"):
            writer.outcome(writer.transport.publish(topic, topic.encode()))
        plus.settle()
        hash_.settle()

        assert [d.topic for d in plus.deliveries] == ["up/a/u", "up/b/u"]
        assert [d.topic for d in hash_.deliveries] == ["up", "up/a/u", "up/a/b/u", "up/b/u"]

    def test_messages_of_one_topic_keep_their_order(self, net: Net) -> None:
        """Through windows on both sides."""
        reader, writer = Tap(net, "reader", receive_maximum=3), Tap(net, "writer")
        reader.subscribe("a")
        for number in range(MAX_QUEUED - 1):
            writer.transport.publish("a", b"%d" % number)
        wait(lambda: len(reader.deliveries) >= MAX_QUEUED - 1, reader, writer)

        assert [b"%d" % number for number in range(MAX_QUEUED - 1)] == reader.payloads

    def test_what_is_published_while_disconnected_is_sent_after_the_reconnect(self, net: Net) -> None:
        """In order."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a")
        writer.connected()
        net.block("writer")
        writer.wait(lambda: bool(writer.of(Disconnected)))
        for number in range(3):
            writer.transport.publish("a", b"%d" % number)
        net.unblock("writer")
        wait(lambda: len(reader.deliveries) >= 3, writer, reader)

        assert reader.payloads == [b"0", b"1", b"2"]

    def test_a_subscription_made_while_disconnected_holds_after_the_reconnect(self, net: Net) -> None:
        """Else a session could live on without the subscription that its owner believes in."""
        net.block("reader")
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.transport.subscribe("a")
        net.unblock("reader")
        reader.settle()
        writer.transport.publish("a", b"x")
        wait(lambda: bool(reader.deliveries), reader, writer)

        assert reader.payloads == [b"x"]

    def test_unsubscribing_stops_the_messages(self, net: Net) -> None:
        """What was subscribed by another filter still comes."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a", "b")
        reader.transport.unsubscribe("a")
        reader.settle()
        writer.outcome(writer.transport.publish("a", b"a"))
        writer.outcome(writer.transport.publish("b", b"b"))
        reader.settle()

        assert reader.payloads == [b"b"]

    def test_the_first_connection_is_tried_until_it_succeeds(self, net: Net) -> None:
        """A device may boot before its broker."""
        net.block("client")
        client = Tap(net, "client")
        client.pump(0.05)
        assert client.of(Connected) == []
        net.unblock("client")

        assert not client.connected().session_present

    def test_a_broker_that_forgot_everything_says_so(self, net: Net) -> None:
        """The client has to subscribe again, and then all is as before."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a")
        writer.connected()
        net.restart_empty()
        wait(lambda: len(reader.of(Connected)) == 2 and len(writer.of(Connected)) == 2, reader, writer)
        reader.subscribe("a")
        writer.transport.publish("a", b"again")
        wait(lambda: bool(reader.deliveries), reader, writer)

        assert not reader.of(Connected)[1].session_present
        assert reader.payloads == [b"again"]

    def test_a_session_survives_a_broken_connection(self, net: Net) -> None:
        """Its subscriptions too, without being made again."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a")
        net.cut("reader")
        assert reader.connected(times=2).session_present
        writer.transport.publish("a", b"x")
        wait(lambda: bool(reader.deliveries), reader, writer)

        assert len(reader.of(Disconnected)) == 1

    def test_the_queue_of_publishes_is_bounded(self, net: Net) -> None:
        """Whoever publishes and never polls is stopped, and may go on after polling."""
        writer = Tap(net, "writer")
        for _ in range(MAX_QUEUED):
            writer.transport.publish("a", b"x", retain=True)
        with pytest.raises(TransportError, match="poll before publishing more"):
            writer.transport.publish("a", b"x", retain=True)
        writer.wait(lambda: len(writer.of(PublishAccepted)) == MAX_QUEUED)

        assert PublishAccepted(token=PublishToken(MAX_QUEUED + 1)) == writer.outcome(
            writer.transport.publish("a", b"x", retain=True)
        )

    @pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "x" * 65536, "\ud800"])
    def test_a_topic_that_nobody_can_publish_to_is_refused(self, net: Net, topic: str) -> None:
        """At once, in the caller's own thread."""
        with pytest.raises(TransportError, match="topic"):
            net.transport("client").publish(topic, b"x")

    @pytest.mark.parametrize("expiry", [0, -1, float("nan"), float("inf"), 2**32])
    def test_an_expiry_that_cannot_be_sent_is_refused(self, net: Net, expiry: float) -> None:
        """At once, in the caller's own thread."""
        with pytest.raises(TransportError, match="expiry"):
            net.transport("client").publish("a", b"x", expiry=expiry)

    @pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a+", "a#", "a\0b"])
    def test_a_filter_that_nobody_can_subscribe_to_is_refused(self, net: Net, topic_filter: str) -> None:
        """At once, in the caller's own thread."""
        client = net.transport("client")
        with pytest.raises(TransportError, match="topic filter"):
            client.subscribe(topic_filter)
        with pytest.raises(TransportError, match="topic filter"):
            client.unsubscribe(topic_filter)

    def test_a_closed_transport_publishes_no_more(self, net: Net) -> None:
        """It says so, closes twice without complaint, and its poll does not wait."""
        client = Tap(net, "client")
        client.connected()
        client.transport.close()
        client.transport.close()
        with pytest.raises(TransportError, match="after close"):
            client.transport.publish("a", b"x")

        assert client.transport.poll(timeout=None) is None

    def test_a_closing_transport_sends_what_is_queued(self, net: Net) -> None:
        """A last word before leaving is heard."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a")
        writer.connected()
        for number in range(50):
            writer.transport.publish("a", b"%d" % number)
        writer.transport.close()
        reader.wait(lambda: len(reader.deliveries) >= 50)

        assert [b"%d" % number for number in range(50)] == reader.payloads

    def test_waking_ends_a_poll_once(self, net: Net) -> None:
        """However often it was called before the poll."""
        client = net.transport("client")
        client.wake()
        client.wake()
        client.start()

        assert client.poll(timeout=None) is None
        assert isinstance(client.poll(timeout=net.patience), Connected)

    def test_traffic_counts_both_ways(self, net: Net) -> None:
        """A message costs its writer and its reader at least its own size, and the copy does not change."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a")
        writer.connected()
        before = writer.transport.traffic
        writer.transport.publish("a", bytes(1000))
        wait(lambda: bool(reader.deliveries) and bool(writer.of(PublishAccepted)), reader, writer)
        after = writer.transport.traffic

        assert (after.bytes_sent - before.bytes_sent, after.packets_sent - before.packets_sent) == (1009, 1)
        assert (
            after.bytes_received - before.bytes_received,
            after.packets_received - before.packets_received,
        ) == (4, 1)
        assert reader.transport.traffic.bytes_received > 1000

    def test_traffic_tells_payloads_and_topics_from_the_rest(self, net: Net) -> None:
        """Of what was published, and of what came; the rest is the protocol's own."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer")
        reader.subscribe("a/topic")
        writer.connected()
        before, read_before = writer.transport.traffic, reader.transport.traffic
        writer.transport.publish("a/topic", bytes(1000))
        wait(lambda: bool(reader.deliveries) and bool(writer.of(PublishAccepted)), reader, writer)
        after, read_after = writer.transport.traffic, reader.transport.traffic

        assert (after.payload_sent - before.payload_sent, after.topic_sent - before.topic_sent) == (1000, 7)
        assert (
            read_after.payload_received - read_before.payload_received,
            read_after.topic_received - read_before.topic_received,
        ) == (1000, 7)
        assert after.payload_received == before.payload_received

    def test_a_session_that_ends_with_its_connection_gets_everything_through_all_the_same(
        self, net: Net
    ) -> None:
        """What was on its way when the line broke goes out on the next one, however its topic was spelled before."""
        reader, writer = Tap(net, "reader"), Tap(net, "writer", clean_start=True)
        reader.subscribe("some/topic")
        writer.connected()
        for number in range(60):
            writer.transport.publish("some/topic", b"%d" % number)
            if number % 20 == 10:
                net.cut("writer")
        wait(
            lambda: len(writer.of(PublishAccepted)) == 60 and len(set(reader.payloads)) == 60, reader, writer
        )

        assert {d.topic for d in reader.deliveries} == {"some/topic"}
        assert {b"%d" % number for number in range(60)} == set(reader.payloads)
        assert writer.of(PublishRefused) == []
