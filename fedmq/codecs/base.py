"""The kinds of codec, and what every codec has in common.

What lives here: `Codec` (an id, arguments, a config that survives a round trip) and the three kinds that a
pipeline is made of. What must not: any particular codec, and any table of them.

A codec is a value: frozen, equal by its arguments, with a `repr` that evaluates back. It holds no state from
one message to the next; error feedback belongs to the agent. The kinds:

* a `Sparsifier` (vector → positions) chooses which coordinates to send;
* a `Quantizer` (values → symbols) turns the chosen values into integers of a fixed width and a few float32
  parameters, its `Symbols`;
* a `PositionCoder` (positions → bytes) writes down where they belong.

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
class Sparsifier(Codec):
    """Vector → positions: chooses the coordinates that are sent. The others are sent as zero."""

    kind: ClassVar[str] = "sparsifier"

    @abstractmethod
    def select(self, vector: FloatVector) -> IndexVector:
        """Choose coordinates of a finite vector: int32, strictly increasing, at most `max_count` of them."""

    @abstractmethod
    def max_count(self, length: int) -> int:
        """Return the most coordinates chosen from `length`; a payload with more is refused."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Symbols:
    """Quantised values.

    Attributes:
        parameters: what the codes are relative to, such as scales; float32, sent as they are.
        codes: one unsigned integer per value, below 2 ** bits of the quantiser.
    """

    parameters: FloatVector
    codes: Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer(Codec):
    """Values → symbols: turns k float32 into k integers of a fixed width and some parameters.

    On the wire: the parameters as little-endian float32, then the codes, little-endian when `bits` is 8, 16
    or 32, else as bit planes.

    Attributes:
        bits: width of a code: 1 to 8, 16 or 32.
        codes_zero: zero is among the decoded values, so it may quantise a dense vector.
    """

    kind: ClassVar[str] = "quantiser"
    bits: ClassVar[int]
    codes_zero: ClassVar[bool] = True

    @abstractmethod
    def parameter_count(self, count: int) -> int:
        """Return how many parameters go with `count` values; none go with none."""

    @abstractmethod
    def quantize(self, values: FloatVector) -> Symbols:
        """Quantise finite values, shape (k,)."""

    @abstractmethod
    def dequantize(self, symbols: Symbols) -> FloatVector:
        """Return the values that the symbols stand for: float32, shape (k,), all finite.

        Raises:
            ValueError: no encoder makes these symbols; the message says what is wrong with them.
        """

    def encoded_bytes(self, count: int) -> int:
        """Return the exact size of `count` encoded values."""
        return 4 * self.parameter_count(count) + (count * self.bits + 7) // 8

    def encode(self, values: FloatVector) -> bytes:
        """Quantise finite values and write the symbols down, in `encoded_bytes(k)` bytes."""
        symbols = self.quantize(values)
        parameters = symbols.parameters.astype("<f4", copy=False).tobytes()
        if self.bits >= 8:
            return parameters + symbols.codes.astype(f"<u{self.bits // 8}", copy=False).tobytes()
        return parameters + pack_bits(to_planes(symbols.codes.astype(np.uint8, copy=False), self.bits))

    def decode(self, reader: Reader, count: int) -> FloatVector:
        """Read `count` values back, as float32 of shape (count,).

        Raises:
            WireError: bytes that `encode` does not write.
        """
        size = 4 * self.parameter_count(count)
        parameters = np.frombuffer(reader.take(size, f"{self.id} parameters"), "<f4").astype(np.float32)
        codes: Codes
        if self.bits >= 8:
            size = count * self.bits // 8
            raw = np.frombuffer(reader.take(size, f"{self.id} values"), f"<u{self.bits // 8}")
            codes = raw.astype(raw.dtype.newbyteorder("="))
        else:
            planes = reader.bits(count * self.bits, f"{self.id} values")
            codes = from_planes(planes, count, self.bits).astype(np.uint8)
        try:
            return self.dequantize(Symbols(parameters=parameters, codes=codes))
        except ValueError as error:
            raise reader.fail(f"{self.id}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionCoder(Codec):
    """Positions → bytes: writes down which coordinates the values belong to."""

    kind: ClassVar[str] = "position coder"

    @abstractmethod
    def encode(self, indices: IndexVector, length: int) -> bytes:
        """Encode at least one position, strictly increasing, in [0, length)."""

    @abstractmethod
    def decode(self, reader: Reader, count: int, length: int) -> IndexVector:
        """Read `count` positions back; the pipeline checks that they increase and are in range.

        Args:
            reader: where they begin; it is left behind their last byte.
            count: how many; from 1 to `length`, but not yet known to be carried by the bytes that are left.
            length: coordinates of the whole vector.

        Raises:
            WireError: bytes that `encode` does not write.
        """

    @abstractmethod
    def max_bytes(self, count: int, length: int) -> int:
        """Return the most bytes that up to `count` positions in `length` are encoded in."""
