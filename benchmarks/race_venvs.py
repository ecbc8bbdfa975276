"""The peers' environments: a virtual environment for each, made when it is first needed and kept between runs.

torch and numpy lie in a base environment that the peers' `site-packages` point to (a `.pth` file): all systems train
with the same build, and it is installed once. What a peer requires beyond, or in another version, goes into its own
environment, which is searched first.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
_FOLDER: Final = ROOT / "runs" / "peers"
_CONSTRAINTS: Final = ROOT / "constraints.txt"
_BASE: Final = "torch"
#: Flower 1.42.0 has the same `start_server` and `start_client`, but wants a certifi younger than some indexes are.
REQUIREMENTS: Final = {
    _BASE: ("torch", "numpy"),
    "flower": ("flwr==1.41.0",),
    "appfl": ("appfl==1.12.0",),
    "naive": ("flask==3.1.3", "requests==2.34.2"),
}
#: What the results name the version of.
PACKAGES: Final = {"flower": ("flwr", "grpcio"), "appfl": ("appfl", "grpcio"), "naive": ("flask", "requests")}
_INSTALL_SECONDS: Final = 1800
#: pip lists every version that there is.
_REASON_LETTERS: Final = 200


class UnavailableError(Exception):
    """A peer cannot be installed; the message says what pip said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Venv:
    """An environment that is ready.

    Attributes:
        python: its interpreter.
        versions: of the peer's packages and torch.
    """

    python: Path
    versions: dict[str, str]


def prepare(name: str) -> Venv:
    """The environment of a peer; installed unless it is there already.

    Raises:
        UnavailableError: it cannot be made.
    """
    base = _make(_BASE, ())
    python = _make(name, (_site_packages(base),))
    packages = (*PACKAGES[name], "torch", "numpy")
    script = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = _run([python, "-c", script, *packages]).split()
    return Venv(python=python, versions=dict(zip(packages, found, strict=True)))


def _make(name: str, searched: Sequence[str]) -> Path:
    """Make an environment whose packages are looked for in `searched`, too."""
    folder = _FOLDER / name
    python = folder / "bin" / "python"
    marker, wanted = folder / "installed.txt", "\n".join(REQUIREMENTS[name])
    if marker.exists() and marker.read_text() == wanted:
        return python
    print(f"installing {', '.join(REQUIREMENTS[name])} into {folder}", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    (Path(_site_packages(python)) / "base.pth").write_text("".join(f"{path}\n" for path in searched))
    _run([python, *["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], "--constraint", _CONSTRAINTS,
          *REQUIREMENTS[name]])  # fmt: skip
    marker.write_text(wanted)
    return python


def _site_packages(python: Path) -> str:
    return _run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]).strip()


def _run(command: Sequence[str | os.PathLike[str]]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise UnavailableError(textwrap.shorten(" ".join(lines), _REASON_LETTERS))
    return done.stdout
