"""Means of the buffer that bear outliers: some of its contributions may be anything.

    median            coordinate-wise median                      Yin et al., ICML 2018, arXiv 1803.01498, Definition 1
    trimmed(b)        coordinate-wise mean without the b smallest and the b largest     the same, Definition 2 (b = β K)
    krum(f)           the contribution with the smallest sum of squared distances to its K − f − 2 nearest ones
                                                                  Blanchard et al., NeurIPS 2017, arXiv 1703.02757, §4
    multikrum(f, m)   the mean of the m best of them              the same, §5
    geometric(r)      the geometric median, by r steps of the smoothed Weiszfeld algorithm; distances below 10^−6
                      count as that                     Pillutla, Kakade, Harchaoui, IEEE TSP 2022, arXiv 1912.13445

Weiszfeld's steps start from the coordinate-wise median: from the mean, which the paper takes, an outlier a million
times too long is not forgotten in a few steps.

A contribution is s(τ_i) Δ_i, clipped where clipping is on; only `geometric` knows weights n_i. Since s shrinks late
contributions towards zero, which all these rules take for a vote, a flat s suits them best. So does a dense codec: a
coordinate that was not sent is a zero, and the median of mostly zeros is zero; `krum` and `geometric`, which look at
whole vectors, bear sparse ones better.

Contributions are kept as they came and decoded when the buffer is full. The work is done in blocks of coordinates: it
takes some 64 MB beside the decoded contributions, whatever the size of the model. All sums are in an order of their
own (`ordered`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from .formula import Forms, Formula, Parameter, parse_formula
from .ordered import ordered_sums

_F = Parameter(name="f", whole=True)
FORMS: Final[Forms] = {
    "none": (),
    "median": (),
    "trimmed": (Parameter(name="b", whole=True),),
    "krum": (_F,),
    "multikrum": (_F, Parameter(name="m", low=1.0, whole=True)),
    "geometric": (Parameter(name="r", low=1.0, high=100.0, whole=True, default=4.0),),
}
#: Numbers in one block of all contributions: 16 MB as float64, of which a few copies are at work at a time.
_BLOCK_NUMBERS: Final = 2**21
#: Pillutla et al.'s ν: no contribution is divided by less.
_SMALLEST_DISTANCE: Final = 1e-6

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Robust(Formula):
    """One of the means with its numbers."""


def parse_robust(text: str) -> Robust | None:
    """Read `none`, `median`, `trimmed(1)`, `krum(1)`, `multikrum(1, 3)` or `geometric(4)`.

    Raises:
        SettingError: the text is none of these, or a parameter is not allowed.
    """
    form, parameters = parse_formula("fold.robust", text, FORMS)
    return None if form == "none" else Robust(form, parameters)


def fewest(robust: Robust) -> int:
    """How many contributions it needs: 2 b + 1 are left something by trimming, Krum is proven for 2 f + 3."""
    match robust.form:
        case "trimmed":
            return 2 * int(robust.parameters[0]) + 1
        case "krum":
            return 2 * int(robust.parameters[0]) + 3
        case "multikrum":
            f, m = map(int, robust.parameters)
            return max(2 * f + 3, m)
    return 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contributions:
    """The buffer, decoded.

    Attributes:
        deltas: at least one.
        scales: what each is multiplied with.
        weights: n_i.
        size: of the whole vector.
    """

    deltas: Sequence[DecodedVector]
    scales: Sequence[float]
    weights: Sequence[float]
    size: int

    def blocks(self) -> Iterator[tuple[slice, Doubles]]:
        """Ranges of coordinates, each with the contributions there, shape (K, length of the range)."""
        width = max(1, _BLOCK_NUMBERS // len(self.deltas))
        for start in range(0, self.size, width):
            place = slice(start, min(start + width, self.size))
            yield place, np.stack([_part(d, s, place) for d, s in zip(self.deltas, self.scales, strict=True)])


def _part(delta: DecodedVector, scale: float, place: slice) -> Doubles:
    """Some coordinates of one contribution."""
    part = np.zeros(place.stop - place.start, np.float32)
    trainable, factor = delta.trainable, np.float32(scale)
    if trainable.indices is None:
        values = trainable.values[place]
        part[: values.size] = values * factor
    else:
        first, last = np.searchsorted(trainable.indices, (place.start, place.stop))
        part[trainable.indices[first:last] - place.start] = trainable.values[first:last] * factor
    if place.stop > trainable.length:
        begin = max(place.start, trainable.length)
        buffers = delta.buffers[begin - trainable.length : place.stop - trainable.length]
        part[begin - place.start :] = buffers * factor
    return part.astype(np.float64)


def combine(robust: Robust, contributions: Contributions) -> ParamVector:
    """The direction of a version, float32, shape (size,)."""
    match robust.form:
        case "median":
            return _coordinatewise(contributions, (len(contributions.deltas) - 1) // 2)
        case "trimmed":
            return _coordinatewise(contributions, int(robust.parameters[0]))
        case "geometric":
            return _geometric(contributions, int(robust.parameters[0]))
    chosen = 1 if robust.form == "krum" else int(robust.parameters[1])
    best = np.argsort(_krum_scores(contributions, int(robust.parameters[0])), kind="stable")[:chosen]
    weights = np.zeros(len(contributions.deltas))
    weights[best] = 1 / chosen
    return _weighted(contributions, weights).astype(np.float32)


def _coordinatewise(contributions: Contributions, trimmed: int) -> ParamVector:
    """The mean of the middle; of the one or two in the very middle it is the median."""
    result = np.empty(contributions.size, np.float32)
    kept = len(contributions.deltas) - 2 * trimmed
    for place, rows in contributions.blocks():
        rows.sort(axis=0)
        result[place] = _added(rows[trimmed : trimmed + kept]) / kept
    return result


def _added(rows: Doubles) -> Doubles:
    """The sum of the rows, the first ones first."""
    total: Doubles = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total


def _krum_scores(contributions: Contributions, f: int) -> Doubles:
    count = len(contributions.deltas)
    distances = np.zeros((count, count), np.float64)
    for _, rows in contributions.blocks():
        for i in range(count - 1):
            distances[i, i + 1 :] += ordered_sums(np.square(rows[i + 1 :] - rows[i]))
    distances += distances.T
    np.fill_diagonal(distances, np.inf)  # no contribution is its own neighbour
    nearest = np.sort(distances, axis=1)[:, : max(count - f - 2, 1)]
    return _added(nearest.T)


def _weighted(contributions: Contributions, weights: Doubles) -> Doubles:
    result = np.empty(contributions.size, np.float64)
    for place, rows in contributions.blocks():
        result[place] = _added(rows * weights[:, np.newaxis])
    return result


def _geometric(contributions: Contributions, steps: int) -> ParamVector:
    weights = np.array(contributions.weights, np.float64)
    if not weights.sum() > 0:
        return np.zeros(contributions.size, np.float32)

    def normalised(weights: Doubles) -> Doubles:
        return np.divide(weights, _added(weights[:, np.newaxis]))

    median = _coordinatewise(contributions, (len(weights) - 1) // 2).astype(np.float64)
    for _ in range(steps):
        squares = np.zeros(len(weights), np.float64)
        for place, rows in contributions.blocks():
            squares += ordered_sums(np.square(rows - median[place]))
        distances = np.maximum(np.sqrt(squares), _SMALLEST_DISTANCE)
        median = _weighted(contributions, normalised(weights / distances))
    return np.asarray(median, np.float32)
