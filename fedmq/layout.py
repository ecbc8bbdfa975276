"""ParamLayout: named tensors as one flat vector, and back.

The model crosses every boundary as one float32 vector. Codecs know no tensors, top-k is global, folding is one
indexed add, and a wrong model shows in one comparison of fingerprints.

The shared vector holds the trainable segments first, then the buffers, each ordered by name: a model file need not
keep a framework's order. Private segments never leave the device and have no place in it.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import msgpack
import numpy as np
from numpy.typing import NDArray

from .errors import LayoutError
from .geometry import Geometry

#: Numeric kinds that survive a trip through float32 well enough to be trained and averaged.
DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
MAX_SEGMENTS = 10_000
MAX_NAME = 200
MAX_DIMENSIONS = 8
MAX_SIZE = 2**31 - 1


class SegmentKind(StrEnum):
    """What is done with a tensor."""

    TRAINABLE = "trainable"  # its delta goes through the codec
    BUFFER = "buffer"  # float statistics such as BatchNorm's: sent dense, averaged, never sparsified
    PRIVATE = "private"  # stays on the device


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One tensor.

    Attributes:
        name: as the framework calls it.
        shape: its shape; () for a scalar.
        dtype: its type in the framework (one of `DTYPES`); in the vector it is float32.
        kind: what is done with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: SegmentKind = SegmentKind.TRAINABLE

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MAX_NAME:
            raise LayoutError(f"tensor name {self.name[:40]!r}: 1 to {MAX_NAME} characters are allowed")
        if self.dtype not in DTYPES:
            raise LayoutError(
                f"tensor {self.name} has dtype {self.dtype[:40]}: allowed are {', '.join(sorted(DTYPES))}; "
                "integer buffers stay on the device"
            )
        if len(self.shape) > MAX_DIMENSIONS or any(side < 0 for side in self.shape):
            raise LayoutError(
                f"tensor {self.name} has shape {self.shape}: at most {MAX_DIMENSIONS} sides ≥ 0"
            )

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParamLayout:
    """The segments of a model, and where each lies in the shared vector.

    Raises:
        LayoutError: names repeat, there are no trainable segments, or the vector would be too long.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if len(set(names)) != len(names):
            twice = [name for name, times in Counter(names).items() if times > 1]
            raise LayoutError(f"tensor names repeat: {', '.join(twice[:5])}")
        if len(names) > MAX_SEGMENTS:
            raise LayoutError(f"{len(names)} tensors: at most {MAX_SEGMENTS} are allowed")
        if not 0 < self.trainable_size <= self.size <= MAX_SIZE:
            raise LayoutError(f"{self.trainable_size} trainable parameters: 1 to {MAX_SIZE} are allowed")

    @cached_property
    def trainable_size(self) -> int:
        """How many scalars at the head of the vector are trainable."""
        return sum(segment.size for segment in self._of(SegmentKind.TRAINABLE))

    @cached_property
    def size(self) -> int:
        """Length of the shared vector."""
        return self.trainable_size + sum(segment.size for segment in self._of(SegmentKind.BUFFER))

    @property
    def buffer_size(self) -> int:
        """How many scalars at the tail of the vector are buffers."""
        return self.size - self.trainable_size

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each shared segment lies in the vector."""
        places, start = {}, 0
        for segment in self.shared:
            places[segment.name] = slice(start, start + segment.size)
            start += segment.size
        return places

    @cached_property
    def geometry(self) -> Geometry:
        """What codecs may know of the vector's trainable head: the sizes of its matrices."""
        return Geometry.of(segment.shape for segment in self._of(SegmentKind.TRAINABLE))

    @cached_property
    def matrices(self) -> tuple[slice, ...]:
        """Where the trainable tensors of rank 2 and more lie: what may be pruned. No biases, scales or buffers."""
        chosen = [segment for segment in self._of(SegmentKind.TRAINABLE) if len(segment.shape) > 1]
        return tuple(self.slices[segment.name] for segment in chosen)

    @cached_property
    def matrices_size(self) -> int:
        """How many scalars those hold."""
        return sum(place.stop - place.start for place in self.matrices)

    @cached_property
    def fingerprint(self) -> bytes:
        """8 bytes that differ when any shared segment's name, shape, dtype, kind or order differs.

        BLAKE2b over the msgpack array of `[name, [side, …], dtype, kind]` of the shared segments in the
        order of the vector.
        """
        rows = msgpack.packb([_row(segment) for segment in self.shared])
        return hashlib.blake2b(rows, digest_size=8).digest()

    @property
    def rows(self) -> list[list[object]]:
        """Every segment as `[name, [side, …], dtype, kind]`, for msgpack."""
        return [_row(segment) for segment in self.segments]

    @classmethod
    def from_rows(cls, rows: Iterable[object]) -> "ParamLayout":
        """The layout of `rows`, which may come from the network.

        Raises:
            LayoutError: they are not a layout.
        """
        return cls(tuple(map(_segment, rows)))

    def pack(self, tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Copy the shared tensors into one new vector of shape (size,).

        Raises:
            LayoutError: a tensor is missing or has another shape.
        """
        vector = np.empty(self.size, np.float32)
        for segment in self.shared:
            tensor = tensors.get(segment.name)
            if tensor is None:
                raise LayoutError(f"tensor {segment.name} is missing")
            if tensor.shape != segment.shape:
                raise LayoutError(f"tensor {segment.name} has shape {tensor.shape}, not {segment.shape}")
            vector[self.slices[segment.name]] = tensor.ravel()
        return vector

    def unpack(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The shared tensors as views of `vector`, in their shapes.

        Raises:
            LayoutError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise LayoutError(f"a vector of shape {vector.shape} does not fit a layout of {self.size}")
        return {s.name: vector[self.slices[s.name]].reshape(s.shape) for s in self.shared}

    def difference(self, other: "ParamLayout") -> str:
        """In words, the first thing in which two layouts' shared segments differ; empty when they agree."""
        for mine, theirs in zip(self.shared, other.shared, strict=False):
            if mine != theirs:
                return f"{_describe(mine)} here, {_describe(theirs)} there"
        if len(self.shared) != len(other.shared):
            return f"{len(self.shared)} tensors here, {len(other.shared)} there"
        return ""

    @cached_property
    def shared(self) -> tuple[Segment, ...]:
        """The segments that leave the device, in the order of the vector."""
        return (*self._of(SegmentKind.TRAINABLE), *self._of(SegmentKind.BUFFER))

    def _of(self, kind: SegmentKind) -> list[Segment]:
        chosen = [segment for segment in self.segments if segment.kind is kind]
        return sorted(chosen, key=lambda segment: segment.name)


def _row(segment: Segment) -> list[object]:
    return [segment.name, list(segment.shape), segment.dtype, str(segment.kind)]


def _segment(row: object) -> Segment:
    match row:
        case [str(name), [*shape], str(dtype), str(kind)]:
            sides = tuple(side for side in shape if isinstance(side, int) and not isinstance(side, bool))
            if len(sides) < len(shape):
                raise LayoutError(f"tensor {name[:40]!r} has a side that is not a whole number")
            if kind not in list(SegmentKind):
                raise LayoutError(
                    f"tensor {name[:40]!r} has kind {kind[:40]!r}: one of {', '.join(SegmentKind)}"
                )
            return Segment(name=name, shape=sides, dtype=dtype, kind=SegmentKind(kind))
        case _:
            raise LayoutError("a tensor is not [name, [side, …], dtype, kind]")


def _describe(segment: Segment) -> str:
    return f"{segment.name} {list(segment.shape)} {segment.dtype} {segment.kind}"
