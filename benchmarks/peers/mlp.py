"""The network that every peer trains, and the metric that APPFL wants; APPFL's server sends this file to clients."""

import numpy as np
from torch import Tensor, nn


class Mlp(nn.Module):
    """features → hidden → ReLU → classes; the tensors have the names that fedmq's trainer gives them."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, hidden)
        self.relu = nn.ReLU()
        self.output = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.output(self.relu(self.hidden(images)))


def accuracy(targets: np.ndarray, outputs: np.ndarray) -> float:
    """The share of right answers, in percent."""
    return 100 * float(np.mean(outputs.argmax(axis=1) == targets))
