"""Bits and small numbers whose probabilities are learnt while they are coded.

What lives here: models that both ends keep alike, for a `rans.Coder` that writes or reads. A bit takes about a
microsecond, so they are for some thousand symbols: the signs of a sparse update, and side information.

Chances are counted as Krichevsky and Trofimov do (1981), but with a quarter of a bit of each kind to begin with instead
of half, since most of what is coded here is nearly always the same.
"""

from collections.abc import Sequence
from typing import Final

from fedmq.codecs.rans import SCALE, SCALE_BITS, Coder

_SEEN: Final = 4  # what one bit counts, where a bit that was never seen counts 1


class NumberModel:
    """Whole numbers of which small ones are likely: Elias gamma code (1975) with learnt bits.

    number + 1 has a top bit of value 2**e. First e, as that many ones and a zero, each with a count of its own; then
    the bit below the top, likewise for each e; then the others, as likely 0 as 1.

    Args:
        largest: of the numbers that may be read; at least 1.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._more = [[1, 1] for _ in range((largest + 1).bit_length())]
        self._next = [[1, 1] for _ in range((largest + 1).bit_length())]

    def code(self, coder: Coder, number: int = 0) -> int:
        """Code a number.

        Raises:
            ValueError: one that was read is too large.
        """
        bits, doublings = number + 1, 0
        while _code_bit(coder, self._more[doublings], int(bits >> doublings + 1 > 0)):
            doublings += 1
            if doublings == len(self._more):
                raise ValueError("a number is too large")
        found = 1
        for place in reversed(range(doublings)):
            bit = bits >> place & 1
            if place == doublings - 1:
                found = found << 1 | _code_bit(coder, self._next[doublings], bit)
            else:
                found = found << 1 | coder.bit(SCALE // 2, bit)
        if found > self._largest + 1:
            raise ValueError("a number is too large")
        return found - 1

    def code_step(self, coder: Coder, step: int = 0) -> int:
        """Code a number of either sign, 0, -1, 1, -2, 2 and so on as 0, 1, 2, 3, 4 and so on."""
        number = self.code(coder, 2 * step if step >= 0 else -2 * step - 1)
        return -(number + 1 >> 1) if number & 1 else number >> 1


def code_signs(coder: Coder, rows: Sequence[int], signs: Sequence[int] = ()) -> list[int]:
    """Code signs, of which those of a row are mostly alike.

    The chance of a 1 is that among the signs of the row so far, the last of them counted twice. The counts are halved
    when they get above eight signs, so it follows the latest.

    Args:
        coder: writes or reads.
        rows: a number for the row that each is in; those of a row follow each other.
        signs: 0 or 1 each; anything when reading.
    """
    found: list[int] = []
    row, counts, last = -1, [1, 1], [0, 0]
    for this, known in zip(rows, signs or [0] * len(rows), strict=True):
        if this != row:
            row, counts, last = this, [1, 1], [0, 0]
        zeros, ones = counts[0] + last[0], counts[1] + last[1]
        sign = coder.bit((zeros << SCALE_BITS) // (zeros + ones), known)
        found.append(sign)
        last = [0, _SEEN] if sign else [_SEEN, 0]
        counts[sign] += _SEEN
        if counts[0] + counts[1] > 8 * _SEEN + 2:
            counts = [counts[0] + 1 >> 1, counts[1] + 1 >> 1]
    return found


def _code_bit(coder: Coder, counts: list[int], bit: int) -> int:
    zeros, ones = counts
    bit = coder.bit((zeros << SCALE_BITS) // (zeros + ones), bit)
    counts[bit] += _SEEN
    if counts[0] + counts[1] > _SEEN * 255:
        counts[:] = counts[0] + 1 >> 1, counts[1] + 1 >> 1
    return bit
