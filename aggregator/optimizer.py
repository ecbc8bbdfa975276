"""Server optimisers: the step that the model takes along a version's direction D.

    sgd          m ← β m + D                                                    w ← w + η m
    adagrad      m ← β₁ m + (1 − β₁) D    v ← v + D²                            w ← w + η m / (√v + ε)
    adam         likewise                 v ← β₂ v + (1 − β₂) D²                likewise
    yogi         likewise                 v ← v − (1 − β₂) D² sign(v − D²)      likewise
    amsgrad      likewise                 v as adam's, p ← max(p, v)            w ← w + η m / (√p + ε)

D is the pseudo-gradient, already divided by the sum of its weights: one D and one decay of the moments for each
version, however many contributions it has and however little each of them weighs. sgd with β is FedAvgM (Hsu et al.,
arXiv 1909.06335, §4.3); adagrad, adam and yogi are FedAdagrad, FedAdam and FedYogi (Reddi et al., "Adaptive Federated
Optimization", arXiv 2003.00295, Algorithm 2; ε is their τ, v starts at ε², nothing is corrected for bias); amsgrad is
FADAS (Wang et al., "FADAS: Towards Federated Adaptive Asynchronous Optimization", ICML 2024, arXiv 2407.18365,
Algorithm 1; v and p start at 0).

Elementwise float32, whose square root and division IEEE 754 rounds in one way: equal bits on every machine.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedmq.types import ParamVector

from .formula import Forms, Formula, Parameter, parse_formula

_BETA1 = Parameter(name="beta1", high=0.9999, default=0.9)
_BETA2 = Parameter(name="beta2", high=0.9999, default=0.99)
_EPSILON = Parameter(name="epsilon", low=1e-12, default=1e-3)
FORMS: Final[Forms] = {
    "sgd": (),
    "adagrad": (_BETA1, _EPSILON),
    "adam": (_BETA1, _BETA2, _EPSILON),
    "yogi": (_BETA1, _BETA2, _EPSILON),
    "amsgrad": (_BETA1, _BETA2, Parameter(name="epsilon", low=1e-12, default=1e-8)),
}


@dataclass(frozen=True, slots=True)
class Optimizer(Formula):
    """One optimiser with its parameters."""

    @property
    def is_adaptive(self) -> bool:
        """Whether each coordinate has a step of its own."""
        return self.form != "sgd"


SGD: Final = Optimizer("sgd")


def parse_optimizer(text: str) -> Optimizer:
    """Read `sgd`, `adagrad`, `adam`, `yogi` or `amsgrad`, with parameters or without.

    Raises:
        SettingError: the text is none of these, or a parameter is not allowed.
    """
    return Optimizer(*parse_formula("fold.optimizer", text, FORMS))


def _nothing() -> ParamVector:
    return np.zeros(0, np.float32)


@dataclass(slots=True, kw_only=True)
class Moments:
    """What an optimiser remembers; each float32, shape (size,), or empty where it does not need it.

    Attributes:
        first: m.
        second: v.
        peak: p.
    """

    first: ParamVector = field(default_factory=_nothing)
    second: ParamVector = field(default_factory=_nothing)
    peak: ParamVector = field(default_factory=_nothing)


def init(optimizer: Optimizer, momentum: float, size: int) -> Moments:
    """The moments before the first step."""
    if not optimizer.is_adaptive:
        return Moments(first=np.zeros(size if momentum else 0, np.float32))
    amsgrad = optimizer.form == "amsgrad"
    epsilon = optimizer.parameters[-1]
    return Moments(
        first=np.zeros(size, np.float32),
        second=np.full(size, 0 if amsgrad else epsilon**2, np.float32),
        peak=np.zeros(size if amsgrad else 0, np.float32),
    )


def step(
    optimizer: Optimizer,
    momentum: float,
    moments: Moments,
    vector: ParamVector,
    direction: ParamVector,
    rate: float,
) -> None:
    """Take one step, in place.

    Args:
        optimizer: which.
        momentum: sgd's β.
        moments: changed.
        vector: the model w, float32, shape (size,); changed.
        direction: D, float32, shape (size,).
        rate: η.
    """
    if not optimizer.is_adaptive:
        if momentum:
            moments.first *= np.float32(momentum)
            moments.first += direction
            direction = moments.first
        vector += np.float32(rate) * direction
        return
    beta1, *_, epsilon = optimizer.parameters
    moments.first *= np.float32(beta1)
    moments.first += np.float32(1 - beta1) * direction
    square = direction * direction
    if optimizer.form == "adagrad":
        moments.second += square
    else:
        fresh = np.float32(1 - optimizer.parameters[1])
        if optimizer.form == "yogi":
            moments.second -= fresh * square * np.sign(moments.second - square)
        else:
            moments.second *= np.float32(optimizer.parameters[1])
            moments.second += fresh * square
    scale = moments.second
    if optimizer.form == "amsgrad":
        scale = np.maximum(moments.peak, moments.second, out=moments.peak)
    vector += np.float32(rate) * moments.first / (np.sqrt(scale) + np.float32(epsilon))
