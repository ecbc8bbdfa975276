"""The embedded broker over real sockets: with paho as its client, and with clients that mean no good."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from fedmq.broker import BrokerSettings, Counters, EmbeddedBroker, Fault, FaultAction, FaultPlan
from fedmq.broker import server as server_module
from fedmq.broker.errors import LogDamagedError, LogUnavailableError, ReasonCode
from fedmq.broker.packets import Connect, Disconnect, Publish, Subscribe, Subscription, Version, Will, encode
from fedmq.broker.properties import Properties
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

KEPT = {"clean_start": False, "properties": Properties(session_expiry=1000)}
PATIENCE = 10.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a state that tells nobody when it is there."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


class Paho:
    """A paho client whose events can be waited for."""

    def __init__(
        self, broker: EmbeddedBroker, client_id: str, protocol: int, *, manual_ack: bool = False
    ) -> None:
        self.received: list[mqtt.MQTTMessage] = []
        self._changed = threading.Condition()
        self.subscribed = self.connected = 0
        old = protocol == mqtt.MQTTv311
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id,
            protocol=protocol,
            manual_ack=manual_ack,
            **({"clean_session": False} if old else {}),
        )
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda *_: self._count("subscribed")
        self.client.on_connect = lambda *_: self._count("connected")
        self.client.reconnect_delay_set(1, 1)
        options: dict[str, object] = {}
        if not old:
            properties = PahoProperties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 1000
            options = {"clean_start": False, "properties": properties}
        self.client.connect(broker.host, broker.port, **options)
        self.client.loop_start()
        self.wait(lambda: self.connected)

    def _count(self, name: str) -> None:
        with self._changed:
            setattr(self, name, getattr(self, name) + 1)
            self._changed.notify_all()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def subscribe(self, topic_filter: str) -> None:
        before = self.subscribed
        self.client.subscribe(topic_filter, 1)
        self.wait(lambda: self.subscribed > before)

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def pahos() -> Iterator[Callable[..., Paho]]:
    """Makes paho clients and stops those that a failed test left behind."""
    made: list[Paho] = []

    def make(*args: object, **options: object) -> Paho:
        made.append(Paho(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


protocols = pytest.mark.parametrize("protocol", [mqtt.MQTTv311, mqtt.MQTTv5], ids=["311", "v5"])


@protocols
def test_paho_publishes_and_receives_a_megabyte(pahos, protocol):
    """Large packets arrive whole, small ones in order."""
    payload = os.urandom(1 << 20)
    with EmbeddedBroker() as broker:
        reader, writer = pahos(broker, "reader", protocol), pahos(broker, "writer", protocol)
        reader.subscribe("t/#")
        for body in (b"1", payload, b"2"):
            writer.client.publish("t/x", body, 1)
        reader.wait(lambda: len(reader.received) == 3)
        for client in (reader, writer):
            client.stop()

    assert [b"1", payload, b"2"] == [one.payload for one in reader.received]


@protocols
def test_paho_finds_its_session_after_a_restart(pahos, protocol, tmp_path):
    """With a log: what was not acknowledged comes again, and the clients come back by themselves."""
    with EmbeddedBroker(log_path=tmp_path / "log") as broker:
        reader = pahos(broker, "reader", protocol, manual_ack=True)
        writer = pahos(broker, "writer", protocol)
        reader.subscribe("t")
        writer.client.publish("t", b"first", 1).wait_for_publish(PATIENCE)
        reader.wait(lambda: len(reader.received) == 1)
        broker.restart()
        reader.wait(lambda: len(reader.received) == 2)
        writer.wait(lambda: writer.connected == 2)
        again = reader.received[1]
        reader.client.ack(again.mid, again.qos)
        writer.client.publish("t", b"second", 1)
        reader.wait(lambda: len(reader.received) == 3)
        for client in (reader, writer):
            client.stop()

    assert [(one.payload, one.dup) for one in reader.received] == [
        (b"first", False),
        (b"first", True),
        (b"second", False),
    ]
    assert reader.received[0].mid == again.mid


def test_a_restart_keeps_the_state_or_not(dial, tmp_path):
    """As asked, with a log and without."""
    present = []
    for log_path in (None, tmp_path / "log"):
        with EmbeddedBroker(log_path=log_path) as broker:
            dial(broker, "c", **KEPT)
            for keep in (True, False):
                broker.restart(keep_state=keep)
                present.append(dial(broker, "c", **KEPT).connack.session_present)

    assert present == [True, False] * 2


def test_what_was_acknowledged_outlives_a_kill(dial, tmp_path):
    """With a log; and nobody's will is published, because nobody was there to publish it."""
    with EmbeddedBroker(log_path=tmp_path / "log") as broker:
        reader = dial(broker, "reader", will=Will(topic="t", payload=b"will"), **KEPT)
        reader.subscribe("t")
        writer = dial(broker, "writer")
        for number in range(50):
            writer.publish("t", b"%d" % number)
        broker.kill()
        assert not broker.running
        assert Counters() == broker.counters
        broker.start()
        back = dial(broker, "reader", **KEPT)
        found = [bytes(one.payload) for one in back.deliveries(50)]

        assert back.ping() == []
    assert [b"%d" % number for number in range(50)] == found


def test_a_broker_that_stops_says_so(dial):
    """Clients of MQTT 5 are told, and can tell it from a network that failed."""
    with EmbeddedBroker() as broker:
        client = dial(broker, "c")

    assert Disconnect(reason=ReasonCode.SERVER_SHUTTING_DOWN) == client.receive()
    assert client.receive() is None


def test_a_client_can_be_cut_off_on_purpose(dial):
    """Its will is published, as when the network fails."""
    with EmbeddedBroker() as broker:
        watcher = dial(broker, "watcher")
        watcher.subscribe("will")
        victim = dial(broker, "victim", will=Will(topic="will", payload=b"gone"))

        assert broker.disconnect("victim")
        assert not broker.disconnect("nobody")
        assert victim.receive() is None
        assert [bytes(one.payload) for one in watcher.deliveries(1)] == [b"gone"]


def test_a_delayed_publish_comes_by_itself(dial):
    """The broker's own timer releases it; nobody has to send anything."""
    plan = FaultPlan([Fault(action=FaultAction.DELAY, topic="slow", seconds=0.05)])
    with EmbeddedBroker(faults=plan) as broker:
        reader, writer = dial(broker, "r"), dial(broker, "w")
        reader.subscribe("#")
        writer.send(Publish(topic="slow", payload=b"1", qos=1, packet_id=1))
        writer.send(Publish(topic="fast", payload=b"2", qos=1, packet_id=2))

        assert [one.topic for one in reader.deliveries(2)] == ["fast", "slow"]


def test_bytes_that_are_no_mqtt_end_only_their_own_connection(dial):
    """The broker and its other clients go on."""
    with EmbeddedBroker() as broker:
        client = dial(broker, "c")
        for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), os.urandom(4000)):
            with socket.create_connection((broker.host, broker.port), timeout=PATIENCE) as stranger:
                stranger.sendall(data)
                try:
                    while stranger.recv(1000):
                        pass
                except ConnectionResetError:
                    pass

        assert client.ping() == []


def test_a_stranger_cannot_make_the_broker_gather_a_large_packet():
    """Before a CONNECT is accepted, half a megabyte is the most that is looked at."""
    with (
        EmbeddedBroker() as broker,
        socket.create_connection((broker.host, broker.port), timeout=PATIENCE) as stranger,
    ):
        stranger.sendall(b"\x10\xff\xff\x7f")  # a CONNECT of two megabytes

        assert stranger.recv(100) == b""


def test_a_protocol_version_that_we_do_not_speak_is_answered():
    """With the CONNACK that every client can read."""
    with (
        EmbeddedBroker() as broker,
        socket.create_connection((broker.host, broker.port), timeout=PATIENCE) as stranger,
    ):
        stranger.sendall(bytes.fromhex("100f00064d5149736470030200 3c000161"))

        assert stranger.recv(100) == b"\x20\x02\x00\x01"


def test_a_client_that_does_not_read_costs_bounded_memory(dial):
    """What does not fit its connection waits in its queue, and what does not fit there is dropped."""
    settings = BrokerSettings(write_buffer=100_000, max_queued_bytes=1_000_000, max_packet=200_000)
    with EmbeddedBroker(settings=settings) as broker:
        lazy = dial(broker, "lazy", properties=Properties(receive_maximum=1000))
        lazy.subscribe("t")
        writer = dial(broker, "writer")
        payload = bytes(100_000)
        while broker.counters.publishes_dropped < 10:
            writer.publish("t", payload)
        accepted = broker.counters.publishes_received - 10
        waiting = accepted - broker.counters.publishes_sent

        assert waiting == 9
        assert accepted == len(lazy.deliveries(accepted))
        assert lazy.ping() == []


def test_a_client_that_does_not_read_its_farewell_is_cut_off(dial, monkeypatch):
    """It would keep its connection, and what waits for it, for ever."""
    monkeypatch.setattr(server_module, "_LINGER_SECONDS", 0.0)
    with EmbeddedBroker() as broker:
        lazy = dial(broker, "lazy")
        lazy.subscribe("t")
        writer = dial(broker, "writer")
        while broker.counters.publishes_sent - broker.counters.publishes_received > -3:
            writer.publish("t", bytes(1 << 20))
        lazy.send_bytes(b"\xf0\x00")
        wait_until(lambda: len(broker._server.connections) == 1)

        assert writer.ping() == []
        assert broker.counters.connected == 1


def test_many_publishers_reach_one_subscriber(dial):
    """Nothing is lost, doubled or reordered within a publisher."""
    with EmbeddedBroker() as broker:
        reader = dial(broker, "reader", properties=Properties(receive_maximum=1000))
        reader.subscribe("t/+")
        writers = [dial(broker, f"w{index}") for index in range(10)]
        for start in range(0, 200, 50):
            for index, writer in enumerate(writers):
                writer.send_bytes(
                    b"".join(
                        encode(
                            Publish(topic=f"t/{index}", payload=b"%d" % number, qos=1, packet_id=number + 1),
                            Version.V5,
                        )
                        for number in range(start, start + 50)
                    )
                )
            for writer in writers:
                for _ in range(50):
                    assert writer.receive().reason == 0
        by_writer: dict[str, list[int]] = {}
        for one in reader.deliveries(2000):
            by_writer.setdefault(one.topic, []).append(int(bytes(one.payload)))

    assert {f"t/{index}": list(range(200)) for index in range(10)} == by_writer


def test_an_address_that_is_taken_is_an_error_of_start():
    """In the caller's thread, and the broker can be started elsewhere."""
    with EmbeddedBroker() as first:
        second = EmbeddedBroker(port=first.port)
        with pytest.raises(OSError, match="address already in use"):
            second.start()

        assert not second.running
        with pytest.raises(RuntimeError, match="running already"):
            first.start()


def test_a_log_that_cannot_be_used_is_an_error_of_start(tmp_path):
    """Damaged, or in use by another broker."""
    (tmp_path / "text").write_text("these are not the bytes of a log")
    with pytest.raises(LogDamagedError):
        EmbeddedBroker(log_path=tmp_path / "text").start()
    with (
        EmbeddedBroker(log_path=tmp_path / "log"),
        pytest.raises(LogUnavailableError, match="another broker"),
    ):
        EmbeddedBroker(log_path=tmp_path / "log").start()


def test_stopping_twice_is_stopping_once():
    """And a broker that never ran can be stopped."""
    broker = EmbeddedBroker()
    broker.stop()
    broker.start()
    broker.stop()
    broker.stop()

    assert not broker.running


SERVE = """
import asyncio, sys
from pathlib import Path
from fedmq.broker import serve
ready = lambda host, port: print(f"ready {host}:{port}", flush=True)
asyncio.run(serve(port=0, log_path=Path(sys.argv[1]), on_ready=ready))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
def test_a_broker_in_the_foreground_stops_on_signals_and_survives_a_kill(tmp_path, number):
    """In good order for the first two; what it acknowledged is there whatever the signal was."""

    def run() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
        )
        found = re.fullmatch(r"ready 127\.0\.0\.1:(\d+)\n", process.stdout.readline())
        return process, int(found[1])

    def converse(port: int, *packets: object) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            connect = Connect(version=Version.V311, client_id="c", clean_start=False)
            client.sendall(b"".join(encode(one, Version.V311) for one in (connect, *packets)))
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(1000), b""))

    process, port = run()
    with process:
        subscribe = Subscribe(packet_id=1, subscriptions=(Subscription(filter="t", qos=1),))
        answer = converse(port, subscribe, Publish(topic="t", payload=b"kept", qos=1, packet_id=2))
        process.send_signal(number)
        status = process.wait(PATIENCE)
    process, port = run()
    with process:
        again = converse(port)
        process.terminate()

    assert (-9 if number == signal.SIGKILL else 0) == status
    assert b"\x40\x02\x00\x02" in answer
    assert again.startswith(b"\x20\x02\x01\x00")
    assert again.endswith(b"kept")


def test_the_folder_imports_nothing_of_the_rest_of_fedmq():
    """A broker in a process of its own needs the standard library only."""
    code = "import sys, fedmq.broker; print(sorted(m for m in sys.modules if m.startswith('fedmq') or m == 'paho'))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    modules = {
        path.stem for path in Path(__import__("fedmq.broker", fromlist=["x"]).__file__).parent.glob("*.py")
    }
    assert {"fedmq", "fedmq.broker"} | {f"fedmq.broker.{name}" for name in modules - {"__init__"}} == set(
        re.findall(r"'([\w.]+)'", output)
    )
