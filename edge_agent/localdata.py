"""Labelled examples on the device's disk: an `.npz` file that the built-in trainers read.

train_images  uint8, shape (n, features)        test_images  uint8, shape (m, features), optional
train_labels  integers, shape (n,)              test_labels  integers, shape (m,), optional
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import SettingError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalData:
    """What one device knows.

    Attributes:
        images: float32 in [0, 1], shape (n, features).
        labels: int64, shape (n,).
    """

    images: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)


def load_local_data(path: str, split: str, *, features: int, classes: int) -> LocalData:
    """Read one split, scaled by 1/255.

    Args:
        path: the `.npz` file.
        split: `train` or `test`; empty when the file does not have it.
        features: numbers in one image, all sides multiplied.
        classes: labels are 0 … classes − 1.

    Raises:
        SettingError: the file is missing, damaged, or does not fit the model.
    """
    try:
        # opened here, because np.load leaves a damaged file open
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if split == "test" and "test_images" not in file:
                return LocalData(images=np.zeros((0, features), np.float32), labels=np.zeros(0, np.int64))
            images, labels = file[f"{split}_images"], file[f"{split}_labels"]
    except Exception as error:  # a damaged file makes numpy, zipfile and zlib raise nearly anything
        raise SettingError(
            "trainer.settings data", path, f"an .npz file of images and labels ({error})"
        ) from error
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise SettingError(
            "trainer.settings data",
            path,
            f"{split}_labels must be integers of shape (n,), not {labels.dtype} of shape {labels.shape}",
        )
    if images.dtype != np.uint8 or images.shape != (len(labels), features):
        raise SettingError(
            "trainer.settings data",
            path,
            f"{split}_images must be uint8 of shape ({len(labels)}, {features}), "
            f"not {images.dtype} of shape {images.shape}",
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise SettingError("trainer.settings data", path, f"{split}_labels must lie in 0 … {classes - 1}")
    return LocalData(images=images.astype(np.float32) / np.float32(255), labels=labels.astype(np.int64))
