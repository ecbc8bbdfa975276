"""Streams of symbols of section 6 of `docs/protocol.md` with the standard library: `rows` and `range`, read only.

A part of the independent client. To write, it takes the forms that need no stream.
"""

import bisect
import itertools
import math
import struct
from collections.abc import Callable

Shapes = list[tuple[int, int]]
Node = tuple[int, int, int, bool]
"""Start, end, count, and whether the count is of holes."""

WEIGHTS = (1, 2, 4, 8, 16, 32, 128, 0)  # 0 is ∞


class InvalidError(Exception):
    """What came is not what the page allows."""


def need(condition: bool, what: str) -> None:
    """Refuse unless."""
    if not condition:
        raise InvalidError(what)


class Words:
    """16-bit words, one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def next(self) -> int:
        """The next one."""
        need(self.at + 2 <= len(self.data), "cut off")
        (word,) = struct.unpack_from("<H", self.data, self.at)
        self.at += 2
        return int(word)


class State:
    """One state of a stream, which begins here."""

    def __init__(self, words: Words) -> None:
        self.words = words
        first = words.next()
        need(first > 0, "first word")
        self.x = first << 16 | words.next()

    def take(self, start: int, size: int, words: bool = True) -> None:
        """Give the symbol up that owns the slot."""
        self.x = size * (self.x >> 12) + self.x % 4096 - start
        if words:
            self.fill()

    def fill(self) -> None:
        """Take a word in if one is needed."""
        if self.x < 65536:
            self.x = self.x << 16 | self.words.next()

    def bit(self, chance: int) -> int:
        """A bit."""
        if self.x % 4096 < chance:
            self.take(0, chance)
            return 0
        self.take(chance, 4096 - chance)
        return 1

    def digit(self, base: int) -> int:
        """A digit."""
        digit = max(d for d in range(base) if 4096 * d // base <= self.x % 4096)
        self.take(4096 * digit // base, 4096 * (digit + 1) // base - 4096 * digit // base)
        return digit

    def symbol(self, ends: list[int], words: bool = True) -> int:
        """A symbol of a table."""
        symbol = bisect.bisect_right(ends, self.x % 4096)
        start = ends[symbol - 1] if symbol else 0
        self.take(start, ends[symbol] - start, words)
        return symbol

    def end(self) -> None:
        """The last symbol was read."""
        need(self.x == 65536, "end of a stream")


def table(weights: list[int]) -> list[int]:
    """Behind the last slot of each symbol of a table of weights."""
    total, used = sum(weights), sum(weight > 0 for weight in weights)
    sizes = [1 + weight * (4096 - used) // total if weight else 0 for weight in weights]
    sizes[weights.index(max(weights))] += 4096 - sum(sizes)
    return list(itertools.accumulate(sizes))


class Learnt:
    """A model of learnt numbers up to a largest one."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.counts: dict[tuple[str, int], list[int]] = {}

    def bit(self, state: State, key: tuple[str, int]) -> int:
        """A learnt bit."""
        counts = self.counts.setdefault(key, [1, 1])
        bit = state.bit(4096 * counts[0] // sum(counts))
        counts[bit] += 4
        if sum(counts) > 1020:
            counts[:] = [(count + 1) // 2 for count in counts]
        return bit

    def number(self, state: State) -> int:
        """A learnt number."""
        digits = 0
        while self.bit(state, ("more", digits)):
            digits += 1
            need(2**digits <= self.largest + 1, "number too large")
        number = 1
        for place in range(digits):
            number = 2 * number + (state.bit(2048) if place else self.bit(state, ("first", digits)))
        need(number <= self.largest + 1, "number too large")
        return number - 1

    def step(self, state: State) -> int:
        """A learnt step."""
        number = self.number(state)
        return -(number + 1) // 2 if number % 2 else number // 2


# rows


def decode_tree(data: bytes, at: int, count: int, shapes: Shapes) -> tuple[list[int], int]:
    """Positions of a stream, and where it ends."""
    words = Words(data, at)
    state = State(words)
    turned = [rows > 1 < columns and state.bit(3584) == 1 for rows, columns in shapes]
    starts = [0, *itertools.accumulate(rows * columns for rows, columns in shapes)]
    widths = [rows if turn else columns for (rows, columns), turn in zip(shapes, turned, strict=True)]
    weights: dict[int, int] = {}
    last, done = 7, []
    nodes = [node(0, starts[-1], count, False)]
    while nodes:
        done += [n for n in nodes if n[2] < 2]
        nodes = [n for n in nodes if n[2] > 1]
        cuts = [cut(n, starts, widths) for n in nodes]
        for kind in sorted({kind for _, kind in cuts} - weights.keys()):
            last = (last + state.symbol(table([7, 1, 1, 1, 1, 1, 1, 1]))) % 8
            weights[kind] = WEIGHTS[last]
        found = [
            state.symbol(shares(n, middle, weights[kind]))
            for n, (middle, kind) in zip(nodes, cuts, strict=True)
        ]
        bounds = [
            [-(-t * (n[2] + 1) // (min(n[2], 15) + 1)) for t in (part, part + 1)]
            for n, part in zip(nodes, found, strict=True)
        ]
        wide = [low_high[1] - low_high[0] for low_high in bounds if low_high[1] - low_high[0] > 1]
        more = iter(numbers(state, wide))
        lefts = [low + (next(more) if high - low > 1 else 0) for low, high in bounds]
        halves = [
            [
                node(start, middle, left, holes)
                for (start, _, _, holes), (middle, _), left in zip(nodes, cuts, lefts, strict=True)
            ],
            [
                node(middle, end, n - left, holes)
                for (_, end, n, holes), (middle, _), left in zip(nodes, cuts, lefts, strict=True)
            ],
        ]
        nodes = halves[0] + halves[1]
    ones = [n for n in done if n[2] == 1]
    places = iter(numbers(state, [end - start for start, end, _, _ in ones]))
    state.end()
    kept: list[int] = []
    for start, end, n, holes in done:
        if n == 1:
            place = start + next(places)
            kept += [c for c in range(start, end) if c != place] if holes else [place]
        elif holes:
            kept += range(start, end)
    return sorted(turn_back(c, starts, shapes, turned) for c in kept), words.at


def node(start: int, end: int, count: int, holes: bool) -> Node:
    """A node that counts what is rarer."""
    size = end - start
    need(0 <= count <= size, "count")
    return (start, end, size - count, not holes) if 2 * count > size else (start, end, count, holes)


def cut(n: Node, starts: list[int], widths: list[int]) -> tuple[int, int]:
    """Where a node is cut, and the kind of the cut."""
    start, end, _, _ = n
    matrix = max(m for m in range(len(widths)) if starts[m] <= start)
    if end > starts[matrix + 1]:
        middle = (start + end) // 2
        return min((s for s in starts if start < s < end), key=lambda s: (abs(s - middle), s)), 0
    size, width = end - start, widths[matrix]
    if size > width:
        lines = size // width
        return start + lines // 2 * width, 1 + (lines - 1).bit_length()
    return start + size // 2, 33 + (size - 1).bit_length()


def shares(n: Node, middle: int, weight: int) -> list[int]:
    """The table of a left half's count."""
    start, end, count, _ = n
    c, size = min(count, 15), end - start
    f = min(15, max(1, (32 * (middle - start) + size) // (2 * size)))

    def chance(t: int) -> int:
        if weight == 0:
            return math.comb(c, t) * f**t * (16 - f) ** (c - t)
        left = math.prod(f * weight + 16 * i for i in range(t))
        return math.comb(c, t) * left * math.prod((16 - f) * weight + 16 * j for j in range(c - t))

    return table([chance(t) for t in range(c + 1)])


def numbers(state: State, limits: list[int]) -> list[int]:
    """Numbers that follow each other, each below its limit."""
    left = [max(0, (limit - 1).bit_length() - 10) for limit in limits]
    found = [state.digit((limit - 1 >> b) + 1) for limit, b in zip(limits, left, strict=True)]
    while any(left):
        for index, bits in enumerate(left):
            if step := min(bits, 10):
                found[index] = (found[index] << step) + state.digit(1 << step)
                left[index] -= step
    need(all(number < limit for number, limit in zip(found, limits, strict=True)), "number beyond its limit")
    return found


def turn_back(coordinate: int, starts: list[int], shapes: Shapes, turned: list[bool]) -> int:
    """The coordinate as the vector has it."""
    matrix = max(m for m in range(len(shapes)) if starts[m] <= coordinate)
    if not turned[matrix]:
        return coordinate
    rows, columns = shapes[matrix]
    column, row = divmod(coordinate - starts[matrix], rows)
    return starts[matrix] + row * columns + column


# range


def decode_range(
    data: bytes, at: int, count: int, width: int, indices: list[int] | None, shapes: Shapes
) -> tuple[list[int], int]:
    """Codes that are not at their full width, and where they end; the form is at `at`."""
    form = data[at]
    reading, learnt, lanes = form >> 1 & 3, bool(form & 8), 1 << (form >> 4) if form >> 4 else 0
    need(form % 2 == 1 and (reading in (0, 3) if width == 1 else reading == 3 or width < 32), "form")
    need(not learnt or (count <= 65536 and not lanes), "learnt signs")
    need(not lanes or 128 <= lanes <= min(4096, count // 256), "lanes")
    words = Words(data, at + 1)
    state = State(words)
    bins = [0] * count
    if width > 1 or reading != 3:
        contexts = read_activity(state, shapes) if indices is None else [0] * count
        tables = read_tables(state, set(contexts))
        if lanes:
            state.end()
            bins = read_lanes(words, [tables[context] for context in contexts], lanes)
        else:
            bins = [state.symbol(tables[context]) for context in contexts]
    need(not lanes or width > 1 or reading != 3, "lanes of nothing")
    signed = [reading == 3 or (reading > 0 and b > 0) for b in bins]
    signs = [0] * count
    if learnt:
        rows = rows_of(list(range(count)) if indices is None else indices, shapes)
        signs = read_signs(state, rows, signed)
    if not lanes:
        state.end()
    layout = [bin_of(b, width, reading) for b in bins]
    total = (0 if learnt else sum(signed)) + sum(w for _, w in layout)
    need(words.at + (total + 7) // 8 <= len(data), "cut off")
    raw = "".join(f"{byte:08b}" for byte in data[words.at : words.at + (total + 7) // 8])
    need("1" not in raw[total:], "padding")
    place = 0
    if not learnt:
        ones = iter(raw)
        signs = [int(next(ones)) if is_signed else 0 for is_signed in signed]
        place = sum(signed)
    magnitudes = [first for first, _ in layout]
    for w in sorted({w for _, w in layout} - {0}):
        chosen = [index for index, (_, own) in enumerate(layout) if own == w]
        for offset, index in enumerate(chosen):
            magnitudes[index] += int(raw[place + offset : place + w * len(chosen) : len(chosen)], 2)
        place += w * len(chosen)
    codes = [code_of(m, s, width, reading) for m, s in zip(magnitudes, signs, strict=True)]
    return codes, words.at + (total + 7) // 8


def read_activity(state: State, shapes: Shapes) -> list[int]:
    """The context of each code of a dense vector."""
    levels, by_row, by_column = Learnt(15), Learnt(60), Learnt(60)

    def offsets(model: Learnt, count: int) -> list[int]:
        if count == 1 or not state.bit(2048):
            return [0] * count
        found = list(itertools.accumulate(model.step(state) for _ in range(count)))
        need(all(-15 <= offset <= 15 for offset in found), "offset")
        return found

    contexts = []
    for rows, columns in shapes:
        level = levels.number(state)
        of_rows = offsets(by_row, rows)
        of_columns = offsets(by_column, columns)
        contexts += [min(15, max(0, level + r + c)) for r in of_rows for c in of_columns]
    return contexts


def read_tables(state: State, contexts: set[int]) -> dict[int, list[int]]:
    """The table of each context that occurs."""
    lengths, models = Learnt(127), [Learnt(98) for _ in range(3)]
    tables = {}
    for context in sorted(contexts):
        last, weights = 0, []
        for place in range(lengths.number(state) + 1):
            v = last + models[min(place, 2)].step(state)
            need(0 <= v <= 49, "weight")
            weights.append((16, 19, 23, 27)[(v - 1) % 4] << (v - 1) // 4 if v else 0)
            last = v or last
        need(any(weights), "table")
        tables[context] = table(weights)
    return tables


def read_lanes(words: Words, tables: list[list[int]], lanes: int) -> list[int]:
    """Bins in lanes."""
    states, bins = [State(words) for _ in range(lanes)], []
    for first in range(0, len(tables), lanes):
        turn = tables[first : first + lanes]
        bins += [state.symbol(ends, words=False) for state, ends in zip(states, turn, strict=False)]
        for state, _ in zip(states, turn, strict=False):
            state.fill()
    for state in states:
        state.end()
    return bins


def rows_of(indices: list[int], shapes: Shapes) -> list[int]:
    """A number for the row of each coordinate."""
    ends = list(itertools.accumulate(columns for rows, columns in shapes for _ in range(rows)))
    found, row = [], 0
    for index in indices:
        while index >= ends[row]:
            row += 1
        found.append(row)
    return found


def read_signs(state: State, rows: list[int], signed: list[bool]) -> list[int]:
    """Learnt signs; 0 where there is none."""
    signs, row, counts, last = [], -1, [1, 1], [0, 0]
    for this, is_signed in zip(rows, signed, strict=True):
        if not is_signed:
            signs.append(0)
            continue
        if this != row:
            row, counts, last = this, [1, 1], [0, 0]
        a, b = counts[0] + last[0], counts[1] + last[1]
        sign = state.bit(4096 * a // (a + b))
        signs.append(sign)
        last = [0, 4] if sign else [4, 0]
        counts[sign] += 4
        if sum(counts) > 34:
            counts = [(count + 1) // 2 for count in counts]
    return signs


def bin_of(b: int, width: int, reading: int) -> tuple[int, int]:
    """First magnitude and width of a bin."""
    if reading == 3:
        return b << max(0, width - 8), max(0, width - 8)
    if b < 16:
        return b, 0
    j, i = divmod(b - 16, 8)
    return (8 + i) * 2 ** (j + 1), j + 1


def code_of(magnitude: int, sign: int, width: int, reading: int) -> int:
    """The code of a sign and a magnitude."""
    half = 2 ** (width - 1)
    codes: tuple[Callable[[], int], ...] = (
        lambda: magnitude,
        lambda: 2 * magnitude - sign,
        lambda: 2 * half - magnitude if sign else magnitude,
        lambda: magnitude + half * sign,
    )
    limit = (2 * half, half + sign, half + sign, half)[reading]
    need(magnitude < limit, "code too wide")
    return codes[reading]()
