"""Asymmetric numeral systems: symbols as bytes at the entropy of a model that both ends share.

What lives here: one integer that grows by log2(1 / probability) bits with each symbol, alone and in lanes. What must
not: any model of what is coded, of which it sees nothing but weights, as whole numbers.

**Theory.** rANS: Duda 2013 (arXiv 1311.2540); renormalised in words and interleaved after Giesen 2014 (arXiv
1402.3392). A symbol owns the slots [start, start + size) of 4096. The state x, within [2**16, 2**32), takes a symbol
in by

    while x >= size * 2**20: send the low 16 bits of x and drop them           at most once
    x = (x // size) * 4096 + start + x % size

and gives it back by looking which symbol owns slot x % 4096. The last symbol in is the first one out, so an encoder
collects all symbols in the order of decoding and then works backwards. It begins with x = 2**16, so a decoder must end
there, and cut or altered bytes are refused nearly always.

    stream = x (high word, low word), then the words to read in, in the order of decoding; all words little-endian

One state decodes a symbol in a quarter to half a microsecond of plain Python. Where there are tens of thousands of
symbols, they can take turns in many states, the *lanes*: a step of numpy for all lanes costs as much as fifty symbols.

**Why our own.** Integers only, so every machine decodes the same bits, and nothing to compile. The package
constriction (0.5.0; Bamler 2022, arXiv 2201.01741) takes nanoseconds for a symbol and 1 MB of memory, but we found no
wheel of it for a Raspberry Pi (aarch64, armv7l), where it needs a Rust compiler.
"""

import copy
import itertools
import math
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.bits import Reader
from fedmq.errors import WireError

SCALE_BITS: Final = 12
SCALE: Final = 1 << SCALE_BITS
"""How many slots the symbols of a table share."""

DIGIT_BITS: Final = 10
"""Of the largest base of a digit, 1024: four slots for each value, so that uneven ones cost nothing to speak of."""

Table: TypeAlias = tuple[int, ...]
"""Where each symbol's slots begin, and at the end 4096. Every symbol that may occur has at least one."""

_LOW: Final = 1 << 16


def make_table(weights: Sequence[int]) -> Table:
    """Share the slots out in proportion to whole numbers; a weight of 0 gets none, any other at least one.

    What rounding leaves over goes to the heaviest, the first of several. At least one weight is above 0, at most
    4096 are.
    """
    total, used = sum(weights), sum(weight > 0 for weight in weights)
    sizes = [1 + weight * (SCALE - used) // total if weight else 0 for weight in weights]
    sizes[weights.index(max(weights))] += SCALE - sum(sizes)
    return tuple(itertools.accumulate(sizes, initial=0))


class Coder(ABC):
    """Writes symbols or reads them: a model that calls it needs to be written only once.

    Every method returns the symbols; a reader takes no notice of those it is given.
    """

    @abstractmethod
    def bit(self, zero: int, bit: int = 0) -> int:
        """Code a bit of which 0 owns the first `zero` slots, from 1 to 4095 of them."""

    @abstractmethod
    def symbols(self, tables: Sequence[Table], symbols: Sequence[int] = ()) -> Sequence[int]:
        """Code a symbol by each table."""

    @abstractmethod
    def digits(self, bases: Sequence[int], digits: Sequence[int] = ()) -> Sequence[int]:
        """Code a number below each base, all values alike; a base is from 1 to 1024."""


class Encoder(Coder):
    """Collects symbols in the order of decoding.

    Attributes:
        starts: where the slots of each begin.
        sizes: how many it has.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.sizes: list[int] = []

    def bit(self, zero: int, bit: int = 0) -> int:  # noqa: D102 - see `Coder`
        self.starts.append(zero if bit else 0)
        self.sizes.append(SCALE - zero if bit else zero)
        return bit

    def symbols(self, tables: Sequence[Table], symbols: Sequence[int] = ()) -> Sequence[int]:  # noqa: D102 - see `Coder`
        for table, symbol in zip(tables, symbols, strict=True):
            start = table[symbol]
            self.starts.append(start)
            self.sizes.append(table[symbol + 1] - start)
        return symbols

    def digits(self, bases: Sequence[int], digits: Sequence[int] = ()) -> Sequence[int]:  # noqa: D102 - see `Coder`
        for base, digit in zip(bases, digits, strict=True):
            start = (digit << SCALE_BITS) // base
            self.starts.append(start)
            self.sizes.append((digit + 1 << SCALE_BITS) // base - start)
        return digits

    @property
    def bits(self) -> float:
        """How many bits the symbols take, but for what the stream itself takes."""
        return sum(SCALE_BITS - math.log2(size) for size in self.sizes)

    def extend(self, other: "Encoder") -> None:
        """Take in the symbols of another encoder behind these."""
        self.starts += other.starts
        self.sizes += other.sizes

    def finish(self) -> bytes:
        """Return the stream of all symbols."""
        state, words = _LOW, array("H")
        for start, size in zip(reversed(self.starts), reversed(self.sizes), strict=True):
            if state >= size << 20:
                words.append(state & 0xFFFF)
                state >>= 16
            state += state // size * (SCALE - size) + start
        words.extend((state & 0xFFFF, state >> 16))
        words.reverse()
        return np.array(words, "<u2").tobytes()


class Decoder(Coder):
    """Reads a stream of one state.

    Args:
        reader: where it begins; `finish` leaves it behind the last byte.

    Raises:
        WireError: from any method: the stream is cut off or is not one.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        rest = copy.copy(reader).take(reader.remaining, "stream")
        self._words = array("H", np.frombuffer(rest[: len(rest) // 2 * 2], "<u2").astype(np.uint16).tobytes())
        if len(self._words) < 2 or not self._words[0]:
            raise reader.fail(f"{len(rest)} bytes are not a stream of symbols")
        self._state = self._words[0] << 16 | self._words[1]
        self._position = 2

    def bit(self, zero: int, bit: int = 0) -> int:  # noqa: D102 - see `Coder`
        slot = self._state % SCALE
        bit = int(slot >= zero)
        start, size = (zero, SCALE - zero) if bit else (0, zero)
        self._state = size * (self._state >> SCALE_BITS) + slot - start
        if self._state < _LOW:
            if self._position >= len(self._words):
                raise self._cut_off()
            self._state = self._state << 16 | self._words[self._position]
            self._position += 1
        return bit

    def symbols(self, tables: Sequence[Table], symbols: Sequence[int] = ()) -> Sequence[int]:  # noqa: D102 - see `Coder`
        # Names of this function alone and no calls: this loop is most of the time of a decode.
        state, position, words = self._state, self._position, self._words
        found = []
        try:
            for table in tables:
                slot = state & (SCALE - 1)
                symbol = bisect_right(table, slot) - 1
                start = table[symbol]
                state = (table[symbol + 1] - start) * (state >> SCALE_BITS) + slot - start
                if state < _LOW:
                    state = state << 16 | words[position]
                    position += 1
                found.append(symbol)
        except IndexError as error:
            raise self._cut_off() from error
        self._state, self._position = state, position
        return found

    def digits(self, bases: Sequence[int], digits: Sequence[int] = ()) -> Sequence[int]:  # noqa: D102 - see `Coder`
        state, position, words = self._state, self._position, self._words
        found = []
        try:
            for base in bases:
                slot = state & (SCALE - 1)
                digit = ((slot + 1) * base - 1) >> SCALE_BITS
                start = (digit << SCALE_BITS) // base
                size = (digit + 1 << SCALE_BITS) // base - start
                state = size * (state >> SCALE_BITS) + slot - start
                if state < _LOW:
                    state = state << 16 | words[position]
                    position += 1
                found.append(digit)
        except IndexError as error:
            raise self._cut_off() from error
        self._state, self._position = state, position
        return found

    def finish(self) -> None:
        """Check that the stream ends here."""
        if self._state != _LOW:
            raise self._reader.fail("a stream of symbols does not end where it began")
        self._reader.take(2 * self._position, "stream")

    def _cut_off(self) -> WireError:
        return self._reader.fail("a stream of symbols is cut off")


def encode_lanes(starts: NDArray[np.uint16], sizes: NDArray[np.uint16], lanes: int) -> bytes:
    """Encode symbols given by their slots; symbol i goes to lane i modulo the number of lanes.

    The stream holds the states of all lanes, then their words: step by step, within a step by lane.
    """
    states = np.full(lanes, _LOW, np.uint64)
    words: list[NDArray[np.uint16]] = []
    for first in reversed(range(0, starts.shape[0], lanes)):
        size = sizes[first : first + lanes].astype(np.uint64)
        state = states[: size.shape[0]]
        full = state >= size << np.uint64(20)
        words.append(state[full].astype(np.uint16))
        state = np.where(full, state >> np.uint64(16), state)
        state += state // size * (SCALE - size) + starts[first : first + lanes]
        states[: size.shape[0]] = state
    head = np.stack((states >> np.uint64(16), states & np.uint64(0xFFFF)), axis=1).reshape(-1)
    return np.concatenate((head.astype("<u2"), *reversed(words)), dtype="<u2").tobytes()


def decode_lanes(
    reader: Reader, tables: Sequence[Table], which: NDArray[np.uint8], lanes: int
) -> NDArray[np.uint8]:
    """Read what `encode_lanes` wrote.

    Args:
        reader: where the stream begins; left behind its last byte.
        tables: at most 256, of at most 128 symbols each. For each, 16 KiB are allocated.
        which: the table of each symbol, shape (n,).
        lanes: how many.

    Returns:
        The symbols, shape (n,).

    Raises:
        WireError: the stream is cut off or does not end where it began.
    """
    rest = copy.copy(reader).take(reader.remaining, "stream")
    words = np.frombuffer(rest[: len(rest) // 2 * 2], "<u2").astype(np.uint32)
    if words.shape[0] < 2 * lanes or not words[: 2 * lanes : 2].all():
        raise reader.fail(f"{len(rest)} bytes are not a stream of {lanes} lanes")
    states = words[: 2 * lanes : 2] << 16 | words[1 : 2 * lanes : 2]
    slots = np.concatenate([_slots(table) for table in tables])
    symbols = np.empty(which.shape[0], np.uint8)
    position = 2 * lanes
    for first in range(0, which.shape[0], lanes):
        table = which[first : first + lanes].astype(np.int32)
        state = states[: table.shape[0]]
        slot = slots[(table << SCALE_BITS) + (state & (SCALE - 1))]
        symbols[first : first + lanes] = slot & 0x7F
        state = (slot >> 7 & 0x1FFF) * (state >> SCALE_BITS) + (slot >> 20)
        low = np.flatnonzero(state < _LOW)
        if low.shape[0]:
            following = words[position : position + low.shape[0]]
            if following.shape[0] < low.shape[0]:
                raise reader.fail("a stream of symbols is cut off")
            state[low] = state[low] << 16 | following
            position += low.shape[0]
        states[: state.shape[0]] = state
    if (states != _LOW).any():
        raise reader.fail("a stream of symbols does not end where it began")
    reader.take(2 * position, "stream")
    return symbols


def _slots(table: Table) -> NDArray[np.uint32]:
    """For each slot its symbol (7 bits), the symbol's size (13 bits) and the place within it (12 bits)."""
    starts = np.array(table, np.uint32)
    sizes = starts[1:] - starts[:-1]
    symbols = np.repeat(np.arange(sizes.shape[0], dtype=np.uint32), sizes)
    places = np.arange(SCALE, dtype=np.uint32) - starts[symbols]
    return (symbols | sizes[symbols] << 7 | places << 20).astype(np.uint32, copy=False)
