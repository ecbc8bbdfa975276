"""Folding: one aggregator with two dials, the buffer size K and the staleness weight s(τ).

Each contribution adds `n_i s(τ_i) Δ_i` to the buffer; after K of them the server takes a step along the mean

    D = Σ n_i s(τ_i) Δ_i / Σ n_i        m ← β m + D        w ← w + η m        version ← version + 1

With n_i = 1 this is FedBuff (Nguyen et al., AISTATS 2022, Algorithm 1), with K = 1 FedAsync on deltas (Xie et al.,
arXiv 1903.03934; α is η), and with K = all clients, s = 1, η = 1, n_i = examples it is synchronous FedAvg (McMahan et
al., AISTATS 2017, Algorithm 1). β is FedAvgM's server momentum (Hsu et al., arXiv 1909.06335, §4.3).

State is explicit and `step` is deterministic: the same contributions in the same order give the same bits, which is
what recovery rests on (law 2). `step` works on the arrays in place, and so consumes the state it is given.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.errors import SettingError
from fedmq.settings import setting
from fedmq.types import ParamVector

from .staleness import StalenessWeight, parse_staleness

#: Normalised weights beyond it would let one fresh update outweigh the federation.
_MAX_NORMALISED: Final = 1e6
#: The running mean of the staleness forgets with this rate: about the last 100 updates count.
_MEAN_RATE: Final = 0.02

STRATEGIES: Final = ("fedbuff", "fedasync", "fedavg")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSettings:
    """The dials."""

    strategy: str = setting("fedbuff", help="which rule names the dials' defaults", choices=STRATEGIES)
    buffer_size: int | None = setting(
        None, help="contributions per version (K); fedasync: 1, fedbuff: 5, fedavg: how many clients", low=1
    )
    staleness: str | None = setting(
        None, help="weight of late updates: constant, polynomial(a), hinge(a, b), exponential(a)"
    )
    normalise_staleness: bool = setting(
        False, help="divide the weight by its value at the running mean staleness, so the step keeps its size"
    )
    weighting: str | None = setting(
        None, help="uniform, or by number of examples", choices=("uniform", "examples")
    )
    learning_rate: float | None = setting(None, help="the server's step η (FedAsync's α)", low=0)
    momentum: float = setting(0.0, help="the server's momentum β", low=0, high=0.999)
    max_staleness: int | None = setting(None, help="versions after which an update is refused", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What `FoldSettings` come to: every dial has a value.

    Attributes:
        buffer_size: K.
        staleness: s.
        normalise_staleness: whether s is divided by its value at the running mean.
        by_examples: whether n_i is the number of examples, or 1.
        learning_rate: η.
        momentum: β.
        max_staleness: older updates are refused.
        synchronous: clients train once on each version, and each counts once in it.
    """

    buffer_size: int
    staleness: StalenessWeight
    normalise_staleness: bool
    by_examples: bool
    learning_rate: float
    momentum: float
    max_staleness: int
    synchronous: bool


def make_rule(settings: FoldSettings) -> Rule:
    """Fill the dials that were left open from the strategy's name.

    Raises:
        SettingError: fedavg without `fold.buffer_size`, or a dial that contradicts the strategy or another dial.
    """
    name = settings.strategy
    if name == "fedavg" and settings.buffer_size is None:
        raise SettingError(
            "fold.buffer_size", None, "fedavg waits for this many clients in each version: say how many"
        )
    if name == "fedasync" and settings.buffer_size not in (None, 1):
        raise SettingError(
            "fold.buffer_size", settings.buffer_size, "fedasync folds each update: 1 is allowed"
        )
    defaults = {"fedasync": (1, "polynomial(0.5)", 0.6, 100), "fedbuff": (5, "polynomial(0.5)", 1.0, 100)}
    size, staleness, rate, oldest = defaults.get(name, (1, "constant", 1.0, 0))
    weighting = settings.weighting or ("examples" if name == "fedavg" else "uniform")
    max_staleness = oldest if settings.max_staleness is None else settings.max_staleness
    weight = parse_staleness(settings.staleness or staleness)
    if settings.normalise_staleness and weight(max_staleness) < 1 / _MAX_NORMALISED:
        raise SettingError(
            "fold.normalise_staleness",
            True,
            f"{weight} falls to {weight(max_staleness):g} at fold.max_staleness = {max_staleness}: take a flatter "
            "weight or a lower max_staleness",
        )
    return Rule(
        buffer_size=settings.buffer_size or size,
        staleness=weight,
        normalise_staleness=settings.normalise_staleness,
        by_examples=weighting == "examples",
        learning_rate=rate if settings.learning_rate is None else settings.learning_rate,
        momentum=settings.momentum,
        max_staleness=max_staleness,
        synchronous=name == "fedavg",
    )


@dataclass(slots=True, kw_only=True)
class FoldState:
    """Everything that the next step depends on.

    Attributes:
        vector: the model w, float32, shape (size,).
        buffer: the weighted sum of the contributions since the last version, float32, shape (size,).
        momentum: m, float32, shape (size,); empty without momentum.
        version: how often the model was stepped.
        filled: contributions in the buffer.
        weight: Σ n_i of the buffer.
        mean_staleness: running mean over all contributions.
        contributors: clients in the buffer, in order of arrival (synchronous rule only).
    """

    vector: ParamVector
    buffer: ParamVector
    momentum: ParamVector
    version: int = 0
    filled: int = 0
    weight: float = 0.0
    mean_staleness: float = 0.0
    contributors: list[str] = field(default_factory=list)


def init(rule: Rule, vector: ParamVector) -> FoldState:
    """The state of a new federation that starts from `vector`."""
    return FoldState(
        vector=vector.astype(np.float32, copy=True),
        buffer=np.zeros_like(vector, np.float32),
        momentum=np.zeros(vector.size if rule.momentum else 0, np.float32),
    )


def step(
    rule: Rule, state: FoldState, delta: DecodedVector, *, client: str, num_examples: int, staleness: int
) -> FoldState:
    """Fold one contribution; the version grows when it fills the buffer.

    Args:
        rule: the dials.
        state: consumed.
        delta: what the client learned, `local − base`.
        client: whose it is.
        num_examples: how many examples stand behind it.
        staleness: versions between its base and now, ≥ 0.
    """
    weight = float(num_examples) if rule.by_examples else 1.0
    state.mean_staleness += _MEAN_RATE * (staleness - state.mean_staleness)
    discount = rule.staleness(staleness)
    if rule.normalise_staleness:
        # the mean may be of a time when older updates were allowed
        discount /= rule.staleness(min(state.mean_staleness, rule.max_staleness))
    delta.add_to(state.buffer, weight * discount)
    state.weight += weight
    state.filled += 1
    if rule.synchronous:
        state.contributors.append(client)
    if state.filled < rule.buffer_size:
        return state
    # A buffer of clients without examples says nothing: the version passes without a step.
    direction = state.buffer
    if state.weight > 0:
        direction /= np.float32(state.weight)
    if rule.momentum:
        state.momentum *= np.float32(rule.momentum)
        state.momentum += direction
        direction = state.momentum
    state.vector += np.float32(rule.learning_rate) * direction
    state.buffer[:] = 0
    state.version += 1
    state.filled, state.weight = 0, 0.0
    state.contributors.clear()
    return state
