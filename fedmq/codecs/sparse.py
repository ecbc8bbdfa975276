"""Sparsifiers that keep the largest coordinates: of the whole vector, or of each of its tensors.

How the chosen values and positions are written is for quantisers and position coders. Which other rules there are
for how many to keep: `adaptive`.
"""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Codec, Sparsifier
from fedmq.codecs.vector import FloatVector, IndexVector
from fedmq.errors import CodecError
from fedmq.geometry import MAX_LENGTH, Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Sparsifier):
    """Keep the fraction of coordinates with the largest magnitude, over the whole vector.

    Of n coordinates it keeps `max(least, round(fraction * n))`, ties going to the lowest index. Zeros are never
    kept, so a vector with fewer non-zero coordinates keeps just those. Sparsification with error feedback:
    Aji and Heafield 2017; the global choice: Sattler et al. 2019 (STC, arXiv 1903.02891), Algorithm 1.

    Attributes:
        fraction: the share to keep, in (0, 1].
        least: coordinates to keep in any case, as far as there are so many. A share that is right for a large model
            starves a small one, whose messages are mostly envelope anyway.

    Examples:
        >>> TopK(fraction=0.5).select(np.array([1, -3, 0, 2], np.float32), Geometry.flat(4))
        array([1, 3], dtype=int32)
    """

    id: ClassVar[str] = "topk"
    fraction: float
    least: int = 1

    def __post_init__(self) -> None:
        require_share(self, "fraction", self.fraction)
        if not 1 <= self.least <= MAX_LENGTH:
            raise CodecError(
                f"topk: least = {self.least!r} cannot be used: it is a number of coordinates from 1 to 2**31 - 1"
            )

    def select(self, vector: FloatVector, geometry: Geometry) -> IndexVector:
        """Choose the coordinates of largest magnitude: int32, increasing."""
        return select_largest(vector, self.max_count(geometry))

    def max_count(self, geometry: Geometry) -> int:
        """Return `max(least, round(fraction * length))`, and never more than there are."""
        return max(min(self.least, geometry.length), share_of(geometry.length, self.fraction))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKEach(Sparsifier):
    """Keep the fraction of coordinates with the largest magnitude, of each tensor.

    Of a tensor of n coordinates it keeps `max(1, round(fraction * n))`, ties going to the lowest index, and never a
    zero. A tensor whose values are small beside another's is never silent, which the choice over the whole vector
    does not promise: layer-wise sparsification (Lin et al. 2018, Deep Gradient Compression, arXiv 1712.01887).

    Attributes:
        fraction: the share to keep, in (0, 1].

    Examples:
        >>> TopKEach(fraction=0.5).select(np.array([9, 8, 7, 1], np.float32), Geometry(((1, 2), (1, 2))))
        array([0, 2], dtype=int32)
    """

    id: ClassVar[str] = "topk_each"
    fraction: float

    def __post_init__(self) -> None:
        require_share(self, "fraction", self.fraction)

    def select(self, vector: FloatVector, geometry: Geometry) -> IndexVector:
        """Choose the coordinates of largest magnitude in each tensor: int32, increasing."""
        chosen = [np.zeros(0, np.int32)]
        for start, end in itertools.pairwise(geometry.starts):
            chosen.append(start + select_largest(vector[start:end], share_of(end - start, self.fraction)))
        return np.concatenate(chosen)

    def max_count(self, geometry: Geometry) -> int:
        """Return the sum of `max(1, round(fraction * n))` over the tensors."""
        return sum(share_of(rows * columns, self.fraction) for rows, columns in geometry.shapes)


def require_share(codec: Codec, name: str, value: float) -> None:
    """Check that an argument is a share.

    Raises:
        CodecError: it is not above 0 and at most 1.
    """
    if not 0 < value <= 1:
        raise CodecError(
            f"{codec.id}: {name} = {value!r} cannot be used: it is a share above 0 and at most 1, such as 0.01"
        )


def share_of(length: int, fraction: float) -> int:
    """Return `max(1, round(fraction * length))`, and 0 for nothing."""
    return min(length, max(1, round(fraction * length)))


def select_largest(vector: FloatVector, count: int) -> IndexVector:
    """Choose the `count` coordinates of largest magnitude: int32, increasing.

    Ties go to the lowest index. A zero is not chosen, so there may be fewer.
    """
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
