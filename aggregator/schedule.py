"""Schedules: how the server's step η changes with the version. Without state, so that replay needs none.

    constant              1
    step(n, g)            g^⌊t / n⌋
    exponential(g)        g^t
    root(n, low)          1 / √(1 + t / n), at least low: the decay under which SGD's averages converge (Bottou, Curtis,
                          Nocedal, "Optimization Methods for Large-Scale Machine Learning", arXiv 1606.04838, §4.2); a
                          federation that goes on for ever needs a low above 0, or it stops learning
    cosine(n, low)        low + (1 − low) (1 + cos(π min(t, n) / n)) / 2 (Loshchilov and Hutter, "SGDR", arXiv
                          1608.03983, equation 5, without restarts)

t is the version that the step makes its successor, from 0. With a warm-up of u versions the factor is multiplied by
min(1, (t + 1) / u) (Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677, §2.2).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .formula import Forms, Formula, Parameter, parse_formula

_N = Parameter(name="n", low=1.0, whole=True)
_FACTOR = Parameter(name="g", high=1.0)
FORMS: Final[Forms] = {
    "constant": (),
    "step": (_N, _FACTOR),
    "exponential": (_FACTOR,),
    "root": (_N, Parameter(name="low", high=1.0, default=0.0)),
    "cosine": (_N, Parameter(name="low", high=1.0, default=0.0)),
}


def _cosine(t: int, n: float, low: float) -> float:
    return low + (1 - low) * (1 + math.cos(math.pi * min(t, n) / n)) / 2


_FACTORS: Final[Mapping[str, Callable[..., float]]] = {
    "constant": lambda t: 1.0,
    "step": lambda t, n, g: float(g ** (t // int(n))),
    "exponential": lambda t, g: float(g**t),
    "root": lambda t, n, low: max(low, 1 / math.sqrt(1 + t / n)),
    "cosine": _cosine,
}


@dataclass(frozen=True, slots=True)
class Schedule(Formula):
    """One schedule with its parameters."""

    def __call__(self, version: int, warmup: int = 0) -> float:
        """What η is multiplied with in the step from `version` to the next, in [0, 1].

        Args:
            version: the version before the step.
            warmup: versions in which the factor rises from near 0.
        """
        rising = min(1.0, (version + 1) / warmup) if warmup else 1.0
        return rising * _FACTORS[self.form](version, *self.parameters)


CONSTANT: Final = Schedule("constant")


def parse_schedule(text: str) -> Schedule:
    """Read `constant`, `step(100, 0.5)`, `exponential(0.999)`, `root(50)` or `cosine(1000, 0.1)`.

    Raises:
        SettingError: the text is none of these, or a parameter is not allowed.
    """
    return Schedule(*parse_formula("fold.schedule", text, FORMS))
