"""How many kept coordinates lie in each half, and in each half of that: the tree by which `rows` codes positions.

What lives here: how a vector is cut, and walking down. What must not: how counts are coded, and bytes (`rows`).

A *node* is a stretch of coordinates and a count of how many of them are kept. While it spans several matrices it is
cut between two of them, then between two *lines* of a matrix, then within the line. Lines are rows, or columns where
a matrix is *turned*; each matrix is laid out line by line. A node of which more than half is kept counts what is not
kept instead, its *holes*, so no count exceeds half of the size. A node with a count of 0 has nothing more to tell; one
with a count of 1 only where in it that coordinate is. Others are cut.

All nodes of one depth are cut in one step of numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.vector import IndexVector
from fedmq.geometry import Geometry

Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

_LINES: Final = 1
_CELLS: Final = 33
KINDS: Final = 65


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nodes:
    """Stretches of a vector.

    Attributes:
        starts: where each begins, shape (n,).
        ends: behind its last coordinate.
        counts: how many of its coordinates are kept, or are holes.
        holes: whether it counts holes.
    """

    starts: Integers
    ends: Integers
    counts: Integers
    holes: Flags

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def sizes(self) -> Integers:
        """Coordinates of each."""
        return self.ends - self.starts

    def where(self, chosen: Flags) -> "Nodes":
        """Return some of them."""
        return Nodes(
            starts=self.starts[chosen],
            ends=self.ends[chosen],
            counts=self.counts[chosen],
            holes=self.holes[chosen],
        )

    @classmethod
    def join(cls, parts: list["Nodes"]) -> "Nodes":
        """Return all of them, one list behind the other."""
        return cls(
            starts=np.concatenate([part.starts for part in parts]),
            ends=np.concatenate([part.ends for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            holes=np.concatenate([part.holes for part in parts]),
        )

    @classmethod
    def counting(cls, starts: Integers, ends: Integers, counts: Integers, holes: Flags) -> "Nodes":
        """Return nodes that count what is rarer in them, given a count of either."""
        sizes = ends - starts
        many = 2 * counts > sizes
        return cls(
            starts=starts, ends=ends, counts=np.where(many, sizes - counts, counts), holes=holes ^ many
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cuts:
    """Nodes to be cut in two.

    Attributes:
        nodes: the count of each is at least 2.
        middles: where its right half begins.
        matrices: which matrix it begins in.
        kinds: which cuts are alike: 0 between matrices; 1 + b between lines, of which the node has at most 2**b and
            more than 2**(b - 1); 33 + b likewise within a line of coordinates.
        shares: the left half's share of the size in sixteenths, rounded, 1 to 15.
    """

    nodes: Nodes
    middles: Integers
    matrices: Integers
    kinds: Integers
    shares: Integers

    def halves(self, lefts: Integers) -> Nodes:
        """Return the left halves, then the right ones, given how much of each count is on the left.

        Raises:
            ValueError: more than there is room for.
        """
        nodes, rights = self.nodes, self.nodes.counts - lefts
        if (lefts > self.middles - nodes.starts).any() or (rights > nodes.ends - self.middles).any():
            raise ValueError("a count is larger than its stretch of coordinates")
        return Nodes.counting(
            np.concatenate((nodes.starts, self.middles)),
            np.concatenate((self.middles, nodes.ends)),
            np.concatenate((lefts, rights)),
            np.concatenate((nodes.holes, nodes.holes)),
        )


class CountTree:
    """The tree of a geometry.

    Args:
        geometry: of the vector, which is not empty.
        turned: for each matrix whether its lines are columns.
    """

    def __init__(self, geometry: Geometry, turned: Flags) -> None:
        self._starts = np.array(geometry.starts, np.int64)
        self._rows, self._columns = np.array(geometry.shapes, np.int64).T
        self._turned = turned
        self._widths = np.where(turned, self._rows, self._columns)

    def walk(self, count: int, split: Callable[[Cuts], Integers]) -> Nodes:
        """Walk down from the whole vector.

        Args:
            count: how many coordinates are kept, at least 1.
            split: tells how much of each node's count is on the left.

        Returns:
            All nodes that need no cutting, in the order in which they were met.

        Raises:
            ValueError: `split` told what cannot be.
        """
        whole = (np.zeros(1, np.int64), self._starts[-1:], np.array([count], np.int64), np.zeros(1, bool))
        nodes, ends = Nodes.counting(*whole), []
        while True:
            several = nodes.counts > 1
            ends.append(nodes.where(~several))
            if not several.any():
                return Nodes.join(ends)
            cuts = self._cut(nodes.where(several))
            nodes = cuts.halves(split(cuts))

    def turn(self, indices: IndexVector) -> Integers:
        """Return where coordinates are when each matrix is laid out line by line: int64, increasing."""
        places = indices.astype(np.int64)
        if not self._turned.any():
            return places
        return np.sort(self._move(places, self._rows, self._columns))

    def turn_back(self, places: Integers) -> IndexVector:
        """Undo `turn`, for places in any order: int32, increasing."""
        if self._turned.any():
            places = self._move(places, self._columns, self._rows)
        return np.sort(places).astype(np.int32)

    def _move(self, places: Integers, rows: Integers, columns: Integers) -> Integers:
        matrix = self._matrix(places)
        row, column = np.divmod(places - self._starts[matrix], columns[matrix])
        return np.where(self._turned[matrix], self._starts[matrix] + column * rows[matrix] + row, places)

    def _matrix(self, places: Integers) -> Integers:
        return np.searchsorted(self._starts, places, side="right") - 1

    def _cut(self, nodes: Nodes) -> Cuts:
        sizes = nodes.sizes
        matrices = self._matrix(nodes.starts)
        widths = self._widths[matrices]
        lines = sizes // widths
        within = sizes <= widths
        middles = nodes.starts + np.where(within, sizes // 2, lines // 2 * widths)
        kinds = np.where(within, _CELLS + doublings(sizes), _LINES + doublings(lines))
        several = self._starts[matrices + 1] < nodes.ends
        if several.any():
            middles[several] = self._boundaries(nodes.where(several))
            kinds[several] = 0
        shares = np.clip((32 * (middles - nodes.starts) + sizes) // (2 * sizes), 1, 15)
        return Cuts(nodes=nodes, middles=middles, matrices=matrices, kinds=kinds, shares=shares)

    def _boundaries(self, nodes: Nodes) -> Integers:
        """Return the boundary of matrices nearest to the middle of each node, the left one of two."""
        middles = (nodes.starts + nodes.ends) // 2
        after = np.searchsorted(self._starts, middles)
        left, right = self._starts[after - 1], self._starts[after]
        left = np.where(left > nodes.starts, left, right)
        right = np.where(right < nodes.ends, right, left)
        return np.where(middles - left <= right - middles, left, right)


def doublings(sizes: Integers) -> Integers:
    """Return how often 1 must be doubled to be at least a size: the bit length of the size less 1."""
    return np.frexp((sizes - 1).astype(np.float64))[1].astype(np.int64)
