"""`Pipeline`: codecs in an order that makes sense, written as one line of text.

    topk(0.01) | ternary | rice        sparsifier | quantiser | position coder
    randomk(0.05) | float16            seeded sparsifier | quantiser
    int8                               quantiser alone: a dense vector

An entropy coder may stand behind each; a transform in front of a quantiser alone.

What lives here: the order that codecs may have, and the bytes of a whole vector. What must not: any particular
codec, and the reading of a line (`text`). The bytes carry no names: both sides know the pipeline from the plan, and
a payload is decoded with it.

    dense payload  = values                          as many as there are coordinates, or transformed ones
    sparse payload = count (varint), positions, values; nothing but the count when it is 0
    seeded payload = seed (4 bytes, little-endian), values
    values         = the quantiser's seed and parameters, then its codes

A new shape of pipeline is a row of `_SHAPES` and a field.

**What is exact.** `decode(encode(x))` is what every receiver gets, bit for bit, so the sender takes its
residual from it: `residual = x - decoded` in float32 (laws 6 and 8). Where a coordinate was not kept,
`decoded` is zero and the residual is x, bit for bit, the sign of a zero included. Where it was kept, the
residual is x - decoded rounded once: exact when decoded lies within [x / 2, 2 x] (Sterbenz), and otherwise
off by at most 2**-24 |x - decoded|, which no float32 residual can avoid. It is always finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmq.codecs.base import (
    Codec,
    EntropyCoder,
    PositionCoder,
    Quantizer,
    SeededSparsifier,
    Sparsifier,
    Symbols,
    Transform,
    fixed_width_bytes,
    pack_codes,
    read_codes,
)
from fedmq.codecs.bits import Reader, encode_varint
from fedmq.codecs.registry import BUILT_IN
from fedmq.codecs.vector import FloatVector, IndexVector, SparseVector
from fedmq.errors import CodecError
from fedmq.geometry import Geometry

MAX_TEXT: Final = 256
"""The longest pipeline text in characters."""

_SHAPES: Final[tuple[tuple[type[Codec], ...], ...]] = (
    (Quantizer,),
    (Quantizer, EntropyCoder),
    (Transform, Quantizer),
    (Transform, Quantizer, EntropyCoder),
    (Sparsifier, Quantizer, PositionCoder),
    (Sparsifier, Quantizer, PositionCoder, EntropyCoder),
    (SeededSparsifier, Quantizer),
    (SeededSparsifier, Quantizer, EntropyCoder),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How a vector becomes bytes and bytes become a vector. `str()` gives its line of text.

    Attributes:
        transform: stands before the quantiser of a dense vector, or is None.
        sparsifier: chooses coordinates; None sends all of them.
        quantizer: writes their values.
        positions: writes where they belong; None when the sparsifier is, or needs nothing written.
        entropy: writes the quantiser's codes; None gives each its full width.

    Raises:
        CodecError: the codecs do not fit together, the quantiser cannot stand alone, or the text would be too long.
    """

    transform: Transform | None = None
    sparsifier: Sparsifier | SeededSparsifier | None = None
    quantizer: Quantizer
    positions: PositionCoder | None = None
    entropy: EntropyCoder | None = None

    def __post_init__(self) -> None:
        check_order(self.stages)
        if self.sparsifier is None and not self.quantizer.codes_zero:
            raise CodecError(
                f"{self.quantizer} has no code for zero, so it cannot quantise a whole vector: put "
                f"a sparsifier before it and a position coder behind it: topk(0.01) | {self.quantizer} | rice"
            )
        if len(str(self)) > MAX_TEXT:
            raise CodecError(f"the pipeline's text has {len(str(self))} characters; {MAX_TEXT} are allowed")

    def __str__(self) -> str:
        """Return the canonical line of text: `parse_pipeline(str(p)) == p`."""
        return " | ".join(str(stage) for stage in self.stages)

    @property
    def stages(self) -> tuple[Codec, ...]:
        """The codecs in the order of the text."""
        stages = (self.transform, self.sparsifier, self.quantizer, self.positions, self.entropy)
        return tuple(stage for stage in stages if stage is not None)

    def encode(self, vector: FloatVector, geometry: Geometry | None = None) -> bytes:
        """Encode a vector.

        Args:
            vector: float32, shape (length,), finite.
            geometry: of what it consists; None when nothing is known.

        Returns:
            At most `max_payload_bytes(geometry)` bytes.

        Raises:
            CodecError: another dtype or shape, or a value that is not finite.
        """
        if vector.dtype != np.float32 or vector.ndim != 1:
            raise CodecError(f"a codec takes float32 in one dimension, not {vector.dtype}{vector.shape}")
        if geometry is None:
            geometry = Geometry.flat(vector.shape[0])
        if vector.shape[0] != geometry.length:
            raise CodecError(
                f"a vector of {vector.shape[0]} coordinates does not fit a geometry of {geometry.length}"
            )
        finite = np.isfinite(vector)
        if not finite.all():
            first = int(np.argmin(finite))
            raise CodecError(
                f"cannot encode {vector[first]} at coordinate {first} ({np.count_nonzero(~finite)} of "
                f"{vector.shape[0]} are not finite): check the training, the learning rate first"
            )
        if self.transform is not None:
            values = self.transform.forward(np.ascontiguousarray(vector), geometry)
            return self._encode_values(values, None, Geometry.flat(values.shape[0]))
        match self.sparsifier:
            case None:
                return self._encode_values(np.ascontiguousarray(vector), None, geometry)
            case SeededSparsifier():
                seed = self.sparsifier.seed(vector)
                indices = self.sparsifier.positions(seed, geometry)
                return seed.to_bytes(4, "little") + self._encode_values(vector[indices], indices, geometry)
            case Sparsifier():
                indices = self.sparsifier.select(vector, geometry)
        count = encode_varint(indices.shape[0])
        if not indices.shape[0] or self.positions is None:
            return count
        positions = self.positions.encode(indices, geometry)
        return count + positions + self._encode_values(vector[indices], indices, geometry)

    def decode(self, payload: bytes | memoryview, geometry: Geometry | int) -> SparseVector:
        """Decode what a peer claims to have encoded.

        Allocates at most 64 bytes per coordinate, whatever the payload announces, and less than that unless the
        payload is crafted. The result shares no memory with the payload.

        Args:
            payload: untrusted bytes.
            geometry: of the vector, from our own layout; or only its length, when it was encoded without one.

        Returns:
            A vector with finite values and strictly increasing indices in range.

        Raises:
            WireError: the payload is not one that this pipeline writes for this geometry. Nothing else is
                raised for any payload.
            CodecError: the length is not possible.
        """
        if isinstance(geometry, int):
            geometry = Geometry.flat(geometry)
        length = geometry.length
        reader = Reader(payload, "codec payload")
        if reader.remaining > (most := self.max_payload_bytes(geometry)):
            raise reader.fail(f"{reader.remaining} bytes where {most} are the most for {length} coordinates")
        if self.transform is not None:
            values = self._decode_transformed(self.transform, reader, geometry)
            return SparseVector(length=length, indices=None, values=values)
        indices = self._decode_positions(reader, geometry)
        count = length if indices is None else indices.shape[0]
        values = self._decode_values(reader, count, indices, geometry)
        reader.finish()
        return SparseVector(length=length, indices=indices, values=values)

    def max_payload_bytes(self, geometry: Geometry | int) -> int:
        """Return the largest payload for a vector of such a geometry, for admission and memory bounds.

        Raises:
            CodecError: the length is not possible.
        """
        if isinstance(geometry, int):
            geometry = Geometry.flat(geometry)
        if self.transform is not None:
            size = self.transform.size(geometry)
            return self._max_value_bytes(size, Geometry.flat(size))
        match self.sparsifier:
            case None:
                return self._max_value_bytes(geometry.length, geometry)
            case SeededSparsifier():
                return 4 + self._max_value_bytes(self.sparsifier.count(geometry), geometry)
            case Sparsifier():
                count = self.sparsifier.max_count(geometry)
        positions = self.positions.max_bytes(count, geometry) if self.positions is not None else 0
        return len(encode_varint(count)) + positions + self._max_value_bytes(count, geometry)

    def _encode_values(self, values: FloatVector, indices: IndexVector | None, geometry: Geometry) -> bytes:
        symbols = self.quantizer.quantize(values)
        header = self.quantizer.pack_header(symbols)
        if self.entropy is None or not symbols.codes.shape[0]:
            return header + pack_codes(symbols.codes, self.quantizer.bits)
        if not self.quantizer.is_placed:
            indices, geometry = None, Geometry.flat(symbols.codes.shape[0])
        return header + self.entropy.encode(symbols.codes, self.quantizer.bits, indices, geometry)

    def _decode_values(
        self, reader: Reader, count: int, indices: IndexVector | None, geometry: Geometry
    ) -> FloatVector:
        quantizer, bits = self.quantizer, self.quantizer.bits
        seed, parameters = quantizer.read_header(reader, count)
        codes_count = quantizer.code_count(count)
        if self.entropy is None or not codes_count:
            codes = read_codes(reader, codes_count, bits, f"{quantizer.id} values")
        else:
            if not quantizer.is_placed:
                indices, geometry = None, Geometry.flat(codes_count)
            codes = self.entropy.decode(reader, codes_count, bits, indices, geometry)
        try:
            return quantizer.dequantize(Symbols(parameters=parameters, codes=codes, seed=seed), count)
        except ValueError as error:
            raise reader.fail(f"{quantizer.id}: {error}") from error

    def _decode_transformed(self, transform: Transform, reader: Reader, geometry: Geometry) -> FloatVector:
        size = transform.size(geometry)
        values = self._decode_values(reader, size, None, Geometry.flat(size))
        reader.finish()
        try:
            return transform.inverse(values, geometry)
        except ValueError as error:
            raise reader.fail(f"{transform.id}: {error}") from error

    def _decode_positions(self, reader: Reader, geometry: Geometry) -> IndexVector | None:
        match self.sparsifier:
            case None:
                return None
            case SeededSparsifier():
                seed = int.from_bytes(reader.take(4, f"{self.sparsifier.id} seed"), "little")
                return self.sparsifier.positions(seed, geometry)
            case Sparsifier():
                most = self.sparsifier.max_count(geometry)
        count = reader.varint("count")
        if count > most:
            raise reader.fail(f"{count} coordinates where {most} are the most for {geometry.length}")
        if count == 0 or self.positions is None:
            return np.zeros(0, np.int32)
        indices = self.positions.decode(reader, count, geometry)
        if indices[0] < 0 or indices[-1] >= geometry.length or not (indices[1:] > indices[:-1]).all():
            raise reader.fail(f"positions do not increase strictly within {geometry.length} coordinates")
        return indices

    def _max_value_bytes(self, count: int, geometry: Geometry) -> int:
        codes, bits = self.quantizer.code_count(count), self.quantizer.bits
        header = self.quantizer.header_bytes(count)
        if self.entropy is None or not codes:
            return header + fixed_width_bytes(codes, bits)
        if not self.quantizer.is_placed:
            geometry = Geometry.flat(codes)
        return header + self.entropy.max_bytes(codes, bits, geometry)


def check_order(stages: Sequence[Codec]) -> None:
    """Check that codecs stand in an order that makes sense.

    Raises:
        CodecError: they do not; the first one out of place is named, with what could stand there.
    """
    # Walk along the shapes that still fit.
    fitting = _SHAPES
    for place, stage in enumerate(stages):
        choices = _choices(fitting, place)
        fitting = tuple(s for s in fitting if place < len(s) and isinstance(stage, s[place]))
        if not fitting:
            where = f"after {stages[place - 1]}" if place else "first"
            raise CodecError(f"{where} comes {choices}, not {stage}, {_article(stage.kind)}")
    if not any(len(shape) == len(stages) for shape in fitting):
        raise CodecError(f"after {stages[-1]} comes {_choices(fitting, len(stages))}; the text ends there")


def _choices(fitting: Sequence[tuple[type[Codec], ...]], place: int) -> str:
    """Name the kinds that may come, with the ids of the built-in codecs of each."""
    kinds = dict.fromkeys(shape[place] for shape in fitting if place < len(shape))
    choices = []
    for kind in kinds:
        ids = ", ".join(name for name, codec in BUILT_IN.items() if issubclass(codec, kind))
        choices.append(f"{_article(kind.kind)} ({ids})" if ids else _article(kind.kind))
    if any(len(shape) == place for shape in fitting):
        choices.append("nothing")
    return " or ".join(choices)


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
