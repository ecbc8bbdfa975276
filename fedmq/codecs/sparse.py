"""Sparsifiers: which coordinates of a vector are worth sending.

How the chosen values and positions are written is for quantisers and position coders.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Sparsifier
from fedmq.codecs.geometry import Geometry
from fedmq.codecs.vector import FloatVector, IndexVector
from fedmq.errors import CodecError


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Sparsifier):
    """Keep the fraction of coordinates with the largest magnitude, over the whole vector.

    Of n coordinates it keeps `max(1, round(fraction * n))`, ties going to the lowest index. Zeros are never
    kept, so a vector with fewer non-zero coordinates keeps just those. Sparsification with error feedback:
    Aji and Heafield 2017; the global choice: Sattler et al. 2019 (STC, arXiv 1903.02891), Algorithm 1.

    Attributes:
        fraction: the share to keep, in (0, 1].

    Examples:
        >>> TopK(fraction=0.5).select(np.array([1, -3, 0, 2], np.float32), Geometry.flat(4))
        array([1, 3], dtype=int32)
    """

    id: ClassVar[str] = "topk"
    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise CodecError(
                f"topk: fraction = {self.fraction!r} cannot be used: it is a share above 0 and at most 1, "
                "such as topk(0.01)"
            )

    def select(self, vector: FloatVector, geometry: Geometry) -> IndexVector:
        """Choose the coordinates of largest magnitude: int32, increasing."""
        count = self.max_count(geometry)
        magnitude = np.abs(vector)
        if count == magnitude.shape[0]:
            return np.flatnonzero(magnitude).astype(np.int32)
        # A threshold and two comparisons: sorted positions and the tie rule, without sorting anything.
        threshold = _kth_largest(magnitude, count)
        keep = magnitude > threshold
        if threshold > 0:
            ties = np.flatnonzero(magnitude == threshold)
            keep[ties[: count - np.count_nonzero(keep)]] = True
        return np.flatnonzero(keep).astype(np.int32)

    def max_count(self, geometry: Geometry) -> int:
        """Return `max(1, round(fraction * length))`, and 0 for an empty vector."""
        length = geometry.length
        return min(length, max(1, round(self.fraction * length)))


def _kth_largest(magnitude: FloatVector, count: int) -> np.float32:
    """The `count`-th largest of non-negative floats, count ≥ 1.

    Not `np.partition`: model differences hold many equal values, above all zeros, and on those it takes ten times
    as long. The bits of non-negative IEEE floats order like unsigned integers, so two counts of 16 bits each
    find the value in a time that does not depend on it.
    """
    bits = np.ascontiguousarray(magnitude).view(np.uint32)
    top, left = _bucket(bits >> 16, count)
    low, _ = _bucket(bits[bits >> 16 == top] & 0xFFFF, left)
    value: np.float32 = np.uint32(top << 16 | low).view(np.float32)
    return value


def _bucket(digits: NDArray[np.unsignedinteger[Any] | np.signedinteger[Any]], count: int) -> tuple[int, int]:
    """Which digit the `count`-th largest has, and the how-manieth it is among those."""
    from_above = np.bincount(digits, minlength=1)[::-1].cumsum()
    place = int(np.searchsorted(from_above, count))
    above = int(from_above[place - 1]) if place else 0
    return len(from_above) - 1 - place, count - above
