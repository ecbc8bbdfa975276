"""A data set cut into `.npz` files: one for each agent's training images, one with all test images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .datasets import Dataset, load_dataset
from .partition import partition


def save_shards(
    folder: Path, dataset: Dataset, parts: Sequence[NDArray[np.int64]], names: Sequence[str]
) -> dict[str, Path]:
    """Write one file for each part, and `test.npz`.

    Args:
        folder: an existing folder.
        dataset: what to cut.
        parts: indices of training images.
        names: of the files, one for each part.

    Returns:
        The files by name; the test images' is called `test`.
    """
    paths = {name: folder / f"{name}.npz" for name in (*names, "test")}
    for name, part in zip(names, parts, strict=True):
        np.savez(
            paths[name], train_images=dataset.train_images[part], train_labels=dataset.train_labels[part]
        )
    np.savez(
        paths["test"],
        train_images=dataset.train_images[:0],
        train_labels=dataset.train_labels[:0],
        test_images=dataset.test_images,
        test_labels=dataset.test_labels,
    )
    return paths


def write_shards(
    folder: Path, data: str, *, split: str, clients: int, alpha: float, per_client: int | None, seed: int
) -> list[str]:
    """Load, partition and write; returns lines that say what was done.

    Raises:
        DataError: the data cannot be read.
        SettingError: the partition is impossible.
    """
    dataset = load_dataset(data, cache=folder / "cache")
    if per_client is None:
        per_client = len(dataset.train_labels) // max(clients, 1)
    parts = partition(
        dataset.train_labels,
        dataset.train_owners,
        split=split,
        clients=clients,
        alpha=alpha,
        per_client=per_client,
        seed=seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"shard-{index}" for index in range(clients)]
    paths = save_shards(folder, dataset, parts, names)
    sizes = {name: len(part) for name, part in zip(names, parts, strict=True)}
    lines = [f"{paths[name]}: {size} training {dataset.examples}" for name, size in sizes.items()]
    return [
        dataset.describe(),
        *lines,
        f"{paths['test']}: {len(dataset.test_labels)} test {dataset.examples}",
    ]
