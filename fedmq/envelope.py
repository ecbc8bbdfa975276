"""The envelope: schema, kind, CRC and a msgpack map, read with nothing taken on trust.

An envelope is

    schema (1 byte) · kind (1 byte) · CRC-32 of schema, kind and body (4 bytes, big-endian) · body

and the body is a msgpack map with short string keys. Unknown keys are ignored, so that a later minor release can
add a field with a default; a schema number other than ours is refused.

Law 7: reading any bytes returns or raises `WireError`, nothing else, and n bytes allocate at most

    ALLOCATED_PER_BYTE · n + ALLOCATED_PER_VALUE · v + ALLOCATED_ALWAYS

where v, the values that the message announces, has a bound of its own. msgpack would allocate a list of the announced
length before its entries are there, one within the other a thousand deep: 3 kB became 80 MB. So the values are
counted first, without allocating any. What each message holds is the business of `fedmq.wire`.
"""

import zlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, TypeVar

import msgpack

from .errors import WireError
from .topics import is_name

SCHEMA: Final = 1
HEADER_BYTES: Final = 6
MAX_INTEGER: Final = 2**63 - 1
MAX_DETAIL: Final = 200
#: Values in one message, but for a plan's: a receipt with its lists full holds 1,298.
MAX_VALUES: Final = 2048
#: The most is a text that widens on its way to a str, from one byte a character to two and to four: 6.
ALLOCATED_PER_BYTE: Final = 8
#: The most is a map of one entry, three values in 255 bytes.
ALLOCATED_PER_VALUE: Final = 128
#: The exception and its message.
ALLOCATED_ALWAYS: Final = 4096

T = TypeVar("T")


class Kind(IntEnum):
    """The second byte of an envelope."""

    PLAN = 1
    MODEL = 2
    UPDATE = 3
    CHUNK = 4
    RECEIPT = 5
    TASK = 6
    CLIENT = 7
    AGGREGATOR = 8


class Fields:
    """Checked access to the map of one message; every method raises `WireError` naming message and field."""

    __slots__ = ("_map", "_what")

    def __init__(self, what: str, fields: object) -> None:
        if not isinstance(fields, dict):
            raise WireError(what, "the body is not a map")
        self._what, self._map = what, fields

    def _get(self, key: str, kind: type[T]) -> T:
        value = self._map.get(key)
        # bool is an int to isinstance, but not to us
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    def wrong(self, key: str, reason: str) -> WireError:
        """The error to raise about a field."""
        return WireError(f"{self._what}.{key}", reason)

    def has(self, key: str) -> bool:
        """Whether an optional field is there."""
        return self._map.get(key) is not None

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """An integer within bounds, both included."""
        value = self._get(key, int)
        if not low <= value <= high:
            raise self.wrong(key, f"{value} is not in [{low}, {high}]")
        return value

    def number(self, key: str) -> float:
        """A float; infinities and NaN pass."""
        return self._get(key, float)

    def flag(self, key: str) -> bool:
        """A truth value."""
        return self._get(key, bool)

    def text(self, key: str, high: int) -> str:
        """A text of at most `high` characters."""
        value = self._get(key, str)
        if len(value) > high:
            raise self.wrong(key, f"{len(value)} characters, at most {high} are allowed")
        return value

    def name(self, key: str) -> str:
        """A text that may stand in a topic."""
        value = self._get(key, str)
        if not is_name(value):
            raise self.wrong(key, f"{value[:80]!r} is not a name of 1 to 64 characters A-Z a-z 0-9 _ -")
        return value

    def binary(self, key: str, exact: int | None = None) -> bytes:
        """Bytes, of an exact length where one is given."""
        value = self._get(key, bytes)
        if exact is not None and len(value) != exact:
            raise self.wrong(key, f"{len(value)} bytes, expected {exact}")
        return value

    def items(self, key: str, high: int) -> list[object]:
        """A list of at most `high` entries, each still to be checked."""
        value: list[object] = self._get(key, list)
        if len(value) > high:
            raise self.wrong(key, f"{len(value)} entries, at most {high} are allowed")
        return value

    def pairs(self, key: str, high: int) -> list[tuple[str, object]]:
        """A map of at most `high` entries with text keys, each value still to be checked."""
        value: dict[object, object] = self._get(key, dict)
        if len(value) > high:
            raise self.wrong(key, f"{len(value)} entries, at most {high} are allowed")
        pairs = []
        for name, entry in value.items():
            if not isinstance(name, str) or len(name) > 64:
                raise self.wrong(key, "a key is not a text of at most 64 characters")
            pairs.append((name, entry))
        return pairs

    def sub(self, key: str) -> "Fields":
        """A map within the map."""
        return Fields(f"{self._what}.{key}", self._map.get(key))

    def subs(self, key: str, high: int) -> "list[Fields]":
        """A list of at most `high` maps within the map."""
        return [Fields(f"{self._what}.{key}", entry) for entry in self.items(key, high)]

    def is_binary(self, key: str) -> bool:
        """Whether the field holds bytes."""
        return isinstance(self._map.get(key), bytes)


def pack(kind: Kind, body: Mapping[str, object]) -> bytes:
    """Put a body into its envelope."""
    packed: bytes = msgpack.packb(body)
    head = bytes((SCHEMA, kind))
    return head + zlib.crc32(packed, zlib.crc32(head)).to_bytes(4, "big") + packed


def kind_of(data: bytes) -> Kind:
    """Which message an envelope claims to hold.

    Raises:
        WireError: too short, another schema, or no kind that we know.
    """
    if len(data) < HEADER_BYTES:
        raise WireError("envelope", f"{len(data)} bytes, at least {HEADER_BYTES} are needed")
    if data[0] != SCHEMA:
        raise WireError("envelope", f"schema {data[0]}, this release reads schema {SCHEMA}")
    try:
        return Kind(data[1])
    except ValueError:
        raise WireError("envelope", f"unknown kind {data[1]}") from None


def unpack(kind: Kind, data: bytes, max_values: int = MAX_VALUES) -> Fields:
    """Take a body out of its envelope.

    Args:
        kind: what it must hold.
        data: any bytes.
        max_values: how many values it may hold, those within lists and maps and the maps' keys included.

    Raises:
        WireError: the bytes are not such an envelope.
    """
    what = kind.name.lower()
    found = kind_of(data)
    if found is not kind:
        raise WireError("envelope", f"holds a {found.name.lower()}, expected a {what}")
    body = memoryview(data)[HEADER_BYTES:]
    if zlib.crc32(body, zlib.crc32(data[:2])) != int.from_bytes(data[2:HEADER_BYTES], "big"):
        raise WireError(what, "the CRC does not match: the message is damaged")
    if _count_values(body, max_values) > max_values:
        raise WireError(what, f"announces more than {max_values} values")
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_no_extensions)
    # RecursionError comes from msgpack's pure-Python fallback, the others from both
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError, RecursionError) as error:
        raise WireError(what, f"not valid msgpack: {type(error).__name__} {error}"[:MAX_DETAIL]) from None
    return Fields(what, fields)


# msgpack's first bytes, with the width in bytes of the number that follows, or of the length that follows.
_NUMBERS: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_STRINGS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS: Final = {0xDC: 2, 0xDD: 4}
_MAPS: Final = {0xDE: 2, 0xDF: 4}


def _count_values(body: memoryview, high: int) -> int:
    """How many values the first value of a body announces, itself included; stops beyond `high`.

    It counts and no more: what is cut off, of an extension type or no msgpack is left to msgpack to refuse.
    """
    at, pending, count = 0, 1, 1
    while pending and at < len(body) and count <= high:
        first = body[at]
        at += 1
        entries = 0
        if first in _NUMBERS:
            at += _NUMBERS[first]
        elif 0xA0 <= first <= 0xBF:
            at += first & 0x1F
        elif first in _STRINGS:
            width = _STRINGS[first]
            at += width + int.from_bytes(body[at : at + width], "big")
        elif 0x90 <= first <= 0x9F:
            entries = first & 0x0F
        elif 0x80 <= first <= 0x8F:
            entries = 2 * (first & 0x0F)
        elif first in _LISTS:
            width = _LISTS[first]
            entries = int.from_bytes(body[at : at + width], "big")
            at += width
        elif first in _MAPS:
            width = _MAPS[first]
            entries = 2 * int.from_bytes(body[at : at + width], "big")
            at += width
        pending += entries - 1
        count += entries
    return count


def _no_extensions(code: int, data: bytes) -> object:
    raise ValueError("extension types are not used")
