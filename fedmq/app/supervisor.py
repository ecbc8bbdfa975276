"""Child processes that cannot be forgotten.

Each child gets a session of its own, so that Ctrl-C reaches only us and we stop them in order, and holds the other
end of a pipe as its standard input: should we be killed outright, they read its end and stop by themselves.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from .foreground import FOLLOW_PARENT

_STOP_SECONDS: Final = 5.0
#: A child that dies this often in a row, each time sooner than so many seconds, is given up.
_QUICK_DEATHS: Final = 5
_QUICK_SECONDS: Final = 2.0


class Child:
    """One process running `fedmq <arguments>`.

    Args:
        name: for messages.
        arguments: of the command line.
        log: file for its output.
        restart: start it again when it dies by a signal, as an init system would.
        capture: give its standard output to `stdout` instead of the log.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, *, restart: bool = False, capture: bool = False
    ) -> None:
        self.name, self._arguments, self._log, self._restart = name, list(arguments), log, restart
        self._capture = capture
        self._quick_deaths = 0
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedmq.app", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self._capture else log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, FOLLOW_PARENT: "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output, when captured."""
        if self.process.stdout is None:
            raise ValueError(f"the output of {self.name} is not captured")
        return self.process.stdout

    def check(self) -> str | None:
        """Restart it if it died by a signal and should live; say what happened.

        Returns:
            None while all is well; otherwise what a person should know.
        """
        status = self.process.poll()
        if status is None:
            return None
        tail = self.last_words()
        self._close_pipes()
        is_quick = time.monotonic() - self._started < _QUICK_SECONDS
        self._quick_deaths = self._quick_deaths + 1 if is_quick else 0
        if self._restart and status < 0 and self._quick_deaths < _QUICK_DEATHS:
            self._start()
            return f"{self.name} was killed by signal {-status}; started again as process {self.process.pid}"
        self._restart = False
        return f"{self.name} ended with status {status}: {tail}"

    @property
    def has_ended(self) -> bool:
        """Whether it is gone and will not come back."""
        return self.process.poll() is not None and not self._restart

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def ask_to_stop(self) -> None:
        """Let it end in good order."""
        self._restart = False
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait until it is gone, and kill it at the deadline (monotonic seconds)."""
        try:
            self.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def stop_all(children: Sequence[Child]) -> None:
    """Stop children in good order, all at the same time, those that do not listen by force."""
    for child in children:
        child.ask_to_stop()
    deadline = time.monotonic() + _STOP_SECONDS
    for child in children:
        child.wait(deadline)
