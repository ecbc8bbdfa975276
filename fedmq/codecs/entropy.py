"""`range`: codes at the entropy of what a row, a column or a neighbour says about them.

What lives here: an entropy coder, its choices and its bytes. Its parts are elsewhere: how codes come apart
(`magnitudes`), contexts of a dense vector (`activity`), learnt probabilities (`bitmodel`), symbols as bytes (`rans`).

A code is a sign, a bin and low bits. The bins are coded by tables that are sent, one for each context. Low bits are
sent as they are. So are signs, or they are learnt: of a sparse update's signs, those of a row are mostly alike.

    payload = 0, codes at their full width, as without an entropy coder
            | form (1 byte, not 0), stream, [stream of lanes], raw bits

    form    = 1 + 2 · reading + 8 · (signs are learnt) + 16 · (log2 lanes; 0 for none)
    stream  = [activity of a dense vector] · a table for each context that occurs, in order · without lanes: bins, signs
              if learnt
    lanes   = bins, in turns
    raw     = signs unless learnt, low bits, zeros to a byte

**Learnt signs.** For each code in order the chance of a minus is that of the row so far: what was seen counts 4 each,
never seen 1, and the last sign once more; both counts are halved when they exceed 34, so about the last eight signs
count. Measured for updates of an MLP: 0.36 to 0.53 bits per sign.

What it costs: a symbol takes half a microsecond of plain Python to decode without lanes, a sign one and a half. With
lanes 100,000 codes take … ms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.activity import CONTEXTS, Activity, code_activity, entropy, find_activity
from fedmq.codecs.base import Codes, EntropyCoder, fixed_width_bytes, pack_codes, read_codes
from fedmq.codecs.bitmodel import NumberModel, code_signs
from fedmq.codecs.bits import BitVector, Reader, from_planes, pack_bits, to_planes
from fedmq.codecs.counttree import Integers
from fedmq.codecs.geometry import Geometry
from fedmq.codecs.magnitudes import BINS, Parts, Reading, has_sign, layout, put_together, readings, take_apart
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

MAX_LEARNT: Final = 65536
_SAMPLE: Final = 16384  # codes by which a reading is chosen
_FEWEST_LANES: Final = 64  # fewer are slower than none
_MOST_LANES: Final = 4096
_CODES_PER_LANE: Final = 256
_FINEST: Final = 49
_WEIGHTS: Final = (0, *((16, 19, 23, 27)[step % 4] << step // 4 for step in range(_FINEST)))
"""What a bin may weigh: nothing, or steps of a quarter of a doubling."""


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

    def describe(self, encoded: bytes, bits: int) -> str:
        """Say in words how the encoder chose to encode codes."""
        if encoded[0] == 0:
            return f"at their full width of {bits} bits"
        form = _Form.of(encoded[0], _CODES_PER_LANE * _MOST_LANES, bits)
        lanes = f"{form.lanes} lanes" if form.lanes else "one state"
        return f"read as {form.reading.name.lower()}, {lanes}, signs {'learnt' if form.learnt else 'as they are'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What the first byte says: see the module."""

    reading: Reading
    learnt: bool
    lanes: int

    @property
    def byte(self) -> int:
        return 1 | self.reading << 1 | self.learnt << 3 | (self.lanes.bit_length() - 1 if self.lanes else 0) << 4

    @classmethod
    def of(cls, byte: int, count: int, bits: int) -> "_Form":
        reading, learnt, lanes = Reading(byte >> 1 & 3), bool(byte & 8), 1 << (byte >> 4) if byte >> 4 else 0
        if not byte & 1 or reading not in readings(bits):
            raise ValueError(f"there is no form {byte} for codes of {bits} bits")
        if learnt and (count > MAX_LEARNT or lanes):
            raise ValueError(f"signs of {count} codes in {lanes} lanes are not learnt")
        if lanes and not _FEWEST_LANES <= lanes <= min(_MOST_LANES, count // _CODES_PER_LANE):
            raise ValueError(f"{count} codes are not coded in {lanes} lanes")
        return cls(reading=reading, learnt=learnt, lanes=lanes)


def _encode(codes: Codes, bits: int, indices: IndexVector | None, geometry: Geometry) -> bytes:
    reading = _best_reading(codes, bits)
    parts = take_apart(codes, bits, reading)
    side = Encoder()
    contexts = np.zeros(codes.shape, np.uint8)
    if indices is None:
        activity = find_activity(parts.bins, _sizes(bits, reading), geometry)
        contexts = _contexts(code_activity(side, geometry, activity), geometry)
    counts = _count(contexts, parts.bins)
    tables = _code_tables(side, counts.any(axis=1), _steps(counts))
    signed = has_sign(parts.bins, reading)
    negative = parts.negative[signed]
    signs = Encoder()
    if codes.shape[0] <= MAX_LEARNT:
        code_signs(signs, _rows(indices, geometry)[signed].tolist(), negative.tolist())
    learnt = 0 < signs.bits < negative.shape[0]
    raw = _low_bits(parts, layout(bits, reading)[1][parts.bins])
    if not learnt:
        raw = np.concatenate((negative.astype(np.uint8), raw))
    size = entropy(counts) / 8 + raw.shape[0] / 8
    lanes = 0 if learnt else _best_lanes(size, codes.shape[0])
    form = bytes([_Form(reading=reading, learnt=learnt, lanes=lanes).byte])
    if lanes:
        bounds = np.array([table + (SCALE,) * (BINS + 1 - len(table)) for table in tables], np.uint16)
        starts, ends = bounds[contexts, parts.bins], bounds[contexts, parts.bins + 1]
        return form + side.finish() + encode_lanes(starts, ends - starts, lanes) + pack_bits(raw)
    side.symbols([tables[context] for context in contexts.tolist()], parts.bins.tolist())
    if learnt:
        side.extend(signs)
    return form + side.finish() + pack_bits(raw)


def _decode(
    reader: Reader, form: _Form, count: int, bits: int, indices: IndexVector | None, geometry: Geometry
) -> Codes:
    side = Decoder(reader)
    contexts = np.zeros(count, np.uint8)
    if indices is None:
        contexts = _contexts(code_activity(side, geometry), geometry)
    tables = _code_tables(side, np.bincount(contexts, minlength=CONTEXTS) > 0)
    if form.lanes:
        side.finish()
        bins = decode_lanes(reader, tables, contexts, form.lanes)
    else:
        bins = np.array(side.symbols([tables[context] for context in contexts.tolist()]), np.uint8)
    signed = has_sign(bins, form.reading)
    negative = np.zeros(count, bool)
    if form.learnt:
        negative[signed] = code_signs(side, _rows(indices, geometry)[signed].tolist())
    if not form.lanes:
        side.finish()
    widths = layout(bits, form.reading)[1][bins]
    signs = 0 if form.learnt else int(np.count_nonzero(signed))
    raw = reader.bits(signs + int(widths.sum()), "range bits")
    if not form.learnt:
        negative[signed] = raw[:signs]
    parts = Parts(bins=bins, negative=negative, lows=_lows(raw[signs:], widths))
    return put_together(parts, bits, form.reading)


def _best_reading(codes: Codes, bits: int) -> Reading:
    """Choose what codes are read as by a sample of them."""
    if bits == 1:
        return Reading.SIGN if codes.shape[0] <= MAX_LEARNT else Reading.PLAIN
    sample = codes[:: 1 + codes.shape[0] // _SAMPLE]

    def cost(reading: Reading) -> float:
        bins = take_apart(sample, bits, reading).bins
        raw = np.count_nonzero(has_sign(bins, reading)) + int(layout(bits, reading)[1][bins].sum())
        return entropy(np.bincount(bins)) + raw

    return min(readings(bits), key=cost)


def _best_lanes(size: float, count: int) -> int:
    """Choose how many lanes there are: each takes three bytes for its state, 1 % of them all at most."""
    lanes = _MOST_LANES
    while lanes >= _FEWEST_LANES:
        if 3 * lanes <= 0.01 * size and lanes <= count // _CODES_PER_LANE:
            return lanes
        lanes //= 2
    return 0


def _sizes(bits: int, reading: Reading) -> NDArray[np.float64]:
    """Return about how large a code of each bin is; of wide codes with a sign, the bin is an exponent."""
    if reading is Reading.SIGN and bits >= 16:
        return np.exp2(np.arange(BINS) * (0.25 if bits == 16 else 2.0) - 128)
    return layout(bits, reading)[0].astype(np.float64)


def _contexts(activity: Sequence[Activity], geometry: Geometry) -> NDArray[np.uint8]:
    return np.concatenate([a.contexts(shape) for a, shape in zip(activity, geometry.shapes, strict=True)])


def _rows(indices: IndexVector | None, geometry: Geometry) -> Integers:
    """Return a number for the row of each code."""
    columns = np.repeat([columns for _, columns in geometry.shapes], [rows for rows, _ in geometry.shapes])
    if indices is None:
        return np.repeat(np.arange(columns.shape[0]), columns)
    return np.searchsorted(np.cumsum(columns), indices, side="right")


def _count(contexts: NDArray[np.uint8], bins: NDArray[np.uint8]) -> Integers:
    """Count how often each bin occurs in each context, shape (16, 128)."""
    return np.bincount(contexts.astype(np.intp) * BINS + bins, minlength=CONTEXTS * BINS).reshape(CONTEXTS, BINS)


def _steps(counts: Integers) -> list[list[int]]:
    """Return each context's weights in quarters of a doubling, without the zeros at the end."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * SCALE
    steps = np.where(counts, 1 + np.rint(4 * np.log2(np.maximum(shares, 1))), 0).astype(int)
    return [np.trim_zeros(row, "b").tolist() for row in steps]


def _code_tables(coder: Coder, occurring: NDArray[np.bool_], steps: Sequence[Sequence[int]] = ()) -> list[Table]:
    """Code a table for each context that occurs.

    Raises:
        ValueError: one that was read has no symbol, or a weight out of range.
    """
    lengths, changes = NumberModel(BINS - 1), [NumberModel(2 * _FINEST) for _ in range(3)]
    tables = []
    for context, occurs in enumerate(occurring.tolist()):
        if not occurs:
            tables.append((0, SCALE))
            continue
        known = steps[context] if steps else []
        length = 1 + lengths.code(coder, len(known) - 1 if known else 0)
        found, last = [], 0
        for place in range(length):
            step = last + changes[min(place, 2)].code_step(coder, known[place] - last if known else 0)
            if not 0 <= step <= _FINEST:
                raise ValueError("a weight is out of range")
            found.append(_WEIGHTS[step])
            last = step or last
        if not any(found):
            raise ValueError("a table has no symbol")
        tables.append(make_table(found))
    return tables


def _low_bits(parts: Parts, widths: Integers) -> BitVector:
    """Lay low bits out as planes, those of the narrowest bins first."""
    planes = [to_planes(parts.lows[widths == width], width) for width in np.unique(widths[widths > 0]).tolist()]
    return np.concatenate([np.zeros(0, np.uint8), *planes])


def _lows(raw: BitVector, widths: Integers) -> Integers:
    """Undo `_low_bits`."""
    lows, place = np.zeros(widths.shape, np.int64), 0
    for width in np.unique(widths[widths > 0]).tolist():
        chosen = widths == width
        count = int(np.count_nonzero(chosen))
        lows[chosen] = from_planes(raw[place : place + count * width], count, width)
        place += count * width
    return lows

