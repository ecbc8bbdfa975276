"""Sparsifiers whose count follows something else than a share: a magnitude, or a number of bytes.

Like `TopK` they send the largest coordinates of the whole vector, only not always as many.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from fedmq.codecs.base import Sparsifier
from fedmq.codecs.positions import Rice
from fedmq.codecs.sparse import require_share, select_largest, share_of
from fedmq.codecs.vector import FloatVector, IndexVector
from fedmq.errors import CodecError
from fedmq.geometry import Geometry

_LARGEST: Final = float(np.finfo(np.float32).max)
_SMALLEST: Final = float(np.finfo(np.float32).smallest_subnormal)
_HEADER_BYTES: Final = 5 + 4  # the count at most, and one float32 of the quantiser
_LEAST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold(Sparsifier):
    """Keep the coordinates whose magnitude reaches a value, the largest ones when they are too many.

    A quiet device sends little and a busy one more: Strom 2015 (Scalable Distributed DNN Training Using Commodity
    GPU Cloud Computing), where error feedback brings each small coordinate over the threshold some day.

    Attributes:
        value: the least magnitude that is sent, a positive float32; compared in float32.
        share: the largest share of coordinates to keep, in (0, 1], counted as `TopK` counts.
    """

    id: ClassVar[str] = "threshold"
    value: float
    share: float = 0.1

    def __post_init__(self) -> None:
        if not _SMALLEST <= self.value <= _LARGEST:
            raise CodecError(
                f"threshold: value = {self.value!r} cannot be used: it is a magnitude above 0, such as 0.001"
            )
        require_share(self, "share", self.share)

    def select(self, vector: FloatVector, geometry: Geometry) -> IndexVector:
        """Choose the coordinates that reach the value: int32, increasing."""
        reached = np.abs(vector) >= np.float32(self.value)
        if np.count_nonzero(reached) > (most := self.max_count(geometry)):
            return select_largest(vector, most)
        return np.flatnonzero(reached).astype(np.int32)

    def max_count(self, geometry: Geometry) -> int:
        """Return `max(1, round(share * length))`, and 0 for an empty vector."""
        return share_of(geometry.length, self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Sparsifier):
    """Keep as many of the largest coordinates as a number of bytes carries.

    How many that is depends on the vector's length alone, so that one number serves models of all sizes. k
    coordinates are taken to need

        9 + rice(k) + ceil(k * bits / 8) bytes

    where 9 is for the count and one scale, and rice(k) the most that `Rice` takes for k positions. So in front of
    `rice` and a quantiser of that width with one parameter, such as `ternary`, no payload is longer than `size`;
    for values kept at random it is about 5 % shorter. In front of others it is an estimate.

    Attributes:
        size: bytes of a payload, from 32 to 2**31 - 1.
        bits: for a value, above 0 and at most 32; a fraction may count in a quantiser's parameters.
    """

    id: ClassVar[str] = "budget"
    size: int
    bits: float = 1.0

    def __post_init__(self) -> None:
        if not _LEAST_BYTES <= self.size < 2**31:
            raise CodecError(
                f"budget: size = {self.size!r} cannot be used: it is a number of bytes from {_LEAST_BYTES} "
                "to 2**31 - 1"
            )
        if not 0 < self.bits <= 32:
            raise CodecError(
                f"budget: bits = {self.bits!r} cannot be used: it is the width of a value, above 0, at most 32"
            )

    def select(self, vector: FloatVector, geometry: Geometry) -> IndexVector:
        """Choose the coordinates of largest magnitude: int32, increasing."""
        return select_largest(vector, self.max_count(geometry))

    def max_count(self, geometry: Geometry) -> int:
        """Return the largest count whose bytes fit."""
        fits, fails = 0, geometry.length + 1
        while fails - fits > 1:
            count = (fits + fails) // 2
            if self._bytes(count, geometry) <= self.size:
                fits = count
            else:
                fails = count
        return fits

    def _bytes(self, count: int, geometry: Geometry) -> int:
        return _HEADER_BYTES + Rice().max_bytes(count, geometry) + math.ceil(count * self.bits / 8)
