"""Which coordinates the sparsifiers choose, and how many."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.codecs import Geometry, parse_pipeline, splitmix
from fedmq.codecs.adaptive import Budget, Threshold
from fedmq.codecs.randomk import RandomK
from fedmq.codecs.sparse import TopK, TopKEach

WORD = 2**64


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def _word(seed: int, index: int) -> int:
    """The documented generator, in Python's integers."""
    golden = 0x9E3779B97F4A7C15
    return _mix((_mix((seed + golden) % WORD) + (index + 1) * golden) % WORD)


def _gauss(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 70))
def test_the_words_are_splitmix64(seed: int, count: int) -> None:
    """Against the definition; its own first word for 0 is the one that every implementation publishes."""
    assert [_word(seed, index) for index in range(count)] == splitmix.draw_words(seed, count).tolist()
    assert _mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 200))
def test_bits_and_unit_numbers_are_parts_of_the_words(seed: int, count: int) -> None:
    """Bits from the lowest; numbers of 24 bits, the lower half of a word first."""
    bits = [_word(seed, index // 64) >> index % 64 & 1 for index in range(count)]
    unit = [(_word(seed, index // 2) >> 32 * (index % 2) & 0xFFFFFFFF) >> 8 for index in range(count)]

    assert bits == splitmix.draw_bits(seed, count).tolist()
    assert [number / 2**24 for number in unit] == splitmix.draw_unit(seed, count).tolist()


def test_the_numbers_look_random() -> None:
    """Mean, variance and correlation of neighbours, within four deviations."""
    unit = splitmix.draw_unit(7, 200_000).astype(np.float64) - 0.5

    assert abs(unit.mean()) < 4 * math.sqrt(1 / 12 / 200_000)
    assert abs(np.square(unit).mean() - 1 / 12) < 4 * math.sqrt(1 / 180 / 200_000)
    assert abs((unit[1:] * unit[:-1]).mean()) < 4 / 12 / math.sqrt(200_000)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=5),
    fraction=st.floats(0.001, 1),
    data=st.data(),
)
def test_top_k_of_each_tensor_is_top_k_of_each_tensor(
    shapes: list[tuple[int, int]], fraction: float, data: st.DataObject
) -> None:
    """The plain definition: choose in each on its own."""
    geometry = Geometry(tuple(shapes))
    vector = data.draw(hnp.arrays(np.float32, geometry.length, elements=st.integers(-3, 3).map(float)))
    expected = []
    for start, end in itertools.pairwise(geometry.starts):
        chosen = TopK(fraction=fraction).select(vector[start:end], Geometry.flat(end - start))
        expected += (start + chosen).tolist()

    codec = TopKEach(fraction=fraction)

    assert expected == codec.select(vector, geometry).tolist()
    assert len(expected) <= codec.max_count(geometry)


def test_a_tensor_of_small_values_is_heard_beside_one_of_large_values() -> None:
    """What a choice over the whole vector does not promise."""
    geometry = Geometry(((20, 30), (1, 100)))
    vector = np.concatenate((100 * _gauss(600), _gauss(100)))

    assert not (TopK(fraction=0.1).select(vector, geometry) >= 600).any()
    assert np.count_nonzero(TopKEach(fraction=0.1).select(vector, geometry) >= 600) == 10


def test_a_threshold_keeps_what_reaches_it() -> None:
    """Equality included, whatever the sign."""
    vector = np.array([0.5, -0.4, -0.5, 0, 0.6, 0.49999997], np.float32)

    assert Threshold(value=0.5, share=1.0).select(vector, Geometry.flat(6)).tolist() == [0, 2, 4]


def test_a_threshold_keeps_the_largest_when_too_many_reach_it() -> None:
    """So that a payload has a bound."""
    vector = np.array([3, 1, -2, 5, 4], np.float32)
    codec = Threshold(value=1.0, share=0.6)

    assert codec.max_count(Geometry.flat(5)) == 3
    assert codec.select(vector, Geometry.flat(5)).tolist() == [0, 3, 4]


def test_a_threshold_sends_nothing_from_a_quiet_device() -> None:
    """One byte: no coordinate reached it."""
    pipeline = parse_pipeline("threshold(10) | ternary | rice")

    assert pipeline.encode(_gauss(1000)) == b"\x00"


@given(length=st.integers(0, 20_000), size=st.integers(32, 3000))
def test_no_payload_of_a_budget_is_longer_than_it(length: int, size: int) -> None:
    """For the quantiser and the position coder that its estimate is about."""
    for text in (f"budget({size}) | ternary | rice", f"budget({size}, 9) | int8(64) | rice"):
        pipeline = parse_pipeline(text)

        assert pipeline.max_payload_bytes(length) <= size
        assert len(pipeline.encode(_gauss(length))) <= size


@pytest.mark.parametrize("length", [10_000, 101_770])
@pytest.mark.parametrize("size", [100, 500, 1159])
def test_a_budget_is_nearly_used_up(length: int, size: int) -> None:
    """At least nine tenths of it for positions kept at random, one more coordinate would not be sure to fit."""
    codec = Budget(size=size)
    pipeline = parse_pipeline(f"budget({size}) | ternary | rice")

    assert len(pipeline.encode(_gauss(length))) >= 0.9 * size
    more = (codec.max_count(Geometry.flat(length)) + 1) / length
    assert parse_pipeline(f"topk({more}) | ternary | rice").max_payload_bytes(length) >= size - 8


def test_a_larger_budget_never_carries_fewer_coordinates() -> None:
    """And a vector that fits is sent whole."""
    counts = [Budget(size=size).max_count(Geometry.flat(5000)) for size in range(32, 2000, 7)]

    assert counts == sorted(counts)
    assert counts[-1] == 5000


@given(length=st.integers(0, 300), fraction=st.floats(0.001, 1), seed=st.integers(0, 2**32 - 1))
def test_random_k_draws_by_the_documented_formula(length: int, fraction: float, seed: int) -> None:
    """In Python's integers: one of each stretch, after a turn; increasing, in range, as many for every seed."""
    codec, geometry = RandomK(fraction=fraction), Geometry.flat(length)
    count = codec.count(geometry)
    starts = [j * length // count for j in range(count + 1)] if count else []

    def below(index: int, limit: int) -> int:
        return (_word(seed, index) >> 32) * limit >> 32

    turn = below(count, length) if count else 0
    drawn = [turn + starts[j] + below(j, starts[j + 1] - starts[j]) for j in range(count)]
    expected = sorted(position % length for position in drawn)

    positions = codec.positions(seed, geometry)

    assert expected == positions.tolist()
    assert np.int32 == positions.dtype
    assert len(set(expected)) == count == min(length, max(1, round(fraction * length)))


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.7])
def test_random_k_draws_each_coordinate_with_the_same_chance(fraction: float) -> None:
    """Over 4,000 seeds, within five deviations, where stretches are not equally long and where they are."""
    codec, geometry, seeds = RandomK(fraction=fraction), Geometry.flat(37), 4000
    drawn = np.zeros(37)
    for seed in range(seeds):
        drawn[codec.positions(seed, geometry)] += 1
    chance = codec.count(geometry) / 37

    assert np.abs(drawn / seeds - chance).max() < 5 * math.sqrt(chance * (1 - chance) / seeds)


def test_random_k_sends_a_seed_in_place_of_positions() -> None:
    """Four bytes, little-endian, from which the receiver draws the same coordinates."""
    pipeline = parse_pipeline("randomk(0.1) | float32")
    vector = _gauss(1000)
    payload = pipeline.encode(vector)
    positions = RandomK(fraction=0.1).positions(int.from_bytes(payload[:4], "little"), Geometry.flat(1000))
    decoded = pipeline.decode(payload, 1000)

    assert len(payload) == 4 + 4 * 100 == pipeline.max_payload_bytes(1000)
    assert decoded.indices is not None
    assert positions.tolist() == decoded.indices.tolist()
    assert vector[positions].tobytes() == decoded.values.tobytes()


def test_random_k_draws_anew_for_another_vector() -> None:
    """The seed is of the vector's bytes, so equal vectors are equal messages and others are not."""
    codec, vector = RandomK(fraction=0.1), _gauss(1000)
    other = vector.copy()
    other[500] = np.nextafter(other[500], np.float32(9))

    assert codec.seed(vector) == codec.seed(vector.copy())
    assert codec.seed(vector) != codec.seed(other)


def test_random_k_draws_every_coordinate_sooner_or_later() -> None:
    """Each message draws from another vector, so no coordinate stays in the residual for ever."""
    pipeline = parse_pipeline("randomk(0.3) | float32")
    residual = np.zeros(200, np.float32)
    heard: set[int] = set()
    for message in range(40):
        residual += _gauss(200, seed=message)
        decoded = pipeline.decode(pipeline.encode(residual), 200)
        decoded.add_to(residual, -1)
        assert decoded.indices is not None
        heard.update(decoded.indices.tolist())

    assert heard == set(range(200))
