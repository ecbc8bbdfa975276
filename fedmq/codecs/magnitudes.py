"""Codes taken apart: a sign, a bin of magnitudes that are about equally likely, and low bits that say which of them.

What lives here: arithmetic of whole numbers, both ways. What must not: probabilities, and bytes (`entropy`).

A quantiser's codes are whole numbers of some width that mean something to it alone. An entropy coder does better when
it sees which part of them is likely and which is noise. Of four readings the encoder takes the shortest:

* plain: the code is a magnitude.
* zigzag: codes 0, 1, 2, 3, 4, … are 0, -1, 1, -2, 2, …
* complement: the code is a two's complement.
* sign: the top bit is a sign and the others are a magnitude, as in floating point.

Magnitudes below 16 have a bin each, and those from 2**e to 2**(e + 1) eight bins of equal width. With reading `sign`
the bin is the top seven bits. There is a sign where the magnitude is not 0, and always with reading `sign`.
"""

import functools
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.base import Codes
from fedmq.codecs.counttree import Flags, Integers

Widths: TypeAlias = NDArray[np.uint8]

BINS: Final = 128
_TOP_BITS: Final = 7
_SMALL: Final = 16


class Reading(IntEnum):
    """What codes are read as; plain when there is no sign."""

    PLAIN = 0
    ZIGZAG = 1
    COMPLEMENT = 2
    SIGN = 3


def readings(bits: int) -> tuple[Reading, ...]:
    """Return the readings that codes of a width may have: those for which there are bins enough and a difference."""
    if bits == 1:
        return (Reading.PLAIN, Reading.SIGN)
    return tuple(Reading) if bits <= 16 else (Reading.SIGN,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Codes taken apart.

    Attributes:
        bins: below 128; uint8, shape (n,).
        negative: whether each has a minus sign; shape (n,).
        lows: how far each is above the first magnitude of its bin; int64, shape (n,).
    """

    bins: NDArray[np.uint8]
    negative: Flags
    lows: Integers


def take_apart(codes: Codes, bits: int, reading: Reading) -> Parts:
    """Take codes below 2**bits apart, by one of their `readings`."""
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
            magnitudes, negative = numbers % half, numbers >= half
    firsts, widths = layout(bits, reading)
    by_shift = reading is Reading.SIGN
    bins = (magnitudes >> widths[0]).astype(np.uint8) if by_shift else _bin_of_each()[magnitudes]
    return Parts(bins=bins, negative=negative, lows=magnitudes - firsts[bins])


def put_together(parts: Parts, bits: int, reading: Reading) -> Codes:
    """Undo `take_apart`.

    Raises:
        ValueError: a code would not be below 2**bits.
    """
    codes = magnitudes = layout(bits, reading)[0][parts.bins] + parts.lows
    half = 1 << bits - 1
    limits = np.full(magnitudes.shape, half, np.int64)
    match reading:
        case Reading.PLAIN:
            limits += half
        case Reading.ZIGZAG:
            codes, limits = 2 * magnitudes - parts.negative, limits + parts.negative
        case Reading.COMPLEMENT:
            codes, limits = (
                np.where(parts.negative, 2 * half - magnitudes, magnitudes),
                limits + parts.negative,
            )
        case Reading.SIGN:
            codes = magnitudes + half * parts.negative
    if (magnitudes >= limits).any():
        raise ValueError(f"a code has more than {bits} bits")
    return codes.astype(np.uint8 if bits <= 8 else f"u{bits // 8}")


def has_bins(bits: int, reading: Reading) -> bool:
    """Tell whether a code has a magnitude at all: a sign of one bit has none."""
    return bits > 1 or reading is not Reading.SIGN


def has_sign(bins: NDArray[np.uint8], reading: Reading) -> Flags:
    """Tell which codes have a sign."""
    match reading:
        case Reading.PLAIN:
            return np.zeros(bins.shape, bool)
        case Reading.SIGN:
            return np.ones(bins.shape, bool)
    return bins > 0


@functools.cache
def layout(bits: int, reading: Reading) -> tuple[Integers, Widths]:
    """Return each bin's first magnitude and how many low bits it has, shape (128,) each."""
    bins = np.arange(BINS, dtype=np.int64)
    if reading is Reading.SIGN:
        widths = np.full(BINS, max(0, bits - 1 - _TOP_BITS), np.uint8)
        return bins << widths, widths
    above = np.maximum(0, bins - _SMALL)
    widths = np.where(bins < _SMALL, 0, above // 8 + 1).astype(np.uint8)
    return np.where(bins < _SMALL, bins, 8 + above % 8 << widths), widths


def typical_sizes(bits: int, reading: Reading) -> NDArray[np.float64]:
    """Return about how large a code in each bin is, in any unit; of wide codes with a sign a bin is an exponent."""
    sizes: NDArray[np.float64] = layout(bits, reading)[0].astype(np.float64)
    if reading is Reading.SIGN and bits >= 16:
        sizes = np.exp2(np.arange(BINS) * (0.25 if bits == 16 else 2.0))
    return sizes


@functools.cache
def _bin_of_each() -> NDArray[np.uint8]:
    """Return the bin of each magnitude up to 2**16, of the readings but `SIGN`."""
    firsts, _ = layout(16, Reading.PLAIN)
    return (np.searchsorted(firsts, np.arange(2**16 + 1), side="right") - 1).astype(np.uint8)
