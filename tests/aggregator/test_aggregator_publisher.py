"""The publisher against the edge's reader: both ends decode the same bits, and the broker keeps no rubbish."""

from random import Random

import numpy as np
import pytest
from fedmq.aggregator.publisher import Publication, Publisher, PublishSettings
from fedmq.edge_agent.frames import FrameCache, FrameReader
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq import encoding, wire
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.types import GlobalModel, ModelVersion, ObjectRef

LAYOUT = ParamLayout(
    (Segment(name="w", shape=(60, 50)), Segment(name="mean", shape=(7,), kind=SegmentKind.BUFFER))
)


def walk(versions: int, *, seed: int = 0, share: float = 0.05) -> list[GlobalModel]:
    """Versions of a model; each differs from the one before in a share of its parameters."""
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(LAYOUT.size, np.float32)
    models = []
    for version in range(versions):
        models.append(GlobalModel(epoch=3, version=ModelVersion(version), layout=LAYOUT, vector=vector))
        change = rng.standard_normal(LAYOUT.size, np.float32) * (rng.random(LAYOUT.size) < share)
        vector = vector + np.float32(0.01) * change.astype(np.float32)
    return models


def publisher(**changes: object) -> Publisher:
    """With settings of one's choice."""
    return Publisher(PublishSettings(**changes))  # type: ignore[arg-type]


class Broker:
    """The retained messages, and an edge that comes by now and then."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, ...]] = {}
        self.head = b""

    def take(self, publication: Publication) -> None:
        """In the order that a `Publication` is to be sent."""
        for ref, chunks in publication.objects:
            assert len(chunks) == ref.chunks
            assert sum(map(len, chunks)) == ref.size
            self.objects[ref.id] = chunks
        self.head = wire.pack_head(publication.head)
        for ref in publication.retired:
            del self.objects[ref.id]

    def pull(self, reader: FrameReader, random: Random) -> GlobalModel:
        """What an edge makes of it; chunks come in any order."""
        missing = list(reader.begin(wire.unpack_head(self.head)))
        random.shuffle(missing)
        for ref, index in missing:
            reader.add(ref, index, self.objects[ref.id][index])
        return reader.assemble()


CODECS = [
    ("float16", "topk(0.1) | int8 | rice"),
    ("int8", "float16"),
    ("float32", "topk(0.02) | ternary | rice"),
    ("float16", "float32"),
]


@given(
    st.sampled_from(CODECS),
    st.integers(1, 9),
    st.sampled_from([1024, 1500, 4096, 262_144]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_both_ends_decode_the_same_bits(
    codecs: tuple[str, str], keyframe_versions: int, chunk_bytes: int, seed: int
) -> None:
    """One edge takes every version, one skips some, one is new each time (law 6)."""
    random = Random(seed)
    keyframe, delta = codecs
    source = publisher(
        keyframe_codec=keyframe,
        delta_codec=delta,
        keyframe_versions=keyframe_versions,
        chunk_bytes=chunk_bytes,
    )
    broker = Broker()
    faithful, casual = FrameReader(LAYOUT, FrameCache(None)), FrameReader(LAYOUT, FrameCache(None))
    for model in walk(12, seed=seed):
        publication = source.publish(model)
        broker.take(publication)
        models = [broker.pull(faithful, random), broker.pull(FrameReader(LAYOUT, FrameCache(None)), random)]
        if random.random() < 0.4:
            models.append(broker.pull(casual, random))

        assert {publication.head.digest} == {encoding.digest(each.vector) for each in models}
        assert {model.version} == {each.version for each in models}


def test_errors_do_not_add_up() -> None:
    """Each delta is taken against the true model: after fifty versions the error is that of one rounding."""
    source = publisher(keyframe_codec="float32", delta_codec="float16", keyframe_versions=1000)
    broker, reader, models = Broker(), FrameReader(LAYOUT, FrameCache(None)), walk(50)
    for model in models:
        broker.take(source.publish(model))
        decoded = broker.pull(reader, Random(0)).vector
        delta = np.abs(model.vector - models[0].vector).max()

        assert np.abs(model.vector - decoded).max() <= 2**-11 * delta + 2**-22


def test_buffers_are_never_sparsified() -> None:
    """They are sent as they are, in keyframes and deltas: no error but float32's."""
    broker, source = Broker(), publisher(delta_codec="topk(0.001) | ternary | rice")
    for model in walk(5):
        broker.take(source.publish(model))
    vector = broker.pull(FrameReader(LAYOUT, FrameCache(None)), Random(0)).vector

    assert np.allclose(model.vector[3000:], vector[3000:], rtol=1e-6, atol=1e-7)


def kinds(publications: list[Publication]) -> str:
    """K for a keyframe, d for an inline delta, D for one that is an object."""
    letters = {False: "d", True: "D"}
    return "".join(
        "K" if p.head.delta is None else letters[isinstance(p.head.delta.content, ObjectRef)]
        for p in publications
    )


def test_a_keyframe_is_cut_every_so_many_versions() -> None:
    """Versions that were not published count, too."""
    models = walk(30)
    source = publisher(keyframe_versions=4)
    every = kinds([source.publish(model) for model in models[:10]])
    source = publisher(keyframe_versions=4)
    some = kinds([source.publish(models[version]) for version in (0, 3, 7, 8, 20, 21)])

    assert "KdddKdddKd" == every
    assert "KdKdKd" == some


def test_a_keyframe_is_cut_when_a_delta_would_be_no_smaller() -> None:
    """A dense difference in the keyframe's own precision, for one."""
    source = publisher(keyframe_codec="float16", delta_codec="float16")

    assert "KKK" == kinds([source.publish(model) for model in walk(3)])


def test_a_delta_too_large_for_the_head_is_an_object() -> None:
    """The head must fit one publish."""
    for chunk_bytes, expected in ((1024, "KDD"), (1500, "KDD"), (1600, "Kdd")):
        source = publisher(chunk_bytes=chunk_bytes)
        publications = [source.publish(model) for model in walk(3)]

        assert expected == kinds(publications)
        assert all(
            len(chunk) <= chunk_bytes for p in publications for _, chunks in p.objects for chunk in chunks
        )
        assert all(len(wire.pack_head(p.head)) <= chunk_bytes for p in publications)


@given(st.integers(1, 5), st.sampled_from([1024, 262_144]), st.integers(1, 3))
@settings(max_examples=20)
def test_no_object_of_this_head_or_the_last_is_cleared_and_all_others_are(
    keyframe_versions: int, chunk_bytes: int, again: int
) -> None:
    """An edge may still be pulling what the last head named. Publishing a version again clears nothing it needs."""
    broker, source = Broker(), publisher(keyframe_versions=keyframe_versions, chunk_bytes=chunk_bytes)
    named: list[set[str]] = []
    for model in walk(15):
        for _ in range(again):
            publication = source.publish(model)
            broker.take(publication)
            head = publication.head
            refs = {head.keyframe.content.id}
            if head.delta is not None and isinstance(head.delta.content, ObjectRef):
                refs.add(head.delta.content.id)
            named.append(refs)

            assert set().union(*named[-2:]) <= set(broker.objects)
            assert set(broker.objects) <= set().union(*named[-3:])


def test_the_same_version_is_published_as_the_same_bytes() -> None:
    """After a reconnect, when a delta is out already."""
    source = publisher()
    models = walk(3)
    source.publish(models[0])
    heads = {wire.pack_head(source.publish(models[2]).head) for _ in range(3)}

    assert 1 == len(heads)


def test_the_keyframe_can_be_sent_again() -> None:
    """A broker may have lost it; before the first publish there is none."""
    source = publisher(chunk_bytes=1024)
    before = source.keyframe_objects()
    first = source.publish(walk(1)[0])

    assert () == before
    assert first.objects == source.keyframe_objects()


@pytest.mark.parametrize("name", ["keyframe_codec", "delta_codec"])
def test_a_codec_that_cannot_be_is_named_with_its_setting(name: str) -> None:
    """And with what the pipeline's parser says of it."""
    with pytest.raises(
        SettingError, match=f"setting publish.{name} = 'zip' .* there is no codec 'zip'; known are"
    ):
        publisher(**{name: "zip"})
