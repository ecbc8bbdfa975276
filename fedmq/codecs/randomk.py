"""A sparsifier that draws its coordinates at random, so that a seed says which: no positions are sent.

For quantisers of few bits and for small shares of a vector without structure, where positions cost more than what
choosing the largest gains.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedmq.codecs.base import SeededSparsifier
from fedmq.codecs.sparse import require_share, share_of
from fedmq.codecs.splitmix import draw_below, draw_words, seed_of
from fedmq.codecs.vector import FloatVector, IndexVector
from fedmq.geometry import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomK(SeededSparsifier):
    """Keep a share of the coordinates, drawn at random, each with the same chance.

    Of n coordinates it keeps k = `max(1, round(fraction * n))`, one from each of k stretches of equal length (to a
    coordinate), after a turn of the whole vector: stratified sampling, which costs k random words and no sorting. The
    seed is that of the vector. With the words and draws of `splitmix`,

        start(j)    = floor(j * n / k)                                      j = 0 … k
        turn        = below(word(k), n)
        position(j) = (turn + start(j) + below(word(j), start(j + 1) - start(j))) mod n

    in increasing order. Values are sent as they are, not scaled by n / k: what is left out stays in the sender's
    residual (Stich et al. 2018, Sparsified SGD with Memory, arXiv 1809.07599).

    Attributes:
        fraction: the share to keep, in (0, 1].

    Examples:
        >>> RandomK(fraction=0.5).positions(seed=1, geometry=Geometry.flat(8))
        array([1, 3, 5, 6], dtype=int32)
    """

    id: ClassVar[str] = "randomk"
    fraction: float

    def __post_init__(self) -> None:
        require_share(self, "fraction", self.fraction)

    def seed(self, vector: FloatVector) -> int:
        """Take the CRC-32 of the vector."""
        return seed_of(vector)

    def positions(self, seed: int, geometry: Geometry) -> IndexVector:
        """Draw one coordinate from each stretch: int32, increasing."""
        length, count = geometry.length, self.count(geometry)
        if not count:
            return np.zeros(0, np.int32)
        starts = np.arange(count + 1, dtype=np.uint64) * np.uint64(length) // np.uint64(count)
        words = draw_words(seed, count + 1)
        turn = draw_below(words[count:], starts[count:])
        positions = turn + starts[:-1].astype(np.int64) + draw_below(words[:count], np.diff(starts))
        # They increase but for one step back, where the turn leads past the end.
        wrapped = int(np.searchsorted(positions, length))
        return np.concatenate((positions[wrapped:] - length, positions[:wrapped])).astype(np.int32)

    def count(self, geometry: Geometry) -> int:
        """Return `max(1, round(fraction * length))`, and 0 for an empty vector."""
        return share_of(geometry.length, self.fraction)
