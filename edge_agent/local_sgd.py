"""Local SGD: what the plan's settings tell the built-in trainers, and what these minimise beside plain cross-entropy.

Logit adjustment, for label skew. A device whose examples are nearly all of one class teaches, with the plain loss,
that everything is of that class; the next one teaches the opposite, and the global model swings between them. With

    loss(x, y) = −log softmax(f(x) + τ log π)_y        π_c = (n_c + 1) / (n + classes)

for a device that has n_c examples of class c, how frequent a class is here is said by π, and f learns what tells the
classes apart: with τ = 1, log p(x | c) up to what all classes share. That is the same on all devices, whatever their
labels. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv 2007.07314, §5 (the logit adjusted
loss); for federated learning Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration",
ICML 2022, arXiv 2209.00189, with another margin. One is added to each count, so a class that a device has never seen is
improbable there and not impossible.

The labels do not leave the device, nor do their counts. What f learns is a classifier for classes that are equally
frequent; a fleet whose common distribution of labels is uneven, and whose model shall follow it, takes τ = 0.

FedProx: μ/2 ‖w − w_base‖² (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import SettingError
from fedmq.plan import Scalar

#: τ, where the plan does not say.
LOGIT_ADJUSTMENT: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSgd:
    """The settings of one plan.

    Attributes:
        learning_rate: of each step.
        momentum: v ← momentum · v + gradient, w ← w − learning_rate · v; v is 0 when an update begins.
        batch_size: examples in one step.
        proximal: FedProx's μ.
        logit_adjustment: τ.
    """

    learning_rate: float
    momentum: float
    batch_size: int
    proximal: float
    logit_adjustment: float

    def adjustment(self, labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
        """τ log π, which is added to a model's outputs in training.

        Args:
            labels: of this device's examples, shape (n,), in 0 … classes − 1.
            classes: how many there are.

        Returns:
            Shape (classes,); its largest is 0, since a softmax does not see what all classes share. All zeros when
            every class is equally frequent, or when τ is 0.
        """
        counts = np.bincount(labels, minlength=classes) + 1.0
        adjustment: NDArray[np.float64] = self.logit_adjustment * np.log(counts / counts.max())
        return adjustment.astype(np.float32)


def read_local_sgd(settings: Mapping[str, Scalar]) -> LocalSgd:
    """What a plan's settings say; those of it that are open have their defaults.

    Raises:
        SettingError: a value is not allowed.
    """
    learning_rate, momentum = read_step(settings)
    return LocalSgd(
        learning_rate=learning_rate,
        momentum=momentum,
        batch_size=_batch_size(settings),
        proximal=read_proximal(settings),
        logit_adjustment=_number(
            settings, "logit_adjustment", LOGIT_ADJUSTMENT, 0.0, "a number of at least 0"
        ),
    )


def read_step(settings: Mapping[str, Scalar]) -> tuple[float, float]:
    """Learning rate and momentum alone, for trainers that have the rest from elsewhere.

    Raises:
        SettingError: one of them is not allowed.
    """
    return (
        _number(settings, "learning_rate", 0.05, -math.inf, "a finite number"),
        _number(settings, "momentum", 0.0, 0.0, "a number of at least 0 and below 1", below=1.0),
    )


def read_proximal(settings: Mapping[str, Scalar]) -> float:
    """FedProx's μ alone, likewise; 0 when the plan does not say.

    Raises:
        SettingError: it is not a finite number of at least 0.
    """
    return _number(settings, "proximal", 0.0, 0.0, "a number of at least 0")


def _number(
    settings: Mapping[str, Scalar],
    name: str,
    default: float,
    low: float,
    allowed: str,
    below: float = math.inf,
) -> float:
    found = settings.get(name, default)
    if isinstance(found, str | bool) or not low <= found < below or math.isinf(found):
        raise SettingError(f"task.settings {name}", found, f"{allowed} is allowed")
    return float(found)


def _batch_size(settings: Mapping[str, Scalar]) -> int:
    found = settings.get("batch_size", 32)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise SettingError("task.settings batch_size", found, "a whole number of at least 1 is allowed")
    return found
