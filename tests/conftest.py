"""What all tests share: one hypothesis profile, the same examples on every run, and data to learn from in a second."""

import numpy as np
import pytest
from hypothesis import settings

from fedmq.app.datasets import Dataset

settings.register_profile("fedmq", derandomize=True, deadline=None)
settings.load_profile("fedmq")

_SIDE, _CLASSES = 6, 5


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """Noisy pictures of five patterns, 1,000 to learn from and 500 to be tested with."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (_CLASSES, _SIDE * _SIDE))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.integers(0, _CLASSES, count).astype(np.uint8)
        noisy = patterns[labels] + random.normal(0, 60, (count, _SIDE * _SIDE))
        return np.clip(noisy, 0, 255).astype(np.uint8), labels

    train_images, train_labels = draw(1000)
    test_images, test_labels = draw(500)
    return Dataset(
        name="blobs",
        description="noisy patterns",
        alternative="none",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        shape=(_SIDE, _SIDE),
        classes=_CLASSES,
        class_names=tuple("abcde"),
    )
