"""`rows`: positions by how many there are in each matrix, row and stretch of a row.

The positions of a real update cluster: in the rows of the units that learn, and within a row where the input has
something to say. `counttree` cuts the vector into halves, and this coder tells how many positions each left half
holds. Where they are spread evenly that takes what any code must take; where they cluster it takes less.

**The model.** Of n positions in a node, L lie on the left. If each lay there with a probability of its own half's
share, L would be binomial. Clustering makes it vary more, as if the probability itself were drawn from a beta
distribution: then L is beta-binomial, with a weight w that falls from infinity to 1 as the clustering grows (a Pólya
tree: Lavine 1992; as a code for positions it has no source that we know of). Which weight of eight fits is found by
the encoder for each kind of cut and sent when such a cut first comes up. A count above 15 is coded by sixteenths of
its range, and then its place in the sixteenth.

    payload = 255, stream of `rans`; or a payload of `rice`, which begins with a byte below 31
    stream  = for each matrix with several rows and columns: whether it is turned (1 bit, 0 with 7/8)
              for each depth of the tree: the weights of new kinds, then all L
              for each node that counts 1: where in it that position is

`rice` is taken where it is not longer, so no payload is longer than one of its. Nor is one longer than a `bitmap` and a
byte: `rice` with the parameter 0 is a bitmap that ends with the last position.

Measured for updates of the MLP 784-128-10 on Fashion-MNIST, 10 clients, top-1 % with error feedback: 7.0 bits per
position where labels are spread as Dir(0.3), 6.6 at Dir(0.1); `rice` takes 8.2 and 8.3, and log2 C(101770, k) / k is
8.1. Positions kept at random take 1 % more than that. A thousand of them take 7 ms to encode and 3.5 ms to decode, most
of it one by one in plain Python; `rice` takes 0.1 ms.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import PositionCoder
from fedmq.codecs.bits import Reader
from fedmq.codecs.counttree import KINDS, CountTree, Cuts, Flags, Integers, Nodes, doublings
from fedmq.codecs.positions import Rice
from fedmq.codecs.rans import DIGIT_BITS, SCALE, SCALE_BITS, Coder, Decoder, Encoder, Table, make_table
from fedmq.codecs.vector import IndexVector
from fedmq.geometry import Geometry

Floats: TypeAlias = NDArray[np.float64]

_TREE: Final = 255  # the first byte of a payload that is not one of `rice`
_WEIGHTS: Final = (1, 2, 4, 8, 16, 32, 128, None)  # None: infinite
_EVEN: Final = 7  # the infinite weight, from which the first step is taken
_TYPICAL: Final = 2  # what a matrix is turned by
_STEP_TABLE: Final = make_table([7, *[1] * 7])  # the last weight again, or so many further on
_STEP_BITS: Final = SCALE_BITS - np.log2(np.diff(_STEP_TABLE))
_NOT_TURNED: Final = SCALE * 7 // 8
_LARGEST: Final = 15  # of the counts that have a table


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(PositionCoder):
    """Counts by matrix, row and stretch of a row: for positions that cluster, as those of real updates do."""

    id: ClassVar[str] = "rows"

    def encode(self, indices: IndexVector, geometry: Geometry) -> bytes:
        """Encode by the tree, or by `rice` when that is not longer."""
        rice = Rice().encode(indices, geometry)
        tree = bytes([_TREE]) + encode_tree(indices, geometry)
        return tree if len(tree) < len(rice) else rice

    def decode(self, reader: Reader, count: int, geometry: Geometry) -> IndexVector:
        """Read `count` positions back.

        Raises:
            WireError: bytes that no encoder writes.
        """
        if not reader.peek_bits(8).all():
            return Rice().decode(reader, count, geometry)
        reader.byte("first byte of positions")
        return decode_tree(reader, count, geometry)

    def max_bytes(self, count: int, geometry: Geometry) -> int:
        """Return the bound of `rice`."""
        return Rice().max_bytes(count, geometry)

    def describe(self, encoded: bytes) -> str:
        """Say which way the encoder took, given what `encode` returned."""
        return "by the tree" if encoded[0] == _TREE else f"by rice with the parameter {encoded[0]}"


def encode_tree(indices: IndexVector, geometry: Geometry) -> bytes:
    """Encode positions as a stream."""
    survey = _turn_best(indices, geometry)
    coder = Encoder()
    _code_turned(coder, geometry, survey.turned)
    weights = _Weights(coder, survey.best_weights())
    for cuts, lefts in survey.splits:
        _code_lefts(coder, weights, cuts, lefts)
    _code_numbers(coder, survey.leaves.sizes, survey.places)
    return coder.finish()


def decode_tree(reader: Reader, count: int, geometry: Geometry) -> IndexVector:
    """Read `count` positions back from a stream.

    Raises:
        WireError: bytes that `encode_tree` does not write.
    """
    coder = Decoder(reader)
    turned = _code_turned(coder, geometry, np.zeros(len(geometry.shapes), bool))
    tree, weights = CountTree(geometry, turned), _Weights(coder, {})
    try:
        ends = tree.walk(
            count, lambda cuts: _code_lefts(coder, weights, cuts, np.zeros(len(cuts.nodes), np.int64))
        )
        leaves = ends.where(ends.counts == 1)
        places = leaves.starts + _code_numbers(coder, leaves.sizes, np.zeros(len(leaves), np.int64))
    except ValueError as error:
        raise reader.fail(str(error)) from error
    coder.finish()
    kept = places[~leaves.holes]
    if ends.holes.any():
        kept = np.concatenate((kept, _filled(ends.where(ends.holes), places[leaves.holes], geometry.length)))
    return tree.turn_back(kept)


def _filled(nodes: Nodes, holes: Integers, length: int) -> Integers:
    """Return every coordinate of some nodes but the holes."""
    edges = np.zeros(length + 1, np.int8)
    edges[nodes.starts] += 1
    edges[nodes.ends] -= 1
    inside = np.cumsum(edges, dtype=np.int8)
    inside[holes] = 0
    return np.flatnonzero(inside)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """What the tree of some positions tells, in the order in which it is coded.

    Attributes:
        turned: for each matrix whether its lines are columns.
        splits: for each depth its cuts, and how much is on their left.
        leaves: the nodes that count 1.
        places: where in each of those.
    """

    turned: Flags
    splits: list[tuple[Cuts, Integers]]
    leaves: Nodes
    places: Integers

    @classmethod
    def of(cls, indices: IndexVector, geometry: Geometry, turned: Flags) -> "_Survey":
        tree = CountTree(geometry, turned)
        kept = tree.turn(indices)
        splits = []

        def split(cuts: Cuts) -> Integers:
            starts, middles = cuts.nodes.starts, cuts.middles
            lefts = (np.searchsorted(kept, middles) - np.searchsorted(kept, starts)).astype(np.int64)
            lefts = np.where(cuts.nodes.holes, middles - starts - lefts, lefts)
            splits.append((cuts, lefts))
            return lefts

        ends = tree.walk(indices.shape[0], split)
        leaves = ends.where(ends.counts == 1)
        # Where there is one kept coordinate it is the sum of them, and where there is one hole the sum of the others.
        sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept)))
        places = sums[np.searchsorted(kept, leaves.ends)] - sums[np.searchsorted(kept, leaves.starts)]
        all_of_them = (leaves.starts + leaves.ends - 1) * leaves.sizes // 2
        places = np.where(leaves.holes, all_of_them - places, places)
        return cls(turned=turned, splits=splits, leaves=leaves, places=places - leaves.starts)

    def matrix_bits(self, geometry: Geometry) -> Floats:
        """Return about how many bits the positions in each matrix take, at a middling weight."""
        starts, count = np.array(geometry.starts), len(geometry.shapes)
        leaf_matrices = np.searchsorted(starts, self.leaves.starts, side="right") - 1
        bits: Floats = np.zeros(count)
        bits += np.bincount(leaf_matrices, np.log2(self.leaves.sizes), count)
        for cuts, lefts in self.splits:
            bits += np.bincount(cuts.matrices, _typical_bits()[_entries(cuts, lefts)], count)
        return bits

    def best_weights(self) -> dict[int, int]:
        """Return the best weight of each kind of cut, what telling it takes included."""
        kinds: dict[int, Floats] = {}
        entries = []
        for cuts, lefts in self.splits:
            entries.append(cuts.kinds << 12 | _entries(cuts, lefts))
            kinds.update(
                (k, np.zeros(len(_WEIGHTS))) for k in np.unique(cuts.kinds).tolist() if k not in kinds
            )
        if entries:
            found, times = np.unique(np.concatenate(entries), return_counts=True)
            for entry, count in zip(found.tolist(), times.tolist(), strict=True):
                kinds[entry >> 12] += count * _bits(entry >> 8 & 15, entry >> 4 & 15)[:, entry & 15]
        weights, last = {}, _EVEN
        for kind, bits in kinds.items():
            weights[kind] = last = int(np.argmin(bits + np.roll(_STEP_BITS, last)))
        return weights


def _turn_best(indices: IndexVector, geometry: Geometry) -> _Survey:
    """Survey each matrix by rows and by columns, and turn those that take fewer bits."""
    sides = np.array(geometry.shapes, np.int64)
    rows = _Survey.of(indices, geometry, np.zeros(len(sides), bool))
    may_turn = sides.min(axis=1) > 1
    if not may_turn.any():
        return rows
    columns = _Survey.of(indices, geometry, may_turn)
    turned: Flags = np.less(columns.matrix_bits(geometry), rows.matrix_bits(geometry))
    if not turned.any():
        return rows
    return columns if (turned == may_turn).all() else _Survey.of(indices, geometry, turned)


class _Weights:
    """Which weight each kind of cut has: coded when it first comes up, as a step from the last one.

    Args:
        coder: writes or reads.
        chosen: what to write, for each kind.
    """

    def __init__(self, coder: Coder, chosen: Mapping[int, int]) -> None:
        self._coder, self._chosen = coder, chosen
        self._known: Integers = np.full(KINDS, -1)
        self._last = _EVEN

    def of(self, kinds: Integers) -> Integers:
        """Return the number of the weight of each."""
        for kind in np.unique(kinds).tolist():
            if self._known[kind] < 0:
                step = (self._chosen.get(kind, 0) - self._last) % len(_WEIGHTS)
                self._last += self._coder.symbols([_STEP_TABLE], [step])[0]
                self._last %= len(_WEIGHTS)
                self._known[kind] = self._last
        weights: Integers = self._known[kinds]
        return weights


def _code_turned(coder: Coder, geometry: Geometry, turned: Flags) -> Flags:
    """Code which matrices are turned, of those that could be."""
    coded = [
        rows > 1 < columns and coder.bit(_NOT_TURNED, int(turn)) == 1
        for (rows, columns), turn in zip(geometry.shapes, turned.tolist(), strict=True)
    ]
    return np.array(coded)


def _code_lefts(coder: Coder, weights: _Weights, cuts: Cuts, lefts: Integers) -> Integers:
    """Code how much of each count is left of the cut."""
    counts = cuts.nodes.counts
    capped = np.minimum(counts, _LARGEST)
    columns = (weights.of(cuts.kinds), cuts.shares, capped)
    tables = list(map(_table, *(column.tolist() for column in columns)))
    parts = np.array(coder.symbols(tables, (lefts * (capped + 1) // (counts + 1)).tolist()), np.int64)
    found: Integers = -(-parts * (counts + 1) // (capped + 1))
    sizes = -(-(parts + 1) * (counts + 1) // (capped + 1)) - found
    wide = sizes > 1
    if wide.any():
        found[wide] += _code_numbers(coder, sizes[wide], (lefts - found)[wide])
    return found


def _code_numbers(coder: Coder, limits: Integers, numbers: Integers) -> Integers:
    """Code numbers below limits: first the top ten bits of each, then ten at a time of those that have more.

    Raises:
        ValueError: one that was read is not below its limit.
    """
    shifts = np.maximum(doublings(limits) - DIGIT_BITS, 0)
    found = _code_digits(coder, (limits - 1 >> shifts) + 1, numbers >> shifts)
    while shifts.any():
        longer, steps = shifts > 0, np.minimum(shifts, DIGIT_BITS)
        shifts -= steps
        bases = np.int64(1) << steps[longer]
        digits = _code_digits(coder, bases, (numbers >> shifts)[longer] & bases - 1)
        found[longer] = found[longer] * bases + digits
    if (found >= limits).any():
        raise ValueError("a number is not below its limit")
    return found


def _code_digits(coder: Coder, bases: Integers, digits: Integers) -> Integers:
    return np.array(coder.digits(bases.tolist(), digits.tolist()), np.int64)


def _entries(cuts: Cuts, lefts: Integers) -> Integers:
    """Return share, capped count and coded part of each cut as one number of 12 bits."""
    counts = cuts.nodes.counts
    capped = np.minimum(counts, _LARGEST)
    entries: Integers = (cuts.shares << 4 | capped) << 4 | lefts * (capped + 1) // (counts + 1)
    return entries


@functools.cache
def _table(weight: int, share: int, count: int) -> Table:
    """Return the table of beta-binomial L = 0 … count, in exact arithmetic.

    With weight w and share s / 16, the chance of L is in proportion to C(count, L) times the product of s w + 16 i for
    i < L and of (16 - s) w + 16 j for j < count - L.
    """
    w = _WEIGHTS[weight]
    step, lot = (0, 1) if w is None else (16, w)
    return make_table(
        [
            math.comb(count, left)
            * math.prod(share * lot + step * i for i in range(left))
            * math.prod((16 - share) * lot + step * j for j in range(count - left))
            for left in range(count + 1)
        ]
    )


@functools.cache
def _bits(share: int, count: int) -> Floats:
    """Return how many bits each L takes, by weight: shape (8, count + 1)."""
    tables = [_table(weight, share, count) for weight in range(len(_WEIGHTS))]
    return SCALE_BITS - np.log2(np.diff(tables, axis=1))


@functools.cache
def _typical_bits() -> Floats:
    """Return how many bits each entry takes at a weight of 4."""
    bits = np.zeros((16, 16, 16))
    for share, count in itertools.product(range(1, 16), range(2, 16)):
        bits[share, count, : count + 1] = SCALE_BITS - np.log2(np.diff(_table(_TYPICAL, share, count)))
    return bits.reshape(-1)
