"""The primitive types of MQTT: integers, variable byte integers, text and binary data (MQTT 5, section 1.5).

Here lives nothing about packets or properties. `Reader` walks over one packet's bytes and raises
`ProtocolError` for whatever does not fit, and nothing else; the `pack_*` functions are its inverse and raise
the same error for values that have no encoding.
"""

import struct
from typing import Final, TypeAlias

from .errors import ProtocolError, ReasonCode

Payload: TypeAlias = bytes | memoryview
MAX_VARINT: Final = 268_435_455  # four bytes of seven bits
MAX_U16: Final = 0xFFFF
MAX_U32: Final = 0xFFFF_FFFF
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


def malformed(detail: str) -> ProtocolError:
    """The error for bytes that cannot be read at all."""
    return ProtocolError(ReasonCode.MALFORMED_PACKET, detail)


class Reader:
    """Reads primitive values from `data[position:end]`; raises `ProtocolError` where they do not fit."""

    __slots__ = ("_data", "end", "position")

    def __init__(self, data: memoryview, position: int = 0, end: int | None = None) -> None:
        self._data = data
        self.position = position
        self.end = len(data) if end is None else end

    @property
    def remaining(self) -> int:
        """The number of bytes not read yet."""
        return self.end - self.position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, as a view of the packet."""
        start = self.position
        stop = start + count
        if stop > self.end:
            raise malformed(f"{count} bytes expected, {self.end - start} left in the packet")
        self.position = stop
        return self._data[start:stop]

    def u8(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """A two byte integer."""
        start = self.position
        if start + 2 > self.end:
            raise malformed("the packet ends inside a two byte integer")
        self.position = start + 2
        return (self._data[start] << 8) | self._data[start + 1]

    def u32(self) -> int:
        """A four byte integer."""
        return int.from_bytes(self.take(4), "big")

    def varint(self) -> int:
        """A variable byte integer in its shortest form, as section 1.5.5 demands."""
        value = 0
        for index in range(4):
            byte = self.u8()
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if index and not byte:
                    raise malformed("a variable byte integer is longer than it needs to be")
                return value
        raise malformed("a variable byte integer has more than four bytes")

    def binary(self) -> bytes:
        """Length-prefixed binary data."""
        return bytes(self.take(self.u16()))

    def text(self) -> str:
        """Length-prefixed UTF-8 without surrogates and without U+0000 (section 1.5.4)."""
        data = self.take(self.u16())
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise malformed(f"text is not UTF-8: {error.reason} at byte {error.start}") from None
        if "\0" in text:
            raise malformed("text contains U+0000")
        return text

    def finish(self) -> None:
        """Raises `ProtocolError` when bytes are left over."""
        if self.position != self.end:
            raise malformed(f"{self.remaining} bytes too many in the packet")


def pack_u8(value: int) -> bytes:
    """One byte."""
    if not 0 <= value <= 0xFF:
        raise malformed(f"{value} does not fit into a byte")
    return bytes((value,))


def pack_u16(value: int) -> bytes:
    """A two byte integer."""
    if not 0 <= value <= MAX_U16:
        raise malformed(f"{value} does not fit into two bytes")
    return _U16.pack(value)


def pack_u32(value: int) -> bytes:
    """A four byte integer."""
    if not 0 <= value <= MAX_U32:
        raise malformed(f"{value} does not fit into four bytes")
    return _U32.pack(value)


def pack_varint(value: int) -> bytes:
    """A variable byte integer."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= MAX_VARINT:
        raise malformed(f"{value} does not fit into a variable byte integer")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def pack_binary(value: bytes) -> bytes:
    """Length-prefixed binary data."""
    return pack_u16(len(value)) + value


def pack_text(value: str) -> bytes:
    """Length-prefixed UTF-8."""
    if "\0" in value:
        raise malformed("text contains U+0000")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as error:
        raise malformed(f"text cannot be encoded: {error.reason} at character {error.start}") from None
    return pack_u16(len(encoded)) + encoded
