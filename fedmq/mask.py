"""`Mask`: which trainable coordinates are pruned. Both ends hold the same one, by its digest.

The plan carries it, an update names the one it was encoded under, and a codec sees only the coordinates that it keeps:

    content = 00 (the kept positions follow) or 01 (the pruned ones), their number (varint), the positions as `rice`
              writes them for a vector of T trainable coordinates; nothing behind a number of 0
    digest  = 8 bytes of BLAKE2b over one bit for each of the T coordinates, set where it is kept, as `bitmap` writes
              them

Whichever positions are fewer are written, the kept ones if both are as many. Random ones are about T H(p) / 8 bytes:
9 KB for 100,000 coordinates of which 80 % are pruned, and never more than `max_content_bytes`.

What lives here: the value, its bytes, and the way from all coordinates to the kept ones and back. What must not: which
coordinates are pruned, and when (`aggregator/pruning.py`).
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from .codecs.bits import Reader, encode_varint, pack_bits
from .codecs.positions import Rice
from .codecs.vector import FloatVector, IndexVector, SparseVector
from .errors import WireError
from .geometry import Geometry
from .layout import ParamLayout

DIGEST_BYTES: Final = 8
_KEPT, _PRUNED = range(2)
_RICE: Final = Rice()

Number = TypeVar("Number", np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMask:
    """A mask as it travels and is kept on disk.

    Attributes:
        digest: names it, `DIGEST_BYTES` long.
        content: its positions.
    """

    digest: bytes
    content: bytes = field(repr=False)


def max_content_bytes(layout: ParamLayout) -> int:
    """No mask of such a layout is longer: rice takes at most a bit a coordinate for the fewer half of them."""
    return layout.trainable_size // 8 + 8


# eq=False: two masks are compared by their digests.
@dataclass(frozen=True, eq=False)
class Mask:
    """One mask.

    Attributes:
        pruned: bool, shape (layout.trainable_size,); must not be written to.
        whole: the geometry of all trainable coordinates.
    """

    pruned: NDArray[np.bool_] = field(repr=False)
    whole: Geometry = field(repr=False)

    @classmethod
    def of(cls, layout: ParamLayout, pruned: NDArray[np.bool_]) -> "Mask":
        """The mask that prunes where `pruned`, of shape (layout.trainable_size,), is set."""
        fixed = pruned.copy()
        fixed.flags.writeable = False
        return cls(pruned=fixed, whole=layout.geometry)

    @classmethod
    def decode(cls, layout: ParamLayout, encoded: EncodedMask) -> "Mask":
        """Read a mask, which may come from the network.

        Allocates at most 64 bytes for each trainable coordinate.

        Raises:
            WireError: the bytes are none for this layout, they are another one's than the digest says, or nothing at
                all would be kept.
        """
        length = layout.trainable_size
        if len(encoded.content) > (most := max_content_bytes(layout)):
            raise WireError("mask", f"{len(encoded.content)} bytes, at most {most} are needed")
        reader = Reader(encoded.content, "mask")
        listed, count = reader.byte("kind"), reader.varint("count")
        if listed not in (_KEPT, _PRUNED) or count > length:
            raise reader.fail(f"kind {listed}, {count} of {length} coordinates")
        pruned = np.full(length, listed == _KEPT)
        if count:
            indices = _RICE.decode(reader, count, Geometry.flat(length))
            pruned[indices] = listed == _PRUNED
        reader.finish()
        if pruned.all():
            raise reader.fail("it keeps nothing")
        mask = cls.of(layout, pruned)
        if mask.digest != encoded.digest:
            raise reader.fail(f"its digest is {mask.digest.hex()}, not {encoded.digest.hex()}")
        return mask

    @cached_property
    def digest(self) -> bytes:
        """What names it."""
        return hashlib.blake2b(pack_bits((~self.pruned).view(np.uint8)), digest_size=DIGEST_BYTES).digest()

    @cached_property
    def encoded(self) -> EncodedMask:
        """The mask as bytes: always the same ones."""
        listed = _KEPT if 2 * self.count >= self.pruned.shape[0] else _PRUNED
        indices = self.kept if listed == _KEPT else np.flatnonzero(self.pruned).astype(np.int32)
        count = indices.shape[0]
        positions = _RICE.encode(indices, Geometry.flat(self.pruned.shape[0])) if count else b""
        return EncodedMask(digest=self.digest, content=bytes([listed]) + encode_varint(count) + positions)

    @cached_property
    def count(self) -> int:
        """How many coordinates are pruned."""
        return int(np.count_nonzero(self.pruned))

    @cached_property
    def kept(self) -> IndexVector:
        """The other coordinates, int32, increasing."""
        return np.flatnonzero(~self.pruned).astype(np.int32)

    @cached_property
    def geometry(self) -> Geometry:
        """What codecs may know of the kept coordinates: how many each tensor has, not of which rows."""
        ends = np.searchsorted(self.kept, self.whole.starts)
        return Geometry.of((int(count),) for count in np.diff(ends))

    def clear(self, vector: NDArray[Number]) -> None:
        """Set the pruned coordinates of a vector to zero, in place; what lies behind the trainable ones stays."""
        np.copyto(vector[: self.pruned.shape[0]], 0, where=self.pruned)

    def applied(self, vector: FloatVector) -> FloatVector:
        """A copy with zeros at the pruned coordinates; like a model's vector it must not be written to."""
        cleared = vector.copy()
        self.clear(cleared)
        cleared.flags.writeable = False
        return cleared

    def spread(self, vector: SparseVector) -> SparseVector:
        """Move a vector of the kept coordinates to where they belong among all."""
        indices = self.kept if vector.indices is None else self.kept[vector.indices]
        return SparseVector(length=self.pruned.shape[0], indices=indices, values=vector.values)

    def restrict(self, vector: SparseVector) -> SparseVector:
        """Leave the pruned coordinates out of a vector of all."""
        if vector.indices is None:
            return SparseVector(length=vector.length, indices=self.kept, values=vector.values[self.kept])
        chosen = ~self.pruned[vector.indices]
        return SparseVector(
            length=vector.length, indices=vector.indices[chosen], values=vector.values[chosen]
        )
