"""The IDX reader: what it accepts, and that each way to be wrong has its own message."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.app import datasets
from fedmq.app import idx as idx_module
from fedmq.app.datasets import load_dataset
from fedmq.app.idx import read_idx
from fedmq.errors import DataError


def idx(array: NDArray[np.uint8]) -> bytes:
    """Encode an array by the format's description, independently of the code under test."""
    header = b"\x00\x00\x08" + bytes([array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_folder(
    folder: Path,
    changed: Mapping[str, NDArray[np.uint8]] | None = None,
    *,
    mark: str = "-",
    suffix: str = ".gz",
) -> Path:
    """Write a dataset of 6 training and 3 test images of 2×3 pixels, with some arrays replaced."""
    arrays = {
        "train_images": np.arange(36, dtype=np.uint8).reshape(6, 2, 3),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "t10k_images": np.arange(18, dtype=np.uint8).reshape(3, 2, 3),
        "t10k_labels": np.array([2, 1, 0], dtype=np.uint8),
        **(changed or {}),
    }
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        kind = 3 if name.endswith("images") else 1
        content = idx(array)
        path = folder / f"{name.replace('_', '-')}{mark}idx{kind}-ubyte{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_a_folder_is_read_under_every_usual_name(tmp_path: Path, mark: str, suffix: str) -> None:
    """Plain and compressed files, with a dash or a dot, give the same dataset."""
    folder = write_folder(tmp_path / "toys", mark=mark, suffix=suffix)

    data = load_dataset(str(folder), cache=tmp_path / "cache")

    assert list(range(36)) == data.train_images.ravel().tolist()
    assert data.train_images.shape == (6, 6)
    assert data.test_labels.tolist() == [2, 1, 0]
    assert (data.name, data.shape, data.classes, data.class_names) == ("toys", (2, 3), 3, ("0", "1", "2"))
    assert not (tmp_path / "cache").exists()


def test_what_is_read_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    """The arrays are read-only, so one client cannot spoil another's data."""
    data = load_dataset(str(write_folder(tmp_path)), cache=tmp_path)

    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0, 0] = 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x08", "cut off: 3 bytes, but the header alone has 8"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "begins with 00000d01 instead of 00000801"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x00", "begins with 00000803 instead of 00000801"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", "holds 2 bytes of data where its header states 3"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03abcd", "holds 4 bytes of data where its header states 3"),
        (b"\x00\x00\x08\x01\xff\xff\xff\xffabcd", "holds 4 bytes of data where its header states 4294967295"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name_and_fault(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Each check of the header has a case here that only it refuses."""
    path = tmp_path / "labels-idx1-ubyte"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dimensions=1)

    assert str(path) == caught.value.source


@pytest.mark.parametrize("damage", ["cut", "not gzip", "deflate", "checksum", "missing"])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: str) -> None:
    """What gzip, zlib and the file system raise arrives as one kind of error."""
    path = tmp_path / "labels-idx1-ubyte.gz"
    whole = gzip.compress(idx(np.arange(200, dtype=np.uint8)), mtime=0)
    match damage:
        case "cut":
            path.write_bytes(whole[:-9])
        case "not gzip":
            path.write_bytes(b"<html>not found</html>")
        case "deflate":
            path.write_bytes(whole[:10] + b"\xff" * 8 + whole[18:])
        case "checksum":
            path.write_bytes(whole[:-8] + b"\x00" * 4 + whole[-4:])

    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path, dimensions=1)


def test_a_decompression_bomb_is_stopped_at_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive of many zeros is refused for its content's size, whatever its header states."""
    monkeypatch.setattr(idx_module, "_MAX_CONTENT", 1000)
    path = tmp_path / "labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(993, dtype=np.uint8))))

    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_idx(path, dimensions=1)

    path.write_bytes(gzip.compress(idx(np.zeros(992, dtype=np.uint8))))

    assert len(read_idx(path, dimensions=1)) == 992


@given(content=st.binary(max_size=64) | st.binary(max_size=32).map(lambda tail: b"\x00\x00\x08\x01" + tail))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No input raises anything but DataError, and what is accepted encodes back to the same bytes."""
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    try:
        array = read_idx(path, dimensions=1)
    except DataError:
        return

    assert content == idx(array)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": np.zeros(5, dtype=np.uint8)}, "5 labels for 6 images"),
        ({"t10k_images": np.zeros((3, 3, 2), dtype=np.uint8)}, r"\(2, 3\) pixels, test images of \(3, 2\)"),
        (
            {"t10k_images": np.zeros((0, 2, 3), dtype=np.uint8), "t10k_labels": np.zeros(0, dtype=np.uint8)},
            "no pixel in its t10k images",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, changed: dict[str, NDArray[np.uint8]], message: str
) -> None:
    """Four sound files can still not be a dataset."""
    with pytest.raises(DataError, match=message):
        load_dataset(str(write_folder(tmp_path, changed)), cache=tmp_path)


def test_a_label_without_a_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST has ten names, so its labels end at 9; one above would be an index error much later."""
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", write_folder(tmp_path))
    assert load_dataset("debian", cache=tmp_path).classes == 10

    write_folder(tmp_path, {"t10k_labels": np.array([0, 10, 1], dtype=np.uint8)})

    with pytest.raises(DataError, match="a label above 9, but fashion-mnist has 10 classes"):
        load_dataset("debian", cache=tmp_path)


def test_a_missing_file_is_named_with_its_other_spellings(tmp_path: Path) -> None:
    """The message lists the names that would be accepted."""
    folder = write_folder(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()

    with pytest.raises(
        DataError, match=r"has no t10k-labels-idx1-ubyte \(nor .*t10k-labels\.idx1-ubyte\.gz\)"
    ):
        load_dataset(str(folder), cache=tmp_path)
