"""Download: what is subscribed to, what is taken, and what is left alone (laws 6 and 9)."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from fedmq.edge_agent.download import Download
from fedmq.edge_agent.frames import FrameCache

from fedmq import encoding, wire
from fedmq.chunks import split
from fedmq.codecs import parse_pipeline
from fedmq.layout import ParamLayout, Segment
from fedmq.topics import Topics
from fedmq.transport.base import Connected, Delivery
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import Frame, GlobalModel, ModelHead, ModelVersion, ObjectRef

LAYOUT = ParamLayout((Segment(name="weight", shape=(100,)),))
TOPICS = Topics("test")
CHUNKS = 4


class Feed:
    """A publisher and a download, one broker between them."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(clock=lambda: 0.0)
        self.publisher = self._connected("publisher")
        self.transport = self._connected("device")
        self.models: list[GlobalModel] = []
        self.download = Download(self.transport, TOPICS, LAYOUT, FrameCache(None), self.models.append)

    def _connected(self, name: str) -> MemoryTransport:
        transport = MemoryTransport(self.broker, name, clean_start=True, session_expiry=0)
        transport.start()
        assert isinstance(transport.poll(), Connected)
        return transport

    def content(self, version: int) -> bytes:
        vector = np.random.default_rng(version).normal(size=100).astype(np.float32)
        return encoding.encode(LAYOUT, parse_pipeline("float16"), vector)

    def head(self, version: int, epoch: int = 1) -> ModelHead:
        content = self.content(version)
        ref = ObjectRef(id=encoding.object_id(content), size=len(content), chunks=CHUNKS)
        decoded = encoding.decode(LAYOUT, parse_pipeline("float16"), content).to_dense()
        return ModelHead(
            epoch=epoch,
            version=ModelVersion(version),
            fingerprint=LAYOUT.fingerprint,
            frames=(Frame(codec="float16", content=ref),),
            delta=None,
            digest=encoding.digest(decoded),
        )

    def publish_head(self, head: ModelHead) -> None:
        self.publisher.publish(TOPICS.model, wire.pack_head(head), retain=True)

    def publish_chunk(self, version: int, index: int, data: bytes | None = None) -> None:
        content = self.content(version)
        piece = split(content, len(content) // CHUNKS)[index] if data is None else data
        self.publisher.publish(TOPICS.object(encoding.object_id(content), index), piece, retain=True)

    def publish(self, version: int, epoch: int = 1) -> None:
        for index in range(CHUNKS):
            self.publish_chunk(version, index)
        self.publish_head(self.head(version, epoch))

    def arrive(self) -> int:
        """Take everything that is on its way; how many messages the download knew."""
        known = 0
        while (event := self.transport.poll()) is not None:
            if isinstance(event, Delivery):
                known += self.download.take(event)
                event.ack()
        return known

    @property
    def versions(self) -> list[int]:
        return [model.version for model in self.models]

    @property
    def filters(self) -> set[str]:
        """What the device is subscribed to."""
        return set(self.broker._sessions["device"].filters)


@pytest.fixture
def feed() -> Feed:
    """A federation with a model at version 1."""
    feed = Feed()
    feed.publish(1)
    return feed


def test_a_retained_model_is_taken_on_request(feed: Feed) -> None:
    """Head and chunks; afterwards only the head's topic is subscribed to."""
    assert 0 == feed.arrive()
    feed.download.start()
    assert 1 + CHUNKS == feed.arrive()

    assert [1] == feed.versions
    assert {TOPICS.model} == feed.filters


def test_newer_models_follow_until_it_is_stopped(feed: Feed) -> None:
    """And then nothing costs the broker anything."""
    feed.download.start()
    feed.arrive()
    feed.publish(2)
    feed.arrive()
    feed.download.stop()
    feed.publish(3)

    assert 0 == feed.arrive()
    assert [1, 2] == feed.versions
    assert set() == feed.filters


def test_what_is_on_its_way_when_it_stops_is_not_taken(feed: Feed) -> None:
    """Neither a head, which would begin a download, nor a chunk."""
    feed.download.start()
    feed.download.stop()

    assert 0 == feed.arrive()
    assert [] == feed.versions
    assert set() == feed.filters


def test_a_stop_in_the_middle_ends_every_subscription(feed: Feed) -> None:
    """Also those to chunks."""
    feed.download.start()
    event = feed.transport.poll()
    assert isinstance(event, Delivery)
    feed.download.take(event)
    assert 1 + CHUNKS == len(feed.filters)
    feed.download.stop()

    assert set() == feed.filters
    assert 0 == feed.arrive()


def test_it_can_be_started_again(feed: Feed) -> None:
    """The retained head comes again; the keyframe is here already."""
    feed.download.start()
    feed.arrive()
    feed.download.stop()
    feed.download.start()

    assert 1 == feed.arrive()
    assert [1, 1] == feed.versions


def test_a_broken_connection_loses_the_subscriptions_but_not_the_chunks(feed: Feed) -> None:
    """After the next start only what was missing comes."""
    feed.download.start()
    for _ in range(3):  # the head and two chunks
        event = feed.transport.poll()
        assert isinstance(event, Delivery)
        feed.download.take(event)
    feed.broker.disconnect("device")
    feed.download.reset()
    feed.arrive()
    feed.download.start()

    assert 1 + CHUNKS - 2 == feed.arrive()
    assert [1] == feed.versions


def test_a_newer_head_replaces_a_download(feed: Feed) -> None:
    """The chunks of the older one are no longer asked for."""
    feed.publish_head(feed.head(2))  # its chunks are not there yet
    feed.download.start()
    feed.arrive()
    waiting = {topic for topic in feed.filters if topic != TOPICS.model}
    feed.publish(3)
    feed.arrive()

    assert CHUNKS == len(waiting)
    assert [3] == feed.versions
    assert {TOPICS.model} == feed.filters


def test_a_missing_chunk_keeps_the_download_waiting(feed: Feed) -> None:
    """Until it comes."""
    feed.publish_chunk(1, 2, b"")  # cleared
    feed.download.start()
    feed.arrive()
    assert [] == feed.versions
    feed.publish_chunk(1, 2)
    feed.arrive()

    assert [1] == feed.versions


def test_an_older_version_is_ignored(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    """Law 9: a broker that crashed brings an old retained model back."""
    feed.publish(5)
    feed.download.start()
    feed.arrive()
    feed.publish(4)
    feed.arrive()

    assert [5] == feed.versions
    assert "ignored version 4: version 5 was seen before" in caplog.text
    feed.publish(5)
    feed.arrive()
    assert [5, 5] == feed.versions


def test_a_lower_version_of_a_new_epoch_is_taken(feed: Feed) -> None:
    """The aggregator's store is new: its versions begin anew."""
    feed.publish(5)
    feed.download.start()
    feed.arrive()
    feed.publish(1, epoch=2)
    feed.arrive()

    assert [(1, 5), (2, 1)] == [(model.epoch, model.version) for model in feed.models]


def test_a_chunk_of_another_object_is_dropped(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    """It does not hash to the id; the next start fetches the object again."""
    feed.publish_chunk(1, 0, split(feed.content(9), len(feed.content(9)) // CHUNKS)[0])
    feed.download.start()
    feed.arrive()

    assert [] == feed.versions
    assert "does not hash to" in caplog.text
    feed.publish_chunk(1, 0)
    feed.download.stop()
    feed.download.start()
    feed.arrive()
    assert [1] == feed.versions


def test_a_chunk_that_is_no_good_does_not_hold_up_the_others(
    feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    """It is too long, and thrown away with those of its object that came; what is left comes, nothing is assembled."""
    feed.publish_chunk(1, 0, bytes(1000))
    feed.download.start()
    assert 1 + CHUNKS == feed.arrive()

    assert [] == feed.versions
    assert "1000 bytes came for an object of 200" in caplog.text
    assert {TOPICS.model} == feed.filters


class Stack:
    """A feed whose model is a keyframe in chunks of 8 bytes, and frames of one chunk each.

    Args:
        frames: how many stand on the keyframe.
    """

    STEP = "topk(0.1) | float16 | rice"

    def __init__(self, frames: int) -> None:
        self.feed = Feed()
        self.full, step = parse_pipeline("float16"), parse_pipeline(self.STEP)
        self.contents = [self.feed.content(1)] + [
            encoding.encode(LAYOUT, step, np.random.default_rng(seed).normal(size=100).astype(np.float32))
            for seed in range(100, 100 + frames)
        ]

    def head(self, version: int, frames: int) -> ModelHead:
        """With so many of the frames."""
        vector = encoding.decode(LAYOUT, self.full, self.contents[0]).to_dense()
        for content in self.contents[1 : 1 + frames]:
            encoding.decode(LAYOUT, parse_pipeline(self.STEP), content).add_to(vector)
        codecs = ["float16"] + [self.STEP] * frames
        return replace(
            self.feed.head(version),
            frames=tuple(
                Frame(codec=codec, content=self.ref(content))
                for codec, content in zip(codecs, self.contents, strict=False)
            ),
            digest=encoding.digest(vector),
        )

    def ref(self, content: bytes) -> ObjectRef:
        return ObjectRef(id=encoding.object_id(content), size=len(content), chunks=len(self.pieces(content)))

    def pieces(self, content: bytes) -> list[bytes]:
        return split(content, 8 if content == self.contents[0] else len(content))

    def publish(self, *contents: bytes) -> None:
        for content in contents:
            for index, piece in enumerate(self.pieces(content)):
                topic = TOPICS.object(encoding.object_id(content), index)
                self.feed.publisher.publish(topic, piece, retain=True)


def test_many_frames_are_asked_for_a_few_at_a_time() -> None:
    """Brokers drop what they cannot queue for a client, and take only so many subscriptions."""
    stack = Stack(frames=60)
    feed = stack.feed
    stack.publish(*stack.contents)
    feed.publish_head(stack.head(1, frames=60))
    feed.download.start()
    most = known = 0
    while (event := feed.transport.poll()) is not None:
        if isinstance(event, Delivery):
            known += feed.download.take(event)
            event.ack()
            most = max(most, len(feed.filters) - 1)

    assert 1 + 25 + 60 == known
    assert 32 == most
    assert [1] == feed.versions
    assert {TOPICS.model} == feed.filters


def test_a_newer_head_asks_for_what_is_new_only() -> None:
    """Who is slow gets newer heads all the time: what is on its way must not begin anew with each."""
    stack = Stack(frames=2)
    feed = stack.feed
    feed.publish_head(stack.head(1, frames=1))  # its objects are slow
    feed.download.start()
    feed.arrive()
    sent = feed.transport.traffic.packets_sent
    feed.publish_head(stack.head(2, frames=2))
    feed.arrive()
    asked = feed.transport.traffic.packets_sent - sent - 1  # the head was acknowledged
    stack.publish(*stack.contents)

    assert 1 == asked
    assert 25 + 2 == feed.arrive()
    assert [2] == feed.versions
    assert {TOPICS.model} == feed.filters


def test_a_head_that_cannot_be_used_does_not_end_a_download(feed: Feed) -> None:
    """What is under way is as good as it was."""
    feed.publish_head(feed.head(2))  # its chunks are not there yet
    feed.download.start()
    feed.arrive()
    feed.publish_head(replace(feed.head(3), fingerprint=bytes(8)))
    feed.arrive()
    for index in range(CHUNKS):
        feed.publish_chunk(2, index)
    feed.arrive()

    assert [2] == feed.versions


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"no envelope", "schema"),
        (wire.pack_head(replace(Feed().head(2), fingerprint=bytes(8))), "layout"),
        (
            wire.pack_head(
                replace(
                    Feed().head(2),
                    frames=(
                        Frame(codec="float16", content=ObjectRef(id="0" * 32, size=10**9, chunks=60_000)),
                    ),
                )
            ),
            "at most 200",
        ),
        (wire.pack_head(replace(Feed().head(1), digest=bytes(16), version=ModelVersion(2))), "digest"),
    ],
)
def test_a_head_that_leads_nowhere_is_logged_and_costs_nothing(
    feed: Feed, caplog: pytest.LogCaptureFixture, payload: bytes, message: str
) -> None:
    """No subscription, no model, no exception; the next head is taken."""
    feed.publisher.publish(TOPICS.model, payload, retain=True)
    feed.download.start()
    feed.arrive()

    assert [] == feed.versions
    assert {TOPICS.model} == feed.filters
    assert "the model cannot be used" in caplog.text
    assert message in caplog.text
    feed.publish(3)
    feed.arrive()
    assert [3] == feed.versions


def test_a_cleared_head_is_no_head(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    """An operator removed it; nothing is wrong."""
    caplog.set_level(logging.DEBUG)
    feed.download.start()
    feed.arrive()
    feed.publisher.publish(TOPICS.model, b"", retain=True)
    feed.arrive()

    assert [1] == feed.versions
    assert "" == caplog.text


def test_what_is_not_its_own_is_not_taken(feed: Feed) -> None:
    """Other topics are the agent's business."""
    assert not feed.download.take(Delivery(topic=TOPICS.plan, payload=b"x"))
