"""Frames: every head that leads to a model, and none that does not (laws 6 and 7)."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.edge_agent.frames import FrameCache, FrameReader
from hypothesis import given
from hypothesis import strategies as st

from fedmq import encoding
from fedmq.chunks import split
from fedmq.codecs import parse_pipeline
from fedmq.errors import WireError
from fedmq.layout import ParamLayout, Segment
from fedmq.types import CumulativeDelta, Frame, ModelHead, ModelVersion, ObjectRef, ParamVector

LAYOUT = ParamLayout((Segment(name="weight", shape=(100,)),))
FULL, DIFFERENCE = "float16", "topk(0.1) | int8 | rice"
RNG = np.random.default_rng(7)
KEYFRAME = encoding.encode(LAYOUT, parse_pipeline(FULL), RNG.normal(size=100).astype(np.float32))
DELTA = encoding.encode(LAYOUT, parse_pipeline(DIFFERENCE), RNG.normal(size=100).astype(np.float32))


def ref(content: bytes, chunks: int = 1) -> ObjectRef:
    """The reference that announces an object."""
    return ObjectRef(id=encoding.object_id(content), size=len(content), chunks=chunks)


def decoded(*, with_delta: bool) -> ParamVector:
    """What both ends must come to."""
    vector = encoding.decode(LAYOUT, parse_pipeline(FULL), KEYFRAME).to_dense()
    if with_delta:
        encoding.decode(LAYOUT, parse_pipeline(DIFFERENCE), DELTA).add_to(vector)
    return vector


def head(version: int = 1, *, delta: bytes | ObjectRef | None = None, chunks: int = 1) -> ModelHead:
    """A valid head."""
    return ModelHead(
        epoch=1,
        version=ModelVersion(version),
        fingerprint=LAYOUT.fingerprint,
        keyframe=Frame(codec=FULL, content=ref(KEYFRAME, chunks)),
        delta=None if delta is None else CumulativeDelta(codec=DIFFERENCE, content=delta),
        digest=encoding.digest(decoded(with_delta=delta is not None)),
    )


def reader(folder: Path | None = None) -> FrameReader:
    """A reader, as after a start of the process."""
    return FrameReader(LAYOUT, FrameCache(folder))


def feed(frames: FrameReader, wanted: ModelHead, contents: tuple[bytes, ...] = (KEYFRAME, DELTA)) -> int:
    """Give the reader every chunk that it lacks; how many there were."""
    missing = frames.begin(wanted)
    for missed, index in missing:
        content = next(c for c in contents if encoding.object_id(c) == missed.id)
        frames.add(missed, index, split(content, -(-missed.size // missed.chunks))[index])
    return len(missing)


@given(chunks=st.integers(1, 9), order=st.randoms(use_true_random=False))
def test_a_model_comes_together_from_chunks_in_any_order(chunks: int, order: random.Random) -> None:
    """Also when some come twice."""
    frames = reader()
    announced = head(chunks=chunks, delta=ref(DELTA))
    missing = [*frames.begin(announced)] * 2
    order.shuffle(missing)
    pieces = {
        ref(KEYFRAME, chunks): split(KEYFRAME, -(-len(KEYFRAME) // chunks)),
        ref(DELTA): [DELTA],
    }
    for wanted, index in missing:
        if wanted in {lacking for lacking, _ in frames.begin(announced)}:
            frames.add(wanted, index, pieces[wanted][index])

    np.testing.assert_array_equal(decoded(with_delta=True), frames.assemble().vector)


def test_a_delta_in_the_head_needs_no_object() -> None:
    """The usual case: one small message."""
    frames = reader()
    assert 1 == feed(frames, head(1))
    model = frames.assemble()

    assert (1, 1) == (model.epoch, model.version)
    assert 0 == feed(frames, head(2, delta=DELTA))
    np.testing.assert_array_equal(decoded(with_delta=True), frames.assemble().vector)


def test_a_model_cannot_be_written_to() -> None:
    """It is handed to a user's trainer."""
    frames = reader()
    feed(frames, head())

    with pytest.raises(ValueError, match="read-only"):
        frames.assemble().vector[0] = 1


def test_the_keyframe_survives_a_restart(tmp_path: Path) -> None:
    """A device that wakes needs one small message, however many versions it missed."""
    feed(reader(tmp_path), head(1))
    awake = reader(tmp_path)

    assert () == awake.begin(head(99, delta=DELTA))
    np.testing.assert_array_equal(decoded(with_delta=True), awake.assemble().vector)


def test_only_the_newest_keyframe_is_kept(tmp_path: Path) -> None:
    """The cache does not grow."""
    cache = FrameCache(tmp_path)
    for content in (b"one", b"two", b"three"):
        cache.put(encoding.object_id(content), content)

    assert [encoding.object_id(b"three") + ".keyframe"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("damage", [b"", KEYFRAME[:-1], KEYFRAME + b"x", bytes(len(KEYFRAME))])
def test_a_damaged_cache_is_a_download_and_nothing_else(tmp_path: Path, damage: bytes) -> None:
    """The content is held against its hash when it is read."""
    feed(reader(tmp_path), head())
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    awake = reader(tmp_path)

    assert 1 == feed(awake, head())
    np.testing.assert_array_equal(decoded(with_delta=False), awake.assemble().vector)
    assert 0 == feed(reader(tmp_path), head())  # and the file is sound again


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_memory(tmp_path: Path, folder: str) -> None:
    """A full disk or a wrong folder costs downloads after a restart, not the model."""
    (tmp_path / "file").write_bytes(b"in the way")
    frames = reader(tmp_path / folder)

    assert 1 == feed(frames, head())
    assert 1 == frames.assemble().version
    assert 0 == feed(frames, head(2, delta=DELTA))


def test_chunks_that_are_here_are_not_asked_for_again() -> None:
    """A download that broke off goes on where it was, also under a newer head."""
    frames = reader()
    missing = frames.begin(head(1, chunks=4))
    pieces = split(KEYFRAME, len(KEYFRAME) // 4)
    for wanted, index in missing[:3]:
        frames.add(wanted, index, pieces[index])

    assert missing[3:] == frames.begin(head(1, chunks=4))
    assert missing[3:] == frames.begin(head(2, chunks=4, delta=DELTA))
    frames.add(*missing[3], pieces[3])
    np.testing.assert_array_equal(decoded(with_delta=True), frames.assemble().vector)


def test_chunks_of_another_cut_do_not_mix() -> None:
    """The same object, announced in other chunks, begins anew: the old pieces would lie at wrong places."""
    frames = reader()
    third = -(-len(KEYFRAME) // 3)
    for wanted, index in frames.begin(head(chunks=3))[::2]:
        frames.add(wanted, index, split(KEYFRAME, third)[index])
    missing = frames.begin(head(chunks=2))

    assert [0, 1] == [index for _, index in missing]
    for wanted, index in missing:
        frames.add(wanted, index, split(KEYFRAME, len(KEYFRAME) // 2)[index])
    np.testing.assert_array_equal(decoded(with_delta=False), frames.assemble().vector)


def test_only_chunks_of_the_present_head_are_held() -> None:
    """Heads may come and go for ever; memory does not grow with them."""
    frames = reader()
    for number in range(5):
        content = np.random.default_rng(number).bytes(200)
        announced = replace(head(), keyframe=Frame(codec=FULL, content=ref(content, 2)))
        frames.begin(announced)
        frames.add(ref(content, 2), 0, content[:100])

    assert 1 == len(frames._pieces)
    frames.begin(head())
    assert 0 == len(frames._pieces)


def test_a_head_of_another_layout_is_refused() -> None:
    """It cannot be decoded with ours."""
    with pytest.raises(WireError, match="layout ffffffffffffffff, the plan has"):
        reader().begin(replace(head(), fingerprint=b"\xff" * 8))


@pytest.mark.parametrize(
    "content",
    [
        ObjectRef(id="0" * 32, size=201, chunks=1),
        ObjectRef(id="0" * 32, size=2**60, chunks=1),
        ObjectRef(id="0" * 32, size=10, chunks=11),
    ],
)
def test_an_oversized_announcement_is_refused(content: ObjectRef) -> None:
    """Before anything is allocated or asked for: no valid payload of this model is so long."""
    with pytest.raises(WireError, match="at most 200"):
        reader().begin(replace(head(), keyframe=Frame(codec=FULL, content=content)))
    with pytest.raises(WireError, match="at most"):
        reader().begin(replace(head(), delta=CumulativeDelta(codec=FULL, content=content)))


@pytest.mark.parametrize("codec", ["nonesuch", "topk(0.1)", "float16 | float16"])
def test_a_codec_that_is_none_is_refused(codec: str) -> None:
    """Whatever stands in the head."""
    with pytest.raises(WireError):
        reader().begin(replace(head(), keyframe=Frame(codec=codec, content=ref(KEYFRAME))))


def test_content_that_does_not_hash_to_its_id_is_dropped() -> None:
    """And can be fetched again."""
    frames = reader()
    ((wanted, _),) = frames.begin(head())

    with pytest.raises(WireError, match="does not hash"):
        frames.add(wanted, 0, bytes(len(KEYFRAME)))
    with pytest.raises(WireError, match="is missing"):
        frames.assemble()
    assert frames.add(wanted, 0, KEYFRAME)
    assert 1 == frames.assemble().version


def test_chunks_that_are_too_much_or_too_little_are_dropped() -> None:
    """Memory is bounded by what the head announced."""
    frames = reader()
    frames.begin(head(chunks=2))
    announced = ref(KEYFRAME, 2)

    with pytest.raises(WireError, match="400 bytes came for an object of 200"):
        frames.add(announced, 0, bytes(400))
    frames.add(announced, 0, KEYFRAME[:10])
    with pytest.raises(WireError, match="20 bytes came for an object of 200"):
        frames.add(announced, 1, KEYFRAME[10:20])
    with pytest.raises(WireError, match="chunk 2 of 2"):
        frames.add(announced, 2, b"x")
    assert 2 == len(frames.begin(head(chunks=2)))


def test_a_vector_that_does_not_match_its_digest_is_never_used() -> None:
    """Law 6: both ends decode the same bits, or the model is not taken."""
    frames = reader()
    wrong = replace(head(delta=DELTA), digest=bytes(16))
    feed(frames, wrong)

    with pytest.raises(WireError, match="does not decode to the digest"):
        frames.assemble()
    feed(frames, head(2, delta=DELTA))
    assert 2 == frames.assemble().version


def test_an_object_that_cannot_be_decoded_is_an_error_of_the_peer() -> None:
    """It hashes to its id, and is no payload all the same."""
    frames = reader()
    content = b"\xff" * 150
    bad = replace(head(), keyframe=Frame(codec=FULL, content=ref(content)))
    feed(frames, bad, (content,))

    with pytest.raises(WireError):
        frames.assemble()


def test_without_a_head_there_is_no_model() -> None:
    """Nothing was announced."""
    with pytest.raises(WireError, match="no head"):
        reader().assemble()


objects = st.sampled_from([KEYFRAME, DELTA, b"x" * 20])
references = st.builds(
    ObjectRef,
    id=objects.map(encoding.object_id) | st.just("0" * 32),
    size=st.sampled_from([len(KEYFRAME), len(DELTA), 20, 1, 10**9]),
    chunks=st.integers(1, 5),
)
codecs = st.sampled_from([FULL, DIFFERENCE, "int8", "nonesuch"])
heads = st.builds(
    ModelHead,
    epoch=st.just(1),
    version=st.integers(0, 9).map(ModelVersion),
    fingerprint=st.sampled_from([LAYOUT.fingerprint] * 5 + [bytes(8)]),
    keyframe=st.builds(Frame, codec=codecs, content=references),
    delta=st.none() | st.builds(CumulativeDelta, codec=codecs, content=references | objects),
    digest=st.sampled_from([head().digest, head(delta=DELTA).digest]),
)
pieces = st.sampled_from([KEYFRAME, KEYFRAME[:100], KEYFRAME[100:], DELTA, b"x" * 20, b"x" * 5, b""])


@given(story=st.lists(heads | st.tuples(st.integers(0, 9), pieces), max_size=40))
def test_no_order_of_heads_and_chunks_raises_anything_but_wire_errors(
    story: list[ModelHead | tuple[int, bytes]],
) -> None:
    """Law 7, and what comes of it is one of the two models there are, or none."""
    frames = reader()
    missing: tuple[tuple[ObjectRef, int], ...] = ()
    for step in story:
        try:
            if isinstance(step, ModelHead):
                missing = ()
                missing = frames.begin(step)
            elif missing:
                which, piece = step
                frames.add(*missing[which % len(missing)], piece)
            model = frames.assemble()
        except WireError:
            continue
        assert encoding.digest(model.vector) in (head().digest, head(delta=DELTA).digest)
