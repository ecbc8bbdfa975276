"""Blocks of consecutive values that share a parameter: a scale or a magnitude, one float32 each.

What the quantisers with a `block` argument have in common. The last block of a vector may be shorter.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Codec
from fedmq.codecs.vector import FloatVector
from fedmq.errors import CodecError
from fedmq.geometry import MAX_LENGTH

NO_PARAMETERS: Final = np.zeros(0, np.float32)
_SMALLEST_NORMAL: Final = np.finfo(np.float32).smallest_normal


def require_block(codec: Codec, block: int) -> None:
    """Check an argument that is the length of a block.

    Raises:
        CodecError: it is below 1, or no vector has so many values.
    """
    if not 1 <= block <= MAX_LENGTH:
        raise CodecError(
            f"{codec.id}: block = {block!r} cannot be used: it is a number of values from 1 to 2**31 - 1"
        )


def count_blocks(count: int, block: int) -> int:
    """Return how many blocks `count` values begin."""
    return -(-count // block)


def spread(parameters: FloatVector, block: int, count: int) -> FloatVector:
    """Give each of `count` values the parameter of its block."""
    return np.repeat(parameters, block if parameters.shape[0] > 1 else count)[:count]


def find_scales(values: FloatVector, block: int, steps: int) -> FloatVector:
    """Return max|x| / steps of each block, at most `largest_scale`; one that would be subnormal is 0.

    Args:
        values: at least one.
        block: how many share a scale.
        steps: the largest code.
    """
    largest: FloatVector = np.maximum.reduceat(np.abs(values), np.arange(0, values.shape[0], block))
    scales: FloatVector = np.minimum(largest / np.float32(steps), largest_scale(steps))
    scales[scales < _SMALLEST_NORMAL] = 0
    return scales


def require_scales(scales: FloatVector, steps: int) -> None:
    """Check what a peer sent for scales.

    Raises:
        ValueError: one is negative, subnormal, not finite, or above `largest_scale`.
    """
    require_finite(scales)
    usable = (scales <= largest_scale(steps)) & ((scales >= _SMALLEST_NORMAL) | (scales == 0))
    if not usable.all():
        raise ValueError(f"a scale of {scales[~usable][0]} cannot be used")


def largest_scale(steps: int) -> np.float32:
    """Return max / steps, rounded down: so many steps of it are finite."""
    largest: np.float32 = np.nextafter(np.finfo(np.float32).max / np.float32(steps), np.float32(0))
    return largest


def require_finite(numbers: FloatVector | NDArray[np.float16]) -> None:
    """Refuse NaN and infinity by their bits, before arithmetic that would warn of a signalling NaN.

    Raises:
        ValueError: there is one.
    """
    if not np.isfinite(numbers).all():
        raise ValueError("a value or scale is not finite")
