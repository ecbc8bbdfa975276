"""A quantiser that turns a vector before it rounds: the random rotation makes all values alike.

Theory of operation of `Eden`. Seen from a random side, any vector looks like Gaussian noise of one standard deviation:
so one table of centroids, the best ones for a Gaussian (Lloyd 1982, Max 1960), serves all vectors, without their
largest values setting the step. What is sent is the centroid's number for each turned value and a scale for each
block. The decoder puts the centroids in place and turns them back.

The rotation is that of DRIVE: random signs, then the Walsh-Hadamard transform. It needs additions only, and its length
is a power of two, p: the largest one up to 4096 that the vector holds.

    turn:  negate value i where sign bit i is 1
           transform each p consecutive values; n mod p are left at the end
           if any are left: negate value n - p + i where sign bit n + i is 1, then transform the last p values
    transform: multiply by float32(p ** -0.5); then for h = 1, 2, 4, … p / 2: in each 2 h consecutive values,
           a in the lower half and b, h behind it, become a + b and a - b

The blocks that have a scale are the n // p runs of p values; the last one has what is left over, too. Turning back is
the same in the reverse order, negation after the transform. All of it is float32, one rounding for each operation, so
that both ends agree in every bit. Scales are 0 or from 2**-60 to 2**60: within that, nothing becomes subnormal or
infinite on the way, and a decoded value is too small to make the residual of any float32 infinite. A block that needs
less is sent as zeros, one that needs more is cut short: both stay in the residual.
"""

import itertools
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Quantizer, Symbols
from fedmq.codecs.bits import BitVector
from fedmq.codecs.blocks import NO_PARAMETERS, require_finite
from fedmq.codecs.splitmix import draw_bits, seed_of
from fedmq.codecs.vector import FloatVector
from fedmq.errors import CodecError

_LONGEST: Final = 4096
_LEAST_SCALE: Final = np.float32(2.0**-60)
_LARGEST_SCALE: Final = np.float32(2.0**60)
# Larger values are cut before they are turned: their sums would be infinite, and the scale is cut anyhow.
_LARGEST_VALUE: Final = np.float32(2.0**100)

_CENTROIDS: Final = (
    (0.7978846,),
    (0.45278004, 1.5104176),
    (0.24509418, 0.7560053, 1.3439093, 2.1519456),
    (0.12839504, 0.3880483, 0.65675914, 0.94234043, 1.2562312, 1.6180464, 2.0690172, 2.7325895),
)
"""Positive centroids of 2, 4, 8 and 16 levels for a standard normal variable; the negative ones mirror them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eden(Quantizer):
    """A random rotation and then 1 to 4 bits for each value, for dense vectors.

    EDEN (Vargaftik et al. 2022, arXiv 2108.08842), with 1 bit DRIVE (Vargaftik et al. 2021, arXiv 2105.08339). With y
    the turned values of a block and q their centroids, the scale S that the decoder multiplies q with is

        <y, q> / <q, q>    smallest squared error: 0.363, 0.117, 0.0345, 0.0095 of that of zeros for 1 … 4 bits
        <x, x> / <y, q>    right in the mean over the seed: 0.571, 0.133, 0.0358, 0.0096

    Error feedback wants the first, averaging without it the second. There is no bound for one value: the error of a
    block spreads over all its values alike.

    Attributes:
        bits: width of a code, 1 to 4.
        unbiased: 1 for the second scale, 0 for the first.
    """

    id: ClassVar[str] = "eden"
    seeded: ClassVar[bool] = True
    is_placed: ClassVar[bool] = False
    bits: int = field()
    unbiased: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= len(_CENTROIDS):
            raise CodecError(f"eden: bits = {self.bits!r} cannot be used: it is from 1 to {len(_CENTROIDS)}")
        if self.unbiased not in (0, 1):
            raise CodecError(
                f"eden: unbiased = {self.unbiased!r} cannot be used: it is 0 for the least error, "
                "1 for an error that is 0 in the mean"
            )

    @property
    def _centroids(self) -> FloatVector:
        positive = np.array(_CENTROIDS[self.bits - 1], np.float32)
        return np.concatenate((-positive[::-1], positive))

    def parameter_count(self, count: int) -> int:
        """Return one scale for each block."""
        return count // rotation_length(count) if count else 0

    def quantize(self, values: FloatVector) -> Symbols:
        """Turn, find the nearest centroids, and the scale for them."""
        count = values.shape[0]
        if not count:
            return Symbols(parameters=NO_PARAMETERS, codes=np.zeros(0, np.uint8))
        seed = seed_of(values)
        turned = rotate(np.clip(values, -_LARGEST_VALUE, _LARGEST_VALUE), seed)
        sizes = self._sizes(count)
        starts = np.cumsum(sizes) - sizes
        energy: NDArray[np.float64] = np.add.reduceat(np.square(turned, dtype=np.float64), starts)
        deviation: FloatVector = np.sqrt(energy / sizes).astype(np.float32)
        deviation[deviation == 0] = 1
        of_each: FloatVector = np.repeat(deviation, sizes)
        codes = self._nearest(turned / of_each)
        centroids = self._centroids[codes]
        product = np.add.reduceat(np.multiply(turned, centroids, dtype=np.float64), starts)
        if self.unbiased:
            scales = energy / np.where(energy > 0, product, 1)
        else:
            scales = product / np.add.reduceat(np.square(centroids, dtype=np.float64), starts)
        parameters: FloatVector = np.minimum(scales, _LARGEST_SCALE).astype(np.float32)
        parameters[parameters < _LEAST_SCALE] = 0
        return Symbols(parameters=parameters, codes=codes, seed=seed)

    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return the centroids times their block's scale, turned back.

        Raises:
            ValueError: a scale is not 0 and not from 2**-60 to 2**60.
        """
        scales = symbols.parameters
        if not count:
            return scales
        require_finite(scales)
        usable = (scales == 0) | ((scales >= _LEAST_SCALE) & (scales <= _LARGEST_SCALE))
        if not usable.all():
            raise ValueError(f"a scale of {scales[~usable][0]} cannot be used")
        turned = self._centroids[symbols.codes]
        turned *= np.repeat(scales, self._sizes(count))
        return rotate_back(turned, symbols.seed)

    def _sizes(self, count: int) -> NDArray[np.int64]:
        sizes = np.full(self.parameter_count(count), rotation_length(count), np.int64)
        sizes[-1] += count % rotation_length(count)
        return sizes

    def _nearest(self, values: FloatVector) -> NDArray[np.uint8]:
        """Return the numbers of the centroids, in their order, from the lowest one."""
        positive = _CENTROIDS[self.bits - 1]
        magnitude = np.abs(values)
        level = np.zeros(values.shape, np.uint8)
        for lower, upper in itertools.pairwise(positive):
            level += magnitude > np.float32((lower + upper) / 2)
        half = np.uint8(len(positive))
        return np.where(values < 0, half - np.uint8(1) - level, half + level)


def rotation_length(count: int) -> int:
    """Return how many of `count` ≥ 1 values are transformed together: a power of two, at most 4096."""
    return min(_LONGEST, 1 << (count.bit_length() - 1))


def rotate(values: FloatVector, seed: int) -> FloatVector:
    """Turn at least one value; values whose sums are finite. A new array."""
    count, length = values.shape[0], rotation_length(values.shape[0])
    whole = count // length * length
    signs = draw_bits(seed, count + length)
    turned = _negate(values, signs[:count])
    turned[:whole] = _transform(turned[:whole], length)
    if whole < count:
        turned[-length:] = _transform(_negate(turned[-length:], signs[count:]), length)
    return turned


def rotate_back(turned: FloatVector, seed: int) -> FloatVector:
    """Undo `rotate`, but for rounding. A new array."""
    count, length = turned.shape[0], rotation_length(turned.shape[0])
    whole = count // length * length
    signs = draw_bits(seed, count + length)
    values = turned.copy()
    if whole < count:
        values[-length:] = _negate(_transform(values[-length:], length), signs[count:])
    values[:whole] = _transform(values[:whole], length)
    return _negate(values, signs[:count])


def _negate(values: FloatVector, where: BitVector) -> FloatVector:
    return (values.view(np.uint32) ^ (where.astype(np.uint32) << np.uint32(31))).view(np.float32)


def _transform(values: FloatVector, length: int) -> FloatVector:
    """The orthonormal Walsh-Hadamard transform of each `length` consecutive values; a new array."""
    rows = values.reshape(-1, length)
    # A column for each run: the steps of one run, some of them 4 bytes apart, are slow on their own.
    source, target = np.empty(rows.shape[::-1], np.float32), np.empty(rows.shape[::-1], np.float32)
    np.multiply(rows.T, np.float32(length**-0.5), out=source)
    half = 1
    while half < length:
        before = source.reshape(-1, 2, half, rows.shape[0])
        after = target.reshape(before.shape)
        np.add(before[:, 0], before[:, 1], out=after[:, 0])
        np.subtract(before[:, 0], before[:, 1], out=after[:, 1])
        source, target = target, source
        half *= 2
    return source.T.reshape(-1)
