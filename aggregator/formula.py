"""Formulas: dials that are given as a name with numbers, such as `polynomial(0.5)` or `adam(0.9, 0.99, 0.001)`.

Each module that has such a dial keeps a literal table of its forms; here is how a text becomes one of them, and back. A
snapshot keeps the text, so it has every digit of every number.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedmq.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One number of a form.

    Attributes:
        name: as the papers call it.
        low: the smallest allowed.
        high: the largest allowed; infinity itself never is.
        whole: whether it must be a whole number.
        default: what stands for it when it is left out, with all that follow; None when it must be given.
    """

    name: str
    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    default: float | None = None

    def admits(self, value: float) -> bool:
        """Whether a number may stand here; NaN may not."""
        return (
            math.isfinite(value)
            and self.low <= value <= self.high
            and (not self.whole or value == int(value))
        )

    @property
    def range(self) -> str:
        """The allowed numbers, in words."""
        kind = "a whole number" if self.whole else "a number"
        return f"{kind}, at least {self.low:g}" + (
            "" if self.high == math.inf else f" and at most {self.high:g}"
        )

    def __str__(self) -> str:
        return self.name if self.default is None else f"{self.name}={self.default:g}"


Forms = Mapping[str, tuple[Parameter, ...]]

_TEXT = re.compile(r"\s*([a-z_]+)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True, slots=True)
class Formula:
    """A form with its numbers; `str` gives the text it is parsed from."""

    form: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        inner = ", ".join(map(repr, self.parameters))
        return f"{self.form}({inner})" if inner else self.form


def parse_formula(setting: str, text: str, forms: Forms) -> tuple[str, tuple[float, ...]]:
    """The name of a form, and its numbers with the defaults filled in.

    Args:
        setting: whose value it is, for the error.
        text: what the operator gave.
        forms: those there are.

    Raises:
        SettingError: the text is none of them, or a number is not allowed.
    """
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in forms:
        raise SettingError(setting, text, f"one of {_list(forms)} is allowed")
    form, parameters = match[1], forms[match[1]]
    wrong = SettingError(setting, text, f"{_usage(form, parameters)} is meant; all forms are {_list(forms)}")
    try:
        given = [float(part) for part in match[2].split(",")] if match[2] else []
    except ValueError:
        raise wrong from None
    defaults = [parameter.default for parameter in parameters[len(given) :]]
    numbers = given + [default for default in defaults if default is not None]
    if len(numbers) != len(parameters):
        raise wrong
    for parameter, number in zip(parameters, numbers, strict=True):
        if not parameter.admits(number):
            raise SettingError(
                setting, text, f"{parameter.name} must be {parameter.range}; all forms are {_list(forms)}"
            )
    return form, tuple(numbers)


def _usage(form: str, parameters: tuple[Parameter, ...]) -> str:
    return f"{form}({', '.join(map(str, parameters))})" if parameters else form


def _list(forms: Forms) -> str:
    return ", ".join(_usage(form, parameters) for form, parameters in forms.items())
