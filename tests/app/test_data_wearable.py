"""The recordings of ten persons with a watch, as they come out of seglearn's wheel."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from fedmq.app import wearable
from fedmq.app.datasets import load_dataset
from fedmq.errors import DataError


def test_every_window_has_a_person_and_an_exercise(tmp_path: Path) -> None:
    """Ten persons, each with all seven exercises; 900 readings a window; a quarter of each recording is for testing."""
    data = load_dataset("wearable", cache=tmp_path)
    owners = data.train_owners

    assert owners is not None
    assert (3315, 900) == data.train_images.shape
    assert (869, 900) == data.test_images.shape
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert set(range(1, 11)) == set(owners.tolist())
    assert all(set(range(7)) == set(data.train_labels[owners == person].tolist()) for person in range(1, 11))
    assert "3,315 training and 869 test windows of 6×150 readings in 7 classes" in data.describe()


def test_windows_are_cut_channel_by_channel() -> None:
    """Each begins a second after the one before and holds three seconds of each channel."""
    levels = (np.arange(260)[:, None] + np.zeros(6)).astype(np.uint8)
    levels[:, 1] = 7
    windows = wearable._windows(levels)

    assert (3, 900) == windows.shape
    assert list(range(50, 200)) == windows[1, :150].tolist()
    assert {7} == set(windows[1, 150:300].tolist())


def test_a_file_that_is_another_one_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a pickle: what it would do when it is read is up to who wrote it."""
    path = tmp_path / "watch_dataset.npy"
    path.write_bytes(b"something else")
    monkeypatch.setattr(wearable, "_find", lambda: path)

    with pytest.raises(DataError, match=r"is not the file of seglearn 1\.2\.5"):
        wearable.load_wearable()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings it."""
    monkeypatch.setattr(wearable, "find_spec", lambda name: None)

    with pytest.raises(DataError, match="run `pip install seglearn`"):
        wearable.load_wearable()


def test_nothing_but_arrays_comes_of_the_pickle(tmp_path: Path) -> None:
    """Even of a file that has the right checksum."""
    with (tmp_path / "evil").open("w+b") as stream:
        pickle.dump(print, stream)
        stream.seek(0)
        with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is not an array's"):
            wearable._Arrays(stream).load()
