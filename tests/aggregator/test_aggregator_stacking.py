"""Stacking: where frames are put, and what visitors download, in bytes of real frames, against other rhythms."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from fedmq.aggregator.absence import MAX_VERSIONS, Absence
from fedmq.aggregator.publisher import Publisher, PublishSettings
from fedmq.aggregator.stacking import Stacking

from fedmq import wire
from fedmq.layout import ParamLayout, Segment
from fedmq.types import GlobalModel, ModelVersion

LAYOUT = ParamLayout((Segment(name="w", shape=(50, 60)),))
STEP = 4
SETTINGS = PublishSettings(
    keyframe_codec="int8",
    frame_codec="topk(0.03) | ternary | rice",
    delta_codec="topk(0.02) | ternary | rice",
    frame_versions=STEP,
    max_frames=16,
)
#: What is published begins at a version before which everybody has been here for some time.
FORMER, END = 2000, 2600

Place = Callable[[int, Sequence[tuple[int, int]], int, int], int]
#: By kind, how many clients there are, and between how many versions they come again.
Crowd = dict[str, tuple[int, int, int]]
OFTEN: Crowd = {"often": (10, 1, 6)}
RARELY: Crowd = {"rarely": (60, 150, 450)}
BOTH: Crowd = {"often": (2, 1, 6)} | RARELY


@cache
def walk() -> list[GlobalModel]:
    """Versions of a model, each a fifth of its parameters away from the last, some of them further than others."""
    rng = np.random.default_rng(5)
    scale = np.exp(rng.standard_normal(LAYOUT.size)) * 0.01
    vector = rng.standard_normal(LAYOUT.size)
    models = []
    for version in range(FORMER, END, STEP):
        models.append(
            GlobalModel(
                epoch=1, version=ModelVersion(version), layout=LAYOUT, vector=vector.astype(np.float32)
            )
        )
        vector = vector + scale * rng.standard_normal(LAYOUT.size) * (rng.random(LAYOUT.size) < 0.2)
    return models


def visits(crowd: Crowd) -> dict[int, list[str]]:
    """Who comes at which version."""
    random = Random(3)
    found: dict[int, list[str]] = {}
    for kind, (count, low, high) in crowd.items():
        for number in range(count):
            version = random.randint(0, high)
            while version < END:
                found.setdefault(version, []).append(f"{kind}-{number}")
                version += random.randint(low, high)
    return found


#: By version, the head's length and the bytes of its frames.
Heads = dict[int, tuple[int, dict[str, int]]]


def publish(source: Publisher, crowd: Crowd) -> Heads:
    """Every fourth version of the walk, to visitors whom the publisher sees coming."""
    coming = visits(crowd)
    heads: Heads = {}
    for version in range(FORMER):
        for client in coming.get(version, ()):
            source.absence.note(client, version)
    for model in walk():
        head = source.publish(model).head
        sizes = {frame.content.id: frame.content.size for frame in head.frames}
        for version in range(model.version, model.version + STEP):
            heads[version] = len(wire.pack_head(head)), sizes
            for client in coming.get(version, ()):
                source.absence.note(client, version)
    return heads


@cache
def rhythm(versions: int) -> Heads:
    """With frames on top, and a keyframe every so many versions, whoever comes."""
    source = Publisher(replace(SETTINGS, max_frames=64))
    source._stacking.place = lambda version, frames, size, most: (  # type: ignore[method-assign]
        0 if version - frames[0][0] >= versions or len(frames) == 64 else len(frames)
    )
    return publish(source, {})


def downloaded(heads: Heads, crowd: Crowd) -> float:
    """Bytes of heads and frames that a visitor downloads on average, after some versions in which things settle."""
    coming = visits(crowd)
    held: dict[str, set[str]] = {}
    total = count = 0
    for version, (head, sizes) in heads.items():
        for client in coming.get(version, ()):
            if version >= FORMER + 100:
                total += head + sum(sizes[lack] for lack in sizes.keys() - held.get(client, set()))
                count += 1
            held[client] = set(sizes)
    return total / count


@pytest.mark.parametrize(
    ("crowd", "share"), [(OFTEN, 0.92), (RARELY, 0.8), (BOTH, 0.85)], ids=["often", "rarely", "both"]
)
def test_visitors_download_less_than_with_any_constant_rhythm(crowd: Crowd, share: float) -> None:
    """A keyframe for every frame, every few, or as good as never: whichever of these is best for such visitors."""
    constant = {versions: downloaded(rhythm(versions), crowd) for versions in (STEP, 32, 64, 128, 256)}
    own = downloaded(publish(Publisher(SETTINGS), crowd), crowd)

    assert own <= share * min(constant.values())


def test_who_is_new_each_time_gets_a_keyframe() -> None:
    """Nothing that could be put on it would be of use to anybody."""
    source = Publisher(SETTINGS)
    for client in range(1000):
        source.absence.note(str(client), 1)
    heads = publish(source, {})

    assert {1} == {len(sizes) for _, sizes in heads.values()}


def absence(*gaps: int) -> Absence:
    """One client that was away for so many versions, again and again."""
    found, version = Absence(), 0
    for _ in range(100):
        for gap in gaps:
            version += gap
            found.note("a", version)
    return found


def stacking(found: Absence, **changes: int) -> Stacking:
    """With defaults."""
    return Stacking(found, **{"frame_versions": 4, "max_frames": 16} | changes)


PLENTY = 10**9


def test_the_stack_grows_for_those_who_come_after_every_frame() -> None:
    """They download the newest one, and nothing else."""
    decides = stacking(absence(4))
    decides.begin()
    stack = [(1000, 100_000)]
    for version in range(1004, 1064, 4):
        assert len(stack) == decides.place(version, stack, 1000, PLENTY)
        stack.append((version, 1000))
    assert 16 == len(stack)
    assert 0 < decides.place(1064, stack, 1000, PLENTY) < 16


def test_frames_are_merged_when_most_visitors_lack_them_all() -> None:
    """The keyframe stays, since they have that; many frames take more than one in their place."""
    decides = stacking(absence(*[200] * 9, 4), max_frames=64)
    decides.begin()
    stack = [(1000, 100_000)] + [(version, 100) for version in range(1600, 1660, 4)]

    assert 1 == decides.place(1660, stack, 100, PLENTY)


def test_a_stack_is_never_higher_than_allowed() -> None:
    """Also when it is much higher already: a setting was changed."""
    for max_frames in range(1, 12):
        decides = stacking(absence(1), max_frames=max_frames)
        for had in range(1, 14):
            stack = [(1000, 10_000)] + [(1000 + 4 * number, 100) for number in range(1, had)]

            assert decides.place(1000 + 4 * had, stack, 100, PLENTY) < max_frames


def test_a_stack_is_never_larger_than_allowed() -> None:
    """In bytes; a keyframe is always possible."""
    decides = stacking(absence(1))
    stack = [(1000, 10_000), (1004, 5000), (1008, 5000)]

    assert 3 == decides.place(1012, stack, 1000, 21_000)
    assert 3 > decides.place(1012, stack, 1000, 20_999)
    assert 0 == decides.place(1012, stack, 5000, 10_001)


def test_a_frame_is_smaller_than_the_keyframe() -> None:
    """Else nobody would have it instead of a new one."""
    decides = stacking(absence(1))

    assert 0 == decides.place(1004, [(1000, 500)], 500, PLENTY)
    assert 1 == decides.place(1004, [(1000, 501)], 500, PLENTY)


def test_no_keyframe_is_kept_for_ever() -> None:
    """Of absences as long nothing is known."""
    decides = stacking(absence(1))
    decides.begin()

    assert 1 == decides.place(1000 + MAX_VERSIONS // 2, [(1000, 10_000)], 100, PLENTY)
    assert 0 == decides.place(1000 + MAX_VERSIONS + 1, [(1000, 10_000)], 100, PLENTY)


def test_how_large_merged_frames_are_is_learned() -> None:
    """From what came of it."""
    decides = stacking(Absence())
    frames = [(1000, 400), (1004, 500)]
    before = decides.expect(frames, 100)
    for _ in range(50):
        decides.learn(decides.expect(frames, 100), 300)

    assert 800 == before
    assert 300 == pytest.approx(decides.expect(frames, 100), abs=10)


def cycle(versions: int, keyframe: int, above: Callable[[int], float], lacking: Sequence[float]) -> float:
    """What a keyframe for so many versions costs a visitor on average, when the frames on it cost `above(age)`."""
    return sum(keyframe * lacking[age] + above(age) for age in range(versions)) / versions


@pytest.mark.parametrize(("growth", "gap"), [(1.0, 20), (5.0, 100), (5.0, 400), (25.0, 20), (25.0, 400)])
def test_keyframes_come_about_as_often_as_is_best(growth: float, gap: int) -> None:
    """On it is one frame, made anew each time, that grows evenly: after a cycle or two that is known."""
    found = absence(gap, gap // 2, 2 * gap, 4)
    lacking = found.lacking().tolist()
    decides = stacking(found, max_frames=2)
    keyframe, start = 10_000, 0
    lengths: list[int] = []
    decides.begin()
    for version in range(4, 3 * MAX_VERSIONS, 4):
        decides._merged = 1.0
        size = min(keyframe - 1, round(growth * (version - start)))
        stack, addition = [(start, keyframe)], size
        if version - start > 4:
            stack, addition = [(start, keyframe), (version - 4, size - 10)], 10
        if decides.place(version, stack, addition, PLENTY) == 0:
            lengths.append(version - start)
            start = version
            decides.begin()
        if len(lengths) == 4:
            break

    def above(age: int) -> float:
        return min(keyframe - 1.0, growth * (age - age % 4)) + 34

    least = min(cycle(length, keyframe, above, lacking) for length in range(4, MAX_VERSIONS, 40))
    assert lengths
    assert cycle(lengths[-1], keyframe, above, lacking) <= 1.1 * least
