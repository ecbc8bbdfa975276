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
from typing import Final, Protocol

from fedmq.broker import Mosquitto
from fedmq.broker.mosquitto import free_port

from fedmq.app.foreground import FOLLOW_PARENT
from fedmq.testing.proxy import Proxy

ROOT: Final = Path(__file__).parent.parent
#: As long as an init system waits between SIGTERM and SIGKILL, or less.
_STOP_SECONDS: Final = 10.0
#: A process that ends by itself is started again after this long.
_RESTART_SECONDS: Final = 0.3
BROKERS: Final = ("mosquitto", "mosquitto-defaults", "embedded")


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


class Broker(Protocol):
    """A broker that can be hurt."""

    port: int

    def start(self) -> None:
        """Start it, with what it had saved."""

    def kill(self) -> None:
        """SIGKILL."""

    def terminate(self) -> None:
        """SIGTERM."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""

    def wipe(self) -> None:
        """Take what it has saved away, while it is down."""

    def close(self) -> None:
        """End it and remove everything."""


class MosquittoBroker:
    """mosquitto, with the configuration that fedmq ships or with its own defaults."""

    def __init__(self, config: str | None) -> None:
        self._config = config
        self._mosquitto = Mosquitto(config, port=free_port())
        self.port = self._mosquitto.port

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._mosquitto.start()

    def kill(self) -> None:
        """SIGKILL: what it has not saved is lost."""
        self._mosquitto.kill()

    def terminate(self) -> None:
        """SIGTERM: it saves and ends."""
        self._mosquitto.terminate()

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self._mosquitto.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._mosquitto.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Another one, in an empty folder, on the same port."""
        self._mosquitto.close()
        self._mosquitto = Mosquitto(self._config, port=self.port)

    def close(self) -> None:
        """End it and remove its folder."""
        self._mosquitto.close()


class EmbeddedBroker(Process):
    """`fedmq broker` with its log on."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._journal = folder / "broker.log"
        arguments = ["--port", str(self.port), "--log", str(self._journal)]
        command = ["-m", "fedmq.app", "--log-level", "warning", "broker", *arguments]
        super().__init__("broker", command, folder / "broker.out")

    def wipe(self) -> None:
        """Remove its log."""
        for path in self._journal.parent.glob("broker.log*"):
            path.unlink()

    def close(self) -> None:
        """End it."""
        self.kill()


def make_broker(name: str, folder: Path) -> Broker:
    """One of `BROKERS`, not started.

    Raises:
        MosquittoMissingError: it is to be mosquitto, and there is none.
    """
    if name == "embedded":
        return EmbeddedBroker(folder)
    return MosquittoBroker(None if name == "mosquitto" else "")


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


def copy_database(path: Path, folder: Path) -> Path:
    """Copy a SQLite file that no process has open, as a crash has left it, to an empty folder."""
    place = Path(tempfile.mkdtemp(dir=folder))
    for part in (path, path.with_name(f"{path.name}-wal")):
        if part.exists():
            shutil.copy(part, place)
    return place / path.name
