"""The control of a real mosquitto: start one on a free port, wait until it answers, stop or kill it.

Here lives one child process with its configuration and data in a temporary folder. Ready means that a CONNECT
was answered with a CONNACK.

Started as root, mosquitto gives up its rights and becomes the user `mosquitto`, who cannot write into a
temporary folder of root's and then silently saves nothing; the configuration therefore names the user that we
are.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .decoder import Decoder
from .errors import MosquittoError, MosquittoMissingError, ProtocolError
from .packets import Connack, Connect, Disconnect, Version, encode

SHIPPED_CONFIG: Final = Path(__file__).parent / "conf" / "mosquitto.conf"
_SEARCHED: Final = (*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/sbin", "/usr/local/sbin")
_REPLACED: Final = (
    "listener",
    "port",
    "persistence_location",
    "persistence_file",
    "pid_file",
    "user",
    "log_dest",
)
_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 30.0  # saving a large store takes its time
_LOG_LINES: Final = 12


def find_mosquitto() -> Path:
    """The mosquitto binary.

    Raises:
        MosquittoMissingError: there is none in the path or where Debian puts it.
    """
    found = shutil.which("mosquitto", path=os.pathsep.join(_SEARCHED))
    if found is None:
        raise MosquittoMissingError(tuple(dict.fromkeys(_SEARCHED)))
    return Path(found)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


class Mosquitto:
    """A mosquitto process of our own.

    Args:
        config: its configuration as text; None for the one that fedmq ships, "" for mosquitto's defaults with
            anonymous clients allowed. Listener, user, log and data folder are always ours.
        host: the address to listen on.
        port: the port; 0 picks a free one. It stays the same across restarts.

    Attributes:
        port: where it listens, 0 before the first start.

    Raises:
        MosquittoMissingError: there is no mosquitto here.
    """

    def __init__(self, config: str | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port
        self._binary = find_mosquitto()
        self._config = SHIPPED_CONFIG.read_text() if config is None else config
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _home(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="fedmq-mosquitto-")
        return Path(self._folder.name)

    @property
    def log(self) -> str:
        """What it has written to its log since the first start."""
        path = self._home / "mosquitto.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            MosquittoError: it is not running.
        """
        return self._running("its process id was asked for").pid

    def _running(self, what: str) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise self._error(f"{what}, but mosquitto is not running")
        return self._process

    def _error(self, what: str) -> MosquittoError:
        return MosquittoError(what, "\n".join(self.log.splitlines()[-_LOG_LINES:]))

    def _write_config(self) -> Path:
        kept = [line for line in self._config.splitlines() if line.partition(" ")[0].strip() not in _REPLACED]
        if not any(line.startswith(("allow_anonymous", "password_file")) for line in kept):
            kept.append("allow_anonymous true")
        ours = [
            f"persistence_location {self._home}/",
            f"user {getpass.getuser()}",
            "log_dest stderr",
            f"listener {self.port} {self.host}",
        ]
        path = self._home / "mosquitto.conf"
        path.write_text("\n".join([*ours, *kept, ""]))
        return path

    def start(self) -> Self:
        """Starts it and returns when it answers.

        Raises:
            MosquittoError: it is running already, ends at once, or does not answer within ten seconds.
        """
        if self._process is not None:
            raise self._error("start was called on a mosquitto that is running already")
        if not self.port:
            self.port = free_port(self.host)
        config = self._write_config()
        with (self._home / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                code = self._process.returncode
                self._process = None
                raise self._error(f"mosquitto ended at once with status {code}")
            if time.monotonic() > deadline:
                self.kill()
                raise self._error(f"mosquitto did not answer within {_START_SECONDS:g} s")
            time.sleep(0.005)  # between two attempts to connect: the port tells us nothing earlier
        return self

    def _answers(self) -> bool:
        """Whether a CONNECT is answered with a CONNACK, whatever it says."""
        decoder = Decoder(1 << 16, Version.V311)
        with (
            contextlib.suppress(OSError, ProtocolError),
            socket.create_connection((self.host, self.port), timeout=1.0) as probe,
        ):
            probe.sendall(encode(Connect(version=Version.V311, client_id=""), Version.V311))
            while data := probe.recv(4096):
                for packet in decoder.feed(data):
                    probe.sendall(encode(Disconnect(), Version.V311))
                    return isinstance(packet, Connack)
        return False

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._running(f"{number.name} was to be sent"), None
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise self._error(f"mosquitto did not end within {_STOP_SECONDS:g} s of {number.name}") from None

    def kill(self) -> None:
        """SIGKILL: what it has not saved is lost."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: it saves and ends."""
        self._signal(signal.SIGTERM)

    def restart(self) -> None:
        """Terminates it and starts it again on the same port, with the same data."""
        self.terminate()
        self.start()

    def checkpoint(self) -> None:
        """SIGUSR1: it saves now, and this returns when the saved file has been replaced.

        Raises:
            MosquittoError: it is not running, or has not saved within thirty seconds.
        """
        process = self._running("a checkpoint was asked for")
        saved = self._home / "mosquitto.db"
        before = saved.stat().st_ino if saved.exists() else None
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _STOP_SECONDS
        while (saved.stat().st_ino if saved.exists() else None) == before:
            if time.monotonic() > deadline:
                raise self._error(f"mosquitto did not save within {_STOP_SECONDS:g} s")
            time.sleep(0.005)  # it tells nobody when it has saved, except by the file

    def close(self) -> None:
        """Ends it, if it is running, and removes its data."""
        if self._process is not None and self._process.poll() is None:
            self.terminate()
        self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except MosquittoError:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
