"""Positions by the tree of counts: how short they get, and what is refused."""

import math
import re
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import Geometry
from fedmq.codecs.bits import Reader
from fedmq.codecs.positions import Bitmap, Rice
from fedmq.codecs.rans import Encoder
from fedmq.codecs.rows import Rows, decode_tree, encode_tree
from fedmq.errors import WireError

Recorded: TypeAlias = tuple[Geometry, np.ndarray, np.ndarray]

MLP = Geometry(((1, 128), (128, 784), (1, 10), (10, 128)))
"""784-128-10, its tensors in the order of the vector."""


def entropy_bound(count: int, length: int) -> float:
    """Bits per position when all sets of positions are alike: log2 C(n, k) / k."""
    logs = math.lgamma(length + 1) - math.lgamma(count + 1) - math.lgamma(length - count + 1)
    return logs / math.log(2) / count


def positions_of(geometry: Geometry, kept: np.ndarray) -> np.ndarray:
    """Where a mask is set."""
    assert kept.size == geometry.length
    return np.flatnonzero(kept).astype(np.int32)


def round_trip(indices: np.ndarray, geometry: Geometry) -> int:
    """Through the tree alone: the positions come back and nothing else is read; the length of the stream."""
    stream = encode_tree(indices, geometry)
    reader = Reader(stream + b"\x07\x00\x09", "test")
    assert indices.tolist() == decode_tree(reader, len(indices), geometry).tolist()
    assert 3 == reader.remaining
    return len(stream)


def test_every_set_of_positions_in_two_small_matrices_comes_back() -> None:
    """All 511 that are not empty, so counts that are holes, full rows and single positions."""
    geometry = Geometry(((2, 3), (3, 1)))
    for chosen in range(1, 2**9):
        round_trip(positions_of(geometry, np.array([chosen >> bit & 1 for bit in range(9)])), geometry)


matrices = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(shapes=matrices, seed=st.integers(0, 2**32 - 1), share=st.floats(0.001, 1), lines=st.floats(0.1, 1))
def test_any_positions_come_back(
    shapes: list[tuple[int, int]], seed: int, share: float, lines: float
) -> None:
    """Even ones and clustered ones, few and nearly all."""
    geometry, rng = Geometry(tuple(shapes)), np.random.default_rng(seed)
    active = np.concatenate([np.repeat(rng.random(rows) < lines, columns) for rows, columns in shapes])
    kept = active & (rng.random(geometry.length) < share)
    kept[rng.integers(geometry.length)] = True

    round_trip(positions_of(geometry, kept), geometry)


def test_counts_and_places_of_many_bits_come_back() -> None:
    """A row of a million: numbers above what one digit holds, and counts above what has a table."""
    geometry = Geometry(((1, 1_000_003), (3, 400_001)))
    rng = np.random.default_rng(3)
    for count in (1, 2, 20, 5000):
        round_trip(np.sort(rng.choice(geometry.length, count, replace=False)).astype(np.int32), geometry)


@pytest.mark.parametrize(("p", "limit"), [(0.01, 1.015), (0.04, 1.012), (0.1, 1.015)])
def test_positions_kept_at_random_take_hardly_more_than_they_must(p: float, limit: float) -> None:
    """The tree finds nothing and tells so in a few bits; `rows` takes `rice` where that is shorter."""
    count = round(p * MLP.length)
    indices = np.sort(np.random.default_rng(8).choice(MLP.length, count, replace=False)).astype(np.int32)
    rice = len(Rice().encode(indices, MLP))

    assert 8 * round_trip(indices, MLP) / count <= limit * entropy_bound(count, MLP.length)
    assert len(Rows().encode(indices, MLP)) <= rice


def test_a_real_update_takes_less_than_any_code_that_knows_only_its_length(recorded: Recorded) -> None:
    """By an eighth: 7.04 bits per position instead of 8.07."""
    geometry, indices, _ = recorded
    bits = 8 * (1 + round_trip(indices, geometry)) / len(indices)

    assert bits <= 7.05
    assert bits <= 0.875 * entropy_bound(len(indices), geometry.length)
    assert "by the tree" == Rows().describe(Rows().encode(indices, geometry))


def test_what_clusters_by_column_is_told_by_column() -> None:
    """A matrix and its transpose take the same bits, and the first knows nothing of the flat vector's period."""
    rng = np.random.default_rng(4)
    kept = rng.random((60, 90)) < np.exp(rng.normal(-4, 2, (60, 1)))
    upright = round_trip(positions_of(Geometry(((60, 90),)), kept), Geometry(((60, 90),)))
    turned = round_trip(positions_of(Geometry(((90, 60),)), kept.T), Geometry(((90, 60),)))
    flat = round_trip(positions_of(Geometry.flat(5400), kept.T), Geometry.flat(5400))

    assert abs(upright - turned) <= 2
    assert turned < 0.95 * flat


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_more_positions_never_have_a_smaller_maximum(length: int) -> None:
    """So the maximum at a sparsifier's largest count bounds all its payloads."""
    maxima = [Rows().max_bytes(count, Geometry.flat(length)) for count in range(1, length + 1)]

    assert maxima == sorted(maxima)


@pytest.mark.parametrize(
    ("kept", "taken"),
    [
        (np.arange(2000) % 20 == 0, "by the tree"),
        (np.random.default_rng(1).random(2000) < 0.02, "by rice with the parameter 5"),
        (np.random.default_rng(1).random(2000) < 0.4, "by rice with the parameter 0"),
        (np.random.default_rng(1).random(2000) < 0.9, "by the tree"),
    ],
)
def test_the_shortest_way_is_taken_and_named(kept: np.ndarray, taken: str) -> None:
    """It is not longer than rice nor, but for a byte, than a bitmap."""
    geometry = Geometry(((50, 40),))
    indices = positions_of(geometry, kept)
    encoded = Rows().encode(indices, geometry)

    assert taken == Rows().describe(encoded)
    assert len(encoded) <= len(Rice().encode(indices, geometry))
    assert len(encoded) <= 1 + len(Bitmap().encode(indices, geometry))
    assert len(encoded) <= Rows().max_bytes(len(indices), geometry)
    assert indices.tolist() == Rows().decode(Reader(encoded, "test"), len(indices), geometry).tolist()


def _refused(payload: bytes, count: int, geometry: Geometry, reason: str) -> None:
    with pytest.raises(WireError, match=re.escape(reason)):
        Rows().decode(Reader(payload, "test"), count, geometry)


def test_a_payload_that_no_encoder_writes_is_refused_with_its_reason() -> None:
    """One case for each way to be wrong."""
    flat = Geometry.flat(1101)
    beyond = Encoder()
    beyond.digits([551], [550])  # position 1101 of 0 to 1100: the top ten bits and one more
    beyond.digits([2], [1])

    _refused(b"", 1, flat, "first byte of positions needs 1 bytes, 0 are left")
    _refused(b"\xff", 1, flat, "0 bytes are not a stream of symbols")
    _refused(b"\xff\x00\x00\x00\x00", 1, flat, "4 bytes are not a stream of symbols")
    _refused(b"\xff" + beyond.finish(), 1, flat, "a number is not below its limit")
    _refused(b"\xff" + encode_tree(np.arange(3, dtype=np.int32), flat)[:-2], 3, flat, "cut off")
    _refused(b"\xff\x02\x00\x05\x00", 1, Geometry.flat(2), "does not end where it began")
    _refused(b"\xfd\x00\x00", 1, flat, "rice parameter 253 is too large for 1101")


def test_counts_for_which_there_is_no_room_are_refused() -> None:
    """Streams of one geometry, damaged and read for others."""
    rng, reasons = np.random.default_rng(2), set()
    stream = encode_tree(np.sort(rng.choice(900, 400, replace=False)).astype(np.int32), Geometry.flat(900))
    for _ in range(300):
        rows, columns = rng.integers(1, 30, 2).tolist()
        geometry = Geometry(((1, 1), (rows, columns), (2, columns), (1, 3)))
        count = int(rng.integers(1, geometry.length + 1))
        damaged = bytearray(stream)
        damaged[int(rng.integers(len(stream)))] ^= int(rng.integers(256))
        try:
            decode_tree(Reader(bytes(damaged), "test"), count, geometry)
        except WireError as error:
            reasons.add(str(error).removeprefix("test: "))

    assert "a count is larger than its stretch of coordinates" in str(reasons)
