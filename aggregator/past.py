"""The models of the past, and FedAsync's mixing form, which needs them.

    x_t = (1 − α_t) x_{t−1} + α_t x_new        α_t = α s(τ)        x_new = x_{t−τ} + Δ

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, Algorithm 1. A client sends Δ and not
x_new, so the model that it trained from is looked up here. As an addition to the buffer:

    s(τ) (x_new − x_{t−1}) = s(τ) Δ + s(τ) (x_{t−τ} − x_{t−1})

The second term, the drift, is what the form on deltas leaves out: it pulls the model back to where a late client began.

What is kept is the model that was served (the running mean, where there is one), up to what the downlink's codec
rounds. Memory: 4 bytes a parameter for each version up to `fold.max_staleness`. For an older base, and after a restart
with other dials, the oldest model that is kept stands in.
"""

import numpy as np

from fedmq.types import ParamVector

from .fold_state import FoldState
from .rule import Rule


def base(state: FoldState, staleness: int) -> ParamVector:
    """The model that a client trained from, so many versions ago; must not be written to."""
    if not staleness or not state.past:
        return state.served
    return state.past[max(-staleness, -len(state.past))]


def mix(state: FoldState, weight: float, staleness: int) -> None:
    """Add a contribution's drift, times its weight, to the buffer."""
    origin = base(state, staleness)
    if origin is not state.vector:
        state.buffer += np.float32(weight) * (origin - state.vector)


def remember(state: FoldState, rule: Rule) -> None:
    """Keep the model that is served, before a step makes it the past."""
    if rule.max_staleness:
        state.past.append(state.served.copy())
        del state.past[: -rule.max_staleness]
