"""What a system in the race is: something that starts a server and clients, and tells when its model has grown."""

import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psutil

from benchmarks.race_process import Process
from benchmarks.race_proxy import Counters
from benchmarks.race_workload import Material, Workload

_LOOK_SECONDS: Final = 0.05


class PartyError(Exception):
    """A party of a run has ended, or did not get ready; the message says which, and its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a run takes place.

    Attributes:
        workload: how fast the devices are.
        material: the seed's files.
        folder: the run's, for everything that is written.
        gate: where clients say `ready-<n>`, and the race says `go`.
        traffic: the proxies, one for each client, which do not know their server yet.
    """

    workload: Workload
    material: Material
    folder: Path
    gate: Path
    traffic: Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A global model on disk.

    Attributes:
        time: when it came to be, in seconds since 1970.
        updates: how many updates are in it.
        path: the `.npy` file, one float32 vector.
    """

    time: float
    updates: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """What runs.

    Attributes:
        server: what folds.
        clients: what trains.
        others: what must not end either.
        broker: what stands between, where something does.
        snapshots: those that have come since the last call, in order; at least every `EVERY` updates.
    """

    server: Process
    clients: Sequence[Process]
    snapshots: Callable[[], list[Snapshot]]
    others: Sequence[Process] = ()
    broker: psutil.Process | None = None

    def check(self) -> None:
        """Raise unless all are alive.

        Raises:
            PartyError: one is not.
        """
        for party in (self.server, *self.others, *self.clients):
            if party.has_ended:
                raise PartyError(f"{party.name} ended: {party.last_words()}")


class System(Protocol):
    """One contestant."""

    @property
    def name(self) -> str:
        """In the results."""

    @property
    def note(self) -> str:
        """What a reader of its rows must know."""

    @property
    def limit(self) -> float | None:
        """Seconds after which a run is ended; None for the workload's."""

    def prepare(self) -> dict[str, str]:
        """Install what is missing; returns versions.

        Raises:
            UnavailableError: it cannot be installed.
        """

    def start(self, stage: Stage) -> AbstractContextManager[Parties]:
        """Start all processes; they are gone at the end.

        Raises:
            PartyError: one did not start.
        """


class Tail:
    """Follows a file of JSON lines.

    Args:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The lines that are new and whole."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def wait_for_port(port: int, process: Process, seconds: float) -> None:
    """Return when a server listens.

    Raises:
        PartyError: it has ended, or time is up.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.has_ended:
            raise PartyError(f"{process.name} ended: {process.last_words()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(_LOOK_SECONDS)
        else:
            return
    raise PartyError(f"{process.name} does not listen after {seconds:g} s: {process.last_words()}")
