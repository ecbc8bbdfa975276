"""Distributions that a scenario names in a line of text: how long something takes, and how much that differs.

constant(c)            always c; a plain number means the same
uniform(low, high)     anything between the two alike
lognormal(m, sigma)    median m, and log-values that spread by sigma: the common shape of durations
exponential(mean)      the time until something that may happen at any moment
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import SettingError


@dataclass(frozen=True, slots=True)
class _Form:
    parameters: tuple[str, ...]
    draw: Callable[..., NDArray[np.float64]]


FORMS: Final[Mapping[str, _Form]] = {
    "constant": _Form(("c",), lambda random, count, c: np.full(count, c)),
    "uniform": _Form(("low", "high"), lambda random, count, low, high: random.uniform(low, high, count)),
    "lognormal": _Form(
        ("median", "sigma"),
        lambda random, count, median, sigma: median * np.exp(sigma * random.standard_normal(count)),
    ),
    "exponential": _Form(("mean",), lambda random, count, mean: random.exponential(mean, count)),
}

_TEXT: Final = re.compile(r"\s*([a-z]+)\s*\(([^()]*)\)\s*")


@dataclass(frozen=True, slots=True)
class Distribution:
    """One distribution of numbers that are never negative; `str` gives the text it is parsed from."""

    form: str
    parameters: tuple[float, ...]

    def draw(self, random: np.random.Generator) -> float:
        """One value."""
        return float(self.draw_many(random, 1)[0])

    def draw_many(self, random: np.random.Generator, count: int) -> NDArray[np.float64]:
        """Many values, shape (count,): the same as `draw` would give one after the other."""
        return FORMS[self.form].draw(random, count, *self.parameters)

    def __str__(self) -> str:
        return f"{self.form}({', '.join(f'{value:g}' for value in self.parameters)})"


def parse_distribution(name: str, text: str) -> Distribution:
    """Read `constant(2)`, `2`, `uniform(1, 3)`, `lognormal(2, 0.5)` or `exponential(60)`.

    Args:
        name: the setting's, for the message.
        text: what was given.

    Raises:
        SettingError: the text is none of these, or a parameter is negative.
    """
    forms = ", ".join(f"{form}({', '.join(entry.parameters)})" for form, entry in FORMS.items())
    error = SettingError(name, text, f"a number, or one of {forms}, with parameters ≥ 0 is allowed")
    match = _TEXT.fullmatch(text)
    form, inner = (match[1], match[2]) if match else ("constant", text)
    try:
        parameters = tuple(float(part) for part in inner.split(","))
    except ValueError:
        raise error from None
    if form not in FORMS or len(parameters) != len(FORMS[form].parameters):
        raise error
    if not all(0 <= value < math.inf for value in parameters):
        raise error
    if form == "uniform" and parameters[0] > parameters[1]:
        raise error
    return Distribution(form, parameters)
