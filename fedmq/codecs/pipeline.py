"""`Pipeline`: codecs in an order that makes sense, written as one line of text.

    topk(0.01) | ternary | rice        sparsifier | quantiser | position coder
    int8                               quantiser alone: a dense vector

What lives here: the text, its type check, and the bytes of a whole vector. What must not: any particular
codec. The bytes carry no names: both sides know the pipeline from the plan, and a payload is decoded with it.

    dense payload  = values                          exactly `length` of them
    sparse payload = count (varint), positions, values; nothing but the count when it is 0

A new shape of pipeline is a row of `_SHAPES` and a field.

**What is exact.** `decode(encode(x))` is what every receiver gets, bit for bit, so the sender takes its
residual from it: `residual = x - decoded` in float32 (laws 6 and 8). Where a coordinate was not kept,
`decoded` is zero and the residual is x, bit for bit, the sign of a zero included. Where it was kept, the
residual is x - decoded rounded once: exact when decoded lies within [x / 2, 2 x] (Sterbenz), and otherwise
off by at most 2**-24 |x - decoded|, which no float32 residual can avoid. It is always finite.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from fedmq.codecs.base import Codec, PositionCoder, Quantizer, Sparsifier
from fedmq.codecs.bits import Reader, encode_varint
from fedmq.codecs.registry import BUILT_IN, find_codec
from fedmq.codecs.vector import MAX_LENGTH, FloatVector, IndexVector, SparseVector
from fedmq.errors import CodecError, WireError

MAX_TEXT: Final = 256
"""The longest pipeline text in characters."""

_SHAPES: Final[tuple[tuple[type[Codec], ...], ...]] = (
    (Quantizer,),
    (Sparsifier, Quantizer, PositionCoder),
)

_STAGE: Final = re.compile(r"([a-z][a-z0-9_]*)(?:\(([^()]*)\))?")
_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How a vector becomes bytes and bytes become a vector. `str()` gives its line of text.

    Attributes:
        sparsifier: chooses coordinates; None sends all of them.
        quantizer: writes their values.
        positions: writes where they belong; None exactly when the sparsifier is.

    Raises:
        CodecError: only one of sparsifier and positions is given, the quantiser cannot stand alone, or the
            text would be too long.
    """

    sparsifier: Sparsifier | None = None
    quantizer: Quantizer
    positions: PositionCoder | None = None

    def __post_init__(self) -> None:
        if (self.sparsifier is None) != (self.positions is None):
            raise CodecError("a pipeline has both a sparsifier and a position coder, or neither")
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
        stages = (self.sparsifier, self.quantizer, self.positions)
        return tuple(stage for stage in stages if stage is not None)

    def encode(self, vector: FloatVector) -> bytes:
        """Encode a vector.

        Args:
            vector: float32, shape (length,), finite.

        Returns:
            At most `max_payload_bytes(length)` bytes.

        Raises:
            CodecError: another dtype or shape, or a value that is not finite.
        """
        if vector.dtype != np.float32 or vector.ndim != 1:
            raise CodecError(f"a codec takes float32 in one dimension, not {vector.dtype}{vector.shape}")
        _check_length(vector.shape[0])
        finite = np.isfinite(vector)
        if not finite.all():
            first = int(np.argmin(finite))
            raise CodecError(
                f"cannot encode {vector[first]} at coordinate {first} ({np.count_nonzero(~finite)} of "
                f"{vector.shape[0]} are not finite): check the training, the learning rate first"
            )
        if self.sparsifier is None or self.positions is None:
            return self.quantizer.encode(np.ascontiguousarray(vector))
        indices = self.sparsifier.select(vector)
        count = encode_varint(indices.shape[0])
        if not indices.shape[0]:
            return count
        return (
            count + self.positions.encode(indices, vector.shape[0]) + self.quantizer.encode(vector[indices])
        )

    def decode(self, payload: bytes | memoryview, length: int) -> SparseVector:
        """Decode what a peer claims to have encoded.

        Allocates at most 64 bytes per coordinate of `length`, whatever the payload announces, and less than
        that unless the payload is crafted. The result shares no memory with the payload.

        Args:
            payload: untrusted bytes.
            length: coordinates of the vector, from our own layout.

        Returns:
            A vector with finite values and strictly increasing indices in range.

        Raises:
            WireError: the payload is not one that this pipeline writes for this length. Nothing else is
                raised for any payload.
            CodecError: `length` is not possible.
        """
        _check_length(length)
        reader = Reader(payload, "codec payload")
        if reader.remaining > (most := self.max_payload_bytes(length)):
            raise reader.fail(f"{reader.remaining} bytes where {most} are the most for {length} coordinates")
        indices = self._decode_positions(reader, length)
        values = self.quantizer.decode(reader, length if indices is None else indices.shape[0])
        reader.finish()
        return SparseVector(length=length, indices=indices, values=values)

    def _decode_positions(self, reader: Reader, length: int) -> IndexVector | None:
        if self.sparsifier is None or self.positions is None:
            return None
        count = reader.varint("count")
        if count > (most := self.sparsifier.max_count(length)):
            raise reader.fail(f"{count} coordinates where {most} are the most for {length}")
        if count == 0:
            return np.zeros(0, np.int32)
        indices = self.positions.decode(reader, count, length)
        if indices[0] < 0 or indices[-1] >= length or not (indices[1:] > indices[:-1]).all():
            raise reader.fail(f"positions do not increase strictly within {length} coordinates")
        return indices

    def max_payload_bytes(self, length: int) -> int:
        """Return the largest payload for a vector of `length` coordinates, for admission and memory bounds.

        Raises:
            CodecError: `length` is not possible.
        """
        _check_length(length)
        if self.sparsifier is None or self.positions is None:
            return self.quantizer.encoded_bytes(length)
        count = self.sparsifier.max_count(length)
        positions = self.positions.max_bytes(count, length)
        return len(encode_varint(count)) + positions + self.quantizer.encoded_bytes(count)


@functools.lru_cache(maxsize=64)
def parse_pipeline(text: str) -> Pipeline:
    """Parse a pipeline's line of text; blanks around `|` and within parentheses do not matter.

    Raises:
        CodecError: too long, a codec that is not installed, an argument that is not allowed, or an order
            that makes no sense; the message names the piece and says what would be accepted.
    """
    if len(text) > MAX_TEXT:
        raise CodecError(f"a pipeline's text has at most {MAX_TEXT} characters, not {len(text)}")
    stages = [_parse_stage(piece.strip(" ")) for piece in text.split("|")]
    _check_order(stages)
    sparsifier, quantizer, positions = None, None, None
    for stage in stages:
        match stage:
            case Sparsifier():
                sparsifier = stage
            case Quantizer():
                quantizer = stage
            case PositionCoder():
                positions = stage
    assert quantizer is not None  # every shape has one
    return Pipeline(sparsifier=sparsifier, quantizer=quantizer, positions=positions)


def pipeline_from_wire(text: str) -> Pipeline:
    """Parse a pipeline that a peer named in a message.

    Raises:
        WireError: whatever `parse_pipeline` refuses.
    """
    try:
        return parse_pipeline(text)
    except CodecError as error:
        raise WireError("pipeline", str(error)) from error


def _parse_stage(piece: str) -> Codec:
    match = _STAGE.fullmatch(piece)
    if match is None:
        raise CodecError(f"{piece!r} is not a codec: write a name, or name(number), with | between codecs")
    name, inner = match.groups()
    codec = find_codec(name)
    names = [field.name for field in fields(codec)]
    tokens = [token.strip(" ") for token in inner.split(",")] if inner and inner.strip(" ") else []
    if len(tokens) > len(names):
        raise CodecError(f"{piece!r} has {len(tokens)} arguments; it is written {codec.usage()}")
    arguments = {key: _parse_number(token, piece) for key, token in zip(names, tokens, strict=False)}
    return codec.from_config({"id": name, **arguments})


def _parse_number(token: str, piece: str) -> int | float:
    if _WHOLE.fullmatch(token):
        return int(token)
    if _NUMBER.fullmatch(token):
        return float(token)
    raise CodecError(f"{token!r} in {piece!r} is not a number")


def _check_order(stages: Sequence[Codec]) -> None:
    """Walk along the shapes that still fit, so that the first stage out of place is the one named."""
    fitting = _SHAPES
    for place, stage in enumerate(stages):
        allowed = [shape[place] for shape in fitting if place < len(shape)]
        fitting = tuple(s for s in fitting if place < len(s) and isinstance(stage, s[place]))
        if not fitting:
            where = f"after {stages[place - 1]}" if place else "first"
            raise CodecError(f"{where} comes {_choices(allowed)}, not {stage}, a {stage.kind}")
    if not any(len(shape) == len(stages) for shape in fitting):
        allowed = [shape[len(stages)] for shape in fitting]
        raise CodecError(f"after {stages[-1]} comes {_choices(allowed)}; the text ends there")


def _choices(kinds: Sequence[type[Codec]]) -> str:
    """Name what may come, with the built-in codecs of each kind."""
    if not kinds:
        return "the end"
    return " or ".join(
        f"a {kind.kind} ({', '.join(c.usage() for c in BUILT_IN.values() if issubclass(c, kind))})"
        for kind in kinds
    )


def _check_length(length: int) -> None:
    if not 0 <= length <= MAX_LENGTH:
        raise CodecError(f"a vector has 0 to {MAX_LENGTH} coordinates, not {length}")
