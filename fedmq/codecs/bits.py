"""Bits and bytes: a bounds-checked reader of untrusted bytes, varints, and bit planes.

Nothing here knows what the bits mean. Reading raises `WireError` and nothing else, and allocates only for
bytes that are there: a count is compared with what is left before anything is made of it (law 7).

Bits are packed most significant first, and a section that ends within a byte is padded with zeros. *Bit
planes* are how integers of a fixed width are packed: first the top bit of every integer, then the next bit of
every integer, and so on. Each plane is contiguous, so packing takes one numpy operation per plane and no
Python loop over elements.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import WireError

BitVector: TypeAlias = NDArray[np.uint8]
"""One bit per element, 0 or 1."""

_MAX_VARINT_BYTES = 5  # 35 bits: any int32 length


def encode_varint(number: int) -> bytes:
    """Encode a number of at most 35 bits, seven bits a byte, lowest first (unsigned LEB128)."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def pack_bits(bits: BitVector) -> bytes:
    """Pack bits into bytes, most significant first, padded with zeros."""
    return np.packbits(bits).tobytes()


def to_planes(numbers: NDArray[np.int64] | NDArray[np.uint8], width: int) -> BitVector:
    """Lay the low `width` bits of k numbers out as bit planes, shape (width * k,)."""
    planes = np.empty((width, numbers.shape[0]), np.uint8)
    for row in range(width):
        planes[row] = (numbers >> (width - 1 - row)) & 1
    return planes.reshape(-1)


def from_planes(bits: BitVector, count: int, width: int) -> NDArray[np.int64]:
    """Undo `to_planes`: `count` numbers of `width` bits, int64, shape (count,)."""
    numbers = np.zeros(count, np.int64)
    for plane in bits.reshape(width, count):
        numbers <<= 1
        numbers |= plane
    return numbers


class Reader:
    """A cursor over untrusted bytes.

    Args:
        data: the bytes, of any item format; read, never kept beyond the reader.
        what: what they are, for error messages.
    """

    __slots__ = ("_data", "_position", "what")

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data).cast("B")
        self._position = 0
        self.what = what

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def fail(self, reason: str) -> WireError:
        """Return the error to raise when the bytes are wrong."""
        return WireError(self.what, reason)

    def take(self, size: int, field: str) -> memoryview:
        """Read `size` bytes.

        Raises:
            WireError: fewer are left.
        """
        if size > self.remaining:
            raise self.fail(f"{field} needs {size} bytes, {self.remaining} are left")
        start = self._position
        self._position += size
        return self._data[start : self._position]

    def byte(self, field: str) -> int:
        """Read one byte.

        Raises:
            WireError: none is left.
        """
        return self.take(1, field)[0]

    def varint(self, field: str) -> int:
        """Read what `encode_varint` wrote.

        Raises:
            WireError: it is cut off, longer than five bytes, or padded with a zero byte (each number has
                one encoding).
        """
        number = 0
        for position in range(_MAX_VARINT_BYTES):
            byte = self.byte(field)
            number |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:
                if byte == 0 and position > 0:
                    raise self.fail(f"{field} is padded with a zero byte")
                return number
        raise self.fail(f"{field} is longer than {_MAX_VARINT_BYTES} bytes")

    def peek_bits(self, limit: int) -> BitVector:
        """Look at the next bits without reading them.

        Args:
            limit: how many are wanted at most; rounded up to whole bytes.

        Returns:
            Those that are there: at most `limit` rounded up, in whole bytes.
        """
        size = min(self.remaining, (limit + 7) // 8)
        window = self._data[self._position : self._position + size]
        return np.unpackbits(np.frombuffer(window, np.uint8))

    def bits(self, count: int, field: str) -> BitVector:
        """Read `count` bits and the padding behind them.

        Raises:
            WireError: fewer are left, or the padding is not zero.
        """
        packed = self.take((count + 7) // 8, field)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))
        if bits[count:].any():
            raise self.fail(f"{field} has padding bits that are not zero")
        return bits[:count]

    def finish(self) -> None:
        """Check that everything was read.

        Raises:
            WireError: bytes are left over.
        """
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes follow its end")
