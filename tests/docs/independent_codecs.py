"""Section 6 of `docs/protocol.md` with the standard library: payloads of every codec, read and written.

A part of the independent client. A vector is a list of floats, rounded to float32 after each operation as the page
allows; a decoded payload is a map from position to value.

Longer than 350 lines, so that one page of the protocol is one file.
"""

import itertools
import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from independent_streams import decode_range, decode_tree, need

SMALLEST_NORMAL: Final[float] = 2.0**-126
LARGEST_FLOAT: Final[float] = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]
LARGEST_SCALE: Final[dict[int, float]] = {
    steps: struct.unpack(">f", bytes.fromhex(bits))[0]
    for steps, bits in ((127, "7c010203"), (7, "7e124923"), (1, "7f7ffffe"))
}
LARGEST_HALF: Final = 65504.0
WORD: Final = 2**64
CENTROIDS: Final = {
    1: [0.7978846],
    2: [0.45278004, 1.5104176],
    3: [0.24509418, 0.7560053, 1.3439093, 2.1519456],
    4: [0.12839504, 0.3880483, 0.65675914, 0.94234043, 1.2562312, 1.6180464, 2.0690172, 2.7325895],
}

Vector = list[float]
Values = dict[int, float]
Shapes = list[tuple[int, int]]


def f32(number: float) -> float:
    """Round to float32 (Arithmetic)."""
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def total(shapes: Shapes) -> int:
    """Scalars in all."""
    return sum(rows * columns for rows, columns in shapes)


# Pipelines


@dataclass(frozen=True)
class Stage:
    """A codec with all its arguments; the name is empty where a pipeline has none of a kind."""

    name: str = ""
    arguments: tuple[float, ...] = ()

    def whole(self, place: int) -> int:
        """An argument that is a whole number."""
        need(self.arguments[place] == int(self.arguments[place]), f"argument of {self.name}")
        return int(self.arguments[place])


@dataclass(frozen=True)
class Pipeline:
    """A parsed text."""

    transform: Stage
    sparsifier: Stage
    quantiser: Stage
    positions: Stage
    entropy: Stage


KINDS: Final[dict[str, dict[str, tuple[float | None, ...]]]] = {
    "transform": {"lowrank": (None,)},
    "sparsifier": {"topk": (None, 1), "topk_each": (None,), "threshold": (None, 0.1), "budget": (None, 1.0)},
    "seeded": {"randomk": (None,)},
    "quantiser": {
        "float32": (),
        "float16": (),
        "int8": (1024,),
        "ternary": (2**31 - 1,),
        "sign": (1024,),
        "qsgd": (None, 512),
        "eden": (None, 0),
        "deadzone": (None, 0),
    },
    "positions": {"rice": (), "bitmap": (), "u32": (), "rows": ()},
    "entropy": {"range": ()},
}
SHAPES: Final = (
    ["quantiser"],
    ["transform", "quantiser"],
    ["sparsifier", "quantiser", "positions"],
    ["seeded", "quantiser"],
)


def parse(text: str) -> Pipeline:
    """Read a pipeline's text."""
    found: dict[str, Stage] = {}
    for piece in text.split("|"):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?:\(([^()]*)\))?", piece.strip())
        need(match is not None, f"codec {piece}")
        assert match is not None
        name, given = match[1], [float(number) for number in (match[2] or "").split(",") if number.strip()]
        kind = next((kind for kind, names in KINDS.items() if name in names), "")
        need(kind != "", f"codec {name}")
        arguments = [*given, *KINDS[kind][name][len(given) :]]
        need(len(arguments) == len(KINDS[kind][name]) and None not in arguments, f"arguments of {name}")
        found[kind] = Stage(name, tuple(float(argument) for argument in arguments if argument is not None))
    shape = [kind for kind in found if kind != "entropy"]
    need(shape in SHAPES and len(found) == text.count("|") + 1, "shape of the pipeline")
    need(list(found) == shape or list(found) == [*shape, "entropy"], "the entropy coder comes last")
    need(len(shape) > 1 or "ternary" not in text, "ternary needs positions")
    none = Stage()
    return Pipeline(
        transform=found.get("transform", none),
        sparsifier=found.get("sparsifier", found.get("seeded", none)),
        quantiser=found["quantiser"],
        positions=found.get("positions", none),
        entropy=found.get("entropy", none),
    )


def share(fraction: float, length: int) -> int:
    """The share of a number of scalars."""
    return min(length, max(1, round(fraction * length)))


def most(sparsifier: Stage, shapes: Shapes) -> int:
    """How many coordinates a payload holds at most; of a seeded one exactly."""
    length = total(shapes)
    match sparsifier.name:
        case "topk":
            fraction, least = sparsifier.arguments
            return min(length, max(int(least), share(fraction, length)))
        case "randomk":
            return share(sparsifier.arguments[0], length)
        case "topk_each":
            return sum(share(sparsifier.arguments[0], rows * columns) for rows, columns in shapes)
        case "threshold":
            return share(sparsifier.arguments[1], length)
        case _:
            size, bits = sparsifier.arguments
            counts = range(1, length + 1)
            fitting = itertools.takewhile(
                lambda k: 9 + longest_rice(k, length) + math.ceil(k * bits / 8) <= size, counts
            )
            return max(fitting, default=0)


def longest_rice(count: int, length: int) -> int:
    """The most bytes of so many positions."""
    bits = min(count * (b + 1) + (length - count >> b) for b in range(length.bit_length()))
    return 1 + -(-bits // 8)


# Random numbers


def mix(z: int) -> int:
    """Shift and multiply."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def word(seed: int, index: int) -> int:
    """Word i of a seed."""
    g = 0x9E3779B97F4A7C15
    return mix((mix((seed + g) % WORD) + (index + 1) * g) % WORD)


def bit(seed: int, index: int) -> int:
    """Random bit i of a seed."""
    return word(seed, index // 64) >> index % 64 & 1


def unit(seed: int, index: int) -> float:
    """Random number i of a seed, from 0 to below 1."""
    return (word(seed, index // 2) >> 32 * (index % 2) & 0xFFFFFFFF) // 256 / 2**24


def below(seed: int, index: int, limit: int) -> int:
    """Random integer i of a seed, below a limit."""
    return (word(seed, index) >> 32) * limit >> 32


def seed_of(values: Vector) -> int:
    """The seed that fedmq takes for values."""
    return zlib.crc32(struct.pack(f"<{len(values)}f", *values))


def draw(fraction: float, seed: int, length: int) -> list[int]:
    """The coordinates of `randomk`."""
    count = share(fraction, length)
    starts = [j * length // count for j in range(count + 1)] if count else []
    turn = below(seed, count, length)
    return sorted(
        (turn + a + below(seed, j, b - a)) % length for j, (a, b) in enumerate(itertools.pairwise(starts))
    )


# Bits and bytes


class Cursor:
    """Reads bytes and bits, and refuses to read what is not there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """So many bytes."""
        need(0 <= size <= len(self.data) - self.at, "cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def floats(self, count: int, code: str = "f") -> Vector:
        """So many little-endian floats, all finite."""
        found = list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        need(all(map(math.isfinite, found)), "not finite")
        return found

    def bits(self, count: int) -> str:
        """So many bits as a text of 0 and 1, and the padding behind them."""
        text = to_bits(self.take(-(-count // 8)))
        need("1" not in text[count:], "padding")
        return text[:count]

    def planes(self, count: int, width: int) -> list[int]:
        """So many numbers of so many bits, as bit planes."""
        text = self.bits(count * width)
        return [int(text[index::count], 2) for index in range(count)]

    def varint(self) -> int:
        """Unsigned LEB128."""
        number, shift = 0, 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                need(shift == 7 or byte > 0, "padded number")
                return number
            need(shift < 35, "number too long")


def to_bits(data: bytes) -> str:
    """Bytes as a text of 0 and 1, most significant first."""
    return "".join(f"{byte:08b}" for byte in data)


def to_bytes(bits: str) -> bytes:
    """A text of 0 and 1 as bytes, padded with zeros."""
    return bytes(int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8))


def to_planes(numbers: list[int], width: int) -> str:
    """Numbers as bit planes."""
    return "".join(str(number >> place & 1) for place in reversed(range(width)) for number in numbers)


# Decoding


def decode_codec(pipeline: Pipeline, data: bytes, shapes: Shapes) -> Values:
    """Decode the trainable part: position to value; the positions that are not there are zero."""
    cursor, length = Cursor(data), total(shapes)
    positions = list(range(length))
    coder = Coder(pipeline.entropy, shapes if length else [])
    if pipeline.transform.name:
        size = transformed_size(pipeline.transform, shapes)
        coder = Coder(pipeline.entropy, [(1, size)])
        values = multiply(pipeline.transform, decode_values(pipeline.quantiser, cursor, size, coder), shapes)
    else:
        if pipeline.positions.name:
            positions = decode_positions(pipeline, cursor, shapes)
        elif pipeline.sparsifier.name:
            (seed,) = struct.unpack("<I", cursor.take(4))
            positions = draw(pipeline.sparsifier.arguments[0], seed, length)
        if pipeline.sparsifier.name:
            coder.indices = positions
        values = decode_values(pipeline.quantiser, cursor, len(positions), coder)
    need(cursor.at == len(data), "bytes are left over")
    return dict(zip(positions, values, strict=True))


def decode_positions(pipeline: Pipeline, cursor: Cursor, shapes: Shapes) -> list[int]:
    """Count and positions."""
    length, count = total(shapes), cursor.varint()
    need(count <= most(pipeline.sparsifier, shapes), "too many coordinates")
    if not count:
        return []
    match pipeline.positions.name:
        case "u32":
            positions = list(struct.unpack(f"<{count}I", cursor.take(4 * count)))
        case "bitmap":
            positions = [index for index, bit in enumerate(cursor.bits(length)) if bit == "1"]
            need(len(positions) == count, "set bits")
        case "rows" if cursor.data[cursor.at : cursor.at + 1] == b"\xff":
            positions, cursor.at = decode_tree(cursor.data, cursor.at + 1, count, shapes)
        case _:
            positions = _decode_rice(cursor, count, length)
    need(all(a < b for a, b in itertools.pairwise(positions)), "order of positions")
    need(positions[-1] < length, "position beyond the end")
    return positions


def _decode_rice(cursor: Cursor, count: int, length: int) -> list[int]:
    (width,) = cursor.take(1)
    need(width < length.bit_length(), "rice parameter")
    text = to_bits(cursor.data[cursor.at :])
    low, end, gaps = text[: width * count], width * count, []
    for index in range(count):
        one = text.find("1", end)
        need(one >= 0, "quotients are cut off")
        remainder = low[index::count]
        gaps.append((one - end << width) + (int(remainder, 2) if remainder else 0))
        end = one + 1
    cursor.bits(end)
    return [position - 1 for position in itertools.accumulate(gap + 1 for gap in gaps)]


@dataclass
class Coder:
    """What an entropy coder is told of the codes."""

    entropy: Stage
    shapes: Shapes
    indices: list[int] | None = None

    def codes(self, cursor: Cursor, count: int, width: int) -> list[int]:
        """So many codes of a width, by the entropy coder or without."""
        if self.entropy.name and count:
            need(cursor.at < len(cursor.data), "form")
            if cursor.data[cursor.at]:
                codes, cursor.at = decode_range(
                    cursor.data, cursor.at, count, width, self.indices, self.shapes
                )
                return codes
            cursor.take(1)
        if width >= 8:
            letter = {8: "B", 16: "H", 32: "I"}[width]
            return list(struct.unpack(f"<{count}{letter}", cursor.take(count * width // 8)))
        return cursor.planes(count, width)


def decode_values(quantiser: Stage, cursor: Cursor, count: int, coder: Coder) -> Vector:
    """What a quantiser wrote."""
    match quantiser.name:
        case "float32" | "float16":
            width, letter, code = (32, "I", "f") if quantiser.name == "float32" else (16, "H", "e")
            packed = struct.pack(f"<{count}{letter}", *coder.codes(cursor, count, width))
            return Cursor(packed).floats(count, code)
        case "int8":
            return _decode_integers(cursor, count, 8, quantiser.whole(0), coder)
        case "qsgd":
            need(quantiser.whole(0) in (2, 4, 8), "bits of qsgd")
            return _decode_integers(cursor, count, quantiser.whole(0), quantiser.whole(1), coder)
        case "eden":
            apart = Coder(coder.entropy, [(1, count)])
            return _decode_eden(cursor, count, quantiser.whole(0), apart) if count else []
        case "deadzone":
            return _decode_deadzone(cursor, count, coder) if count else []
        case _:
            block = quantiser.whole(0)
            magnitudes = cursor.floats(-(-count // block))
            need(all(math.copysign(1.0, magnitude) > 0 for magnitude in magnitudes), "magnitude")
            signs = coder.codes(cursor, count, 1)
            of_each = [magnitudes[index // block] for index in range(count)]
            return [-value if sign else value for value, sign in zip(of_each, signs, strict=True)]


def _decode_deadzone(cursor: Cursor, count: int, coder: Coder) -> Vector:
    (step,) = cursor.floats(1)
    codes = coder.codes(cursor, count, 16)
    need(step >= SMALLEST_NORMAL or (step == 0 and not any(codes)), "step")
    steps = [-(code + 1) // 2 if code % 2 else code // 2 for code in codes]
    need(max(map(abs, steps)) * step <= LARGEST_FLOAT, "steps")
    return [f32(k * step) for k in steps]


def _decode_integers(cursor: Cursor, count: int, width: int, block: int, coder: Coder) -> Vector:
    steps = 2 ** (width - 1) - 1
    scales = cursor.floats(-(-count // block))
    need(all(s == 0 or SMALLEST_NORMAL <= s <= LARGEST_SCALE[steps] for s in scales), "scale")
    unsigned = coder.codes(cursor, count, width)
    codes = [code - 2**width if code > steps else code for code in unsigned]
    need(all(code >= -steps for code in codes), "lowest code")
    return [f32(code * scales[index // block]) for index, code in enumerate(codes)]


def _decode_eden(cursor: Cursor, count: int, width: int, coder: Coder) -> Vector:
    (seed,) = struct.unpack("<I", cursor.take(4))
    run = run_length(count)
    scales = cursor.floats(count // run)
    need(all(s == 0 or 2.0**-60 <= s <= 2.0**60 for s in scales), "scale")
    codes = coder.codes(cursor, count, width)
    centroids = levels(width)
    values = [
        f32(centroids[code] * scales[min(index // run, len(scales) - 1)]) for index, code in enumerate(codes)
    ]
    if count % run:
        values[-run:] = negate(transform(values[-run:]), seed, count)
    for start in range(0, count - run + 1, run):
        values[start : start + run] = transform(values[start : start + run])
    return negate(values, seed, 0)


def levels(width: int) -> Vector:
    """All centroids, from the lowest one, as float32."""
    positive = [f32(number) for number in CENTROIDS[width]]
    return [-number for number in reversed(positive)] + positive


def run_length(count: int) -> int:
    """How many values are transformed together."""
    return min(4096, 1 << count.bit_length() - 1)


def negate(values: Vector, seed: int, start: int) -> Vector:
    """Negate where the sign bits from a place on say so."""
    return [-value if bit(seed, start + index) else value for index, value in enumerate(values)]


def transform(values: Vector) -> Vector:
    """Walsh and Hadamard's, of a power of two of values."""
    factor = f32(len(values) ** -0.5)
    values = [f32(value * factor) for value in values]
    half = 1
    while half < len(values):
        for start in range(0, len(values), 2 * half):
            for low in range(start, start + half):
                a, b = values[low], values[low + half]
                values[low], values[low + half] = f32(a + b), f32(a - b)
        half *= 2
    return values


def is_factored(stage: Stage, rows: int, columns: int) -> bool:
    """Whether a matrix is sent as factors."""
    return stage.whole(0) * (rows + columns) < rows * columns


def transformed_size(stage: Stage, shapes: Shapes) -> int:
    """How many numbers stand for all matrices."""
    return sum(min(stage.whole(0) * (rows + columns), rows * columns) for rows, columns in shapes)


def multiply(stage: Stage, numbers: Vector, shapes: Shapes) -> Vector:
    """From factors to matrices."""
    vector: Vector = []
    for rows, columns in shapes:
        if not is_factored(stage, rows, columns):
            vector += numbers[: rows * columns]
            del numbers[: rows * columns]
            continue
        matrix = [0.0] * (rows * columns)
        for _ in range(stage.whole(0)):
            p, q = numbers[:rows], numbers[rows : rows + columns]
            del numbers[: rows + columns]
            need(max(map(abs, q)) <= 2.0**120, "factor")
            if (largest := max(map(abs, p))) < 2.0**-60:
                continue
            p = [f32(number / largest) for number in p]
            p = [number if abs(number) >= 2.0**-24 else 0.0 for number in p]
            q = [number if abs(number) >= 2.0**-60 else 0.0 for number in q]
            products = (f32(a * b) for a in p for b in q)
            matrix = [f32(value + product) for value, product in zip(matrix, products, strict=True)]
        vector += matrix
    return vector


# Encoding


def encode_codec(pipeline: Pipeline, vector: Vector, shapes: Shapes) -> bytes:
    """Encode the trainable part as fedmq does, but without streams; a transform has no encoder here."""
    need(not pipeline.transform.name, "no encoder")
    if not pipeline.sparsifier.name:
        return encode_values(pipeline, vector)
    if not pipeline.positions.name:
        seed = seed_of(vector)
        drawn = draw(pipeline.sparsifier.arguments[0], seed, len(vector))
        return struct.pack("<I", seed) + encode_values(pipeline, [vector[index] for index in drawn])
    kept = select(pipeline.sparsifier, vector, shapes)
    count, number = b"", len(kept)
    while number > 0x7F:
        count, number = count + bytes([number & 0x7F | 0x80]), number >> 7
    count += bytes([number])
    if not kept:
        return count
    values = encode_values(pipeline, [vector[index] for index in kept])
    return count + _encode_positions(pipeline.positions.name, kept, len(vector)) + values


def select(sparsifier: Stage, vector: Vector, shapes: Shapes) -> list[int]:
    """The positions that fedmq keeps."""
    stretches, start = [], 0
    if sparsifier.name == "topk_each":
        for rows, columns in shapes:
            stretches.append((start, start + rows * columns, share(sparsifier.arguments[0], rows * columns)))
            start += rows * columns
    else:
        stretches.append((0, len(vector), most(sparsifier, shapes)))
    least = f32(sparsifier.arguments[0]) if sparsifier.name == "threshold" else 0.0
    kept: list[int] = []
    for begin, end, count in stretches:
        ranked = sorted(range(begin, end), key=lambda index: (-abs(vector[index]), index))
        kept += [index for index in ranked[:count] if vector[index] and abs(vector[index]) >= least]
    return sorted(kept)


def _encode_positions(coder: str, kept: list[int], length: int) -> bytes:
    if coder == "u32":
        return struct.pack(f"<{len(kept)}I", *kept)
    if coder == "bitmap":
        chosen = set(kept)
        return to_bytes("".join("1" if index in chosen else "0" for index in range(length)))
    gaps = [after - before - 1 for before, after in zip([-1, *kept], kept, strict=False)]
    cost = {b: sum(b + 1 + (gap >> b) for gap in gaps) for b in range(length.bit_length())}
    width = min(cost, key=lambda b: (cost[b], b))
    quotients = ["0" * (gap >> width) + "1" for gap in gaps]
    return bytes([width]) + to_bytes(to_planes(gaps, width) + "".join(quotients))


def encode_values(pipeline: Pipeline, values: Vector) -> bytes:
    """As fedmq's quantisers do, with codes at their full width."""
    encoded = _quantise(pipeline.quantiser, values)
    if not pipeline.entropy.name or not values:
        return encoded
    width = {"float32": 32, "float16": 16, "int8": 8, "deadzone": 16, "ternary": 1, "sign": 1}
    bits = width.get(pipeline.quantiser.name) or pipeline.quantiser.whole(0)
    codes = -(-len(values) * bits // 8)
    return encoded[:-codes] + b"\0" + encoded[-codes:]


def _quantise(quantiser: Stage, values: Vector) -> bytes:
    count = len(values)
    match quantiser.name:
        case "float32":
            return struct.pack(f"<{count}f", *values)
        case "float16":
            return struct.pack(f"<{count}e", *(max(-LARGEST_HALF, min(LARGEST_HALF, v)) for v in values))
        case "int8":
            scales = _find_scales(values, 127, quantiser.whole(0))
            codes = [
                round(f32(value / scale)) if scale else 0
                for value, scale in zip(values, _of_each(scales, quantiser.whole(0), count), strict=True)
            ]
            return struct.pack(f"<{len(scales)}f{count}b", *scales, *codes)
        case "qsgd":
            return _encode_qsgd(values, quantiser.whole(0), quantiser.whole(1))
        case "eden":
            return _encode_eden(values, quantiser.whole(0), quantiser.whole(1)) if values else b""
        case "deadzone":
            return _encode_deadzone(values) if values else b""
        case _:
            block = quantiser.whole(0)
            means = [math.fsum(map(abs, part)) / len(part) for part in _blocks(values, block)]
            signs = "".join("1" if value < 0 else "0" for value in values)
            return struct.pack(f"<{len(means)}f", *means) + to_bytes(signs)


def _blocks(values: Vector, block: int) -> list[Vector]:
    return [values[start : start + block] for start in range(0, len(values), block)]


def _of_each(parameters: Vector, block: int, count: int) -> Vector:
    return [parameters[index // block] for index in range(count)]


def _find_scales(values: Vector, steps: int, block: int) -> Vector:
    scales = [min(f32(max(map(abs, part)) / steps), LARGEST_SCALE[steps]) for part in _blocks(values, block)]
    return [0.0 if scale < SMALLEST_NORMAL else scale for scale in scales]


def _encode_deadzone(values: Vector) -> bytes:
    """A step as good as any: a thousandth of the largest value."""
    step = f32(max(map(abs, values)) / 1000)
    steps = [math.floor(abs(value) / step) if step >= SMALLEST_NORMAL else 0 for value in values]
    codes = [2 * k - (value < 0) if k else 0 for k, value in zip(steps, values, strict=True)]
    return struct.pack(f"<f{len(codes)}H", step if any(codes) else 0.0, *codes)


def _encode_qsgd(values: Vector, width: int, block: int) -> bytes:
    steps, seed = 2 ** (width - 1) - 1, seed_of(values)
    scales = _find_scales(values, steps, block)
    codes = []
    for index, (value, scale) in enumerate(zip(values, _of_each(scales, block, len(values)), strict=True)):
        ratio = f32(abs(value) / scale) if scale else 0.0
        level = min(steps, math.floor(ratio) + (unit(seed, index) < ratio - math.floor(ratio)))
        codes.append((-level if value < 0 else level) % 2**width)
    planes = bytes(codes) if width == 8 else to_bytes(to_planes(codes, width))
    return struct.pack(f"<{len(scales)}f", *scales) + planes


def _encode_eden(values: Vector, width: int, unbiased: int) -> bytes:
    count, run, seed = len(values), run_length(len(values)), seed_of(values)
    turned = negate([max(-(2.0**100), min(2.0**100, value)) for value in values], seed, 0)
    for start in range(0, count - run + 1, run):
        turned[start : start + run] = transform(turned[start : start + run])
    if count % run:
        turned[-run:] = transform(negate(turned[-run:], seed, count))
    centroids = levels(width)
    scales, codes = [], []
    last = (count // run - 1) * run
    for start in range(0, last + 1, run):
        block = turned[start : start + run] if start < last else turned[start:]
        deviation = f32(math.sqrt(math.fsum(y * y for y in block) / len(block))) or 1.0
        found = [_nearest(f32(y / deviation), centroids) for y in block]
        product = math.fsum(y * centroids[code] for y, code in zip(block, found, strict=True))
        if unbiased:
            scale = math.fsum(y * y for y in block) / (product or 1.0)
        else:
            scale = product / math.fsum(centroids[code] ** 2 for code in found)
        scale = f32(min(scale, 2.0**60))
        scales.append(scale if scale >= 2.0**-60 else 0.0)
        codes += found
    header = struct.pack(f"<I{len(scales)}f", seed, *scales)
    return header + to_bytes(to_planes(codes, width))


def _nearest(value: float, centroids: Vector) -> int:
    half = len(centroids) // 2
    positive = centroids[half:]
    level = sum(abs(value) > f32((a + b) / 2) for a, b in itertools.pairwise(positive))
    return half - 1 - level if value < 0 else half + level
