"""Processes of one run: started with one thread for numerics, watched, and stopped whatever happens."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from benchmarks.race_venvs import ROOT
from fedmq.app.foreground import FOLLOW_PARENT

_STOP_SECONDS: Final = 5.0
_WORD: Final = re.compile(r"[A-Za-z]{3}")


class Process:
    """A process that ends at the latest with us: its standard input is a pipe that closes then.

    Args:
        name: for messages.
        command: to run.
        folder: for its log, and as its home.
    """

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        environment = {
            **os.environ,
            FOLLOW_PARENT: "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "HOME": str(folder),  # some peers write there
            "FLWR_TELEMETRY_ENABLED": "0",
            "WANDB_MODE": "disabled",
        }
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                list(command),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self.process = psutil.Process(self._popen.pid)

    @property
    def has_ended(self) -> bool:
        """Whether it is gone."""
        return self._popen.poll() is not None

    def last_words(self) -> str:
        """The last line of its log that has a word in it."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if _WORD.search(line)), "it said nothing")

    def stop(self) -> None:
        """Ask it to end, with whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, 15)

    def reap(self, deadline: float) -> None:
        """Wait until it is gone; at the deadline (monotonic seconds), by force."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(deadline - time.monotonic(), 0.05))
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, 9)
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()


def stop_all(processes: Sequence[Process]) -> None:
    """Stop all, at the same time."""
    for process in processes:
        process.stop()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        process.reap(deadline)


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time that a process has taken, user's and system's; 0 when it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def resident_bytes(process: psutil.Process) -> int:
    """Its resident memory; 0 when it is gone."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
