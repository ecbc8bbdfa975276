"""Quantisers: float32 values as integers of a fixed width.

Each says how far a decoded value may be from the original. Rounding is deterministic: what it loses is not
lost, it stays in the sender's residual (law 8). A decoded value never has the opposite sign of the original
and never exceeds the largest original magnitude by more than half a step, so the residual cannot overflow.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Quantizer, Symbols
from fedmq.codecs.vector import FloatVector
from fedmq.errors import CodecError

_NO_PARAMETERS = np.zeros(0, np.float32)
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
# Rounded down, so that 127 steps of it are finite.
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))


def _require_finite(numbers: FloatVector | NDArray[np.float16]) -> None:
    """Refuse NaN and infinity by their bits, before arithmetic that would warn of a signalling NaN."""
    if not np.isfinite(numbers).all():
        raise ValueError("a value or scale is not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Float32(Quantizer):
    """Values as they are, bit for bit: four bytes each."""

    id: ClassVar[str] = "float32"

    @property
    def bits(self) -> int:
        """Return 32."""
        return 32

    def parameter_count(self, count: int) -> int:
        """Return 0."""
        return 0

    def quantize(self, values: FloatVector) -> Symbols:
        """Take the bits of each value."""
        return Symbols(parameters=_NO_PARAMETERS, codes=values.view(np.uint32))

    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return the values.

        Raises:
            ValueError: one is not finite.
        """
        values = symbols.codes.view(np.float32)
        _require_finite(values)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Float16(Quantizer):
    """IEEE 754 half precision, rounded to nearest, ties to even: two bytes each.

    The error of a value x is at most 2**-11 |x| + 2**-25. A magnitude above 65504 is sent as 65504: the
    largest half, because infinity would spoil the model and refusing would stop whoever sends.
    """

    id: ClassVar[str] = "float16"

    @property
    def bits(self) -> int:
        """Return 16."""
        return 16

    def parameter_count(self, count: int) -> int:
        """Return 0."""
        return 0

    def quantize(self, values: FloatVector) -> Symbols:
        """Round to half precision, saturating."""
        largest = np.float32(np.finfo(np.float16).max)
        halves = np.clip(values, -largest, largest).astype(np.float16)
        return Symbols(parameters=_NO_PARAMETERS, codes=halves.view(np.uint16))

    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return the halves as float32, which is exact.

        Raises:
            ValueError: one is not finite.
        """
        halves = symbols.codes.view(np.float16)
        _require_finite(halves)
        return halves.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8(Quantizer):
    """Symmetric 8-bit integers with one float32 scale per block of consecutive values.

    The scale is max|x| / 127 over the block, and a code is x / scale rounded to nearest, ties to even. The
    error is at most half a step: 0.5 * scale * (1 + 2**-15). A block whose values are all below
    127 * 2**-126 (1.5e-36) is sent as zeros, so that no subnormal number enters the arithmetic.

    One scale for the whole vector would follow its largest value; a block contains the damage. For an MLP
    784-128-10 trained on MNIST digits, 1024 values to a block have a quarter of the relative error of one
    scale for all (0.8 % against 3.3 %; an epoch's update: 1.0 % against 5.7 %) for 0.4 % more bytes.

    Attributes:
        block: values that share a scale, from 1 to 2**31 - 1.
    """

    id: ClassVar[str] = "int8"
    block: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.block < 2**31:
            raise CodecError(
                f"int8: block = {self.block!r} cannot be used: it is a number of values from 1 to 2**31 - 1"
            )

    @property
    def bits(self) -> int:
        """Return 8."""
        return 8

    def parameter_count(self, count: int) -> int:
        """Return one scale for each block begun."""
        return -(-count // self.block)

    def quantize(self, values: FloatVector) -> Symbols:
        """Find each block's scale and round to multiples of it."""
        if not values.shape[0]:
            return Symbols(parameters=_NO_PARAMETERS, codes=np.zeros(0, np.uint8))
        starts = np.arange(0, values.shape[0], self.block)
        largest: FloatVector = np.maximum.reduceat(np.abs(values), starts)
        scales = np.minimum(largest / np.float32(127), _LARGEST_SCALE)
        scales[scales < _SMALLEST_NORMAL] = 0
        # Where the scale is 0, all values are far below half of 1: dividing by 1 gives the codes 0.
        steps = np.where(scales > 0, scales, np.float32(1))
        codes = np.rint(values / self._spread(steps, values.shape[0]))
        return Symbols(parameters=scales, codes=codes.astype(np.int8).view(np.uint8))

    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return code times scale, one float32 rounding.

        Raises:
            ValueError: a code of -128, or a scale that is negative, subnormal, not finite, or so large that
                127 steps are not.
        """
        scales, codes = symbols.parameters, symbols.codes.view(np.int8)
        _require_finite(scales)
        usable = (scales <= _LARGEST_SCALE) & ((scales >= _SMALLEST_NORMAL) | (scales == 0))
        if not usable.all():
            raise ValueError(f"a scale of {scales[~usable][0]} cannot be used")
        if (codes == -128).any():
            raise ValueError("code -128 is not used")
        return codes.astype(np.float32) * self._spread(scales, codes.shape[0])

    def _spread(self, scales: FloatVector, count: int) -> FloatVector:
        return np.repeat(scales, self.block if scales.shape[0] > 1 else count)[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ternary(Quantizer):
    """One magnitude for all values and a sign bit each.

    STC (Sattler et al. 2019, arXiv 1903.02891), Algorithm 1.

    The magnitude is the mean of |x| over the kept values. The third value, zero, is a coordinate that was not
    kept, so it needs a sparsifier before it. The error of a value x is ||x| - mean|.
    """

    id: ClassVar[str] = "ternary"
    codes_zero: ClassVar[bool] = False

    @property
    def bits(self) -> int:
        """Return 1."""
        return 1

    def parameter_count(self, count: int) -> int:
        """Return one magnitude, none when there are no values."""
        return min(count, 1)

    def quantize(self, values: FloatVector) -> Symbols:
        """Take the mean magnitude, summed in float64 and rounded to float32, and the signs."""
        if not values.shape[0]:
            return Symbols(parameters=_NO_PARAMETERS, codes=np.zeros(0, np.uint8))
        magnitude = np.abs(values).mean(dtype=np.float64).astype(np.float32)
        return Symbols(parameters=magnitude.reshape(1), codes=(values < 0).view(np.uint8))

    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return the magnitude with each sign; no arithmetic, so exact.

        Raises:
            ValueError: the magnitude is negative or not finite.
        """
        if not symbols.codes.shape[0]:
            return symbols.parameters
        magnitude = symbols.parameters[0]
        if not np.isfinite(magnitude) or np.signbit(magnitude):
            raise ValueError(f"a magnitude of {magnitude} cannot be used")
        values: FloatVector = np.where(symbols.codes, -magnitude, magnitude)
        return values
