"""Staleness weights s(τ): how much an update counts that was trained τ versions ago.

    constant              1
    polynomial(a)         (1 + τ)^−a                                  FedAsync §5.2; FedBuff uses a = 0.5
    hinge(a, b)           1 if τ ≤ b else 1 / (a (τ − b) + 1)         FedAsync §5.2
    exponential(a)        e^(−a τ)

FedAsync: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934. FedBuff: Nguyen et al.,
"Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fedmq.errors import SettingError


@dataclass(frozen=True, slots=True)
class _Form:
    parameters: tuple[str, ...]
    weight: Callable[..., float]


def _hinge(tau: int, a: float, b: float) -> float:
    return 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)


FORMS: Final[Mapping[str, _Form]] = {
    "constant": _Form((), lambda tau: 1.0),
    "polynomial": _Form(("a",), lambda tau, a: float((1.0 + tau) ** -a)),
    "hinge": _Form(("a", "b"), _hinge),
    "exponential": _Form(("a",), lambda tau, a: math.exp(-a * tau)),
}

_TEXT = re.compile(r"\s*([a-z]+)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True, slots=True)
class StalenessWeight:
    """One weighting function with its parameters; `str` gives the text it is parsed from."""

    form: str
    parameters: tuple[float, ...]

    def __call__(self, tau: float) -> float:
        """The weight of an update of staleness `tau` ≥ 0, in [0, 1]: a steep one ends at 0."""
        return FORMS[self.form].weight(tau, *self.parameters)

    def __str__(self) -> str:
        # every digit: a snapshot keeps the rule as this text, and replay must fold with the same one
        inner = ", ".join(map(repr, self.parameters))
        return f"{self.form}({inner})" if inner else self.form


def parse_staleness(text: str) -> StalenessWeight:
    """Read `constant`, `polynomial(0.5)`, `hinge(10, 4)` or `exponential(0.1)`.

    Raises:
        SettingError: the text is none of these, or a parameter is negative.
    """
    forms = ", ".join(f"{name}({', '.join(form.parameters)})" for name, form in FORMS.items())
    error = SettingError("fold.staleness", text, f"one of {forms} with parameters ≥ 0 is allowed")
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in FORMS:
        raise error
    try:
        parameters = tuple(float(part) for part in match[2].split(",")) if match[2] else ()
    except ValueError:
        raise error from None
    if len(parameters) != len(FORMS[match[1]].parameters) or not all(0 <= p < math.inf for p in parameters):
        raise error
    return StalenessWeight(match[1], parameters)
