"""Sums whose order is written down: numpy's own depends on its build, and the model must not.

Halving: the second half is added to the first, elementwise, until one number is left. IEEE 754 rounds each addition in
one way, so equal summands give equal bits on every machine.
"""

import numpy as np
from numpy.typing import NDArray


def ordered_sum(values: NDArray[np.float64]) -> float:
    """The sum of a vector of shape (k,); 0.0 when it is empty."""
    return float(ordered_sums(values[np.newaxis, :])[0])


def ordered_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of each row of a matrix of shape (n, k), shape (n,)."""
    if not values.shape[1]:
        return np.zeros(values.shape[0], np.float64)
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        lower = values[:, :half].copy()
        lower[:, : values.shape[1] - half] += values[:, half:]
        values = lower
    return values[:, 0].copy()
