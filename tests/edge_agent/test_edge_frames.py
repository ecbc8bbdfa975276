"""Frames: every head that leads to a model, and none that does not (laws 6 and 7)."""

import random
import tracemalloc
from collections.abc import Iterable
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
from fedmq.wire import MAX_FRAMES

LAYOUT = ParamLayout((Segment(name="weight", shape=(100,)),))
FULL, STEP, DIFFERENCE = "float16", "topk(0.2) | float16 | rice", "topk(0.1) | int8 | rice"
RNG = np.random.default_rng(7)


def encoded(codec: str) -> bytes:
    """Some object."""
    return encoding.encode(LAYOUT, parse_pipeline(codec), RNG.normal(size=100).astype(np.float32))


KEYFRAME, DELTA = encoded(FULL), encoded(DIFFERENCE)
#: Two frames on the keyframe, one in the place of both, and one on that.
FIRST, SECOND, MERGED, THIRD = (encoded(STEP) for _ in range(4))
#: Of which codec each is; the same in all heads.
CODEC = {KEYFRAME: FULL, DELTA: DIFFERENCE} | dict.fromkeys((FIRST, SECOND, MERGED, THIRD), STEP)


def ref(content: bytes, chunks: int = 1) -> ObjectRef:
    """The reference that announces an object."""
    return ObjectRef(id=encoding.object_id(content), size=len(content), chunks=chunks)


def decoded(*contents: bytes, with_delta: bool = False) -> ParamVector:
    """What both ends must come to: frames on the keyframe, one after the other."""
    vector = encoding.decode(LAYOUT, parse_pipeline(FULL), KEYFRAME).to_dense()
    for content in contents + (DELTA,) * with_delta:
        encoding.decode(LAYOUT, parse_pipeline(CODEC[content]), content).add_to(vector)
    return vector


def head(
    version: int = 1, *above: bytes, delta: bytes | ObjectRef | None = None, chunks: int = 1
) -> ModelHead:
    """A valid head, with frames above the keyframe."""
    return ModelHead(
        epoch=1,
        version=ModelVersion(version),
        fingerprint=LAYOUT.fingerprint,
        frames=tuple(
            Frame(codec=CODEC[content], content=ref(content, chunks)) for content in (KEYFRAME, *above)
        ),
        delta=None if delta is None else CumulativeDelta(codec=DIFFERENCE, content=delta),
        digest=encoding.digest(decoded(*above, with_delta=delta is not None)),
    )


def keyframe(content: ObjectRef, codec: str = FULL) -> ModelHead:
    """A head with another keyframe, which may be anything."""
    return replace(head(), frames=(Frame(codec=codec, content=content),))


def reader(folder: Path | None = None) -> FrameReader:
    """A reader, as after a start of the process."""
    return FrameReader(LAYOUT, FrameCache(folder))


def feed(frames: FrameReader, wanted: ModelHead, contents: Iterable[bytes] = tuple(CODEC)) -> int:
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


def test_each_frame_is_fetched_once() -> None:
    """A stack that grows costs its newest frame, and a delta in the head costs nothing."""
    frames = reader()
    costs = []
    for version, stack in enumerate([(), (FIRST,), (FIRST, SECOND), (FIRST, SECOND, THIRD)]):
        costs += [
            feed(frames, head(2 * version, *stack)),
            feed(frames, head(2 * version + 1, *stack, delta=DELTA)),
        ]

        np.testing.assert_array_equal(decoded(*stack, with_delta=True), frames.assemble().vector)

    assert [1, 0] * 4 == costs


def test_a_frame_in_the_place_of_several_is_all_that_is_fetched() -> None:
    """The keyframe below it stays; who was away while the others lay there never sees them."""
    frames = reader()
    costs = []
    for version, stack in enumerate([(), (FIRST, SECOND), (MERGED,), (MERGED, THIRD)]):
        costs.append(feed(frames, head(version, *stack)))

        np.testing.assert_array_equal(decoded(*stack), frames.assemble().vector)

    assert [1, 2, 1, 1] == costs


@pytest.mark.parametrize(
    ("now", "missing"), [((FIRST, SECOND), 0), ((FIRST, SECOND, THIRD), 1), ((MERGED,), 1)]
)
def test_the_frames_survive_a_restart(tmp_path: Path, now: tuple[bytes, ...], missing: int) -> None:
    """A device that wakes needs the frames that were made meanwhile, however many versions it missed."""
    feed(reader(tmp_path), head(1, FIRST, SECOND))
    awake = reader(tmp_path)

    assert missing == feed(awake, head(99, *now, delta=DELTA))
    np.testing.assert_array_equal(decoded(*now, with_delta=True), awake.assemble().vector)


def test_a_download_that_ended_in_the_middle_keeps_the_frames_that_it_had(tmp_path: Path) -> None:
    """The power fails when two of three are here, in whatever order they came."""
    asleep = reader(tmp_path)
    for wanted, index in asleep.begin(head(1, FIRST, SECOND))[1:]:
        asleep.add(wanted, index, {ref(FIRST): FIRST, ref(SECOND): SECOND}[wanted])
    awake = reader(tmp_path)

    assert ((ref(KEYFRAME), 0),) == awake.begin(head(2, FIRST, SECOND, delta=DELTA))
    assert 1 == feed(awake, head(2, FIRST, SECOND, delta=DELTA))
    np.testing.assert_array_equal(decoded(FIRST, SECOND, with_delta=True), awake.assemble().vector)


def names(folder: Path) -> set[str]:
    """The files of a cache, by what is in them."""
    return {path.name for path in folder.iterdir()}


def kept(*contents: bytes) -> set[str]:
    """The files that keep some objects."""
    return {f"{encoding.object_id(content)}.frame" for content in contents}


def test_only_the_frames_of_the_newest_model_are_kept(tmp_path: Path) -> None:
    """The cache does not grow. An object that is a delta is not a frame, and not kept."""
    frames = reader(tmp_path)
    for version, stack in enumerate([(), (FIRST, SECOND), (MERGED,), (MERGED, THIRD)]):
        feed(frames, head(version, *stack, delta=ref(DELTA)))
        frames.assemble()

        assert kept(KEYFRAME, *stack) == names(tmp_path)


def test_a_head_that_leads_nowhere_costs_no_frames(tmp_path: Path) -> None:
    """Somebody retained nonsense: the frames of the last model stay until there is another, beside its own."""
    frames = reader(tmp_path)
    feed(frames, head(1, FIRST, SECOND))
    frames.assemble()
    for number in range(4):
        content = np.random.default_rng(number).bytes(200)
        feed(frames, keyframe(ref(content)), (content,))
        with pytest.raises(WireError):
            frames.assemble()

        assert kept(KEYFRAME, FIRST, SECOND, content) == names(tmp_path)
    assert 0 == feed(frames, head(2, FIRST, SECOND, delta=DELTA))
    np.testing.assert_array_equal(decoded(FIRST, SECOND, with_delta=True), frames.assemble().vector)
    assert kept(KEYFRAME, FIRST, SECOND) == names(tmp_path)


def test_heads_that_take_turns_are_never_mixed(tmp_path: Path) -> None:
    """Two aggregators by mistake: each head costs what the other pushed out, and leads to its own model."""
    frames = reader(tmp_path)
    costs = []
    for version in range(6):
        stack = (FIRST, SECOND) if version % 2 else (MERGED, THIRD)
        costs.append(feed(frames, head(version, *stack)))

        np.testing.assert_array_equal(decoded(*stack), frames.assemble().vector)

    assert [3, 2, 2, 2, 2, 2] == costs


def test_the_same_objects_under_another_codec_are_another_stack() -> None:
    """Nobody sends this, but if, it is not taken for what was decoded before."""
    frames = reader()
    zeros = bytes(200)
    expected = encoding.digest(np.zeros(100, np.float32))
    as_halves = replace(keyframe(ref(zeros)), digest=expected)
    # the same bytes are one scale of zero and codes, and some that are left over
    as_codes = replace(keyframe(ref(zeros), "int8(2)"), digest=expected)
    feed(frames, as_halves, (zeros,))
    frames.assemble()

    assert 0 == feed(frames, as_codes)
    with pytest.raises(WireError):
        frames.assemble()
    assert 0 == feed(frames, as_halves)
    assert 1 == frames.assemble().version


@pytest.mark.parametrize("damaged", [KEYFRAME, FIRST, SECOND])
@pytest.mark.parametrize("damage", [b"", b"-", b"+", b"0"])
def test_a_damaged_cache_is_a_download_and_nothing_else(
    tmp_path: Path, damaged: bytes, damage: bytes
) -> None:
    """The content is held against its hash when it is read; only what is damaged is fetched again."""
    feed(reader(tmp_path), head(1, FIRST, SECOND))
    (tmp_path / f"{encoding.object_id(damaged)}.frame").write_bytes(
        {b"": b"", b"-": damaged[:-1], b"+": damaged + b"x", b"0": bytes(len(damaged))}[damage]
    )
    awake = reader(tmp_path)

    assert 1 == feed(awake, head(1, FIRST, SECOND))
    np.testing.assert_array_equal(decoded(FIRST, SECOND), awake.assemble().vector)
    assert 0 == feed(reader(tmp_path), head(1, FIRST, SECOND))  # and the file is sound again


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_memory(tmp_path: Path, folder: str) -> None:
    """A full disk or a wrong folder costs downloads after a restart, not the model."""
    (tmp_path / "file").write_bytes(b"in the way")
    frames = reader(tmp_path / folder)

    assert 2 == feed(frames, head(1, FIRST))
    assert 1 == frames.assemble().version
    assert 0 == feed(frames, head(2, FIRST, delta=DELTA))
    assert 1 == feed(frames, head(3, FIRST, SECOND))
    np.testing.assert_array_equal(decoded(FIRST, SECOND), frames.assemble().vector)
    assert 2 == feed(frames, head(4, MERGED))  # what the others came to is of no use
    np.testing.assert_array_equal(decoded(MERGED), frames.assemble().vector)


def test_what_a_crash_left_of_a_file_is_in_nobody_s_way(tmp_path: Path) -> None:
    """A frame appears under its name when it is whole."""
    (tmp_path / "frame.tmp").write_bytes(KEYFRAME[:7])

    assert 2 == feed(reader(tmp_path), head(1, FIRST))
    assert kept(KEYFRAME, FIRST) == names(tmp_path)


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
    np.testing.assert_array_equal(decoded(), frames.assemble().vector)


def test_only_chunks_of_the_present_head_are_held() -> None:
    """Heads may come and go for ever; memory does not grow with them."""
    frames = reader()
    for number in range(5):
        content = np.random.default_rng(number).bytes(200)
        announced = keyframe(ref(content, 2))
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
        reader().begin(keyframe(content))
    with pytest.raises(WireError, match="at most"):
        reader().begin(replace(head(), delta=CumulativeDelta(codec=FULL, content=content)))


@pytest.mark.parametrize("codec", ["nonesuch", "topk(0.1)", "float16 | float16"])
def test_a_codec_that_is_none_is_refused(codec: str) -> None:
    """Whatever stands in the head."""
    with pytest.raises(WireError):
        reader().begin(keyframe(ref(KEYFRAME), codec))


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


def test_a_stack_that_was_begun_too_early_is_built_anew() -> None:
    """A frame was missing in the middle: those before it must not be added twice."""
    frames = reader()
    feed(frames, head(1, FIRST))
    frames.assemble()
    wanted = head(2, FIRST, SECOND, THIRD)
    frames.begin(wanted)
    frames.add(ref(SECOND), 0, SECOND)
    with pytest.raises(WireError, match="is missing"):
        frames.assemble()
    frames.add(ref(THIRD), 0, THIRD)

    np.testing.assert_array_equal(decoded(FIRST, SECOND, THIRD), frames.assemble().vector)


def test_what_was_built_on_bad_memory_is_built_anew() -> None:
    """The digest tells; the frames themselves are as good as they were."""
    frames = reader()
    feed(frames, head(1, FIRST))
    frames.assemble()
    frames._state[1][3] += 1
    with pytest.raises(WireError, match="digest"):
        frames.assemble()

    assert 0 == feed(frames, head(2, FIRST, delta=DELTA))
    np.testing.assert_array_equal(decoded(FIRST, with_delta=True), frames.assemble().vector)


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
    bad = keyframe(ref(content))
    feed(frames, bad, (content,))

    with pytest.raises(WireError):
        frames.assemble()


def test_without_a_head_there_is_no_model() -> None:
    """Nothing was announced."""
    with pytest.raises(WireError, match="no head"):
        reader().assemble()


def test_a_head_may_name_one_object_often() -> None:
    """Versions that do not differ have equal frames; it is fetched once, and counts each time."""
    frames = reader()
    same = (FIRST,) * (MAX_FRAMES - 1)

    assert 2 == feed(frames, head(1, *same))
    np.testing.assert_array_equal(decoded(*same), frames.assemble().vector)
    assert 0 == feed(frames, head(2, *same, delta=DELTA))
    np.testing.assert_array_equal(decoded(*same, with_delta=True), frames.assemble().vector)


def test_a_delta_may_be_the_same_object_as_a_frame() -> None:
    """It lies in the cache, and not among what is held for the delta."""
    frames = reader()
    wanted = replace(
        head(1, FIRST),
        delta=CumulativeDelta(codec=STEP, content=ref(FIRST)),
        digest=encoding.digest(decoded(FIRST, FIRST)),
    )

    assert 2 == feed(frames, wanted)
    np.testing.assert_array_equal(decoded(FIRST, FIRST), frames.assemble().vector)
    np.testing.assert_array_equal(decoded(FIRST, FIRST), frames.assemble().vector)


def evil(*sizes: int, chunks: int = 1) -> ModelHead:
    """A head with frames of such sizes, none of which exists."""
    refs = [ObjectRef(id=f"{number:032x}", size=size, chunks=chunks) for number, size in enumerate(sizes)]
    return replace(head(), frames=tuple(Frame(codec="topk(1.0) | float32 | u32", content=r) for r in refs))


def test_frames_that_no_model_needs_together_are_refused() -> None:
    """Each might be: all of them would be more than a device has room for. So with the chunks."""
    layout = ParamLayout((Segment(name="weight", shape=(100_000,)),))
    large, most = 8 * 100_000, encoding.max_model_bytes(layout)
    heads = {
        count: replace(evil(*[large] * count), fingerprint=layout.fingerprint) for count in (8, 9, MAX_FRAMES)
    }
    frames = FrameReader(layout, FrameCache(None))

    assert 8 * large <= most < 9 * large
    assert 8 == len(frames.begin(heads[8]))
    for count in (9, MAX_FRAMES):
        with pytest.raises(
            WireError, match=f"{count * large} bytes in {count} chunks: at most {most} in 65536"
        ):
            frames.begin(heads[count])
    cut = replace(evil(large, large, chunks=40_000), fingerprint=layout.fingerprint)
    with pytest.raises(WireError, match="in 80000 chunks"):
        frames.begin(cut)


def test_the_worst_head_takes_little_memory() -> None:
    """As many frames and chunks as are allowed: a few hundred bytes for each chunk, before any has come."""
    layout = ParamLayout((Segment(name="weight", shape=(100_000,)),))
    worst = replace(evil(*[90_000] * MAX_FRAMES, chunks=1000), fingerprint=layout.fingerprint)
    frames = FrameReader(layout, FrameCache(None))
    tracemalloc.start()
    try:
        missing = frames.begin(worst)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 64_000 == len(missing)
    assert peak < 200 * len(missing)


def test_a_head_that_is_refused_leaves_the_download_at_hand_alone() -> None:
    """The chunks that came are still there, and so is the head."""
    frames = reader()
    missing = frames.begin(head(1, chunks=2))
    frames.add(*missing[0], split(KEYFRAME, len(KEYFRAME) // 2)[0])
    with pytest.raises(WireError):
        frames.begin(evil(*[800] * 64 * 2))
    frames.add(*missing[1], split(KEYFRAME, len(KEYFRAME) // 2)[1])

    np.testing.assert_array_equal(decoded(), frames.assemble().vector)


objects = st.sampled_from([KEYFRAME, FIRST, SECOND, DELTA, b"x" * 20])
references = st.builds(
    ObjectRef,
    id=objects.map(encoding.object_id) | st.just("0" * 32),
    size=st.sampled_from([*map(len, CODEC), 20, 1, 10**9]),
    chunks=st.integers(1, 5),
)
#: Good ones, mostly: else nothing would ever come together.
frame_lists = st.sampled_from(
    [head(1).frames, head(1, FIRST).frames, head(1, FIRST, SECOND, chunks=2).frames]
)
codecs = st.sampled_from([FULL, STEP, DIFFERENCE, "int8", "nonesuch"])
GOOD = [head(), head(1, FIRST), head(1, FIRST, SECOND), head(delta=DELTA), head(1, FIRST, delta=DELTA)]
heads = st.builds(
    ModelHead,
    epoch=st.just(1),
    version=st.integers(0, 9).map(ModelVersion),
    fingerprint=st.sampled_from([LAYOUT.fingerprint] * 5 + [bytes(8)]),
    frames=frame_lists
    | st.lists(st.builds(Frame, codec=codecs, content=references), min_size=1, max_size=4).map(tuple),
    delta=st.none()
    | st.just(CumulativeDelta(codec=DIFFERENCE, content=DELTA))
    | st.builds(CumulativeDelta, codec=codecs, content=references | objects),
    digest=st.sampled_from([good.digest for good in GOOD]),
)
halves = [piece for content in (FIRST, SECOND) for piece in split(content, -(-len(content) // 2))]
pieces = st.sampled_from([*CODEC, KEYFRAME[:100], KEYFRAME[100:], *halves, b"x" * 20, b"x" * 5, b""])


@given(story=st.lists(heads | st.sampled_from(GOOD) | st.tuples(st.integers(0, 9), pieces), max_size=40))
def test_no_order_of_heads_and_chunks_raises_anything_but_wire_errors(
    story: list[ModelHead | tuple[int, bytes]],
) -> None:
    """Law 7, and what comes of it is one of the models there are, or none."""
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
        assert encoding.digest(model.vector) in [good.digest for good in GOOD]
