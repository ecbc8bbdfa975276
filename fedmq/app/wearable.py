"""Data that people made: exercises of ten persons with a watch on the wrist, as the package seglearn ships them.

Seven shoulder exercises, each done with the left arm and with the right, by ten persons; acceleration and rotation on
three axes, 50 times a second (Burns et al. 2018, arXiv:1802.01489). Cut into windows of three seconds, one begun every
second. The last quarter of each recording is for testing, so what is tested was done by the same persons, later.

The file is a pickle, which no part of fedmq reads from anybody: this one is read only when its SHA-256 says that it is
the very file that was looked through, and even then nothing but numpy's arrays may come of it.
"""

import hashlib
import io
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import DataError

from .datasets import Dataset

_SHA256: Final = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
#: All that the pickle names.
_ALLOWED: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_EXERCISES: Final = (
    "pendulum", "abduction", "forward elevation", "internal rotation", "external rotation", "trapezius", "row",
)  # fmt: skip
_WINDOW, _STEP = 150, 50
_CHANNELS: Final = 6
#: The range of a byte: 2 g of acceleration to either side, 5 rad/s of rotation.
_HALF_RANGE: Final = np.array([2, 2, 2, 5, 5, 5], np.float64)
_TEST_SHARE: Final = 0.25


def load_wearable() -> Dataset:
    """The windows, by person.

    Raises:
        DataError: seglearn is not installed, or its file is another one.
    """
    path = _find()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(path, f"is not the file of seglearn 1.2.5: its SHA-256 is not {_SHA256}")
    with io.BytesIO(content) as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        recordings = _Arrays(stream, encoding="latin1").load().item()
    train: list[NDArray[np.uint8]] = []
    test: list[NDArray[np.uint8]] = []
    counts: list[tuple[int, int]] = []
    for recording in recordings["X"]:
        values = np.asarray(recording, np.float64)
        levels = np.clip(np.round((values / _HALF_RANGE + 1) * 127.5), 0, 255).astype(np.uint8)
        begin = len(levels) - int(len(levels) * _TEST_SHARE)
        parts = _windows(levels[:begin]), _windows(levels[begin:])
        train.append(parts[0])
        test.append(parts[1])
        counts.append((len(parts[0]), len(parts[1])))
    labels, persons = (np.asarray(recordings[key], np.uint8) for key in ("y", "subject"))
    of_train, of_test = np.array(counts, np.int64).T
    return Dataset(
        name="wearable",
        description="seven shoulder exercises of ten persons with a watch, from seglearn",
        alternative="For images use --data auto, debian, digits or download.",
        train_images=np.concatenate(train),
        train_labels=np.repeat(labels, of_train),
        test_images=np.concatenate(test),
        test_labels=np.repeat(labels, of_test),
        shape=(_CHANNELS, _WINDOW),
        classes=len(_EXERCISES),
        class_names=_EXERCISES,
        train_owners=np.repeat(persons, of_train),
        examples="windows",
        numbers="readings",
    )


class _Arrays(pickle.Unpickler):
    """Makes numpy's arrays, and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> object:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not an array's")
        return super().find_class(module_name, global_name)


def _find() -> Path:
    """The file inside seglearn, which need not be imported for it."""
    spec = find_spec("seglearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "seglearn", "is not installed, and its wheel holds the recordings: run `pip install seglearn`"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "watch_dataset.npy"


def _windows(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut a recording, shape (n, 6): uint8 of shape (windows, 6 * 150), channel after channel."""
    views = np.lib.stride_tricks.sliding_window_view(levels, _WINDOW, axis=0)[::_STEP]
    return views.reshape(len(views), -1)
