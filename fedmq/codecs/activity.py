"""How large the codes of a dense vector are likely to be, by the matrix, the row and the column that they are in.

What lives here: contexts, how an encoder finds them and how they are told. What must not: the coding of codes.

A unit that learns changes all its weights, and an input that is always zero changes none. So the size of a change is
about a product of one factor for its row and one for its column, and we tell its logarithm: each matrix has a level
from 0 to 15, each of its rows and columns may have an offset, in doublings, and the context of a code is the sum,
limited to 0 … 15. Codes of one context share a table; what a level means is the table's affair.

    told = for each matrix: level (number) · whether rows have offsets, columns have (a bit each, where there are
           several) · the steps from one row's offset to the next, the first from 0 · likewise columns

Measured for differences of an MLP's versions at 95 % of their energy: 12 to 16 % fewer bytes than one table for all,
what is told included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.bitmodel import NumberModel
from fedmq.codecs.magnitudes import BINS
from fedmq.codecs.rans import SCALE, Coder
from fedmq.geometry import Geometry

CONTEXTS: Final = 16
_FURTHEST: Final = 15  # offset
_FEWEST: Final = 8  # codes that share an offset that is worth a try
_LINGER: Final = 0.6  # of a doubling: a smaller change of offset does not pay for the step

Offsets: TypeAlias = NDArray[np.int8]
Bins: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]

_NONE: Final[Offsets] = np.zeros(0, np.int8)
_TABLE_BITS: Final = 40  # about what a table takes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activity:
    """What is told of one matrix.

    Attributes:
        level: 0 to 15.
        rows: an offset for each row, -15 to 15; empty when they have none.
        columns: likewise.
    """

    level: int
    rows: Offsets
    columns: Offsets

    def contexts(self, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the context of each code of the matrix, below 16, shape (rows * columns,)."""
        sums = np.full(shape, self.level, np.int8)
        if self.rows.shape[0]:
            sums += self.rows[:, np.newaxis]
        if self.columns.shape[0]:
            sums += self.columns
        return np.clip(sums, 0, CONTEXTS - 1).astype(np.uint8).reshape(-1)


def code_activity(coder: Coder, geometry: Geometry, told: Sequence[Activity] = ()) -> list[Activity]:
    """Code what is told of each matrix.

    Raises:
        ValueError: an offset that was read is too large.
    """
    levels = NumberModel(CONTEXTS - 1)
    steps = {side: NumberModel(4 * _FURTHEST) for side in ("rows", "columns")}

    def offsets(side: str, count: int, known: Offsets) -> Offsets:
        if count == 1 or not coder.bit(SCALE // 2, int(known.shape[0] > 0)):
            return _NONE
        found, last = [], 0
        for offset in known.tolist() or [0] * count:
            last += steps[side].code_step(coder, offset - last)
            if abs(last) > _FURTHEST:
                raise ValueError("an offset is too large")
            found.append(last)
        return np.array(found, np.int8)

    known = told or [Activity(level=0, rows=_NONE, columns=_NONE)] * len(geometry.shapes)
    return [
        Activity(
            level=levels.code(coder, activity.level),
            rows=offsets("rows", rows, activity.rows),
            columns=offsets("columns", columns, activity.columns),
        )
        for (rows, columns), activity in zip(geometry.shapes, known, strict=True)
    ]


def find_activity(bins: Bins, sizes: Floats, geometry: Geometry) -> list[Activity]:
    """Find what is worth telling.

    Args:
        bins: of the codes, shape (geometry.length,).
        sizes: about how large a code in each bin is, shape (128,).
        geometry: of the vector.
    """
    counts = np.bincount(bins, minlength=BINS)
    binary = sizes[0] == 0 and not counts[2:].any()
    typical = _size(counts @ sizes, bins.shape[0], 0.5, binary)
    found = []
    for start, (rows, columns) in zip(geometry.starts, geometry.shapes, strict=False):
        matrix = bins[start : start + rows * columns].reshape(rows, columns)
        large = sizes[matrix]
        mean = float(large.mean())
        ratio = _size(mean * matrix.size, matrix.size, 0.5, binary) / typical
        level = int(np.clip(8 + np.rint(np.log2(ratio)), 0, CONTEXTS - 1))
        by_row, by_column = [_NONE], [_NONE]
        if min(rows, columns) >= _FEWEST and mean > 0:
            base = _size(mean * matrix.size, matrix.size, mean, binary)
            by_row.append(_offsets(_size(large.sum(axis=1), columns, mean, binary) / base))
            by_column.append(_offsets(_size(large.sum(axis=0), rows, mean, binary) / base))
        choices = [Activity(level=level, rows=r, columns=c) for r in by_row for c in by_column]
        found.append(
            min(choices, key=lambda choice: _bits(choice, matrix)) if len(choices) > 1 else choices[0]
        )
    return found


def _size(sums: Any, count: int, mean: float, binary: bool) -> Any:
    """Return the mean size of codes, or the odds of 1 if they are bits, with one more code that is like the others."""
    return (sums + 0.5) / (count - sums + 0.5) if binary else (sums + mean) / (count + 1)


def _offsets(ratios: Floats) -> Offsets:
    """Round logarithms to offsets, staying with the last one while it is nearly right."""
    found: list[int] = []
    last = 0
    for doublings in np.log2(ratios).tolist():
        if abs(doublings - last) > _LINGER:
            last = max(-_FURTHEST, min(_FURTHEST, round(doublings)))
        found.append(last)
    return np.array(found, np.int8)


def _bits(activity: Activity, matrix: Bins) -> float:
    """Estimate what a matrix's codes and its offsets take."""
    contexts = activity.contexts(matrix.shape).astype(np.intp)
    counts = np.bincount(contexts * BINS + matrix.reshape(-1), minlength=CONTEXTS * BINS).reshape(
        CONTEXTS, BINS
    )
    told = sum(
        float(1 + 2 * np.abs(np.diff(o.astype(int), prepend=0)).sum() + o.shape[0])
        for o in (activity.rows, activity.columns)
    )
    return entropy(counts) + told + _TABLE_BITS * int(counts.any(axis=1).sum())


def entropy(counts: NDArray[np.int64]) -> float:
    """Return how many bits symbols take in all, given how often each occurs in each context, shape (…, symbols)."""
    totals = counts.sum(axis=-1, keepdims=True)
    return float((counts * np.log2(np.maximum(totals, 1) / np.maximum(counts, 1))).sum())
