"""The built wheel, installed where nothing else is, does the main job without torch."""

import gzip
import json
import struct
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    (path,) = folder.glob("fedmq-*.whl")
    return path


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_list_names_every_folder_that_holds_modules() -> None:
    """A forgotten sub-package would silently be missing from the wheel."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {name: ROOT / folder for name, folder in setuptools["package-dir"].items()}
    found = {
        ".".join((name, *path.parent.relative_to(folder).parts))
        for name, folder in places.items()
        for path in folder.rglob("__init__.py")
    }

    assert found == set(setuptools["packages"])


def test_the_wheel_puts_one_name_into_site_packages(wheel: Path) -> None:
    """A top-level `broker` would overwrite another project's."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"fedmq"}


def test_the_wheel_holds_every_module_and_no_other(wheel: Path) -> None:
    """What is in the tree is in the wheel, under its installed name."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.endswith(".py")}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "fedmq").rglob("*.py")}
    for role in ("broker", "aggregator", "edge_agent"):
        expected |= {f"fedmq/{path.relative_to(ROOT)}" for path in (ROOT / role).rglob("*.py")}

    assert shipped == expected


def test_a_base_install_runs_the_demo_without_torch(wheel: Path, tmp_path: Path) -> None:
    """Numpy trainer, own images, in one process: the base dependencies are enough."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    _write_images(tmp_path / "images")
    _run(
        place / "bin" / "fedmq", "--log-level", "warning", "demo", "--in-process", "--trainer", "mlp",
        "--data", tmp_path / "images", "--agents", "3", "--pause", "0", "--target", "0.9", "--timeout", "60",
        cwd=tmp_path,
    )  # fmt: skip
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    has_torch = _run(python, "-c", "import importlib.util as u; print(u.find_spec('torch') is not None)")

    assert has_torch.strip() == "False"
    assert report["accuracy"] >= 0.9
    assert report["updates_folded"] > 0


def _write_images(folder: Path) -> None:
    """Four classes of 8×8 images that any network tells apart: a bright quarter each, and noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem, count in (("train", 600), ("t10k", 200)):
        labels = rng.integers(0, 4, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 8, 8)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 180
        header = struct.pack(">IIII", 0x803, count, 8, 8)
        with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 0x801, count) + labels.tobytes())
