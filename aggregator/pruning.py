"""Pruning: which weights become zero for good, and when. The smallest magnitudes of all matrices, by a schedule.

    s_t = s (1 − (1 − (t − begin) / (end − begin))³)        t = begin, begin + every, begin + 2 every, …, and end

Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", arXiv 1710.01878,
equation 1 from a sparsity of 0; t is a version, where the paper has training steps. s_t is a share of the weights in
trainable tensors of rank 2 and more. Biases, scales and buffers are never pruned. The paper prunes each layer to the
same share; here the magnitudes of all layers are compared (as in Han et al., arXiv 1506.02626, with one threshold).

Masks are nested: what was pruned stays pruned, for as long as the store lives, whatever the settings say later. With a
weight, everything that would bring it back becomes zero: the optimiser's moments, the running mean, the models of the
past, sums and buffers. So every later step leaves it at zero, and the model is really sparse.

An update may still be under a mask of the past. The last `KEPT_MASKS` before the present one are admitted, and those of
updates that the rule keeps are remembered beside them. What it says of weights that were pruned since is dropped.

Pure: the same state gives the same mask, equal magnitudes by their index. Replay prunes again (law 2).
"""

from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import SettingError
from fedmq.layout import ParamLayout
from fedmq.mask import Mask
from fedmq.settings import setting
from fedmq.types import ParamVector

from .fold_state import FoldState
from .formula import Forms, Formula, Parameter, parse_formula

#: Masks before the present one under which updates are admitted. Each takes 6 bytes a parameter at most.
KEPT_MASKS: Final = 8

FORMS: Final[Forms] = {
    "none": (),
    "cubic": (
        Parameter(name="s", high=1.0),
        Parameter(name="begin", whole=True),
        Parameter(name="end", whole=True),
        Parameter(name="every", low=1.0, whole=True),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """The schedule."""

    sparsity: float = setting(
        0.0, help="share of the weights in matrices that is pruned in the end; 0: no pruning", low=0, high=1
    )
    begin: int = setting(10, help="version from which the share rises", low=0)
    end: int = setting(110, help="version at which it is reached", low=1)
    every: int = setting(10, help="versions between two steps of it", low=1)


@dataclass(frozen=True, slots=True)
class Pruning(Formula):
    """One schedule with its numbers."""

    def share(self, version: int) -> float:
        """s_t at the last step up to a version, in [0, 1)."""
        sparsity, begin, end, every = self.parameters
        if version >= end:
            return sparsity
        if version < begin:
            return 0.0
        step = (version - begin) // every * every
        left = 1 - step / (end - begin)
        return sparsity * (1 - left * left * left)  # not a power: IEEE 754 rounds products in one way


def parse_pruning(text: str) -> Pruning | None:
    """Read `none` or `cubic(0.8, 10, 110, 10)`, as snapshots have it.

    Raises:
        SettingError: the text is neither, or a parameter is not allowed.
    """
    form, parameters = parse_formula("prune", text, FORMS)
    return None if form == "none" else Pruning(form, parameters)


def make_pruning(settings: PruneSettings) -> Pruning | None:
    """The schedule that the settings come to; None for none.

    Raises:
        SettingError: the settings contradict each other.
    """
    if not settings.sparsity:
        return None
    if settings.sparsity >= 1:
        raise SettingError(
            "prune.sparsity", settings.sparsity, "below 1 is allowed: something must be left to learn with"
        )
    if settings.end <= settings.begin:
        raise SettingError(
            "prune.end", settings.end, f"it must lie behind prune.begin, which is {settings.begin}"
        )
    if settings.every > settings.end - settings.begin:
        raise SettingError(
            "prune.every",
            settings.every,
            f"at most the {settings.end - settings.begin} versions from prune.begin to prune.end are allowed",
        )
    numbers = settings.sparsity, settings.begin, settings.end, settings.every
    return Pruning("cubic", tuple(map(float, numbers)))


def check(pruning: Pruning | None, layout: ParamLayout) -> None:
    """Refuse to prune a model that has nothing to prune.

    Raises:
        SettingError: it has no matrix.
    """
    if pruning is not None and not layout.matrices_size:
        raise SettingError(
            "prune.sparsity",
            pruning.parameters[0],
            "this model has no trainable tensor of two or more dimensions, and others are not pruned: leave it out",
        )


def present(state: FoldState) -> Mask | None:
    """The mask of the model as it is; None when nothing is pruned."""
    return state.masks[-1] if state.masks else None


def find(state: FoldState, digest: bytes) -> Mask | None:
    """The mask that an update names; None for an empty digest.

    Raises:
        LookupError: it is not known any more.
    """
    if not digest:
        return None
    for mask in reversed(state.masks):
        if mask.digest == digest:
            return mask
    raise LookupError(f"mask {digest.hex()} is not known")


def admitted(
    pruning: Pruning | None, layout: ParamLayout, state: FoldState, version: int
) -> frozenset[bytes]:
    """The digests that an update may name when the model has come to a version; the empty one always.

    Args:
        pruning: the schedule.
        layout: the model's.
        state: as it is.
        version: that of the state, or a later one in the batch at hand: masks that will be made until then are not
            known yet, but push old ones out.
    """
    steps, pruned = 0, _count(state)
    for later in range(state.version + 1, version + 1):
        wanted = _wanted(pruning, layout, later)
        if wanted > pruned:
            steps, pruned = steps + 1, wanted
    masks = list(reversed(state.masks))[: max(0, KEPT_MASKS + 1 - steps)]
    return frozenset({b"", *(mask.digest for mask in masks)})


def prune(pruning: Pruning | None, layout: ParamLayout, state: FoldState) -> None:
    """Prune as far as the schedule says at the state's version; nothing when it is pruned as far already.

    Args:
        pruning: the schedule.
        layout: the model's.
        state: changed in place.
    """
    missing = _wanted(pruning, layout, state.version) - _count(state)
    if missing <= 0:
        return
    mask = present(state)
    pruned = np.zeros(layout.trainable_size, np.bool_) if mask is None else mask.pruned.copy()
    is_candidate = np.zeros_like(pruned)
    for place in layout.matrices:
        is_candidate[place] = True
    candidates = np.flatnonzero(is_candidate & ~pruned)
    pruned[candidates[_smallest(state.vector[candidates], missing)]] = True
    mask = Mask.of(layout, pruned)
    _clear(state, mask)
    in_use = {update.mask for update in (*state.window, *chain.from_iterable(state.cache.values()))}
    older, recent = state.masks[:-KEPT_MASKS], state.masks[-KEPT_MASKS:]
    state.masks = [*(old for old in older if old.digest in in_use), *recent, mask]


def _count(state: FoldState) -> int:
    mask = present(state)
    return mask.count if mask is not None else 0


def _wanted(pruning: Pruning | None, layout: ParamLayout, version: int) -> int:
    return int(pruning.share(version) * layout.matrices_size) if pruning is not None else 0


def _smallest(weights: ParamVector, count: int) -> NDArray[np.bool_]:
    """Which are the `count` smallest by magnitude, bool; of equal ones the first."""
    magnitudes = np.abs(weights)
    bound = np.partition(magnitudes, count - 1)[count - 1]
    chosen: NDArray[np.bool_] = magnitudes < bound
    ties = np.flatnonzero(magnitudes == bound)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return chosen


def _clear(state: FoldState, mask: Mask) -> None:
    moments = state.moments
    for array in (
        state.vector, state.buffer, moments.first, moments.second, moments.peak, state.average, state.squares,
        state.mean, *state.past,
    ):  # fmt: skip
        if array.size:
            mask.clear(array)
    if state.total.size:
        mask.clear(state.total)
