"""`range`: codes at the entropy of what a row, a column or a neighbour says about them.

What lives here: an entropy coder, its choices and its bytes. Its parts are elsewhere: how a code comes apart into sign,
bin and low bits (`magnitudes`), contexts of a dense vector (`activity`), what is learnt on the way (`bitmodel`), and
symbols as bytes (`rans`).

Bins are coded by tables that are sent, one for each context. Low bits are sent as they are. So are signs, or they are
learnt, since those of a sparse update are mostly alike within a row.

    payload = 0, codes at their full width, as without an entropy coder
            | form (1 byte, not 0), stream, [lanes], raw bits

    form    = 1 + 2 · reading + 8 · (signs are learnt) + 16 · (log2 of the number of lanes; 0 without lanes)
    stream  = [activity, of a dense vector] · [a table for each context that occurs] · [bins, without lanes]
              · [signs, if learnt]
    lanes   = bins, a stream of their own
    raw     = signs unless learnt · low bits, in planes, those of the narrowest bins first · zeros to a byte

There are no activity, tables and bins where codes are nothing but signs.

    table   = number of bins less 1 · for each bin the step from the last weight that was not 0, the first from 0

A weight v above 0 is 2 ** ((v - 1) / 4) times 16, rounded, so that a table takes some 4 bits for each bin.

**What it costs.** A bin takes a quarter of a microsecond to decode in plain Python, a learnt sign a whole one; lanes,
where they take less than 1 % of the bytes, make a bin five times as fast. 1,000 signs: 1 ms each way. A difference of
101,770 parameters: 30 ms. A million parameters: 50 to 120 ms, and 300 where nearly all of them are zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.activity import CONTEXTS, Activity, Bins, code_activity, entropy, find_activity
from fedmq.codecs.base import Codes, EntropyCoder, fixed_width_bytes, pack_codes, read_codes
from fedmq.codecs.bitmodel import NumberModel, code_signs
from fedmq.codecs.bits import BitVector, Reader, from_planes, pack_bits, to_planes
from fedmq.codecs.counttree import Flags, Integers
from fedmq.codecs.magnitudes import (
    BINS,
    Parts,
    Reading,
    Widths,
    has_bins,
    has_sign,
    layout,
    put_together,
    readings,
    take_apart,
    typical_sizes,
)
from fedmq.codecs.rans import (
    SCALE,
    Coder,
    Decoder,
    Encoder,
    Table,
    decode_lanes,
    encode_lanes,
    make_table,
)
from fedmq.codecs.vector import IndexVector
from fedmq.geometry import Geometry

MAX_LEARNT: Final = 65536
"""The most codes of which signs are learnt, one after the other."""

_SAMPLE: Final = 16384  # codes by which a reading is chosen
_FEWEST_LANES: Final = 128  # fewer are hardly faster than none
_MOST_LANES: Final = 4096
_CODES_PER_LANE: Final = 256
_FINEST: Final = 49
_WEIGHTS: Final = (0, *((16, 19, 23, 27)[step % 4] << step // 4 for step in range(_FINEST)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Range(EntropyCoder):
    """Codes near their entropy given their rows and columns; never longer than their full width and a byte."""

    id: ClassVar[str] = "range"

    def encode(self, codes: Codes, bits: int, indices: IndexVector | None, geometry: Geometry) -> bytes:
        """Encode codes below 2 ** bits."""
        plain = b"\0" + pack_codes(codes, bits)
        coded = _encode(codes, bits, indices, geometry)
        return coded if len(coded) < len(plain) else plain

    def decode(
        self, reader: Reader, count: int, bits: int, indices: IndexVector | None, geometry: Geometry
    ) -> Codes:
        """Read `count` codes back.

        Raises:
            WireError: bytes that no encoder writes.
        """
        byte = reader.byte("range form")
        if byte == 0:
            return read_codes(reader, count, bits, "range codes")
        try:
            return _decode(reader, _Form.of(byte, count, bits), count, bits, indices, geometry)
        except ValueError as error:
            raise reader.fail(f"range: {error}") from error

    def max_bytes(self, count: int, bits: int, geometry: Geometry) -> int:
        """Return the full width and a byte."""
        return 1 + fixed_width_bytes(count, bits)

    def describe(self, encoded: bytes, count: int, bits: int) -> str:
        """Say how codes were encoded, given what `encode` returned."""
        if encoded[0] == 0:
            return f"at their full width of {bits} bits"
        form = _Form.of(encoded[0], count, bits)
        lanes = f" in {form.lanes} lanes" if form.lanes else ""
        return (
            f"read as {form.reading.name.lower()}{lanes}, signs {'learnt' if form.learnt else 'as they are'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What the first byte says."""

    reading: Reading
    learnt: bool
    lanes: int

    @property
    def byte(self) -> int:
        return 1 | self.reading << 1 | self.learnt << 3 | max(0, self.lanes.bit_length() - 1) << 4

    @classmethod
    def of(cls, byte: int, count: int, bits: int) -> "_Form":
        reading, learnt, lanes = Reading(byte >> 1 & 3), bool(byte & 8), 1 << (byte >> 4) if byte >> 4 else 0
        if not byte & 1 or reading not in readings(bits):
            raise ValueError(f"there is no form {byte} for codes of {bits} bits")
        if learnt and (lanes or count > MAX_LEARNT):
            raise ValueError(f"signs of {count} codes in {lanes} lanes are not learnt")
        if lanes and not _FEWEST_LANES <= lanes <= _most_lanes(count):
            raise ValueError(f"{count} codes are not coded in {lanes} lanes")
        if lanes and not has_bins(bits, reading):
            raise ValueError("there is nothing to code in lanes")
        return cls(reading=reading, learnt=learnt, lanes=lanes)


def _encode(codes: Codes, bits: int, indices: IndexVector | None, geometry: Geometry) -> bytes:
    reading = _best_reading(codes, bits)
    parts = take_apart(codes, bits, reading)
    stream = Encoder()
    tables: list[Table] = []
    contexts, size = np.zeros(codes.shape[0], np.uint8), 0.0
    if has_bins(bits, reading):
        if indices is None:
            found = find_activity(parts.bins, typical_sizes(bits, reading), geometry)
            contexts = _contexts(code_activity(stream, geometry, found), geometry)
        counts = np.bincount(contexts.astype(np.intp) * BINS + parts.bins, minlength=CONTEXTS * BINS)
        counts = counts.reshape(CONTEXTS, BINS)
        tables, size = _code_tables(stream, contexts, _weights(counts)), entropy(counts)
    signed = has_sign(parts.bins, reading)
    negative, signs = parts.negative[signed], Encoder()
    if codes.shape[0] <= MAX_LEARNT:
        code_signs(signs, _rows(indices, geometry)[signed].tolist(), negative.tolist())
    learnt = 0 < signs.bits < negative.shape[0]
    raw = _low_bits(parts.lows, layout(bits, reading)[1][parts.bins])
    if not learnt:
        raw = np.concatenate((negative.astype(np.uint8), raw))
    lanes = 0 if learnt or not tables else _best_lanes(size + raw.shape[0], codes.shape[0])
    form = bytes([_Form(reading=reading, learnt=learnt, lanes=lanes).byte])
    if lanes:
        bounds = np.array([table + (SCALE,) * (BINS + 1 - len(table)) for table in tables], np.uint16)
        starts, ends = bounds[contexts, parts.bins], bounds[contexts, parts.bins + 1]
        return form + stream.finish() + encode_lanes(starts, ends - starts, lanes) + pack_bits(raw)
    if tables:
        stream.symbols([tables[context] for context in contexts.tolist()], parts.bins.tolist())
    if learnt:
        stream.extend(signs)
    return form + stream.finish() + pack_bits(raw)


def _decode(
    reader: Reader, form: _Form, count: int, bits: int, indices: IndexVector | None, geometry: Geometry
) -> Codes:
    stream = Decoder(reader)
    bins, negative = np.zeros(count, np.uint8), np.zeros(count, bool)
    if has_bins(bits, form.reading):
        contexts = np.zeros(count, np.uint8)
        if indices is None:
            contexts = _contexts(code_activity(stream, geometry), geometry)
        tables = _code_tables(stream, contexts)
        if form.lanes:
            stream.finish()
            bins = decode_lanes(reader, tables, contexts, form.lanes)
        else:
            bins[:] = stream.symbols([tables[context] for context in contexts.tolist()])
    signed = has_sign(bins, form.reading)
    if form.learnt:
        negative[signed] = code_signs(stream, _rows(indices, geometry)[signed].tolist())
        signed[:] = False
    if not form.lanes:
        stream.finish()
    raw_negative, lows = _read_raw(reader, signed, layout(bits, form.reading)[1][bins])
    return put_together(Parts(bins=bins, negative=negative | raw_negative, lows=lows), bits, form.reading)


def _best_reading(codes: Codes, bits: int) -> Reading:
    """Choose what codes are read as, by a sample of them; bits are signs if there are few enough to learn."""
    if bits == 1:
        return Reading.SIGN if codes.shape[0] <= MAX_LEARNT else Reading.PLAIN
    sample = codes[:: 1 + codes.shape[0] // _SAMPLE]

    def cost(reading: Reading) -> float:
        bins = take_apart(sample, bits, reading).bins
        raw = np.count_nonzero(has_sign(bins, reading)) + int(layout(bits, reading)[1][bins].sum())
        return entropy(np.bincount(bins)) + raw

    return min(readings(bits), key=cost)


def _best_lanes(size: float, count: int) -> int:
    """Choose how many lanes there are: each takes 24 bits, all of them at most 1 % of so many."""
    lanes = _most_lanes(count)
    while lanes >= _FEWEST_LANES and 24 * lanes > 0.01 * size:
        lanes //= 2
    return lanes if lanes >= _FEWEST_LANES else 0


def _most_lanes(count: int) -> int:
    """Return the largest power of two that leaves each lane its codes."""
    return min(_MOST_LANES, 1 << max(1, count // _CODES_PER_LANE).bit_length() - 1)


def _contexts(activity: Sequence[Activity], geometry: Geometry) -> NDArray[np.uint8]:
    return np.concatenate([a.contexts(shape) for a, shape in zip(activity, geometry.shapes, strict=True)])


def _rows(indices: IndexVector | None, geometry: Geometry) -> Integers:
    """Return a number for the row of each code."""
    columns = np.repeat([columns for _, columns in geometry.shapes], [rows for rows, _ in geometry.shapes])
    if indices is None:
        return np.repeat(np.arange(columns.shape[0]), columns)
    return np.searchsorted(np.cumsum(columns), indices, side="right")


def _weights(counts: Integers) -> list[list[int]]:
    """Return the weights of each context's bins, without zeros at the end."""
    slots = float(SCALE) * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    weights = np.where(counts, 1 + np.rint(4 * np.log2(np.maximum(slots, 1))), 0).astype(int)
    return [np.trim_zeros(row, "b").tolist() for row in weights]


def _code_tables(coder: Coder, contexts: Bins, weights: Sequence[Sequence[int]] = ()) -> list[Table]:
    """Code a table for each context that occurs.

    Raises:
        ValueError: one that was read has no bin, or a weight out of range.
    """
    lengths, steps = NumberModel(BINS - 1), [NumberModel(2 * _FINEST) for _ in range(3)]
    tables: list[Table] = []
    for context, times in enumerate(np.bincount(contexts, minlength=CONTEXTS).tolist()):
        if not times:
            tables.append((0, SCALE))
            continue
        known = weights[context] if weights else [0]
        found, last = [], 0
        for place in range(1 + lengths.code(coder, len(known) - 1)):
            weight = last + steps[min(place, 2)].code_step(coder, known[place] - last if weights else 0)
            if not 0 <= weight <= _FINEST:
                raise ValueError("a weight is out of range")
            found.append(_WEIGHTS[weight])
            last = weight or last
        if not any(found):
            raise ValueError("a table has no bin")
        tables.append(make_table(found))
    return tables


def _read_raw(reader: Reader, signed: Flags, widths: Widths) -> tuple[Flags, Integers]:
    """Read the signs of some codes and the low bits of all."""
    signs, negative = int(np.count_nonzero(signed)), np.zeros(signed.shape, bool)
    raw = reader.bits(signs + int(widths.sum()), "range bits")
    negative[signed] = raw[:signs]
    return negative, _lows(raw[signs:], widths)


def _low_bits(lows: Integers, widths: Widths) -> BitVector:
    """Lay low bits out in planes, those of the narrowest bins first."""
    planes = [to_planes(lows[widths == width], width) for width in np.unique(widths[widths > 0]).tolist()]
    return np.concatenate([np.zeros(0, np.uint8), *planes])


def _lows(raw: BitVector, widths: Widths) -> Integers:
    """Undo `_low_bits`."""
    lows, place = np.zeros(widths.shape, np.int64), 0
    for width in np.unique(widths[widths > 0]).tolist():
        chosen = widths == width
        count = int(np.count_nonzero(chosen))
        lows[chosen] = from_planes(raw[place : place + count * width], count, width)
        place += count * width
    return lows
