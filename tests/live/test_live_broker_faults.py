"""The promise over a broker that loses everything: what a device finished is folded once, whatever the broker forgot.

Each test ends with `Federation.audit`: for every device, updates finished = journal rows folded = what the model holds.
"""

import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fedmq.broker import BrokerSettings, EmbeddedBroker

from fedmq import wire
from fedmq.testing.proxy import Proxy
from fedmq.topics import Topics

TOPICS = Topics("default")
AGGREGATOR = "default-aggregator-0"
#: mosquitto as it comes: with persistence at all, saving every half hour.
DEFAULTS = "persistence true\n"
OURS = None
FORGETFUL = "persistence false\n"


class EmbeddedHandle:
    """The embedded broker with its log, by the names that `Mosquitto` has."""

    def __init__(self, log_path: Path) -> None:
        self._broker = EmbeddedBroker(log_path=log_path).start()
        self.port = self._broker.port
        self.kill, self.start, self.close = self._broker.kill, self._broker.start, self._broker.stop


CONFIGURATIONS = {"defaults": DEFAULTS, "ours": OURS, "empty": FORGETFUL}


@pytest.fixture
def new_broker(new_mosquitto, tmp_path: Path) -> Iterator[Callable]:
    """Makes a mosquitto of one of the configurations, or the embedded broker with its log."""
    handles: list[EmbeddedHandle] = []

    def make(kind: str):
        if kind != "embedded":
            return new_mosquitto(CONFIGURATIONS[kind])
        handles.append(EmbeddedHandle(tmp_path / "broker.log"))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


@pytest.fixture(
    params=[*(pytest.param(name, marks=pytest.mark.mosquitto) for name in CONFIGURATIONS), "embedded"]
)
def broker(request: pytest.FixtureRequest, new_broker):
    """Each of them."""
    return new_broker(request.param)


@pytest.fixture
def embedded() -> Iterator[EmbeddedBroker]:
    """A broker in this process, without a log."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def line() -> Iterator[Callable[[int], Proxy]]:
    """Makes lines to a broker that can be cut, and takes them down."""
    made: list[Proxy] = []

    def make(port: int) -> Proxy:
        made.append(Proxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.thaw()
        proxy.close()


def test_a_broker_that_is_killed_again_and_again_costs_nothing_but_time(broker, new_federation) -> None:
    """SIGKILL while updates are on their way, twice; training goes on without a connection."""
    federation = new_federation(broker.port)
    service = federation.serve()
    for number in range(3):
        federation.join(number)
    federation.train(1)
    federation.until_settled()
    for round_ in range(2):
        federation.train(5)
        goal = service.engine.position + 1 + round_
        federation.until(lambda goal=goal: service.engine.position >= goal, "some are folded")
        broker.kill()
        broker.start()
        federation.until_settled()

    assert 3 * (1 + 2 * 5) == service.engine.tally.folded
    federation.audit()


def test_a_broker_and_an_aggregator_that_die_together_lose_nothing(broker, new_federation) -> None:
    """The aggregator by SIGKILL, with a batch in its hands; the broker with what it kept for it."""
    federation = new_federation(broker.port)
    process = federation.spawn()
    for number in range(3):
        federation.join(number)
    federation.train(1)
    federation.until_settled()
    federation.train(6)
    federation.until(lambda: len(federation.journal()) >= 3 + 4, "some are folded")
    process.kill()
    broker.kill()
    process.wait()
    broker.start()
    federation.spawn()
    federation.until_settled()

    assert 3 * (1 + 6) == len(federation.journal())
    federation.audit()


def published_version(federation) -> int:
    """Of the head that a device would find now."""
    return wire.unpack_head(federation.retained(TOPICS.model)).version


@pytest.mark.mosquitto
def test_an_older_retained_model_is_ignored_until_the_aggregator_has_published_again(
    new_mosquitto, new_federation, line, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An old persistence file: model, plan, receipts and presence of an hour ago, and no queue."""
    broker = new_mosquitto("persistence true\nautosave_interval 0\n")
    saved = broker._home / "mosquitto.db"
    federation, way = new_federation(broker.port), line(broker.port)
    service = federation.serve(port=way.port)
    device = federation.join(0, allowed=3)
    federation.until_settled()
    federation.until(lambda: published_version(federation) == 3, "version 3")
    head = federation.retained(TOPICS.model)
    broker.checkpoint()
    shutil.copy(saved, tmp_path / "old.db")
    device.trainer.allow(4)
    federation.until_settled()
    version = service.engine.state.version
    broker.kill()
    way.target = None
    shutil.copy(tmp_path / "old.db", saved)
    broker.start()
    with caplog.at_level(logging.WARNING):
        federation.train(1)  # from the model in hand, to look at the broker's then
        federation.until(lambda: "ignored version" in caplog.text, "the older model was seen")
    old = federation.retained(TOPICS.model)
    way.target = broker.port
    federation.train(3)
    federation.until_settled()

    assert head == old  # it really was the older one that lay there
    assert (3, 7) == (wire.unpack_head(head).version, version)
    assert "ignored version 3: version" in caplog.text
    federation.until(
        lambda: published_version(federation) == service.engine.state.version == 11, "version 11"
    )
    federation.audit()


@pytest.mark.mosquitto
def test_updates_that_overflow_the_brokers_queue_are_sent_again(new_mosquitto, new_federation) -> None:
    """They are acknowledged and dropped while the aggregator stands still; only $SYS says so."""
    broker = new_mosquitto("max_queued_messages 2\nmax_inflight_messages 1\nsys_interval 1\n")
    federation = new_federation(broker.port)
    process = federation.spawn("--store-batch-size", "1")
    devices = [federation.join(number) for number in range(4)]
    federation.train(1)
    federation.until_settled()
    process.send_signal(signal.SIGSTOP)
    dropped = "$SYS/broker/publish/messages/dropped"
    federation.train(5)
    federation.until(lambda: all(d.pending and d.is_uploaded for d in devices), "the broker took all")
    federation.until(lambda: int(federation.retained(dropped) or b"0") > 0, "the broker dropped some")
    before = len(federation.journal())
    process.send_signal(signal.SIGCONT)
    federation.until_settled()

    assert 4 == before
    assert 4 * 6 == len(federation.journal())
    federation.audit()


@pytest.mark.parametrize("kind", [pytest.param("ours", marks=pytest.mark.mosquitto), "embedded"])
def test_an_aggregator_that_stands_still_for_a_while_takes_up_where_it_was(
    kind, new_broker, new_federation
) -> None:
    """SIGSTOP: the devices go on until their outboxes are full, and wait."""
    federation = new_federation(new_broker(kind).port)
    process = federation.spawn()
    devices = [federation.join(number, max_updates=4) for number in range(3)]
    federation.train(1)
    federation.until_settled()
    process.send_signal(signal.SIGSTOP)
    federation.train(7)
    federation.until(lambda: all(d.agent._outbox.is_full and d.is_uploaded for d in devices), "all are full")
    stopped = [device.trainer.finished for device in devices]
    process.send_signal(signal.SIGCONT)
    federation.until_settled()

    assert [1 + 4] * 3 == stopped
    assert 3 * (1 + 7) == len(federation.journal())
    federation.audit()


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
def test_a_broker_that_takes_less_than_a_chunk_is_named_with_both_numbers(
    kind, new_mosquitto, new_federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, and everything goes on when the setting is mended."""

    def start(maximum: int, port: int = 0):
        if kind == "mosquitto":
            return new_mosquitto(f"max_packet_size {maximum}\n", port)
        return EmbeddedBroker(port=port, settings=BrokerSettings(max_packet=maximum)).start()

    def end(broker) -> None:
        broker.kill()
        broker.close() if kind == "mosquitto" else broker.stop()

    wide = start(100_000)
    federation = new_federation(wide.port, size=6_000)
    publish = replace(federation.settings.publish, chunk_bytes=9_000)
    task = replace(federation.settings.task, codec="float32")
    federation.settings = replace(federation.settings, publish=publish, task=task)
    service = federation.serve()
    device = federation.join(0, allowed=1)
    federation.until_settled()
    federation.until_training()
    end(wide)
    device.trainer.allow(1)
    narrow = start(5_000, wide.port)
    with caplog.at_level(logging.WARNING):
        federation.until(lambda: _names_both(caplog.text), "the log says what is wrong")
        federation.until(lambda: device.pending == 1, "the update is kept")
    folded = service.engine.tally.folded
    end(narrow)
    mended = start(100_000, wide.port)
    federation.until_settled()

    assert (1, 2) == (folded, service.engine.tally.folded)
    federation.audit()
    end(mended)


def _names_both(text: str) -> bool:
    return "a publish of 9" in text and "maximum packet of 5000 bytes" in text


@pytest.mark.parametrize("kind", [pytest.param("defaults", marks=pytest.mark.mosquitto), "embedded"])
def test_updates_in_a_session_that_ended_are_sent_again(kind, new_broker, new_federation, line) -> None:
    """As after seven days: what waited for the aggregator went with its session, acknowledged or not."""
    broker = new_broker(kind)
    federation, way = new_federation(broker.port), line(broker.port)
    service = federation.serve(port=way.port)
    devices = [federation.join(number) for number in range(2)]
    federation.train(1)
    federation.until_settled()
    federation.until_training()
    way.freeze()
    federation.train(3)
    federation.until(lambda: all(d.pending == 3 and d.is_uploaded for d in devices), "the broker has all")
    way.target = None
    thief = federation.bystander(AGGREGATOR)  # clean start, expiry 0: nothing is left of the session
    thief.close()
    way.cut()
    folded = service.engine.tally.folded
    way.target = broker.port
    federation.until_settled()

    assert (2, 8) == (folded, service.engine.tally.folded)
    federation.audit()


def test_a_lost_receipt_is_given_again(new_federation, line, embedded) -> None:
    """The device was away when it came, the broker has forgotten it: the duplicate is recognised."""
    federation, way = new_federation(embedded.port), line(embedded.port)
    service = federation.serve(port=way.port)
    device = federation.join(0)
    federation.until_training()
    way.freeze()
    federation.train(1)
    federation.until(lambda: device.pending == 1 and device.is_uploaded, "the broker has it")
    federation.leave(0)
    topic = TOPICS.receipt("device-0")
    way.thaw()
    federation.until(lambda: federation.retained(topic), "there is a receipt")
    federation.clear(topic)
    gone = federation.retained(topic)
    device = federation.join(0)
    held = device.pending
    federation.until_settled()

    assert (None, 1) == (gone, held)
    assert service._chronicle.counters.duplicates >= 1
    assert federation.retained(topic)
    federation.audit()


def test_a_device_without_a_plan_waits_for_it_and_keeps_what_it_has(new_federation, line, embedded) -> None:
    """The plan is gone, and with it what to train; the aggregator brings it with its next connection."""
    federation, way = new_federation(embedded.port), line(embedded.port)
    service = federation.serve(port=way.port)
    device = federation.join(0)
    federation.until_training()
    way.freeze()
    federation.train(1)
    federation.until(lambda: device.pending == 1 and device.is_uploaded, "the broker has it")
    federation.leave(0)
    federation.clear(TOPICS.plan)
    device = federation.join(0, allowed=2)
    federation.until(lambda: device.agent._session._linked, "it is connected")
    held, trained = device.pending, device.trainer.finished
    way.cut()  # what was frozen is lost with the connection; the broker sends it again
    way.thaw()
    federation.until_settled()

    assert (1, 0) == (held, trained)
    assert 3 == service.engine.tally.folded
    federation.audit()


def test_a_store_that_is_gone_begins_a_new_epoch_and_devices_give_what_they_have_again(
    new_federation, line, embedded
) -> None:
    """What it had folded is gone with it. What devices still hold is refused, and goes out with the next update."""
    federation, way = new_federation(embedded.port), line(embedded.port)
    federation.serve(port=way.port)
    device = federation.join(0)
    federation.train(1)
    federation.until_settled()
    federation.until_training()
    way.freeze()
    federation.train(3)
    federation.until(lambda: device.pending == 3 and device.is_uploaded, "the broker has all")
    federation.until_training()  # once more from a version that nobody will know
    way.cut()
    federation.stop_serving()
    for path in federation.folder.glob("aggregator.db*"):
        path.unlink()
    way.thaw()
    service = federation.serve(port=way.port)
    federation.train(1)
    federation.until(lambda: len(federation.journal()) == 4 and not device.pending, "all is refused")
    federation.train(1)
    federation.until(lambda: len(federation.journal()) == 5 and not device.pending, "the new one is folded")

    assert ["wrong-epoch"] * 4 + [""] == [entry.reason for entry in federation.journal()]
    assert [3 + 1 + 1] + [0] * 7 == service.engine.state.vector.tolist()
