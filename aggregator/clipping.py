"""Clipping to a running quantile of the norms.

    Δ ← Δ min(1, C / ‖Δ‖)        C ← C exp(−0.2 (b − γ))        b = 1 if ‖Δ‖ ≤ C else 0

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, arXiv
1905.03871, Algorithm 1 without its noise, a cohort being one contribution. C settles where a share γ of the norms lies
below it. It starts at the first norm; an outlier there is forgotten at 20 (1 − γ) percent a contribution.

A contribution moves C by about 20 percent at most, whatever its norm: more than 1 − γ of them would have to be too long
to lift it for good.
"""

import math
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector

from .ordered import ordered_sum

#: The paper's η_C.
_RATE: Final = 0.2


def norm(delta: DecodedVector) -> float:
    """The Euclidean norm, summed in an order that is the same on every machine, since the model depends on it."""
    values = np.concatenate((delta.trainable.values, delta.buffers)).astype(np.float64)
    return math.sqrt(ordered_sum(values * values))


def clip(threshold: float, quantile: float, delta: DecodedVector) -> tuple[float, float]:
    """What to multiply a contribution with, and the threshold for the next one.

    Args:
        threshold: C; 0 before the first contribution that is not zero.
        quantile: γ.
        delta: the contribution.
    """
    size = norm(delta)
    if not threshold:
        return 1.0, size
    is_below = size <= threshold
    return (1.0 if is_below else threshold / size), threshold * math.exp(-_RATE * (is_below - quantile))
