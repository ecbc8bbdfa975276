"""Local data: what is read, and what is refused with a reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.edge_agent.localdata import load_local_data

from fedmq.errors import SettingError

IMAGES = np.arange(12, dtype=np.uint8).reshape(4, 3) * 20
LABELS = np.array([0, 1, 1, 0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file lies."""
    return tmp_path / "data.npz"


def save(path: Path, **arrays: Any) -> None:
    """A file with a valid training split, but for some arrays; None leaves one out."""
    valid = {"train_images": IMAGES, "train_labels": LABELS} | arrays
    np.savez(path, **{name: array for name, array in valid.items() if array is not None})


def test_images_are_scaled_and_labels_are_whole(path: Path) -> None:
    """0 … 255 becomes 0 … 1 in float32, any integers become int64."""
    save(path, train_labels=LABELS.astype(np.uint8))
    data = load_local_data(str(path), "train", features=3, classes=2)

    np.testing.assert_array_equal(IMAGES.astype(np.float32) / 255, data.images)
    assert (np.dtype(np.float32), np.dtype(np.int64)) == (data.images.dtype, data.labels.dtype)
    assert LABELS.tolist() == data.labels.tolist()
    assert 4 == len(data)


def test_a_file_without_a_test_split_has_an_empty_one(path: Path) -> None:
    """Most devices measure nothing."""
    save(path)
    data = load_local_data(str(path), "test", features=3, classes=2)

    assert (0, 3) == data.images.shape
    assert 0 == len(data)


def test_the_test_split_is_read_when_it_is_there(path: Path) -> None:
    """An evaluator's file may have an empty training split."""
    save(path, train_images=IMAGES[:0], train_labels=LABELS[:0], test_images=IMAGES, test_labels=LABELS)

    assert 4 == len(load_local_data(str(path), "test", features=3, classes=2))
    assert 0 == len(load_local_data(str(path), "train", features=3, classes=2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": None}, "train_images is not a file in the archive"),
        ({"train_labels": None}, "train_labels is not a file in the archive"),
        ({"test_images": IMAGES}, "test_labels is not a file in the archive"),
        ({"train_images": IMAGES.astype(np.float32)}, r"train_images must be uint8 .* not float32"),
        ({"train_images": IMAGES[:, :2]}, r"of shape \(4, 3\), not uint8 of shape \(4, 2\)"),
        ({"train_images": IMAGES[:3]}, r"of shape \(4, 3\), not uint8 of shape \(3, 3\)"),
        ({"train_images": IMAGES.reshape(4, 3, 1)}, r"not uint8 of shape \(4, 3, 1\)"),
        ({"train_labels": LABELS + 0.5}, r"train_labels must be integers .* not float64"),
        ({"train_labels": LABELS.astype(bool)}, "not bool"),
        ({"train_labels": np.array(3)}, r"not int64 of shape \(\)"),
        ({"train_labels": LABELS.reshape(2, 2)}, r"of shape \(2, 2\)"),
        ({"train_labels": LABELS + 1}, "train_labels must lie in 0 … 1"),
        ({"train_labels": LABELS - 1}, "train_labels must lie in 0 … 1"),
        ({"train_labels": np.array([{}] * 4)}, "an .npz file of images and labels"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, arrays: dict[str, Any], message: str) -> None:
    """With the file, the array and what it should be."""
    save(path, **arrays)
    split = "test" if "test_images" in arrays else "train"

    with pytest.raises(SettingError, match=message) as caught:
        load_local_data(str(path), split, features=3, classes=2)
    assert str(path) in str(caught.value)


def single(path: Path) -> None:
    """An .npy file under an .npz name."""
    with path.open("wb") as file:
        np.save(file, IMAGES)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        lambda path: path.write_text("a text"),
        single,
    ],
)
def test_what_is_no_archive_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    """Missing, a folder, empty, damaged, or something else: the message names the file."""
    make(path)

    with pytest.raises(SettingError, match=r"an .npz file of images and labels") as caught:
        load_local_data(str(path), "train", features=3, classes=2)
    assert str(path) in str(caught.value)


def test_no_damage_to_an_archive_raises_anything_else(path: Path) -> None:
    """Each byte flipped, and the file cut at each place: it reads the same, or says that it cannot."""
    np.savez_compressed(path, train_images=IMAGES, train_labels=LABELS)
    whole = path.read_bytes()
    damaged = [whole[:at] for at in range(0, len(whole), 5)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(len(whole))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            data = load_local_data(str(path), "train", features=3, classes=2)
        except SettingError:
            refused += 1
        else:
            assert LABELS.tolist() == data.labels.tolist()

    assert refused > len(damaged) / 2
