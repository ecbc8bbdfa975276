"""Quantisers that round at random, so that they are right in the mean."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedmq.codecs.base import Quantizer, Symbols
from fedmq.codecs.blocks import (
    NO_PARAMETERS,
    count_blocks,
    find_scales,
    require_block,
    require_scales,
    spread,
)
from fedmq.codecs.splitmix import draw_unit, seed_of
from fedmq.codecs.vector import FloatVector
from fedmq.errors import CodecError


@dataclass(frozen=True, slots=True, kw_only=True)
class QSGD(Quantizer):
    """Integers of few bits with one float32 scale per block of consecutive values, rounded at random.

    QSGD (Alistarh et al. 2017, arXiv 1610.02132), for whoever averages many updates: a value between two multiples of
    the scale becomes the upper one with the chance that makes the mean exact, but for 2**-23 of the step. The error is
    below one step; a value never changes its sign. Error feedback does not need the chance and pays for it: 2 bits keep
    a residual of eight times a Gaussian update's norm, where `eden(1)` keeps 0.8 of it, 4 bits twice that of `eden(4)`.

    The scale is max|x| / (2**(bits - 1) - 1). The paper's theorem divides by the block's Euclidean norm instead; its
    experiments take the maximum, and so does this: of 512 Gaussian values the norm is seven times the maximum, and
    so would be the step. The norm pays only where an entropy coder removes the many zeros. With 2 bits this is TernGrad
    (Wen et al. 2017, arXiv 1705.07878).

    The random numbers are those of `splitmix.draw_unit` for the seed of the values. A decoder needs none.

    Attributes:
        bits: width of a code: 2, 4 or 8.
        block: values that share a scale, from 1 to 2**31 - 1.
    """

    id: ClassVar[str] = "qsgd"
    bits: int = field()
    block: int = 512

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise CodecError(f"qsgd: bits = {self.bits!r} cannot be used: it is 2, 4 or 8")
        require_block(self, self.block)

    @property
    def _steps(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def parameter_count(self, count: int) -> int:
        """Return one scale for each block begun."""
        return count_blocks(count, self.block)

    def quantize(self, values: FloatVector) -> Symbols:
        """Find each block's scale and round to one of the two multiples of it nearby."""
        count = values.shape[0]
        if not count:
            return Symbols(parameters=NO_PARAMETERS, codes=np.zeros(0, np.uint8))
        scales = find_scales(values, self.block, self._steps)
        # Where the scale is 0, so is the ratio.
        ratio = np.abs(values) / spread(np.where(scales > 0, scales, np.float32(np.inf)), self.block, count)
        levels = np.floor(ratio)
        levels += draw_unit(seed_of(values), count) < ratio - levels
        codes = np.copysign(np.minimum(levels, self._steps), values).astype(np.int8).view(np.uint8)
        return Symbols(parameters=scales, codes=codes & np.uint8(2**self.bits - 1))

    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return code times scale, one float32 rounding. Codes are two's complement.

        Raises:
            ValueError: the lowest code, or a scale that is negative, subnormal, not finite, or so large that the
                highest code's value is not.
        """
        require_scales(symbols.parameters, self._steps)
        unused = 8 - self.bits
        codes = (symbols.codes << np.uint8(unused)).view(np.int8) >> np.int8(unused)
        if (codes < -self._steps).any():
            raise ValueError(f"code {-self._steps - 1} is not used")
        return codes.astype(np.float32) * spread(symbols.parameters, self.block, count)
