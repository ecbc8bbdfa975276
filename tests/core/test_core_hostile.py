"""Law 7: whatever the bytes, every reader returns or raises `WireError`, and allocates no more than it says.

Seeds are the golden messages: valid ones with every field present.
"""

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq import encoding, wire
from fedmq.codecs import pipeline_from_wire
from fedmq.envelope import (
    ALLOCATED_ALWAYS,
    ALLOCATED_PER_BYTE,
    ALLOCATED_PER_VALUE,
    MAX_VALUES,
    SCHEMA,
    Kind,
    kind_of,
)
from fedmq.errors import WireError
from fedmq.layout import ParamLayout, Segment, SegmentKind

GOLDEN = [
    path.read_bytes() for path in sorted((Path(__file__).parent.parent / "golden" / "wire").glob("*.bin"))
]
kinds = st.sampled_from(Kind)
golden_messages = st.sampled_from(GOLDEN)


def sealed(kind: int, body: bytes) -> bytes:
    """An envelope with the right CRC around any body."""
    head = bytes((SCHEMA, kind))
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "big") + body


def read(kind: Kind, data: bytes) -> object:
    """What the reader returns, or its WireError as a text; anything else that is raised fails the test."""
    try:
        return wire.READERS[kind](data)
    except WireError as error:
        return str(error)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A golden message's body with bytes flipped, removed, inserted or cut off, or two of them joined."""
    body = bytearray(draw(golden_messages)[6:])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["flip", "cut", "insert", "remove", "join"])):
            case "flip" if at < len(body):
                body[at] ^= draw(st.integers(1, 255))
            case "cut":
                del body[at:]
            case "insert":
                body[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del body[at : at + draw(st.integers(1, 9))]
            case "join":
                body += draw(golden_messages)[6:]
    return bytes(body)


keys = st.text("abcdefhiklmnopqrstvwxz", max_size=1) | st.text(max_size=3) | st.binary(max_size=2)
leaf = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=20)
    | st.sampled_from(["online", "stale", "trainable", "float32", "0" * 32, b"12345678", b"1234567812345678"])
)
values = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=8) | st.dictionaries(keys, inner, max_size=8), max_leaves=30
)


@given(kinds, st.binary(max_size=200))
def test_any_bytes_are_safe(kind: Kind, data: bytes) -> None:
    """Bytes that are nothing at all; nearly none gets past the schema and the CRC."""
    read(kind, data)


@given(golden_messages, st.data())
def test_no_damage_to_a_message_goes_unnoticed(message: bytes, data: st.DataObject) -> None:
    """One changed byte, or the end cut off: never another value, always an error."""
    at = data.draw(st.integers(0, len(message) - 1))
    flipped = bytearray(message)
    flipped[at] ^= data.draw(st.integers(1, 255))
    kind = kind_of(message)

    assert isinstance(read(kind, bytes(flipped)), str)
    assert isinstance(read(kind, message[:at]), str)


@given(kinds, damaged())
@settings(max_examples=200)
def test_a_damaged_body_under_a_right_crc_is_safe(kind: Kind, body: bytes) -> None:
    """What a hostile peer makes of a valid message: the CRC protects from accidents only."""
    read(kind, sealed(kind, body))


@given(kinds, values)
@settings(max_examples=200)
def test_any_values_under_a_right_crc_are_safe(kind: Kind, value: object) -> None:
    """Valid msgpack of any shape, maps with our keys among them."""
    read(kind, sealed(kind, msgpack.packb(value)))


@given(golden_messages, st.data())
@settings(max_examples=200)
def test_any_value_in_any_field_is_safe(message: bytes, data: st.DataObject) -> None:
    """A valid message with one field replaced by something else."""
    kind, body = kind_of(message), msgpack.unpackb(message[6:])
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(values)
    read(kind, sealed(kind, msgpack.packb(body)))


@given(kinds, st.binary(max_size=100))
@settings(max_examples=200)
def test_any_body_under_a_right_crc_is_safe(kind: Kind, body: bytes) -> None:
    """Bytes that reach msgpack itself."""
    read(kind, sealed(kind, body))


LENGTH = 5_000
HOSTILE: dict[str, bytes] = {
    "lists that announce much, each in the next": b"\xdc\x27\x10" * LENGTH,
    "long lists that announce much, each in the next": b"\xdd\x00\x00\x27\x10" * LENGTH,
    "a list of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "a text of four billion": b"\xdb\xff\xff\xff\xff",
    "bytes of four billion": b"\xc6\xff\xff\xff\xff",
    "lists in lists": b"\x91" * LENGTH,
    "maps in maps": b"\x81\xa0" * LENGTH,
    "empty lists": b"\xdd" + LENGTH.to_bytes(4, "big") + b"\x90" * LENGTH,
    "empty maps": b"\xdd" + LENGTH.to_bytes(4, "big") + b"\x80" * LENGTH,
    "maps of one": b"\xdd" + LENGTH.to_bytes(4, "big") + b"\x81\xa0\x80" * LENGTH,
    "as many empty maps as are allowed": b"\xdc\x07\xff" + b"\x80" * (MAX_VALUES - 1),
    "as many maps of one as are allowed": b"\xdc\x02\xaa" + b"\x81\xa0\x80" * 682,
    "integers": b"\xdd" + LENGTH.to_bytes(4, "big") + b"\xcf" + b"\x7f" * 8 * LENGTH,
    "short texts": b"\x81\xa1l\xdd" + LENGTH.to_bytes(4, "big") + b"\xa2\xc3\xa9" * LENGTH,
    "a text that ends in a wide character": (
        b"\xdb" + (LENGTH + 4).to_bytes(4, "big") + b"a" * LENGTH + "\U0001f600".encode()
    ),
    "a text that widens twice": (
        b"\xdb" + (LENGTH + 7).to_bytes(4, "big") + "é".encode() * (LENGTH // 2) + "€\U0001f600".encode()
    ),
    "a text that is no text": b"\xdb" + LENGTH.to_bytes(4, "big") + b"a" * (LENGTH - 1) + b"\xff",
    "an extension": b"\xc9" + LENGTH.to_bytes(4, "big") + b"\x05" + b"a" * LENGTH,
    "a timestamp": b"\xd6\xff\x00\x00\x00\x01",
    "an extension that hides a list": b"\xc7\x05\x05\xc6\xff\xff\xff\xff" + b"\xdc\x27\x10" * LENGTH,
    "the byte that is never used": b"\xc1" * LENGTH,
    "something behind the end": b"\x80" + b"\xdc\x27\x10" * LENGTH,
    "a key that is a list": b"\x81\x90\xc0",
    "nothing": b"",
    "rows of a layout": (
        b"\x81\xa1l\xdc" + LENGTH.to_bytes(2, "big") + b"\x94\xa1a\x91\x01\xa7float32\xa9trainable" * LENGTH
    ),
    "wide rows of a layout": (
        b"\x81\xa1l\xdc"
        + LENGTH.to_bytes(2, "big")
        + b"\x94\xa1a\x98\1\1\1\1\1\1\1\1\xa7float32\xa9trainable" * LENGTH
    ),
    "frames of a head": (
        b"\x81\xa1k\xdc\x00\x40"
        + (b"\x84\xa1q\xa4int8\xa1i\xc4\x10" + bytes(16) + b"\xa1z\x01\xa1o\x01") * 64
    ),
    "empty frames of a head": b"\x81\xa1k\xdc\x07\xfb" + b"\x80" * 2043,
    "refusals": b"\x82\xa1c\xa1a\xa1r\xdc\x01\x00" + b"\x93\x01\xa5stale\xa0" * 256,
    "sequence numbers": b"\x82\xa1c\xa1a\xa1b\xdc\x01\x00" + b"\xcd\x10\x00" * 256,
}


def bound(kind: Kind, message: bytes) -> int:
    """What reading a message may allocate: it holds fewer values than bytes, and no more than are allowed."""
    most = wire.MAX_PLAN_VALUES if kind is Kind.PLAN else MAX_VALUES
    values = min(most, len(message))
    return ALLOCATED_PER_BYTE * len(message) + ALLOCATED_PER_VALUE * values + ALLOCATED_ALWAYS


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call allocates at most at one time."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_refused_within_the_stated_memory(kind: Kind, name: str) -> None:
    """Even where it announces gigabytes: `fedmq.envelope` states the bound."""
    message = sealed(kind, HOSTILE[name])

    assert isinstance(read(kind, message), str)
    assert peak(lambda: read(kind, message)) <= bound(kind, message)


@pytest.mark.parametrize("message", GOLDEN)
def test_a_valid_message_is_read_within_the_stated_memory(message: bytes) -> None:
    """The bound is no excuse: it holds for what is accepted, too."""
    kind = kind_of(message)

    assert peak(lambda: read(kind, message)) <= bound(kind, message)


LAYOUT = ParamLayout(
    (Segment(name="w", shape=(20,)), Segment(name="mean", shape=(3,), kind=SegmentKind.BUFFER))
)
CODECS = ["float32", "int8", "topk(0.2) | ternary | rice", "topk(0.5) | float16 | bitmap"]


@given(st.sampled_from(CODECS), st.binary(max_size=120))
@settings(max_examples=200)
def test_any_payload_is_safe(codec: str, payload: bytes) -> None:
    """Decoding returns a vector of the layout's size or raises `WireError`."""
    try:
        decoded = encoding.decode(LAYOUT, pipeline_from_wire(codec), payload)
    except WireError:
        return

    assert decoded.to_dense().shape == (LAYOUT.size,)


@given(st.text(max_size=300) | st.text("topk(0.1)| float32int8rice", max_size=40))
def test_any_codec_text_is_safe(text: str) -> None:
    """A peer names the codec; what is none raises `WireError`."""
    try:
        pipeline = pipeline_from_wire(text)
    except WireError:
        return

    assert str(pipeline_from_wire(str(pipeline))) == str(pipeline)
