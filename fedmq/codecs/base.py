"""The kinds of codec, and what every codec has in common.

What lives here: `Codec` (an id, arguments, a config that survives a round trip) and the three kinds that a
pipeline is made of. What must not: any particular codec, and any table of them.

A codec is a value: frozen, equal by its arguments, with a `repr` that evaluates back. It holds no state from
one message to the next; error feedback belongs to the agent. The kinds:

* a `Transform` (vector → shorter vector) looks at it from another side, such as the factors of its matrices;
* a `Sparsifier` (vector → positions) chooses which coordinates to send; a `SeededSparsifier` without looking;
* a `Quantizer` (values → symbols) turns the chosen values into small integers and a few float32 parameters, its
  `Symbols`;
* a `PositionCoder` (positions → bytes) writes down where they belong;
* an `EntropyCoder` (symbols → bytes) writes the integers down; without one they have a fixed width.

Each is told the vector's `Geometry`: which stretch of it is which matrix.

To write a codec: subclass a kind as a frozen, slotted, keyword-only dataclass, give it an `id`, take only
`int` and `float` arguments, refuse bad ones in `__post_init__` with `CodecError`, and offer the class as an
entry point of group `fedmq.codecs` whose name is the id. `fedmq.testing.codec_contract` tells whether it
keeps its promises.

What decodes must do so to the same bits everywhere: explicit little-endian dtypes, elementwise float32
operations in a defined order, no subnormal operands in arithmetic (some processors flush them to zero), no
sums of floats.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.bits import Reader, from_planes, pack_bits, to_planes
from fedmq.codecs.vector import FloatVector, IndexVector
from fedmq.errors import CodecError
from fedmq.geometry import Geometry

CodecConfig: TypeAlias = dict[str, str | int | float]
"""A codec as plain data that JSON and msgpack carry: its `id` and its arguments by name."""

Codes: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec(ABC):
    """What every codec has: an id, arguments, and three ways to write both down.

    Attributes:
        id: its name in a pipeline's text and in a config.
        kind: its kind's name, for error messages.
    """

    id: ClassVar[str]
    kind: ClassVar[str]

    def get_config(self) -> CodecConfig:
        """Return the codec as plain data."""
        config: CodecConfig = {"id": self.id}
        config.update((field.name, getattr(self, field.name)) for field in fields(self))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """Build a codec from what `get_config` returned.

        Raises:
            CodecError: another id, a missing or unknown argument, or a value that is not allowed.
        """
        known = {field.name: field for field in fields(cls)}
        if config.get("id") != cls.id:
            raise CodecError(f"a config with id {config.get('id')!r} was given to codec {cls.id!r}")
        if unknown := sorted(map(repr, config.keys() - known.keys() - {"id"})):
            raise CodecError(f"{cls.id} has no argument {unknown[0]}; it is written {cls.usage()}")
        missing = [f.name for f in known.values() if f.default is MISSING and f.name not in config]
        if missing:
            raise CodecError(f"{cls.id} needs its argument {missing[0]!r}; it is written {cls.usage()}")
        arguments = {
            name: cls._argument(name, field.type, config[name])
            for name, field in known.items()
            if name in config
        }
        return cls(**arguments)

    @classmethod
    def _argument(cls, name: str, expected: object, value: object) -> int | float:
        match value:
            case bool():
                pass
            case int() if expected is int:
                return value
            case int() | float() if expected is float:
                try:
                    return float(value)
                except OverflowError:
                    pass
        wanted = "a whole number" if expected is int else "a number"
        raise CodecError(f"{cls.id}: {name} = {value!r} cannot be used: it is {wanted}")

    @classmethod
    def usage(cls) -> str:
        """Return how the codec is written in a pipeline, with its arguments' names."""
        names = ", ".join(field.name for field in fields(cls))
        return f"{cls.id}({names})" if names else cls.id

    def __str__(self) -> str:
        """Return the codec as a pipeline's text writes it, without trailing arguments at their default."""
        arguments = [(getattr(self, field.name), field.default) for field in fields(self)]
        while arguments and arguments[-1][0] == arguments[-1][1]:
            arguments.pop()
        return f"{self.id}({', '.join(repr(value) for value, _ in arguments)})" if arguments else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform(Codec):
    """Vector → another vector, of which the first can be had again, not exactly."""

    kind: ClassVar[str] = "transform"

    @abstractmethod
    def size(self, geometry: Geometry) -> int:
        """Return the length of what `forward` returns."""

    @abstractmethod
    def forward(self, vector: FloatVector, geometry: Geometry) -> FloatVector:
        """Transform a finite vector; finite, float32, shape (size(geometry),)."""

    @abstractmethod
    def inverse(self, transformed: FloatVector, geometry: Geometry) -> FloatVector:
        """Return the vector that belongs to finite transformed values: float32, shape (geometry.length,).

        Raises:
            ValueError: a value of the result would not be finite.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsifier(Codec):
    """Vector → positions: chooses the coordinates that are sent. The others are sent as zero."""

    kind: ClassVar[str] = "sparsifier"

    @abstractmethod
    def select(self, vector: FloatVector, geometry: Geometry) -> IndexVector:
        """Choose coordinates of a finite vector: int32, strictly increasing, at most `max_count` of them."""

    @abstractmethod
    def max_count(self, geometry: Geometry) -> int:
        """Return the most coordinates chosen of such a vector; a payload with more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededSparsifier(Codec):
    """Seed → positions: both ends draw the same coordinates from a number, so no position is sent."""

    kind: ClassVar[str] = "seeded sparsifier"

    @abstractmethod
    def seed(self, vector: FloatVector) -> int:
        """Choose the seed for a vector, below 2 ** 32, sent with the values; equal vectors, equal seeds."""

    @abstractmethod
    def positions(self, seed: int, geometry: Geometry) -> IndexVector:
        """Draw coordinates: int32, strictly increasing, as many for every seed."""

    @abstractmethod
    def count(self, geometry: Geometry) -> int:
        """Return how many coordinates are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Symbols:
    """Quantised values.

    Attributes:
        parameters: what the codes are relative to, such as scales; float32, sent as they are.
        codes: unsigned integers, below 2 ** bits of the quantiser.
        seed: of what the quantiser drew at random, below 2 ** 32; sent when the quantiser is `seeded`.
    """

    parameters: FloatVector
    codes: Codes
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer(Codec):
    """Values → symbols: turns k float32 into integers of a bounded width and some parameters.

    On the wire: the seed, if it is `seeded`, as 4 bytes, little-endian; the parameters as little-endian float32;
    then the codes, as the entropy coder has it. Without one they are little-endian integers when `bits` is 8, 16
    or 32, else bit planes.

    Attributes:
        kind: likewise.
        bits: width of a code: 1 to 8, 16 or 32. What depends on arguments is a property.
        codes_zero: zero is among the decoded values, so it may quantise a dense vector.
        seeded: whether a seed goes with the symbols.
        is_placed: code i stands for value i, so an entropy coder may use where that value belongs.
    """

    kind: ClassVar[str] = "quantiser"
    codes_zero: ClassVar[bool] = True
    seeded: ClassVar[bool] = False
    is_placed: ClassVar[bool] = True

    @property
    @abstractmethod
    def bits(self) -> int:
        """Width of a code."""

    @abstractmethod
    def parameter_count(self, count: int) -> int:
        """Return how many parameters go with `count` values; none go with none."""

    def code_count(self, count: int) -> int:
        """Return how many codes go with `count` values."""
        return count

    @abstractmethod
    def quantize(self, values: FloatVector) -> Symbols:
        """Quantise finite values, shape (k,)."""

    @abstractmethod
    def dequantize(self, symbols: Symbols, count: int) -> FloatVector:
        """Return the `count` values that the symbols stand for: float32, shape (count,), all finite.

        Raises:
            ValueError: no encoder makes these symbols; the message says what is wrong with them.
        """

    def header_bytes(self, count: int) -> int:
        """Return the exact size of seed and parameters of `count` values."""
        return 4 * self.parameter_count(count) + (4 if self.seeded and count else 0)

    def pack_header(self, symbols: Symbols) -> bytes:
        """Write seed and parameters down."""
        seed = symbols.seed.to_bytes(4, "little") if self.seeded and symbols.codes.shape[0] else b""
        return seed + symbols.parameters.astype("<f4", copy=False).tobytes()

    def read_header(self, reader: Reader, count: int) -> tuple[int, FloatVector]:
        """Read seed and parameters back.

        Raises:
            WireError: they are cut off.
        """
        seed = int.from_bytes(reader.take(4, f"{self.id} seed"), "little") if self.seeded and count else 0
        raw = reader.take(4 * self.parameter_count(count), f"{self.id} parameters")
        return seed, np.frombuffer(raw, "<f4").astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionCoder(Codec):
    """Positions → bytes: writes down which coordinates the values belong to."""

    kind: ClassVar[str] = "position coder"

    @abstractmethod
    def encode(self, indices: IndexVector, geometry: Geometry) -> bytes:
        """Encode at least one position, strictly increasing, in [0, geometry.length)."""

    @abstractmethod
    def decode(self, reader: Reader, count: int, geometry: Geometry) -> IndexVector:
        """Read `count` positions back; the pipeline checks that they increase and are in range.

        Args:
            reader: where they begin; it is left behind their last byte.
            count: how many; from 1 to the length, but not yet known to be carried by the bytes that are left.
            geometry: of the whole vector.

        Raises:
            WireError: bytes that `encode` does not write.
        """

    @abstractmethod
    def max_bytes(self, count: int, geometry: Geometry) -> int:
        """Return the most bytes that up to `count` positions in such a vector are encoded in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyCoder(Codec):
    """Symbols → bytes: writes down codes that are not all equally likely."""

    kind: ClassVar[str] = "entropy coder"

    @abstractmethod
    def encode(self, codes: Codes, bits: int, indices: IndexVector | None, geometry: Geometry) -> bytes:
        """Encode codes below 2 ** bits.

        Args:
            codes: shape (k,), k ≥ 1.
            bits: of the quantiser.
            indices: the coordinate that each belongs to; None when code i belongs to coordinate i.
            geometry: of the whole vector.
        """

    @abstractmethod
    def decode(
        self, reader: Reader, count: int, bits: int, indices: IndexVector | None, geometry: Geometry
    ) -> Codes:
        """Read `count` ≥ 1 codes back; the reader is left behind their last byte.

        Raises:
            WireError: bytes that `encode` does not write.
        """

    @abstractmethod
    def max_bytes(self, count: int, bits: int, geometry: Geometry) -> int:
        """Return the most bytes that up to `count` codes are encoded in."""


def fixed_width_bytes(count: int, bits: int) -> int:
    """Return the exact size of `count` codes without an entropy coder."""
    return (count * bits + 7) // 8


def pack_codes(codes: Codes, bits: int) -> bytes:
    """Write codes down without an entropy coder, in `fixed_width_bytes(k, bits)` bytes."""
    if bits >= 8:
        return codes.astype(f"<u{bits // 8}", copy=False).tobytes()
    return pack_bits(to_planes(codes.astype(np.uint8, copy=False), bits))


def read_codes(reader: Reader, count: int, bits: int, what: str) -> Codes:
    """Read `count` codes back.

    Raises:
        WireError: cut off, or padding that is not zero.
    """
    if bits >= 8:
        raw = np.frombuffer(reader.take(fixed_width_bytes(count, bits), what), f"<u{bits // 8}")
        codes: Codes = raw.astype(raw.dtype.newbyteorder("="))
        return codes
    return from_planes(reader.bits(count * bits, what), count, bits).astype(np.uint8)
