"""The shell over the honest fake: what is acknowledged, answered and published, and when.

One thread, one clock that the test moves. A turn takes whatever the broker has. The file is long because all its
tests live in one `World`.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.aggregator.audit import verify
from fedmq.aggregator.publisher import Publication, Publisher, PublishSettings
from fedmq.aggregator.service import PLAN_SECONDS, SESSION_EXPIRY, Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.frames import FrameCache, FrameReader

from fedmq import wire
from fedmq.chunks import checksum, split
from fedmq.envelope import Kind
from fedmq.errors import SettingError, StoreError, TransportError
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import save_model
from fedmq.topics import Topics
from fedmq.transport.base import Delivery, Event, PublishToken, Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import Chunk, GlobalModel, PresenceState, Receipt, Refusal, Rejection

Message = Callable[..., bytes]
TOPICS = Topics("default")
AGGREGATOR = "default-aggregator-0"
PUBLISH = PublishSettings(
    min_interval=0.0,
    keyframe_codec="float16",
    frame_codec="topk(0.5) | float16 | rice",
    delta_codec="topk(0.5) | float16 | rice",
)


class World:
    """A broker, one aggregator's store and whoever else comes."""

    def __init__(self, folder: Path, layout: ParamLayout) -> None:
        self.now = 0.0
        self.broker = MemoryBroker(clock=lambda: self.now)
        self.settings = AggregatorSettings(
            model=folder / "model.safetensors",
            fold=FoldSettings(buffer_size=1, staleness="constant"),
            publish=PUBLISH,
            store=StoreSettings(path=folder / "aggregator.db", batch_delay=0.0),
            stats_interval=1e6,
        )
        save_model(folder / "model.safetensors", layout, np.zeros(layout.size, np.float32))
        self.layout = layout
        self.lives: list[Service] = []
        self.edge = self.client("edge")

    def client(self, client_id: str, topic_filter: str | None = None) -> MemoryTransport:
        """Somebody who is connected, and listens."""
        transport = MemoryTransport(self.broker, client_id)
        transport.start()
        if topic_filter:
            transport.subscribe(topic_filter)
        return transport

    def start(self, *, max_queued: int = 1024, **changes: object) -> Service:
        """A new life of the aggregator, that has greeted."""
        settings = replace(self.settings, **changes)  # type: ignore[arg-type]

        def connect(client_id: str, will: Will, session_expiry: int) -> MemoryTransport:
            return MemoryTransport(
                self.broker, client_id, will=will, session_expiry=session_expiry, max_queued=max_queued
            )

        store = Store(settings.store.path)
        try:
            service = Service(settings, store, connect, clock=lambda: self.now)
        except BaseException:
            store.close()
            raise
        self.lives.append(service)
        service._transport.start()
        self.turn(service)
        return service

    def kill(self, service: Service) -> None:
        """As SIGKILL does: nothing is said, the lock is gone, the broker finds out."""
        self.broker.block(AGGREGATOR)
        service._transport.close()
        service._store.close()
        self.broker.unblock(AGGREGATOR)

    def turn(self, service: Service, times: int = 4) -> None:
        """Let it work until nothing is left to do."""
        for _ in range(times):
            service.turn()

    def send(self, message: bytes, client: str = "a") -> None:
        """One publish on a client's topic."""
        self.edge.publish(TOPICS.update("0", client), message)
        while self.edge.poll(0) is not None:
            pass

    def retained(self, topic_filter: str) -> dict[str, bytes]:
        """What lies on matching topics."""
        visitor = MemoryTransport(self.broker, "visitor", clean_start=True, session_expiry=0)
        visitor.start()
        visitor.subscribe(topic_filter)
        found = {event.topic: event.payload for event in events(visitor)}
        visitor.close()
        return found

    def receipt(self, client: str = "a") -> Receipt:
        """The retained one."""
        return wire.unpack_receipt(self.retained(TOPICS.receipt(client))[TOPICS.receipt(client)])

    def model(self) -> GlobalModel:
        """What an edge that comes now makes of the retained messages."""
        reader = FrameReader(self.layout, FrameCache(None))
        for ref, index in reader.begin(wire.unpack_head(self.retained(TOPICS.model)[TOPICS.model])):
            topic = TOPICS.object(ref.id, index)
            reader.add(ref, index, self.retained(topic)[topic])
        return reader.assemble()


def events(transport: MemoryTransport) -> Iterator[Delivery]:
    """The deliveries that wait, acknowledged."""
    while (event := transport.poll(0)) is not None:
        if isinstance(event, Delivery):
            event.ack()
            yield event


@pytest.fixture
def world(tmp_path: Path, layout: ParamLayout) -> Iterator[World]:
    """One of one's own."""
    world = World(tmp_path, layout)
    yield world
    for service in world.lives:
        service._store.close()
        service._events.close()


@pytest.fixture
def update(message: Message, world: World) -> Message:
    """An update for the federation that runs, whose epoch is drawn at random."""
    return lambda *args, **kwargs: message(*args, **{"model_epoch": world.lives[-1].engine.epoch, **kwargs})


def test_a_greeting_comes_in_the_order_in_which_an_edge_needs_it(world: World) -> None:
    """The plan, the objects, the head that names them; then the birth, upon which edges begin."""
    listener = world.client("listener", "fedmq/v1/default/#")
    service = world.start()
    came = list(events(listener))
    (keyframe,) = [event.topic for event in came if "/object/" in event.topic]
    birth = wire.unpack_presence(Kind.AGGREGATOR, came[3].payload)

    assert [TOPICS.plan, keyframe, TOPICS.model, TOPICS.aggregator("0")] == [
        event.topic for event in came[:4]
    ]
    assert service.plan == wire.unpack_plan(came[0].payload)
    assert (PresenceState.ONLINE, service.engine.epoch) == (birth.state, birth.epoch)
    assert service.engine.state.vector.tolist() == world.model().vector.tolist()


def test_an_update_is_folded_acknowledged_answered_and_published(world: World, update: Message) -> None:
    """The whole path of one."""
    service = world.start()
    delta = np.zeros(22, np.float32)
    delta[5] = 0.25
    world.send(update(delta=delta))
    world.turn(service)

    assert delta.tolist() == service.engine.state.vector.tolist()
    assert 0 == world.broker.pending(AGGREGATOR)
    assert Receipt(client=world.receipt().client, epoch=7, high_water=1) == world.receipt()
    assert 1 == world.model().version
    assert np.allclose(delta, world.model().vector, rtol=1e-2)


def fill_disk(service: Service) -> None:
    """From now on SQLite says that the disk is full."""
    (pages,) = service._store._db.execute("PRAGMA page_count").fetchone()
    service._store._db.execute(f"PRAGMA max_page_count = {pages}")


def test_nothing_is_acknowledged_before_it_is_durable(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full nothing is folded, acknowledged or answered; then everything is (law 1)."""
    service = world.start()
    fill_disk(service)
    for seq in range(1, 61):
        world.send(update(seq=seq, delta=0.5))
    seen: list[tuple[int, int, int]] = []

    def wait(seconds: float) -> None:
        pending = world.broker.pending(AGGREGATOR)
        seen.append((pending, service.engine.position, len(world.retained(TOPICS.receipt("a")))))
        if len(seen) == 3:
            service._store._db.execute("PRAGMA max_page_count = 100000")

    monkeypatch.setattr("time.sleep", wait)
    world.turn(service)

    assert [(60, 0, 0)] * 3 == seen
    assert (0, 60) == (world.broker.pending(AGGREGATOR), service.engine.position)
    assert 60 == world.receipt().high_water
    assert [30.0] * 22 == service.engine.state.vector.tolist()


def test_a_process_that_dies_behind_its_transaction_has_folded_once(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker sends again what was not acknowledged; the next life knows it and answers."""
    service = world.start()
    world.send(update(delta=0.25))

    def die(decision: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(service.engine, "commit", die)
    with pytest.raises(KeyboardInterrupt):
        service.turn()
    world.kill(service)
    second = world.start()

    assert 0 == world.broker.pending(AGGREGATOR)
    assert [0.25] * 22 == second.engine.state.vector.tolist()
    assert (1, 1) == (second.engine.position, second._chronicle.counters.duplicates)
    assert world.receipt().is_settled(1)


def test_a_process_that_dies_before_its_transaction_loses_nothing(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not acknowledged, so the broker has it still."""
    service = world.start()
    world.send(update(delta=0.25))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(service._store, "append", die)
    with pytest.raises(KeyboardInterrupt):
        service.turn()
    world.kill(service)

    assert [0.25] * 22 == world.start().engine.state.vector.tolist()


def test_what_came_on_a_connection_that_broke_is_left_to_the_broker(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be acknowledged any more and will come again, once."""
    service = world.start()
    world.send(update(delta=0.25))
    poll = service._transport.poll

    def poll_and_break(timeout: float | None = None) -> Event | None:
        event = poll(timeout)
        if isinstance(event, Delivery) and event.topic == TOPICS.update("0", "a") and not event.duplicate:
            world.broker.disconnect(AGGREGATOR)
        return event

    monkeypatch.setattr(service._transport, "poll", poll_and_break)
    world.turn(service)

    assert (1, 0) == (service.engine.position, service._chronicle.counters.duplicates)
    assert [0.25] * 22 == service.engine.state.vector.tolist()
    assert 0 == world.broker.pending(AGGREGATOR)


def test_every_update_may_come_twice(world: World, update: Message) -> None:
    """From a broker that doubles everything, over two lives and a connection that breaks (law 3)."""
    world.broker = MemoryBroker(clock=lambda: world.now, duplicate_rate=0.7, seed=1)
    world.edge = world.client("edge-2")
    service = world.start()
    for seq in range(1, 41):
        world.send(update(seq=seq, delta=0.5, floor=1))
        if seq % 10 == 0:
            world.broker.disconnect(AGGREGATOR)
        if seq % 7 == 0:
            world.turn(service)
        if seq == 25:
            world.kill(service)
            service = world.start()
    world.turn(service)

    assert [20.0] * 22 == service.engine.state.vector.tolist()
    assert service._chronicle.counters.duplicates > 0
    assert 40 == world.receipt().high_water
    assert world.broker.drained


def test_a_duplicate_is_answered_with_the_same_bytes(world: World, update: Message) -> None:
    """Also when the retained receipt was lost."""
    service = world.start()
    world.send(update())
    world.turn(service)
    first = world.retained(TOPICS.receipt("a"))
    world.edge.publish(TOPICS.receipt("a"), b"", retain=True)
    world.send(update())
    world.turn(service)

    assert first == world.retained(TOPICS.receipt("a"))


@pytest.mark.parametrize(
    ("payload", "reason", "detail"),
    [
        (b"nonsense", Rejection.UNREADABLE, "envelope: schema 110"),
        (b"", Rejection.UNREADABLE, "envelope: 0 bytes"),
        (None, Rejection.FOREIGN_CLIENT, "the message names b, it came on the topic of a"),
    ],
)
def test_what_cannot_be_settled_is_dropped_with_a_notice(
    world: World, update: Message, payload: bytes | None, reason: Rejection, detail: str
) -> None:
    """Beside all that is known of the client; it is acknowledged, or it would come for ever."""
    service = world.start()
    world.send(update(seq=1))
    world.send(update("b") if payload is None else payload)
    world.turn(service)
    receipt = world.receipt()

    assert receipt.notice is not None
    assert reason is receipt.notice.reason
    assert detail in receipt.notice.detail
    assert (7, 1) == (receipt.epoch, receipt.high_water)
    assert 0 == world.broker.pending(AGGREGATOR)
    assert 1 == service._chronicle.counters.dropped[reason]
    assert {} == world.retained(TOPICS.receipt("b"))


def test_a_notice_waits_until_it_can_be_sent(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full queue costs no answer."""
    service = world.start()
    world.send(b"nonsense")
    publish = service._transport.publish
    refused: list[str] = []

    def full(
        topic: str, payload: bytes, *, retain: bool = False, expiry: float | None = None
    ) -> PublishToken:
        if topic == TOPICS.receipt("a") and len(refused) < 2:
            refused.append(topic)
            raise TransportError("1024 publishes already wait for their outcome")
        return publish(topic, payload, retain=retain, expiry=expiry)

    monkeypatch.setattr(service._transport, "publish", full)
    world.turn(service)

    assert 2 == len(refused)
    assert world.receipt().notice is not None


def test_a_topic_that_ends_in_no_name_is_acknowledged_and_ignored(world: World, update: Message) -> None:
    """There is nobody to answer."""
    service = world.start()
    world.edge.publish(TOPICS.update("0", "a b"), update())
    world.turn(service)

    assert 0 == world.broker.pending(AGGREGATOR)
    assert 0 == service.engine.position


def chunks(message: bytes, seq: int = 1) -> list[bytes]:
    """As an agent cuts it."""
    update_id = wire.unpack_update(message).id
    pieces = split(message, 50)
    return [
        wire.pack_chunk(
            Chunk(
                id=update_id,
                index=i,
                count=len(pieces),
                size=len(message),
                digest=checksum(message),
                data=piece,
            )
        )
        for i, piece in enumerate(pieces)
    ]


def test_chunks_are_acknowledged_when_durable_and_survive_a_restart(world: World, update: Message) -> None:
    """The first life has all but one, the second gets that one."""
    service = world.start()
    pieces = chunks(update(delta=0.25))
    for piece in pieces[:-1]:
        world.send(piece)
    world.turn(service)
    pending, position = world.broker.pending(AGGREGATOR), service.engine.position
    world.kill(service)
    world.send(pieces[-1])
    second = world.start()

    assert (0, 0) == (pending, position)
    assert [0.25] * 22 == second.engine.state.vector.tolist()
    assert [] == list(second._store.chunks())
    assert world.receipt().is_settled(1)


def test_unfinished_chunks_are_given_up_after_a_while(world: World, update: Message) -> None:
    """In memory at once, on disk with the next batch."""
    service = world.start()
    world.send(chunks(update())[0])
    world.turn(service)
    held = len(list(service._store.chunks()))
    world.now += 601
    world.turn(service)
    world.send(update(seq=2))
    world.turn(service)

    assert 1 == held
    assert [] == list(service._store.chunks())


def test_a_broker_that_lost_everything_gets_everything_again(world: World, update: Message) -> None:
    """Plan, frames, head, birth and subscription."""
    service = world.start()
    for seq in range(1, 4):
        world.send(update(seq=seq, delta=0.25))
        world.turn(service)
    before = world.model()
    world.broker.stop(forget=True)
    world.broker.start()
    world.turn(service)
    world.edge = world.client("edge-2")
    after = world.model()
    world.send(update(seq=4, base=3, delta=0.25))
    world.turn(service)

    assert before.vector.tolist() == after.vector.tolist()
    assert {TOPICS.plan, TOPICS.aggregator("0")} <= set(world.retained("fedmq/v1/default/#"))
    assert 4 == world.model().version


def test_versions_that_come_too_fast_are_passed_over_for_the_newest(world: World, update: Message) -> None:
    """One head in ten seconds, and never an old one."""
    service = world.start(publish=replace(PUBLISH, min_interval=10.0))
    listener = world.client("listener", TOPICS.model)
    list(events(listener))
    versions = []
    for second in range(1, 31):
        world.now = float(second)
        world.send(update(seq=second, base=second - 1, delta=0.25))
        world.turn(service)
        versions += [(second, wire.unpack_head(event.payload).version) for event in events(listener)]

    assert [(10, 10), (20, 20), (30, 30)] == versions


@pytest.mark.parametrize(("takes", "between"), [(2.0, 10.0), (3600.0, 3630.0)])
def test_publishing_takes_a_fifth_of_the_time_at_most(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch, takes: float, between: float
) -> None:
    """A head that took two seconds to make is followed by eight without one; a halted process goes on after thirty."""
    service = world.start(publish=PUBLISH)
    listener = world.client("listener", TOPICS.model)
    list(events(listener))
    publish = Publisher.publish

    def slowly(publisher: Publisher, model: GlobalModel) -> Publication:
        world.now += takes
        return publish(publisher, model)

    monkeypatch.setattr(Publisher, "publish", slowly)
    seen = []
    for seq in range(1, 91):
        world.now += 1.0
        world.send(update(seq=seq, base=seq - 1, delta=0.25))
        began = world.now
        world.turn(service)
        seen += [began for event in events(listener) if event.payload]

    assert {between} == {after - before for before, after in pairwise(seen)}
    assert 90 == service.engine.state.version


def test_objects_that_no_head_names_any_more_are_cleared(world: World, update: Message) -> None:
    """A keyframe for every version: this one's, the last one's, and one that is about to go."""
    service = world.start(publish=replace(PUBLISH, frame_versions=1, max_frames=1))
    counts = []
    for seq in range(1, 11):
        world.send(update(seq=seq, base=seq - 1, delta=0.25))
        world.turn(service)
        counts.append(len(world.retained("fedmq/v1/default/object/#")))

    assert [2] * 10 == counts
    assert 10 == world.model().version


def test_a_head_never_overtakes_its_objects(tmp_path: Path, update: Message) -> None:
    """Also when the transport's queue is much shorter than the model has chunks."""
    layout = ParamLayout((Segment(name="w", shape=(10_000,)),))
    world = World(tmp_path, layout)
    listener = world.client("listener", "fedmq/v1/default/#")
    service = world.start(max_queued=7, publish=replace(PUBLISH, chunk_bytes=1024))
    world.turn(service, 10)
    came: list[str] = []
    for event in events(listener):
        came.append(event.topic)
        if event.topic == TOPICS.model:
            (frame,) = wire.unpack_head(event.payload).frames
            ref = frame.content

            assert {TOPICS.object(ref.id, index) for index in range(ref.chunks)} <= set(came)
    service._store.close()

    assert 20 == ref.chunks
    assert layout.size == world.model().vector.size
    assert (
        PresenceState.ONLINE
        == wire.unpack_presence(
            Kind.AGGREGATOR, world.retained(TOPICS.aggregator("0"))[TOPICS.aggregator("0")]
        ).state
    )


def test_two_aggregators_cannot_have_one_store(world: World) -> None:
    """The first goes on."""
    world.start()
    with pytest.raises(StoreError, match="in use by another process"):
        world.start()


def test_a_second_aggregator_with_a_store_of_its_own_is_noticed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker lets one client id connect once; the log says what to look for."""
    first = world.start()
    store = replace(world.settings.store, path=world.settings.store.path.with_name("other.db"))
    world.start(store=store)
    with caplog.at_level(logging.ERROR):
        first.turn()

    assert "is a second aggregator running for federation default, shard 0?" in caplog.text


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"federation": "a/b"}, "federation"),
        ({"shard": "+"}, "shard"),
        ({"task": TaskSettings(codec="zip")}, "task.codec"),
        ({"publish": PublishSettings(delta_codec="rice")}, "publish.delta_codec"),
        ({"fold": FoldSettings(strategy="fedavg")}, "fold.buffer_size"),
        ({"model": None}, "model"),
    ],
)
def test_a_setting_that_cannot_be_is_found_before_anything_is_published(
    world: World, changes: dict[str, Any], name: str
) -> None:
    """With its name."""
    with pytest.raises(SettingError) as caught:
        world.start(**changes)

    assert name == caught.value.name
    assert {} == world.retained("#")


def test_a_restart_with_other_fold_settings_tells_the_edges(world: World, update: Message) -> None:
    """The model goes on, the plan changes."""
    service = world.start()
    world.send(update(delta=0.25))
    world.turn(service)
    world.kill(service)
    second = world.start(fold=FoldSettings(strategy="fedavg", buffer_size=2))
    plan = wire.unpack_plan(world.retained(TOPICS.plan)[TOPICS.plan])

    assert [0.25] * 22 == second.engine.state.vector.tolist()
    assert (True, 0) == (plan.wait_for_new_version, plan.max_staleness)
    assert 1 == world.model().version


def test_a_broken_connection_is_told_to_the_edges_until_it_is_mended(world: World) -> None:
    """By the will, then by a new birth."""
    service = world.start()
    world.broker.block(AGGREGATOR)
    topic = TOPICS.aggregator("0")
    will = wire.unpack_presence(Kind.AGGREGATOR, world.retained(topic)[topic])
    world.broker.unblock(AGGREGATOR)
    world.turn(service)
    birth = wire.unpack_presence(Kind.AGGREGATOR, world.retained(topic)[topic])

    assert (PresenceState.OFFLINE, PresenceState.ONLINE) == (will.state, birth.state)
    assert will.boot == birth.boot


def test_a_service_that_is_stopped_says_goodbye_and_leaves_everything_in_order(
    world: World, update: Message, tmp_path: Path
) -> None:
    """What had come is folded, a snapshot covers it, the store is free, and the diary tells of it."""
    service = world.start(events=tmp_path / "events.jsonl", stats_interval=1.0)
    world.send(update(delta=0.25))
    clock = iter(range(1, 50))

    def tick() -> float:
        if next(clock) == 40:
            service.stop()
        return world.now

    service._clock = tick
    service.run()
    topic = TOPICS.aggregator("0")
    goodbye = wire.unpack_presence(Kind.AGGREGATOR, world.retained(topic)[topic])
    stats = json.loads(world.retained(TOPICS.stats("aggregator"))[TOPICS.stats("aggregator")])
    diary = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    store = Store(world.settings.store.path)
    (snapshot, *_) = store.snapshots()
    store.close()

    assert PresenceState.OFFLINE is goodbye.state
    assert (1, 1) == (snapshot.position, snapshot.version)
    assert (1, 1, 1, {}) == tuple(
        stats[k] for k in ("version", "updates_folded", "received", "updates_refused")
    )
    assert ["publish", "aggregator", "fold", "publish", "aggregator"] == [event["kind"] for event in diary]
    assert ("a", 1, 0) == tuple(diary[2][k] for k in ("client", "seq", "staleness"))


def test_a_service_that_is_stopped_while_the_disk_is_full_acknowledges_nothing(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the error; the next life, on a disk that works, folds what the broker kept."""
    service = world.start()
    fill_disk(service)
    for seq in range(1, 61):
        world.send(update(seq=seq, delta=0.5))
    monkeypatch.setattr("time.sleep", lambda seconds: service.stop())
    with pytest.raises(StoreError, match=r"full\. Free some space"):
        service.run()

    assert 60 == world.broker.pending(AGGREGATOR)
    assert [30.0] * 22 == world.start().engine.state.vector.tolist()


def test_a_snapshot_that_fails_is_taken_later(
    world: World, update: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has everything; nobody waits."""
    service = world.start(store=replace(world.settings.store, snapshot_records=2))
    save = service._store.save_snapshot
    failures: list[object] = []

    def fail_once(*args: object, **kwargs: object) -> None:
        if not failures:
            failures.append(args)
            raise StoreError("no space")
        save(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(service._store, "save_snapshot", fail_once)
    for seq in range(1, 5):
        world.send(update(seq=seq, delta=0.25))
        world.turn(service)

    assert 1 == len(failures)
    assert [3, 0] == [snapshot.position for snapshot in service._store.snapshots()]


def test_the_broker_keeps_updates_for_an_aggregator_that_is_away(world: World, update: Message) -> None:
    """For a week."""
    service = world.start()
    messages = [update(seq=seq, delta=0.25) for seq in (1, 2)]
    world.kill(service)
    world.now += SESSION_EXPIRY - 1
    for message in messages:
        world.send(message)

    assert [0.5] * 22 == world.start().engine.state.vector.tolist()


def test_a_refused_update_is_settled_with_its_reason(world: World, update: Message) -> None:
    """Its client gives it up, and keeps what it carried."""
    service = world.start()
    world.send(update(examples=0))
    world.turn(service)
    detail = "0 examples, 1 to 10000000 are allowed"

    assert Refusal(reason=Rejection.SAMPLE_COUNT, detail=detail) == world.receipt().refusal(1)
    assert 0 == service.engine.state.version


def plans(listener: MemoryTransport) -> list[bytes]:
    """What came on the plan's topic."""
    return [event.payload for event in events(listener) if event.topic == TOPICS.plan]


@pytest.mark.parametrize("payload", [b"", b"another plan"])
def test_a_plan_that_somebody_clears_or_replaces_is_published_again(
    world: World, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it nobody who comes now could take part; the aggregator does not wait for its next connection."""
    service = world.start()
    before = world.retained(TOPICS.plan)
    world.now += PLAN_SECONDS
    world.edge.publish(TOPICS.plan, payload, retain=True)
    world.turn(service)

    assert before == world.retained(TOPICS.plan)
    assert 1 == caplog.text.count("the plan was cleared or replaced")


def test_a_former_life_s_plan_is_replaced_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It lies there when the aggregator subscribes, and is gone before anybody has to do something about it."""
    world.kill(world.start())
    listener = world.client("listener", TOPICS.plan)
    former = plans(listener)
    service = world.start(task=TaskSettings(local_epochs=7))
    for _ in range(30):
        world.now += 1.0
        world.turn(service)

    assert [wire.pack_plan(service.plan)] == plans(listener) != former
    assert "" == caplog.text


@pytest.mark.parametrize("payload", [b"", b"nonsense"])
def test_a_presence_that_somebody_clears_or_replaces_is_published_again(world: World, payload: bytes) -> None:
    """Edges wait while they do not find it."""
    service = world.start()
    topic = TOPICS.aggregator("0")
    before = world.retained(topic)
    world.edge.publish(topic, payload, retain=True)
    world.turn(service)
    listener = world.client("listener", topic)
    world.turn(service)

    assert before == world.retained(topic)
    assert 1 == len(list(events(listener)))


def test_two_who_disagree_about_the_plan_do_not_fill_the_broker_with_it(world: World) -> None:
    """Two aggregators for one federation, which nobody should have."""
    listener = world.client("listener", TOPICS.plan)
    store = replace(world.settings.store, path=world.settings.store.path.with_name("other.db"))
    services = [world.start(), world.start(shard="1", store=store)]
    published = len(plans(listener))
    for _ in range(1000):
        world.now += 0.1
        for service in services:
            service.turn()
        published += len(plans(listener))

    assert 100 / PLAN_SECONDS - 2 < published <= 2 * 100 / PLAN_SECONDS + 2


def test_a_broker_that_takes_no_chunk_gets_no_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It would send edges after objects that never come. The log says once what to set; the rest goes on."""
    world = World(tmp_path, ParamLayout((Segment(name="w", shape=(10_000,)),)))
    world.broker.maximum_packet_size = 1000
    service = world.start(publish=replace(PUBLISH, chunk_bytes=1024))
    for _ in range(5):
        world.broker.disconnect(AGGREGATOR)
        world.turn(service)
    found = world.retained("fedmq/v1/default/#")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    world.broker.maximum_packet_size = 2000
    world.broker.disconnect(AGGREGATOR)
    world.turn(service)
    service._store.close()

    assert {TOPICS.plan, TOPICS.aggregator("0"), TOPICS.stats("aggregator")} == set(found)
    assert 1 == len(said)
    assert "exceeds the broker's maximum packet of 1000 bytes" in said[0]
    assert "No model is published" in said[0]
    assert "publish.chunk_bytes" in said[0]
    assert 10_000 == world.model().vector.size


def test_the_model_before_stays_while_the_broker_takes_no_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With all that it names, and the aggregator does not try without pause."""
    world = World(tmp_path, ParamLayout((Segment(name="w", shape=(10_000,)),)))
    service = world.start(publish=replace(PUBLISH, chunk_bytes=1024))
    before = world.model()
    world.broker.maximum_packet_size = 1000
    for version in range(1, 4):
        world.broker.disconnect(AGGREGATOR)
        world.turn(service)
        vector = service.engine.state.vector.copy()
        vector[version] = 1.0  # a small difference: its head alone would fit
        service.engine.state = replace(service.engine.state, vector=vector, version=version)
        world.turn(service)
    between, idle = world.model(), service._idle(world.now)
    world.broker.maximum_packet_size = 2000
    world.broker.disconnect(AGGREGATOR)
    world.turn(service)
    service._store.close()

    assert (0, before.vector.tolist()) == (between.version, between.vector.tolist())
    assert idle > 0
    assert 3 == world.model().version
    assert 1 == caplog.text.count("No model is published")


def test_a_version_is_closed_at_its_deadline(world: World, update: Message) -> None:
    """The clients that are missing are done without; the journal says so, and nobody is told of a receipt for it."""
    service = world.start(fold=FoldSettings(buffer_size=3, staleness="constant", deadline=5.0))
    world.send(update(seq=1, delta=np.ones(22, np.float32)))
    world.turn(service)
    before = service.engine.state.version
    world.now += 4.9
    world.turn(service)
    waiting = service.engine.state.version
    world.now += 0.2
    world.turn(service)
    records = list(service._store.journal())

    assert 0 == before == waiting
    assert 1 == service.engine.state.version
    assert ["a", ""] == [entry.client for entry in records]
    assert () == verify(service._store).damage
    world.kill(service)
    assert (
        1
        == world.start(
            fold=FoldSettings(buffer_size=3, staleness="constant", deadline=5.0)
        ).engine.state.version
    )


def test_a_restart_costs_the_edges_no_keyframe(world: World, update: Message) -> None:
    """The head names the same frames as before."""
    service = world.start()
    world.send(update(seq=1, delta=np.ones(22, np.float32)))
    world.turn(service)
    before = wire.unpack_head(world.retained(TOPICS.model)[TOPICS.model])
    world.kill(service)
    world.start()
    after = wire.unpack_head(world.retained(TOPICS.model)[TOPICS.model])

    assert before == after


def test_a_new_life_knows_for_how_long_clients_stay_away(world: World, update: Message) -> None:
    """From the journal: refused updates tell nothing of a visit."""
    service = world.start()
    for seq in range(1, 9):
        world.send(update(seq=seq, delta=np.ones(22, np.float32), base=seq - 1))
        world.turn(service)
    world.send(update(seq=9, delta=np.ones(22, np.float32), base=500))
    world.turn(service)
    before = service._publisher.absence.lacking()
    world.kill(service)
    after = world.start()._publisher.absence.lacking()

    assert before.tolist() == after.tolist()
    assert after[100] < 0.5
