"""Complaints: which of the things that clients do wrong get a line in the log.

A log is a disk, too: a client that sends rubbish as fast as it can must not fill it, and must not hide what others do.
In each window of time a client gets one line, so many clients get one at all, and what was left out is counted and told
when the window ends. Nothing else of it is remembered.
"""

from typing import Final

#: Seconds of a window.
WINDOW: Final = 10.0
#: Clients that get a line in one window.
MAX_CLIENTS: Final = 100


class Complaints:
    """The present window."""

    def __init__(self) -> None:
        self._ends = 0.0
        self._clients: set[str] = set()
        self._left_out = 0

    def admits(self, client: str, now: float) -> bool:
        """Whether to say it; if not, it is counted.

        Args:
            client: who did it.
            now: seconds, monotonic.
        """
        if not self._clients:
            self._ends = now + WINDOW
        if client in self._clients or len(self._clients) >= MAX_CLIENTS:
            self._left_out += 1
            return False
        self._clients.add(client)
        return True

    def take_left_out(self, now: float) -> int:
        """How many lines were left out, once their window has ended; 0 when none were or it has not."""
        if now < self._ends:
            return 0
        left_out, self._left_out = self._left_out, 0
        self._clients.clear()
        return left_out
