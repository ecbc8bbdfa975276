"""The campaign's parties: processes that can be killed, stopped and started again, their links and their disks."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.chaos_audit import BUFFER_SIZE
from benchmarks.chaos_schedule import AGGREGATOR
from benchmarks.chaos_trainer import LAYOUT
from fedmq.app.foreground import FOLLOW_PARENT
from fedmq.app.toml import Value, write_toml
from fedmq.modelfile import save_model
from fedmq.testing.proxy import Proxy

ROOT: Final = Path(__file__).parent.parent
#: As long as an init system waits between SIGTERM and SIGKILL, or less.
_STOP_SECONDS: Final = 10.0
#: A process that ends by itself is started again after this long.
_RESTART_SECONDS: Final = 0.3
_STORE_BYTES: Final = 96 << 20
#: SQLite's log alone takes 4 MB before it is emptied for the first time.
_OUTBOX_BYTES: Final = 12 << 20
_FEDERATION: Final = "chaos"


class Process:
    """A process of ours, again and again.

    Args:
        name: for messages.
        command: its arguments after the interpreter.
        log: file for its output.

    Attributes:
        starts: how often it was started.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self._command, self.log = name, list(command), log
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._retry_at = 0.0
        self.starts = 0

    @property
    def is_running(self) -> bool:
        """Whether there is a process, stopped or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it."""
        self._wanted = True
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, FOLLOW_PARENT: "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._wanted = False
        if self._process is not None:
            self._process.kill()
            self._reap()

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        self._wanted = False
        self._signal(signal.SIGTERM)

    def terminate(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen; returns when it is gone."""
        self.ask_to_stop()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def look_after(self) -> str | None:
        """Start it again if it ended by itself; says what it said last when it did."""
        if not self._wanted or self.is_running:
            return None
        if self._process is not None:
            status = self._process.returncode
            self._reap()
            self._retry_at = time.monotonic() + _RESTART_SECONDS
            return f"{self.name} ended with status {status}: {self._last_words()}"
        if time.monotonic() >= self._retry_at:
            self.start()
        return None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _reap(self) -> None:
        if self._process is None:
            return
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Disk:
    """A folder of its own on a small file system in memory; a plain folder where mounting is not allowed.

    A process that is killed loses nothing of what it wrote to either, so durability against SIGKILL is the same;
    only the small one can be filled.

    Args:
        folder: where.
        size: bytes.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir()
        self._ballast = folder / "ballast"
        self.is_small = _mount(folder, size)

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("wb") as file:
            block = 1 << 20
            while block:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), block)
                except OSError:
                    block //= 2
                else:
                    file.seek(block, os.SEEK_CUR)

    def empty(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything: a new device."""
        for path in self.folder.iterdir():
            if path != self._ballast:
                path.unlink()

    def close(self) -> None:
        """Unmount it."""
        if self.is_small:
            subprocess.run(["umount", self.folder], check=False, capture_output=True)


def _mount(folder: Path, size: int) -> bool:
    mount = shutil.which("mount")
    if mount is None:
        return False
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Party:
    """An aggregator or an agent: process, link, disk and clock."""

    def __init__(self, process: Process, link: Proxy, disk: Disk, clock: Path) -> None:
        self.name = process.name
        self.process, self.link, self.disk, self._clock = process, link, disk, clock

    def step_clock(self, seconds: float) -> None:
        """Set how far its wall clock is off."""
        write_clock(self._clock, seconds)

    def close(self) -> None:
        """End it, and whatever it has."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.link.close()
        self.disk.close()


def write_clock(path: Path, seconds: float) -> None:
    """Write the file that `chaos_child` maps."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("<d", seconds))


def make_aggregator(folder: Path, broker_port: int, sabotage: str) -> Party:
    """An aggregator with many small snapshots, and arithmetic without rounding (see `chaos_trainer`)."""
    disk, link = Disk(folder / "store", _STORE_BYTES), Proxy(broker_port)
    save_model(folder / "initial.safetensors", LAYOUT, np.zeros(LAYOUT.size, np.float32))
    settings: dict[str, Value] = {
        "federation": _FEDERATION,
        "model": folder / "initial.safetensors",
        "broker": _connection(link),
        # all rows stay, for the auditor
        "store": {
            "path": disk.folder / "aggregator.db",
            "snapshot_records": 100,
            "keep_snapshots": 4,
            "keep_records": 100_000_000,
        },
        # an update takes three chunks
        "publish": {
            "keyframe_codec": "float32",
            "frame_codec": "float32",
            "delta_codec": "float32",
            "chunk_bytes": 4096,
            "min_interval": 0.05,
        },
        "fold": {"buffer_size": BUFFER_SIZE, "staleness": "constant", "max_staleness": 40},
        "admission": {"max_examples": 2**62},
        "task": {"codec": "float32", "resend_seconds": 1.5},
    }
    return _party(folder, AGGREGATOR, [sabotage, "--log-level", "warning", AGGREGATOR], settings, disk, link)


def make_agent(folder: Path, broker_port: int, name: str, number: int, *, seed: int, drain: Path) -> Party:
    """An agent with a `CountingTrainer`."""
    disk, link = Disk(folder / name, _OUTBOX_BYTES), Proxy(broker_port)
    settings: dict[str, Value] = {
        "federation": _FEDERATION,
        "client": name,
        "events": folder / f"{name}.jsonl",
        "broker": _connection(link),
        "outbox": {"folder": disk.folder},
        "trainer": {
            "factory": "benchmarks.chaos_trainer:counting_trainer",
            "seed": seed,
            "settings": {"agent": number, "diary": folder / f"{name}.diary", "drain": drain},
        },
    }
    return _party(folder, name, ["none", "--log-level", "warning", "agent"], settings, disk, link)


def _connection(link: Proxy) -> dict[str, Value]:
    return {"port": link.port, "keepalive": 5, "reconnect_min": 0.05, "reconnect_max": 1.0}


def _party(
    folder: Path, name: str, command: list[str], settings: dict[str, Value], disk: Disk, link: Proxy
) -> Party:
    clock, config = folder / f"{name}.clock", folder / f"{name}.toml"
    write_clock(clock, 0.0)
    write_toml(config, settings)
    arguments = ["-m", "benchmarks.chaos_child", str(clock), *command, "--config", str(config)]
    return Party(Process(name, arguments, folder / f"{name}.log"), link, disk, clock)


def copy_database(path: Path, folder: Path) -> Path:
    """Copy a SQLite file that no process has open, as a crash has left it, to an empty folder."""
    place = Path(tempfile.mkdtemp(dir=folder))
    for part in (path, path.with_name(f"{path.name}-wal")):
        if part.exists():
            shutil.copy(part, place)
    return place / path.name
