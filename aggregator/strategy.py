"""Folding: contributions into a direction, the direction into a step.

    contribution   Δ_i, compensated, clipped, mixed; weighed by n_i and s(τ_i)
    direction D    of K contributions: their mean, CA2FL's v, FedFa's window, or a mean that bears outliers
    step           w ← the optimiser's step along D with η times schedule and delay factor      version ← version + 1

The plain mean is D = Σ n_i s(τ_i) Δ_i / Σ n_i. With n_i = 1 this is FedBuff (Nguyen et al., AISTATS 2022, Algorithm 1),
with K = 1 FedAsync on deltas (Xie et al., arXiv 1903.03934; α is η), and with K = all clients, s = 1, η = 1, n_i =
examples it is synchronous FedAvg (McMahan et al., AISTATS 2017, Algorithm 1). The other modules cite their own papers;
`docs/folding.md` tells what goes with what.

State is explicit and `step` is deterministic: the same contributions in the same order give the same bits, which is
what recovery rests on (law 2). `step` works on the arrays in place, and so consumes the state it is given. When the
version grows is known without folding (`counts`, `Rule.buffer_size`): judging a batch relies on it.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from . import ca2fl, clipping, fedfa, optimizer, past, robust
from .compensation import compensate
from .dials import STRATEGIES, FoldSettings, make_rule
from .fold_state import Decode, FoldState, Kept
from .rule import Rule

__all__ = [
    "STRATEGIES",
    "FoldSettings",
    "FoldState",
    "Rule",
    "adapt",
    "close",
    "counts",
    "init",
    "make_rule",
    "step",
]

#: The running mean of the staleness forgets with this rate: about the last 100 updates count.
_MEAN_RATE: Final = 0.02


def _cannot_decode(kept: Kept) -> DecodedVector:
    raise ValueError(f"an update of {kept.client} is to be decoded, and nobody said how")


def init(rule: Rule, vector: ParamVector) -> FoldState:
    """The state of a new federation that starts from `vector`."""
    nothing = np.zeros(0, np.float32)
    is_summed = rule.method == "ca2fl" or not rule.keeps_updates
    adapts = rule.compensation is not None and rule.compensation.is_adaptive
    state = FoldState(
        vector=vector.astype(np.float32, copy=True),
        buffer=np.zeros_like(vector, np.float32) if is_summed else nothing.copy(),
        moments=optimizer.init(rule.optimizer, rule.momentum, vector.size),
        average=vector.astype(np.float32, copy=True) if rule.average else nothing.copy(),
        squares=np.zeros_like(vector, np.float32) if adapts else nothing.copy(),
        total=np.zeros(0, np.float64),
        mean=nothing.copy(),
    )
    if rule.method == "ca2fl":
        ca2fl.init(state)
    elif rule.method == "fedfa":
        fedfa.init(state)
    return state


def counts(rule: Rule, staleness: int) -> bool:
    """Whether a contribution fills the buffer; one that is late may only renew what is remembered of its client."""
    return rule.late != "refresh" or staleness <= rule.max_staleness


def step(
    rule: Rule,
    state: FoldState,
    delta: DecodedVector,
    *,
    client: str,
    num_examples: int,
    staleness: int,
    outbox: int = 0,
    codec: str = "",
    payload: bytes = b"",
    mask: bytes = b"",
    decode: Decode = _cannot_decode,
) -> FoldState:
    """Fold one contribution; the version grows when it fills the buffer.

    Args:
        rule: the dials.
        state: consumed.
        delta: what the client learned, `local − base`.
        client: whose it is.
        num_examples: how many examples stand behind it.
        staleness: versions between its base and now, ≥ 0.
        outbox: the epoch of the client's outbox.
        codec: the pipeline that encoded `delta`; for rules that keep updates, as are the following three.
        payload: the encoded delta.
        mask: digest of the mask that it was encoded under.
        decode: decodes what is kept.
    """
    if rule.compensation is not None:
        delta = compensate(rule.compensation, delta, state.vector, past.base(state, staleness), state.squares)
    scale = 1.0
    if rule.clip_quantile is not None:
        scale, state.clip = clipping.clip(state.clip, rule.clip_quantile, delta)
    weight = float(num_examples) if rule.by_examples else 1.0
    if rule.rarity:
        weight *= state.heard.weigh(client, rule.rarity)
    update = Kept(
        client=client,
        outbox=outbox,
        version=state.version,
        codec=codec,
        payload=payload,
        scale=scale,
        weight=weight,
        mask=mask,
    )
    if not counts(rule, staleness):
        ca2fl.refresh(state, rule, update, delta, decode)
        return state
    discount = _discount(rule, state, staleness)
    if rule.method == "ca2fl":
        ca2fl.add(state, rule, update, delta, discount, decode)
    elif rule.method == "fedfa":
        fedfa.add(state, rule, replace(update, scale=discount * scale), delta, decode)
    elif rule.robust is not None:
        state.window.append(replace(update, scale=discount * scale))
    else:
        if rule.mixing:
            past.mix(state, weight * discount, staleness)
        delta.add_to(state.buffer, weight * discount * scale)
    state.weight += weight
    state.filled += 1
    state.oldest = max(state.oldest, staleness)
    if rule.synchronous:
        state.contributors.append(client)
    return state if state.filled < rule.buffer_size else close(rule, state, decode)


def close(rule: Rule, state: FoldState, decode: Decode = _cannot_decode) -> FoldState:
    """Step along the contributions that are there; the version grows.

    Args:
        rule: the dials.
        state: consumed.
        decode: decodes what is kept.
    """
    direction = _direction(rule, state, decode)
    if rule.needs_past:
        past.remember(state, rule)
    rate = rule.learning_rate * rule.schedule(state.version, rule.warmup)
    if rule.delay_limit is not None and state.oldest > rule.delay_limit:
        rate /= state.oldest
    optimizer.step(rule.optimizer, rule.momentum, state.moments, state.vector, direction, rate)
    if rule.average:
        state.average += np.float32(1 - rule.average) * (state.vector - state.average)
    state.buffer[:] = 0
    state.version += 1
    state.filled, state.weight, state.oldest = 0, 0.0, 0
    state.contributors.clear()
    return state


def adapt(old: Rule, new: Rule, state: FoldState, decode: Decode = _cannot_decode) -> FoldState:
    """The state under a changed rule: what the new rule has a use for stays, the rest is forgotten.

    A buffer that the new rule cannot read is stepped with first, so that nothing that was folded is lost.

    Args:
        old: the rule up to now.
        new: the rule from now on.
        state: consumed.
        decode: decodes what is kept.
    """
    same_buffer = (old.method, old.robust is None) == (new.method, new.robust is None)
    if state.filled and not same_buffer:
        state = close(old, state, decode)
    fresh = init(new, state.vector)
    same_moments = old.optimizer.form == new.optimizer.form and bool(old.momentum) == bool(new.momentum)
    return replace(
        state,
        buffer=state.buffer if same_buffer else fresh.buffer,
        moments=state.moments if same_moments else fresh.moments,
        average=state.average if old.average and new.average else fresh.average,
        clip=state.clip if new.clip_quantile is not None else 0.0,
        contributors=state.contributors if new.synchronous else [],
        past=state.past[-new.max_staleness :] if new.needs_past and new.max_staleness else [],
        squares=state.squares if state.squares.size == fresh.squares.size else fresh.squares,
        window=state.window if same_buffer else [],
        cache=state.cache if same_buffer else {},
        kept_bytes=state.kept_bytes if same_buffer else 0,
        total=state.total if same_buffer else fresh.total,
        mean=state.mean if same_buffer else fresh.mean,
        discounts=state.discounts if same_buffer else 0.0,
        newcomers=state.newcomers if same_buffer else 0.0,
        heard=state.heard if old.rarity and new.rarity else fresh.heard,
        gap=state.gap if same_buffer else 0.0,
        gap_square=state.gap_square if same_buffer else 0.0,
    )


def _discount(rule: Rule, state: FoldState, staleness: int) -> float:
    """The staleness weight of a contribution; the running mean takes note of it."""
    state.mean_staleness += _MEAN_RATE * (staleness - state.mean_staleness)
    discount = rule.staleness(staleness)
    if rule.normalise_staleness:
        # the mean may be of a time when older updates were allowed
        discount /= rule.staleness(min(state.mean_staleness, rule.max_staleness))
    if rule.late == "discount" and staleness > rule.max_staleness:
        # Koloskova, Stich, Jaggi, arXiv 2206.08307, §3: beyond a limit the step falls with 1 / tau
        discount *= max(rule.max_staleness, 1) / staleness
    return discount


def _direction(rule: Rule, state: FoldState, decode: Decode) -> ParamVector:
    """D, float32, shape (size,); it may be the buffer itself."""
    if rule.method == "ca2fl":
        return ca2fl.direction(state, rule, decode)
    if rule.method == "fedfa":
        return fedfa.direction(state, rule)
    if rule.robust is not None:
        kept, state.window = state.window, []
        return robust.combine(
            rule.robust,
            robust.Contributions(
                deltas=[decode(update) for update in kept],
                scales=[update.scale for update in kept],
                weights=[update.weight for update in kept],
                size=state.vector.size,
            ),
        )
    # A buffer of clients without examples says nothing: the version passes without a step.
    if state.weight > 0:
        state.buffer /= np.float32(state.weight)
    return state.buffer
