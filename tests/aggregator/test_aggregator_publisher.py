"""The publisher against the edge's reader: both ends decode the same bits, and the broker keeps no rubbish.

What frames are put where is `stacking`'s decision, and tested with it; here it is often made at random, so that there
is nothing that only happens to work. Longer than 350 lines, because all of it needs the broker below.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from fedmq.aggregator.publisher import Publication, Publisher, PublishSettings
from fedmq.edge_agent.frames import FrameCache, FrameReader
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq import encoding, wire
from fedmq.errors import SettingError, WireError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.types import GlobalModel, ModelVersion, ObjectRef

LAYOUT = ParamLayout(
    (Segment(name="w", shape=(30, 20)), Segment(name="mean", shape=(7,), kind=SegmentKind.BUFFER))
)
#: Keyframe, frame, delta.
Codecs = tuple[str, str, str]
USUAL: Codecs = ("int8", "topk(0.05) | ternary | rice", "topk(0.03) | ternary | rice")
CODECS: list[Codecs] = [
    USUAL,
    ("float16", "topk(0.1) | int8 | rice", "topk(0.1) | float16 | bitmap"),
    ("int8", "float16", "float16"),
    ("float32", "float16", "int8"),  # frames of half a keyframe: a stack that an edge would soon refuse
    ("float32", "topk(1.0) | float32 | bitmap", "topk(0.02) | ternary | rice"),  # frames that lose nothing
    ("float16", "float32", "float32"),
]
codecs = st.sampled_from(CODECS)


def walk(versions: Iterable[int], *, seed: int = 0, share: float = 0.05) -> list[GlobalModel]:
    """Versions of a model; each differs from the one before in a share of its parameters."""
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(LAYOUT.size, np.float32)
    models = []
    for version in versions:
        models.append(GlobalModel(epoch=3, version=ModelVersion(version), layout=LAYOUT, vector=vector))
        change = rng.standard_normal(LAYOUT.size, np.float32) * (rng.random(LAYOUT.size) < share)
        vector = vector + np.float32(0.01) * change.astype(np.float32)
    return models


def publisher(codecs: Codecs = USUAL, **changes: object) -> Publisher:
    """With settings of one's choice."""
    names = ("keyframe_codec", "frame_codec", "delta_codec")
    return Publisher(PublishSettings(**dict(zip(names, codecs, strict=True)), **changes))  # type: ignore[arg-type]


def place(source: Publisher, choose: Callable[[int], int]) -> None:
    """Have it put each frame on so many of those that there are, instead of where it costs least."""
    source._stacking.place = lambda _version, frames, _size, _most: choose(len(frames))  # type: ignore[method-assign]


def at_random(random: Random, max_frames: int) -> Callable[[int], int]:
    """Appends, mergers of any height, keyframes."""
    return lambda frames: min(random.choice([frames, frames, random.randint(0, frames)]), max_frames - 1)


class Broker:
    """The retained messages, and an edge that comes by now and then."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[str, int], bytes] = {}
        self.head = b""

    def take(self, publication: Publication) -> None:
        """In the order that a `Publication` is to be sent."""
        for ref, chunks in publication.objects:
            assert len(chunks) == ref.chunks
            assert sum(map(len, chunks)) == ref.size
            self.chunks |= {(ref.id, index): chunk for index, chunk in enumerate(chunks)}
        self.head = wire.pack_head(publication.head)
        for ref in publication.retired:
            for index in range(ref.chunks):
                del self.chunks[ref.id, index]

    @property
    def objects(self) -> set[str]:
        """The ids of those of which something lies here."""
        return {object_id for object_id, _ in self.chunks}

    def pull(self, reader: FrameReader, random: Random | None = None) -> GlobalModel:
        """What an edge makes of it; chunks come in any order."""
        self.fetch(reader, random)
        return reader.assemble()

    def fetch(self, reader: FrameReader, random: Random | None = None) -> list[ObjectRef]:
        """What an edge downloads, each once."""
        missing = list(reader.begin(wire.unpack_head(self.head)))
        if random is not None:
            random.shuffle(missing)
        for ref, index in missing:
            reader.add(ref, index, self.chunks[ref.id, index])
        return list(dict.fromkeys(ref for ref, _ in missing))


def edge() -> FrameReader:
    """A new one."""
    return FrameReader(LAYOUT, FrameCache(None))


def named(publication: Publication) -> list[str]:
    """The ids of the objects in a head."""
    delta = publication.head.delta
    ids = [frame.content.id for frame in publication.head.frames]
    return ids + ([delta.content.id] if delta and isinstance(delta.content, ObjectRef) else [])


@given(
    codecs,
    st.integers(1, 9),
    st.sampled_from([1, 2, 5, 64]),
    st.sampled_from([512, 1500, 262_144]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@settings(max_examples=30)
def test_both_ends_decode_the_same_bits(
    codecs: Codecs, frame_versions: int, max_frames: int, chunk_bytes: int, seed: int, decides: bool
) -> None:
    """One edge takes every version, one skips some, one is new each time (law 6); whatever is put where."""
    random = Random(seed)
    source = publisher(codecs, frame_versions=frame_versions, max_frames=max_frames, chunk_bytes=chunk_bytes)
    if not decides:
        place(source, at_random(random, max_frames))
    broker = Broker()
    faithful, casual = edge(), edge()
    for model in walk(range(30), seed=seed):
        publication = source.publish(model)
        broker.take(publication)
        models = [broker.pull(faithful, random), broker.pull(edge(), random)]
        if random.random() < 0.4:
            models.append(broker.pull(casual, random))
        for client in range(random.randrange(3)):  # any absences
            source.absence.note(str(random.randrange(6)), max(0, model.version - client))

        assert {publication.head.digest} == {encoding.digest(each.vector) for each in models}
        assert {model.version} == {each.version for each in models}
        assert len(publication.head.frames) <= max_frames


def test_errors_do_not_add_up() -> None:
    """Each difference is taken from what edges have to the true model: the error is that of one rounding."""
    source = publisher(("float32", "float16", "float16"), frame_versions=1000)
    broker, reader, models = Broker(), edge(), walk(range(50))
    for model in models:
        broker.take(source.publish(model))
        decoded = broker.pull(reader).vector
        delta = np.abs(model.vector - models[0].vector).max()

        assert np.abs(model.vector - decoded).max() <= 2**-11 * delta + 2**-22


@pytest.mark.parametrize("seed", range(2))
def test_the_error_stays_bounded_whatever_is_put_where(seed: int) -> None:
    """Over hundreds of versions: what a frame leaves out is in the next, also when that one replaces several."""
    random = Random(seed)
    source, still = (publisher(frame_versions=2, max_frames=64) for _ in range(2))
    place(source, at_random(random, 20))
    place(still, lambda frames: frames if frames < 64 else 0)
    errors: list[float] = []
    plain: list[float] = []
    reader, broker = edge(), Broker()
    for model in walk(range(400), seed=seed):
        broker.take(source.publish(model))
        still.publish(model)
        errors.append(float(np.linalg.norm(model.vector - broker.pull(reader).vector)))
        plain.append(float(np.linalg.norm(model.vector - still._decoded)))

    assert max(errors[200:]) <= 1.2 * max(errors[50:200])
    assert np.mean(errors[50:]) <= 1.2 * np.mean(plain[50:])


def test_buffers_are_never_sparsified() -> None:
    """They are sent as they are, in frames and deltas: no error but float32's."""
    broker = Broker()
    source = publisher(
        ("int8", "topk(0.001) | ternary | rice", "topk(0.001) | ternary | rice"), frame_versions=2
    )
    place(source, at_random(Random(0), 5))
    for model in walk(range(20)):
        broker.take(source.publish(model))
        vector = broker.pull(edge()).vector

        assert np.allclose(model.vector[600:], vector[600:], rtol=1e-6, atol=1e-7)


def kinds(source: Publisher, models: Iterable[GlobalModel]) -> str:
    """What is published: K for a keyframe, F for a frame on top, M for one in the place of others; d, D for a delta."""
    letters = ""
    before: list[str] = []
    for model in models:
        publication = source.publish(model)
        ids = [frame.content.id for frame in publication.head.frames]
        if publication.head.delta is not None:
            letters += "D" if isinstance(publication.head.delta.content, ObjectRef) else "d"
        elif len(ids) == 1:
            letters += "K"
        else:
            letters += "F" if ids[:-1] == before else "M"
        before = ids
    return letters


def test_a_frame_is_made_every_so_many_versions() -> None:
    """Versions that were not published count, too."""
    models = walk(range(30))
    every, some, merging = (publisher(frame_versions=4) for _ in range(3))
    for source in (every, some):
        place(source, lambda frames: frames)
    place(merging, lambda frames: min(frames, 2))

    assert "KdddFdddFd" == kinds(every, models[:10])
    assert "KdFdFd" == kinds(some, [models[version] for version in (0, 3, 7, 8, 20, 21)])
    assert "KdddFdddFdddMdddM" == kinds(merging, models[:17])


def test_one_frame_is_a_keyframe() -> None:
    """Who wants no stack has none."""
    source = publisher(frame_versions=4, max_frames=1)
    for version in range(100):
        source.absence.note("a", version)

    assert "KdddKdddK" == kinds(source, walk(range(9)))


def test_a_model_that_went_back_begins_anew() -> None:
    """Somebody restored an old backup of the store."""
    models = walk(range(9))

    assert "KdFK" == kinds(publisher(frame_versions=4), [models[version] for version in (3, 4, 8, 2)])


def test_a_keyframe_is_cut_when_a_difference_would_be_no_smaller() -> None:
    """A dense one in the keyframe's own precision, for one."""
    for frame_versions in (1, 100):
        source = publisher(("float16", "float16", "float16"), frame_versions=frame_versions)
        place(source, lambda frames: frames)

        assert "KKK" == kinds(source, walk(range(3)))


def test_a_frame_in_the_place_of_others_leaves_no_larger_error() -> None:
    """It is encoded anew, as finely as needed; or without loss if the frame's codec has none."""
    for frame_codec in (USUAL[1], "topk(1.0) | float32 | bitmap"):
        merging, growing = (publisher(("float32", frame_codec, USUAL[2]), frame_versions=1) for _ in range(2))
        place(growing, lambda frames: frames)
        place(merging, lambda frames: frames if frames < 8 else 1)
        for model in walk(range(9)):
            sources = merging, growing
            heads = [source.publish(model).head for source in sources]
        merged, grown = (float(np.linalg.norm(model.vector - source._decoded)) for source in sources)

        assert [2, 9] == [len(head.frames) for head in heads]
        assert merged <= 1.05 * grown
        assert merging.frames[1].size < sum(frame.size for frame in growing.frames[1:])


def test_a_delta_too_large_for_the_head_is_an_object() -> None:
    """The head must fit one publish, with all its frames."""
    for chunk_bytes, expected in ((450, "KDFD"), (512, "KdFD"), (600, "KdFd")):
        source, again = (
            publisher(
                ("float16", "topk(0.1) | int8 | rice", "topk(0.4) | int8 | rice"),
                chunk_bytes=chunk_bytes,
                frame_versions=2,
            )
            for _ in range(2)
        )
        for one in (source, again):
            place(one, lambda frames: frames)
        models = walk(range(4), share=1.0)

        assert expected == kinds(source, models)
        for model in models:
            publication = again.publish(model)
            assert all(len(chunk) <= chunk_bytes for _, chunks in publication.objects for chunk in chunks)
            assert len(wire.pack_head(publication.head)) <= chunk_bytes


def test_a_model_that_does_not_change_has_equal_frames() -> None:
    """They are one object, which is fetched once, and stays as long as one of them does."""
    source, broker, reader = publisher(("float32", *USUAL[1:]), frame_versions=1), Broker(), edge()
    place(source, lambda frames: frames if frames < 6 else 2)
    (model,) = walk(range(1))
    costs = []
    for version in range(12):
        broker.take(source.publish(replace(model, version=ModelVersion(version))))
        costs.append(len(broker.fetch(reader)))

        assert reader.assemble().version == version
    assert [1, 1] + [0] * 10 == costs


@given(
    codecs, st.integers(1, 5), st.sampled_from([512, 262_144]), st.integers(1, 3), st.integers(0, 2**32 - 1)
)
@settings(max_examples=30)
def test_no_object_of_this_head_or_the_last_is_cleared_and_all_others_are(
    codecs: Codecs, frame_versions: int, chunk_bytes: int, again: int, seed: int
) -> None:
    """An edge may still be pulling what the last head named. Publishing a version again clears nothing it needs."""
    broker, source = Broker(), publisher(codecs, frame_versions=frame_versions, chunk_bytes=chunk_bytes)
    place(source, at_random(Random(seed), 6))
    heads: list[set[str]] = []
    for model in walk(range(25), seed=seed):
        for _ in range(again):
            publication = source.publish(model)
            broker.take(publication)
            heads.append(set(named(publication)))

            assert set().union(*heads[-2:]) <= broker.objects
            assert broker.objects <= set().union(*heads[-3:])


def test_an_object_that_comes_back_is_not_cleared() -> None:
    """The model went back to what it was two versions ago, and with it the difference from the frames."""
    source, broker = publisher(frame_versions=100, chunk_bytes=90), Broker()
    models = walk(range(3))
    for version, which in enumerate([0, 1, 2, 1, 2, 1]):
        publication = source.publish(replace(models[which], version=ModelVersion(version)))
        broker.take(publication)

        assert set(named(publication)) <= broker.objects
    assert "D" == kinds(source, [replace(models[2], version=ModelVersion(6))])


def test_no_stack_is_larger_than_an_edge_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is decided: a keyframe follows when there is no room for another frame and a delta."""
    monkeypatch.setattr(encoding, "MODEL_BYTES_PER_SCALAR", 16)
    monkeypatch.setattr(encoding, "MODEL_BYTES_ALWAYS", 0)
    source, broker, reader = publisher(("float32", "float16", "int8"), frame_versions=2), Broker(), edge()
    place(source, lambda frames: frames)
    heights = []
    for model in walk(range(20)):
        publication = source.publish(model)
        broker.take(publication)

        assert broker.pull(reader).version == model.version
        heights.append(len(publication.head.frames))
    assert {1, 2, 3, 4} == set(heights)


@given(codecs, st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_same_version_is_published_as_the_same_bytes(
    codecs: Codecs, frame_versions: int, seed: int
) -> None:
    """After a reconnect: with a delta as with a frame, and the objects that the head needs besides the frames."""
    source = publisher(codecs, frame_versions=frame_versions, chunk_bytes=512)
    place(source, at_random(Random(seed), 6))
    for model in walk(range(8), seed=seed):
        source.publish(model)
        publications = [source.publish(model) for _ in range(2)]
        frames = dict(source.frame_objects())

        assert 1 == len({wire.pack_head(p.head) for p in publications})
        for publication in publications:
            sent = {ref.id for ref in (*frames, *dict(publication.objects))}
            assert set(named(publication)) <= sent


def test_the_frames_can_be_sent_again() -> None:
    """A broker may have lost them; before the first publish there is none."""
    source, broker = publisher(chunk_bytes=512, frame_versions=1), Broker()
    place(source, lambda frames: frames)
    before = list(source.frame_objects())
    for model in walk(range(4)):
        publication = source.publish(model)
    broker.take(replace(publication, objects=tuple(source.frame_objects()), retired=()))

    assert [] == before
    assert [frame.content for frame in publication.head.frames] == [ref for ref, _ in source.frame_objects()]
    assert 4 == len(publication.head.frames)
    assert publication.head.digest == encoding.digest(broker.pull(edge()).vector)


def test_a_new_life_goes_on_with_the_same_stack() -> None:
    """An edge that holds the frames downloads nothing for the same version, and the next frame for a later one."""
    models = walk(range(13))
    former, broker, reader = publisher(frame_versions=4), Broker(), edge()
    place(former, lambda frames: frames)
    for model in models[:10]:
        broker.take(former.publish(model))
        broker.pull(reader)
    head = broker.head
    source = publisher(frame_versions=4)
    place(source, lambda frames: frames)
    source.restore(models[9], former.frames)
    for model in models[9:]:
        publication = source.publish(model)
        if model.version == 9:
            source.adopt(wire.unpack_head(head))

            assert head == wire.pack_head(publication.head)
        broker.take(publication)
        fetched = broker.fetch(reader)

        assert fetched == ([publication.head.frames[-1].content] if model.version == 12 else [])
        assert encoding.digest(reader.assemble().vector) == publication.head.digest
    assert [0, 4, 8, 12] == [frame.version for frame in source.frames]


@pytest.mark.parametrize("max_frames", range(1, 8))
def test_a_new_life_that_may_have_fewer_frames_has(max_frames: int) -> None:
    """The setting was lowered: the next frame stands low enough."""
    models = walk(range(7))
    former, source = publisher(frame_versions=1), publisher(frame_versions=1, max_frames=max_frames)
    place(former, lambda frames: frames)
    for model in models[:6]:
        former.publish(model)
    source.restore(models[5], former.frames)

    assert 6 == len(former.frames)
    assert len(source.publish(models[6]).head.frames) <= max_frames


@pytest.mark.parametrize(("before", "after"), [(700, 90), (90, 700)])
def test_a_new_life_may_cut_objects_otherwise(before: int, after: int) -> None:
    """The same object in more chunks or fewer: none that is needed is cleared, and in the end none is left."""
    models = walk(range(8))
    former = publisher(frame_versions=2, chunk_bytes=before)
    source = publisher(frame_versions=2, chunk_bytes=after)
    for one in (former, source):
        place(one, lambda frames: frames if frames < 3 else 0)
    broker, reader = Broker(), edge()
    for model in (*models[:3], models[2], models[2]):
        broker.take(former.publish(model))
    head = wire.unpack_head(broker.head)
    source.restore(models[2], former.frames)
    broker.take(replace(source.publish(models[2]), objects=tuple(source.frame_objects())))
    source.adopt(head)
    for model in models[3:]:
        publication = source.publish(model)
        broker.take(publication)

        assert encoding.digest(broker.pull(reader).vector) == publication.head.digest
    for _ in range(2):
        publication = source.publish(models[7])
        broker.take(publication)
    expected = {(f.content.id, index) for f in publication.head.frames for index in range(f.content.chunks)}
    delta = publication.head.delta
    if delta is not None and isinstance(delta.content, ObjectRef):
        expected |= {(delta.content.id, index) for index in range(delta.content.chunks)}
    assert expected == set(broker.chunks)


def test_frames_that_cannot_be_are_not_gone_on_with() -> None:
    """Of a codec that is not installed, damaged, or of later versions than the model: a keyframe follows."""
    former = publisher(frame_versions=1)
    models = walk(range(4))
    place(former, lambda frames: frames)
    for model in models:
        former.publish(model)
    keyframe, *others = former.frames
    source = publisher(frame_versions=1)

    for bad in (replace(keyframe, codec="nonesuch"), replace(keyframe, content=keyframe.content[:-1])):
        with pytest.raises(WireError):
            source.restore(models[3], (bad, *others))
    source.restore(models[2], former.frames)
    source.restore(models[2], ())
    assert () == source.frames
    assert "K" == kinds(source, models[2:3])


@pytest.mark.parametrize("name", ["keyframe_codec", "frame_codec", "delta_codec"])
def test_a_codec_that_cannot_be_is_named_with_its_setting(name: str) -> None:
    """And with what the pipeline's parser says of it."""
    with pytest.raises(
        SettingError, match=f"setting publish.{name} = 'zip' .* there is no codec 'zip'; known are"
    ):
        Publisher(PublishSettings(**{name: "zip"}))  # type: ignore[arg-type]
