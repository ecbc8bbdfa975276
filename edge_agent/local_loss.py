"""What the built-in trainers minimise beside the plain cross-entropy. Both terms are against one-sided local data.

Logit adjustment, for label skew. A device whose examples are nearly all of one class teaches, with the plain loss,
that everything is of that class; the next one teaches the opposite, and the global model swings between them. With

    loss(x, y) = −log softmax(f(x) + τ log π)_y        π_c = (n_c + 1) / (n + classes)

for a device that has n_c examples of class c, how frequent a class is here is said by π, and f learns what tells the
classes apart: with τ = 1, log p(x | c) up to what all classes share. That is the same on all devices, whatever their
labels. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv 2007.07314, §5.1 (the logit adjusted
loss); for federated learning Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration",
ICML 2022, arXiv 2209.00189, with another margin. One is added to each count, so a class that a device has never seen is
improbable there and not impossible.

The labels do not leave the device, nor do their counts. What f learns is a classifier for classes that are equally
frequent; a fleet whose common distribution of labels is uneven, and whose model shall follow it, takes τ = 0.

FedProx: μ/2 ‖w − w_base‖² (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2).
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import SettingError
from fedmq.plan import Scalar

#: τ, where the plan does not say.
LOGIT_ADJUSTMENT: Final = 1.0


def check_proximal(settings: Mapping[str, Scalar]) -> float:
    """FedProx's μ as the plan's settings have it, 0 when they have none.

    Raises:
        SettingError: it is not a finite number of at least 0.
    """
    return _at_least_zero(settings, "proximal", 0.0)


def check_logit_adjustment(settings: Mapping[str, Scalar]) -> float:
    """τ as the plan's settings have it.

    Raises:
        SettingError: it is not a finite number of at least 0.
    """
    return _at_least_zero(settings, "logit_adjustment", LOGIT_ADJUSTMENT)


def logit_adjustment(
    labels: NDArray[np.int64], classes: int, settings: Mapping[str, Scalar]
) -> NDArray[np.float32]:
    """τ log π, which is added to a model's outputs in training.

    Args:
        labels: of this device's examples, shape (n,), in 0 … classes − 1.
        classes: how many there are.
        settings: the plan's.

    Returns:
        Shape (classes,); its largest is 0, since a softmax does not see what all classes share. All zeros when every
        class is equally frequent, or when τ is 0.

    Raises:
        SettingError: see `check_logit_adjustment`.
    """
    counts = np.bincount(labels, minlength=classes) + 1.0
    adjustment: NDArray[np.float64] = check_logit_adjustment(settings) * np.log(counts / counts.max())
    return adjustment.astype(np.float32)


def _at_least_zero(settings: Mapping[str, Scalar], name: str, default: float) -> float:
    found = settings.get(name, default)
    if isinstance(found, str | bool) or not 0 <= found < math.inf:
        raise SettingError(f"task.settings {name}", found, "a number of at least 0 is allowed")
    return float(found)
