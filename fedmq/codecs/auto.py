"""`auto`: positions by whichever coder writes them shortest.

Which one it is shows in the first byte: a `rice` payload begins with its parameter, below 31, and a tree of `rows`
with 255; what begins with 254 goes on as a `bitmap`.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from fedmq.codecs.base import PositionCoder
from fedmq.codecs.bits import Reader
from fedmq.codecs.geometry import Geometry
from fedmq.codecs.positions import Bitmap, Rice
from fedmq.codecs.rows import TREE, Rows, first_byte
from fedmq.codecs.vector import IndexVector

_BITMAP: Final = 254
_MARK: Final = bytes([_BITMAP])


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto(PositionCoder):
    """The shortest of `rice`, `rows` and `bitmap`, whatever the share that is kept; it takes the time of `rows`."""

    id: ClassVar[str] = "auto"

    def encode(self, indices: IndexVector, geometry: Geometry) -> bytes:
        """Encode by each, and take the shortest."""
        bitmap = _MARK + Bitmap().encode(indices, geometry)
        return min(Rows().encode(indices, geometry), bitmap, key=len)

    def decode(self, reader: Reader, count: int, geometry: Geometry) -> IndexVector:
        """Read `count` positions back.

        Raises:
            WireError: bytes that no encoder writes.
        """
        if first_byte(reader) != _BITMAP:
            return Rows().decode(reader, count, geometry)
        reader.byte("auto mark")
        return Bitmap().decode(reader, count, geometry)

    def max_bytes(self, count: int, geometry: Geometry) -> int:
        """Return the smallest of their bounds."""
        return min(Rows().max_bytes(count, geometry), 1 + Bitmap().max_bytes(count, geometry))

    def describe(self, encoded: bytes) -> str:
        """Return the id of the coder that was taken, given what `encode` returned."""
        return {_BITMAP: Bitmap.id, TREE: Rows.id}.get(encoded[0], Rice.id)
