"""Staleness weights s(τ): how much an update counts that was trained τ versions ago.

    constant              1
    polynomial(a)         (1 + τ)^−a                                  FedAsync §5.2; FedBuff uses a = 0.5
    hinge(a, b)           1 if τ ≤ b else 1 / (a (τ − b) + 1)         FedAsync §5.2
    exponential(a)        e^(−a τ)

FedAsync: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934. FedBuff: Nguyen et al.,
"Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .formula import Forms, Formula, Parameter, parse_formula

_A, _B = Parameter(name="a"), Parameter(name="b")
FORMS: Final[Forms] = {"constant": (), "polynomial": (_A,), "hinge": (_A, _B), "exponential": (_A,)}


def _hinge(tau: float, a: float, b: float) -> float:
    return 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)


_WEIGHTS: Final[Mapping[str, Callable[..., float]]] = {
    "constant": lambda tau: 1.0,
    "polynomial": lambda tau, a: float((1.0 + tau) ** -a),
    "hinge": _hinge,
    "exponential": lambda tau, a: math.exp(-a * tau),
}


@dataclass(frozen=True, slots=True)
class StalenessWeight(Formula):
    """One weighting function with its parameters."""

    def __call__(self, tau: float) -> float:
        """The weight of an update of staleness `tau` ≥ 0, in [0, 1]: a steep one ends at 0."""
        return _WEIGHTS[self.form](tau, *self.parameters)


def parse_staleness(text: str) -> StalenessWeight:
    """Read `constant`, `polynomial(0.5)`, `hinge(10, 4)` or `exponential(0.1)`.

    Raises:
        SettingError: the text is none of these, or a parameter is negative.
    """
    return StalenessWeight(*parse_formula("fold.staleness", text, FORMS))
