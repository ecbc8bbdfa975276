"""Codes taken apart: a sign, a bin of magnitudes that are about equally likely, and low bits that say which of them.

What lives here: arithmetic of whole numbers, both ways. What must not: probabilities, and bytes (`entropy`).

A quantiser's codes are whole numbers of some width that mean something to it alone. An entropy coder does better when
it sees which part is likely and which is noise. Four readings, of which the encoder takes the one that is shortest:

* plain: the code is a magnitude.
* zigzag: codes 0, 1, 2, 3, 4, … are 0, -1, 1, -2, 2, …
* complement: the code is a two's complement.
* sign: the top bit is a sign and the others are a magnitude, as in floating point.

Magnitudes below 32 have a bin each; from 2**e to 2**(e + 1) there are four bins of equal width. With reading `sign`
a bin is the top seven bits. A sign is there where the magnitude is not 0; with reading `sign` always.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Codes
from fedmq.codecs.counttree import Flags, Integers, doublings

_SMALL: Final = 32
_SMALL_BITS: Final = 5
_TOP_BITS: Final = 7
BINS: Final = 128


class Reading(IntEnum):
    """What codes are read as."""

    PLAIN = 0
    ZIGZAG = 1
    COMPLEMENT = 2
    SIGN = 3


def readings(bits: int) -> tuple[Reading, ...]:
    """Return the readings that codes of a width may have: one of 32 bits has too many bins for all but `SIGN`."""
    if bits == 1:
        return (Reading.PLAIN, Reading.SIGN)
    return tuple(Reading) if bits <= 16 else (Reading.SIGN,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Codes taken apart.

    Attributes:
        bins: below 128; uint8, shape (n,).
        negative: whether each is negative, False where it has no sign; shape (n,).
        lows: the low bits, as wide as `low_widths` says; int64, shape (n,).
    """

    bins: NDArray[np.uint8]
    negative: Flags
    lows: Integers


def take_apart(codes: Codes, bits: int, reading: Reading) -> Parts:
    """Take codes below 2**bits apart."""
    numbers = codes.astype(np.int64)
    half = 1 << bits - 1
    match reading:
        case Reading.PLAIN:
            magnitudes, negative = numbers, np.zeros(numbers.shape, bool)
        case Reading.ZIGZAG:
            magnitudes, negative = numbers + 1 >> 1, numbers % 2 == 1
        case Reading.COMPLEMENT:
            negative = numbers >= half
            magnitudes = np.where(negative, 2 * half - numbers, numbers)
        case Reading.SIGN:
            negative = numbers >= half
            magnitudes = numbers % half
    bins = _bins(magnitudes, bits, reading)
    return Parts(bins=bins, negative=negative, lows=magnitudes - _firsts(bits, reading)[bins])


def put_together(parts: Parts, bits: int, reading: Reading) -> Codes:
    """Undo `take_apart`.

    Raises:
        ValueError: a code has more bits.
    """
    magnitudes = _firsts(bits, reading)[parts.bins] + parts.lows
    half = 1 << bits - 1
    match reading:
        case Reading.PLAIN:
            codes = magnitudes
        case Reading.ZIGZAG:
            codes = 2 * magnitudes - parts.negative
        case Reading.COMPLEMENT:
            codes = np.where(parts.negative, 2 * half - magnitudes, magnitudes)
            if (magnitudes >= half + parts.negative).any():
                raise ValueError(f"a number has more than {bits} bits")
        case Reading.SIGN:
            codes = magnitudes + half * parts.negative
            if magnitudes.max() >= half: ...
    return codes
