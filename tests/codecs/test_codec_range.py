"""The entropy coder: streams of symbols, learnt bits, and codes at their entropy; what it takes and what it refuses."""

import hashlib
import re
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import Geometry, parse_pipeline
from fedmq.codecs.activity import entropy
from fedmq.codecs.bitmodel import NumberModel, code_signs
from fedmq.codecs.bits import Reader
from fedmq.codecs.entropy import MAX_LEARNT, Range
from fedmq.codecs.magnitudes import BINS, Parts, Reading, layout, put_together, readings, take_apart
from fedmq.codecs.rans import SCALE, Decoder, Encoder, decode_lanes, encode_lanes, make_table
from fedmq.codecs.rows import Rows
from fedmq.errors import WireError

Recorded: TypeAlias = tuple[Geometry, np.ndarray, np.ndarray]

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


def _dtype(bits: int) -> str:
    return "u1" if bits <= 8 else f"u{bits // 8}"


def round_trip(codes: np.ndarray, bits: int, geometry: Geometry, indices: np.ndarray | None = None) -> int:
    """The codes come back, in their own type, and nothing else is read; the length."""
    codec = Range()
    encoded = codec.encode(codes, bits, indices, geometry)
    reader = Reader(encoded + b"\x01\x02", "test")
    decoded = codec.decode(reader, len(codes), bits, indices, geometry)
    assert codes.tolist() == decoded.tolist()
    assert np.dtype(_dtype(bits)) == decoded.dtype
    assert 2 == reader.remaining
    assert len(encoded) <= codec.max_bytes(len(codes), bits, geometry)
    return len(encoded)


weights = st.lists(st.integers(0, 10**6), min_size=1, max_size=300).filter(any)


@given(weights)
def test_a_table_gives_every_weight_a_slot_and_shares_out_all(chosen: list[int]) -> None:
    """In proportion, as far as whole slots go."""
    table = make_table(chosen)
    sizes = np.diff(table)

    assert (0, SCALE) == (table[0], table[-1])
    assert [weight > 0 for weight in chosen] == (sizes > 0).tolist()
    shares = np.array(chosen) / sum(chosen) * (SCALE - np.count_nonzero(chosen))
    off = sizes - shares
    off[int(np.argmax(chosen))] = 0  # what is left over
    assert (np.abs(off) <= 1).all()


@given(st.data())
def test_what_goes_into_a_stream_comes_out(data: st.DataObject) -> None:
    """Bits, symbols by tables and digits, in any order; and the stream is as long as it must be."""
    steps = data.draw(st.lists(st.sampled_from(["bit", "symbols", "digits"]), max_size=12))
    encoder, wanted = Encoder(), []
    for step in steps:
        match step:
            case "bit":
                zero, bit = data.draw(st.integers(1, SCALE - 1)), data.draw(st.integers(0, 1))
                encoder.bit(zero, bit)
                wanted.append((step, zero, bit))
            case "symbols":
                table = make_table(data.draw(weights))
                owned = np.flatnonzero(np.diff(table)).tolist()
                symbols = data.draw(st.lists(st.sampled_from(owned), max_size=9))
                encoder.symbols([table] * len(symbols), symbols)
                wanted.append((step, [table] * len(symbols), symbols))
            case _:
                bases = data.draw(st.lists(st.integers(1, 1024), max_size=9))
                digits = [data.draw(st.integers(0, base - 1)) for base in bases]
                encoder.digits(bases, digits)
                wanted.append((step, bases, digits))
    stream = encoder.finish()
    decoder = Decoder(Reader(stream, "test"))

    assert [known for _, _, known in wanted] == [getattr(decoder, step)(by) for step, by, _ in wanted]
    decoder.finish()
    assert len(stream) <= 4.1 + encoder.bits / 8


@pytest.mark.parametrize("count", [1, 2, 99, 1000])
def test_one_lane_is_a_stream_of_one_state_and_many_hold_the_same(count: int) -> None:
    """Each lane takes its turn, the last ones perhaps not."""
    rng = np.random.default_rng(count)
    tables = [make_table([*rng.integers(0, 50, 9).tolist(), 1]) for _ in range(3)]
    which = rng.integers(0, 3, count).astype(np.uint8)
    bounds = np.array(tables)[which]
    symbols = (rng.integers(0, SCALE, (count, 1)) >= bounds[:, 1:]).sum(axis=1)
    starts, ends = bounds[np.arange(count), symbols], bounds[np.arange(count), symbols + 1]
    encoder = Encoder()
    encoder.symbols([tables[table] for table in which], symbols.tolist())

    assert encoder.finish() == encode_lanes(starts.astype(np.uint16), (ends - starts).astype(np.uint16), 1)
    for lanes in (1, 7, 64):
        stream = encode_lanes(starts.astype(np.uint16), (ends - starts).astype(np.uint16), lanes)
        reader = Reader(stream + b"\0", "test")
        assert symbols.tolist() == decode_lanes(reader, tables, which, lanes).tolist()
        assert 1 == reader.remaining
        for size in range(len(stream) if count < 100 else 0):
            with pytest.raises(WireError, match=r"cut off|are not a stream|does not end"):
                decode_lanes(Reader(stream[:size], "test"), tables, which, lanes)


@given(st.lists(st.integers(-30, 30), max_size=60), st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_learnt_numbers_and_signs_come_out(steps: list[int], signs: list[bool], row: int) -> None:
    """Both ends learn alike."""
    encoder, numbers, rows = Encoder(), NumberModel(60), [place // row for place in range(len(signs))]
    for step in steps:
        numbers.code_step(encoder, step)
    code_signs(encoder, rows, [int(sign) for sign in signs])
    decoder, again = Decoder(Reader(encoder.finish(), "test")), NumberModel(60)

    assert steps == [again.code_step(decoder) for _ in steps]
    assert signs == code_signs(decoder, rows)
    decoder.finish()


def test_numbers_above_the_largest_are_refused() -> None:
    """A model of more says 60, 61 and 500 to one of 60."""
    for number in (61, 500):
        encoder = Encoder()
        NumberModel(1000).code(encoder, number)
        with pytest.raises(ValueError, match="a number is too large"):
            NumberModel(60).code(Decoder(Reader(encoder.finish(), "test")))


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_comes_apart_and_together(bits: int) -> None:
    """By all its readings; of 32 bits, many."""
    codes = np.arange(2**bits) if bits <= 16 else np.random.default_rng(1).integers(0, 2**32, 20_000)
    codes = codes.astype(_dtype(bits))
    for reading in readings(bits):
        parts = take_apart(codes, bits, reading)
        assert parts.bins.max() < BINS
        assert (parts.lows < 1 << layout(bits, reading)[1][parts.bins].astype(int)).all()
        assert codes.tolist() == put_together(parts, bits, reading).tolist()


@pytest.mark.parametrize(
    ("reading", "magnitude", "negative"),
    [
        (Reading.PLAIN, 16, False),
        (Reading.ZIGZAG, 8, False),
        (Reading.ZIGZAG, 9, True),
        (Reading.COMPLEMENT, 8, False),
        (Reading.COMPLEMENT, 9, True),
        (Reading.SIGN, 8, False),
    ],
)
def test_codes_that_are_too_wide_are_refused(reading: Reading, magnitude: int, negative: bool) -> None:
    """The first that do not fit four bits."""
    parts = Parts(
        bins=np.array([magnitude], np.uint8), negative=np.array([negative]), lows=np.zeros(1, np.int64)
    )
    with pytest.raises(ValueError, match="a code has more than 4 bits"):
        put_together(parts, 4, reading)


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from(WIDTHS),
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=3),
    spread=st.floats(0, 1),
    sparse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codes_come_back(
    bits: int, shapes: list[tuple[int, int]], spread: float, sparse: bool, seed: int
) -> None:
    """Wide and narrow, all alike or spread over everything, dense and sparse."""
    geometry, rng = Geometry(tuple(shapes)), np.random.default_rng(seed)
    indices = np.flatnonzero(rng.random(geometry.length) < 0.3).astype(np.int32) if sparse else None
    count = geometry.length if indices is None else len(indices)
    codes = (2 ** (bits * spread * rng.random(count)) - 1).astype(_dtype(bits))
    if rng.random() < 0.3:
        codes = (2**bits - 1 - codes.astype(np.int64)).astype(_dtype(bits))

    if count:
        round_trip(codes, bits, geometry, indices)


@pytest.mark.parametrize("reading", [Reading.ZIGZAG, Reading.COMPLEMENT])
def test_codes_without_structure_take_their_entropy(reading: Reading) -> None:
    """Within 1 %, tables and everything included."""
    values = np.rint(np.random.default_rng(5).laplace(scale=3, size=40_000)).astype(int)
    codes = np.where(values < 0, -2 * values - 1, 2 * values) if reading is Reading.ZIGZAG else values % 256
    size = round_trip(codes.astype(np.uint8), 8, Geometry.flat(len(codes)))

    assert size <= 1.01 * entropy(np.bincount(codes)) / 8


def test_the_activity_of_rows_and_columns_pays() -> None:
    """Codes of which the size is a product of two factors: an eighth less than the entropy of all of them together."""
    rng = np.random.default_rng(6)
    scale = np.exp(rng.normal(0, 1, (100, 1)) + rng.normal(0, 1, 200))
    values = np.clip(np.rint(rng.laplace(size=(100, 200)) * scale), -120, 120).astype(int).reshape(-1)
    codes = np.where(values < 0, -2 * values - 1, 2 * values).astype(np.uint8)
    size = round_trip(codes, 8, Geometry(((100, 200),)))

    assert (
        size <= 0.88 * entropy(np.bincount(codes)) / 8 <= 0.88 * round_trip(codes, 8, Geometry.flat(20_000))
    )


def test_many_codes_are_coded_in_lanes_at_one_percent_of_the_bytes() -> None:
    """Two hundred thousand, and what the lanes take is within the bound."""
    codes = np.rint(np.random.default_rng(7).normal(0, 20, 200_000)).astype(np.int8).view(np.uint8)
    geometry = Geometry(((400, 500),))
    encoded = Range().encode(codes, 8, None, geometry)

    assert "in 512 lanes" in Range().describe(encoded, len(codes), 8)
    assert round_trip(codes, 8, geometry) <= 1.015 * entropy(np.bincount(codes)) / 8


def test_the_signs_of_a_real_update_take_half_a_bit(recorded: Recorded) -> None:
    """Positions known; a form, a state and nothing else on top."""
    geometry, indices, signs = recorded
    encoded = Range().encode(signs, 1, indices, geometry)

    assert "read as sign, signs learnt" == Range().describe(encoded, len(signs), 1)
    assert 8 * round_trip(signs, 1, geometry, indices) <= 0.5 * len(signs)


def test_a_whole_ternary_payload_of_a_real_update_is_a_fifth_shorter(recorded: Recorded) -> None:
    """Than with `rice` and a bit for each sign."""
    geometry, indices, signs = recorded
    vector = np.zeros(geometry.length, np.float32)
    vector[indices] = np.where(signs, -1, 1)
    sizes = [
        len(parse_pipeline(f"topk(0.01) | ternary | {rest}").encode(vector, geometry))
        for rest in ("rice", "rows", "rows | range")
    ]

    assert 1.2 * sizes[2] <= sizes[0]
    assert sizes[2] + 50 <= sizes[1] <= sizes[0] - 140


def _digest(data: bytes) -> str:
    return hashlib.blake2s(data, digest_size=8).hexdigest()


def test_a_real_update_and_many_lanes_have_the_bytes_that_they_always_had(recorded: Recorded) -> None:
    """What golden files are too small to show: learnt signs, a large tree, lanes."""
    geometry, indices, signs = recorded
    numbers = np.arange(70_000, dtype=np.uint64) * 2654435761 % 2**32 >> 24
    codes = (numbers * numbers % 251 * numbers // 1024).astype(np.uint8)
    lanes = Range().encode(codes, 8, None, Geometry(((100, 700),)))

    assert "4edc580aa9f3c583" == _digest(Rows().encode(indices, geometry))
    assert "07cf1387418a4903" == _digest(Range().encode(signs, 1, indices, geometry))
    assert "in 128 lanes" in Range().describe(lanes, 70_000, 8)
    assert "e8d855259c713d7c" == _digest(lanes)


@pytest.mark.parametrize("bits", [1, 8, 16, 32])
def test_noise_is_written_at_its_full_width(bits: int) -> None:
    """With one byte before it."""
    codes = np.random.default_rng(1).integers(0, 2**bits, 3000).astype(_dtype(bits))
    encoded = Range().encode(codes, bits, None, Geometry.flat(3000))

    assert 0 == encoded[0]
    assert 1 + 3000 * bits // 8 == len(encoded) == Range().max_bytes(3000, bits, Geometry.flat(3000))
    assert f"at their full width of {bits} bits" == Range().describe(encoded, 3000, bits)


def _stream(*tables: list[int]) -> bytes:
    """A stream that tells one matrix's activity, then tables by their weights' steps, and nothing else."""
    encoder, levels = Encoder(), NumberModel(15)
    levels.code(encoder, 8)
    lengths, steps = NumberModel(127), [NumberModel(98) for _ in range(3)]
    for table in tables:
        lengths.code(encoder, len(table) - 1)
        for place, step in enumerate(table):
            steps[min(place, 2)].code_step(encoder, step)
    return encoder.finish()


@pytest.mark.parametrize(
    ("payload", "count", "bits", "reason"),
    [
        (b"", 1, 8, "range form needs 1 bytes, 0 are left"),
        (b"\x00", 1, 8, "range codes needs 1 bytes, 0 are left"),
        (b"\x02", 1, 8, "there is no form 2 for codes of 8 bits"),
        (b"\x03", 1, 1, "there is no form 3 for codes of 1 bits"),
        (b"\x01", 1, 32, "there is no form 1 for codes of 32 bits"),
        (b"\x0f", MAX_LEARNT + 1, 1, "signs of 65537 codes in 0 lanes are not learnt"),
        (b"\x7b", 99_999, 8, "signs of 99999 codes in 128 lanes are not learnt"),
        (b"\x61", 99_999, 8, "99999 codes are not coded in 64 lanes"),
        (b"\x71", 32_767, 8, "32767 codes are not coded in 128 lanes"),
        (b"\x77", 99_999, 1, "there is nothing to code in lanes"),
        (b"\x01\x00\x00\x00\x00", 1, 8, "4 bytes are not a stream of symbols"),
        (b"\x01" + _stream([49, 1]), 1, 8, "a weight is out of range"),
        (b"\x01" + _stream([0, -1]), 1, 8, "a weight is out of range"),
        (b"\x01" + _stream([0, 0]), 1, 8, "a table has no bin"),
        (b"\x01" + _stream([*[0] * 20, 9]) + b"\x00", 1, 4, "a code has more than 4 bits"),
        (b"\x01" + _stream([*[0] * 20, 9]) + b"\x00", 1, 8, None),
        (b"\x01" + _stream([*[0] * 20, 9]) + b"\x20", 1, 8, "padding bits that are not zero"),
        (b"\x01" + _stream([*[0] * 20, 9]), 1, 8, "range bits needs 1 bytes, 0 are left"),
        (b"\x01" + _stream([9])[:-2], 1, 8, "cut off"),
    ],
)
def test_a_payload_that_no_encoder_writes_is_refused_with_its_reason(
    payload: bytes, count: int, bits: int, reason: str | None
) -> None:
    """One case for each way to be wrong, and one that is right."""
    reader = Reader(payload, "test")
    if reason is None:
        assert [24] == Range().decode(reader, count, bits, None, Geometry.flat(count)).tolist()
        return
    with pytest.raises(WireError, match=re.escape(reason)):
        Range().decode(reader, count, bits, None, Geometry.flat(count))


def test_an_offset_that_is_too_large_is_refused() -> None:
    """Sixteen doublings in two steps."""
    encoder, steps = Encoder(), NumberModel(60)
    NumberModel(15).code(encoder, 8)
    encoder.bit(SCALE // 2, 1)
    for step in (8, 8):
        steps.code_step(encoder, step)

    with pytest.raises(WireError, match="an offset is too large"):
        Range().decode(Reader(b"\x01" + encoder.finish(), "test"), 6, 8, None, Geometry(((2, 3),)))
