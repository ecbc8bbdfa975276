"""Fairness: how well the final model serves each client, not only all of them on average.

No device has test data of its own, so each client's accuracy is the test data's, weighted as its own data is: the sum
over labels of (the label's share of the client's training examples) · (the accuracy on the test examples of that
label). It says how well a client fares that will meet the labels that it has met; it does not see that one client's
images of a label may be harder than another's. Labels of which there is no test example are left out of the shares.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmq.edge_agent.trainer import Trainer
from fedmq.types import ParamVector

from .datasets import Dataset


def label_accuracies(
    dataset: Dataset, vector: ParamVector, make_trainer: Callable[[Path], Trainer], folder: Path
) -> dict[int, float]:
    """The accuracy of a model on the test examples of each label, by the trainer's own measure.

    Args:
        dataset: whose test data.
        vector: the model, float32, shape (layout.size,).
        make_trainer: makes the trainer that measures from a file of data, see `shards`.
        folder: for the files.
    """
    found = {}
    for label in np.unique(dataset.test_labels).tolist():
        chosen = dataset.test_labels == label
        path = folder / f"label-{label}.npz"
        np.savez(
            path,
            train_images=dataset.train_images[:0],
            train_labels=dataset.train_labels[:0],
            test_images=dataset.test_images[chosen],
            test_labels=dataset.test_labels[chosen],
        )
        found[int(label)] = make_trainer(path).evaluate(vector)["accuracy"]
        path.unlink()
    return found


def client_accuracy(accuracies: Mapping[int, float], labels: NDArray[np.integer]) -> float | None:
    """One client's accuracy, None when it has no example of a label that was measured.

    Args:
        accuracies: of the model on each label's test examples.
        labels: of the client's training examples, shape (n,).
    """
    values, counts = np.unique(labels, return_counts=True)
    pairs = [
        (accuracies[value], count)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        if value in accuracies
    ]
    whole = sum(count for _, count in pairs)
    return sum(accuracy * count for accuracy, count in pairs) / whole if whole else None


def worst_decile(accuracies: list[float]) -> float | None:
    """Mean of the worst tenth of the clients, at least one; None when there is none."""
    worst = sorted(accuracies)[: max(len(accuracies) // 10, 1)]
    return sum(worst) / len(worst) if worst else None
