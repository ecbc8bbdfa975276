"""FedFa: a step at every arrival, along the mean of the last K updates.

    window ← the last K contributions        w ← w + (η/K) Σ_{i in window} s(τ_i) Δ_i

Xu, Zhang, Di, Liu, Alharthi, Cao, "FedFa: A Fully Asynchronous Training Paradigm for Federated Learning", IJCAI 2024,
arXiv 2404.11015 (its form on deltas). Each update takes part in K steps, with η/K each time, so with η = 1 an update
moves the model K times as far as in FedBuff, which diverges where we measured it: η is 1/K when it is not given. Until
K have come the window counts as if zeros filled it, so the first steps are short and no client waits.

Weighted by examples the mean is Σ n_i s(τ_i) Δ_i / Σ n_i. A weight is that of the moment at which the update came.

The window is kept as it came over the wire; its sum follows each exchange as CA2FL's does, so an arrival costs one
more decoding. Memory: 8 bytes a parameter instead of FedBuff's 4, and K payloads with some 400 bytes around each.
"""

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from .fold_state import Decode, FoldState, Kept, add_exactly
from .rule import Rule


def init(state: FoldState) -> None:
    """Make room for the sum."""
    state.total = np.zeros(state.vector.size, np.float64)


def add(state: FoldState, rule: Rule, update: Kept, delta: DecodedVector, decode: Decode) -> None:
    """Take an update into the window; the oldest leaves a full one."""
    while len(state.window) >= rule.window:
        gone = state.window.pop(0)
        add_exactly(state.total, decode(gone), gone.scale * gone.weight, -1)
    add_exactly(state.total, delta, update.scale * update.weight, 1)
    state.window.append(update)


def direction(state: FoldState, rule: Rule) -> ParamVector:
    """(1/K) Σ of the window."""
    weight = sum(update.weight for update in state.window)
    share = len(state.window) / (rule.window * weight) if weight else 0.0
    return (share * state.total).astype(np.float32)
