"""Delay compensation: what a late update would have been, had it been computed now, to first order.

    constant(λ)      Δ ← Δ − λ Δ² (w − b)
    adaptive(λ, m)   Δ ← Δ − λ Δ² (w − b) / √(q + 10^−7)        q ← m q + (1 − m) Δ²

with w the model now and b the client's base, each coordinate for itself: Δ² stands for the diagonal of the Hessian.
Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", ICML 2017, arXiv 1609.08326, equation
10 and the adaptive λ of its §6, where g + λ g² (w − b) is written for gradients; Δ is −g here. The paper takes λ =
0.04, or 2 with m = 0.95, for single gradients. A Δ of S local steps of size η is about −η S g, so a constant λ for it
is the paper's divided by η S; of the adaptive form the division by the root takes most of that away.

Only coordinates that were sent are changed, so sparse stays sparse. For a fresh update b is w, and nothing changes.
Memory: the models of the past (`past`), and 4 bytes a parameter for q.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from .formula import Forms, Formula, Parameter, parse_formula

_LAMBDA = Parameter(name="lambda")
FORMS: Final[Forms] = {
    "none": (),
    "constant": (_LAMBDA,),
    "adaptive": (_LAMBDA, Parameter(name="m", high=0.9999, default=0.95)),
}
_EPSILON: Final = np.float32(1e-7)


@dataclass(frozen=True, slots=True)
class Compensation(Formula):
    """One form with its numbers."""

    @property
    def is_adaptive(self) -> bool:
        """Whether it needs q."""
        return self.form == "adaptive"


def parse_compensation(text: str) -> Compensation | None:
    """Read `none`, `constant(0.04)` or `adaptive(2, 0.95)`.

    Raises:
        SettingError: the text is none of these, or a parameter is not allowed.
    """
    form, parameters = parse_formula("fold.compensation", text, FORMS)
    return None if form == "none" else Compensation(form, parameters)


def compensate(
    compensation: Compensation,
    delta: DecodedVector,
    vector: ParamVector,
    base: ParamVector,
    squares: ParamVector,
) -> DecodedVector:
    """The delta, compensated.

    Args:
        compensation: the form.
        delta: as it came.
        vector: the model now, w, float32, shape (size,).
        base: the model that the client trained from, b, float32, shape (size,).
        squares: q, float32, shape (size,), changed by the adaptive form; empty otherwise.
    """
    trainable = delta.trainable
    head = slice(trainable.length) if trainable.indices is None else trainable.indices
    tail = slice(trainable.length, None)
    if compensation.is_adaptive:
        m = compensation.parameters[1]
        squares *= np.float32(m)
        squares[head] += np.float32(1 - m) * trainable.values**2
        squares[tail] += np.float32(1 - m) * delta.buffers**2

    def corrected(
        values: ParamVector, place: slice | np.ndarray[tuple[int], np.dtype[np.int32]]
    ) -> ParamVector:
        change = np.float32(compensation.parameters[0]) * values * values * (vector[place] - base[place])
        if compensation.is_adaptive:
            change /= np.sqrt(squares[place] + _EPSILON)
        return values - change

    return DecodedVector(
        trainable=replace(trainable, values=corrected(trainable.values, head)),
        buffers=corrected(delta.buffers, tail),
    )
