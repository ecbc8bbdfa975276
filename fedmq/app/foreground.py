"""Run one role as this process: until a signal, or the death of the parent that asked to be followed."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final, Protocol

#: Set by a parent that holds the other end of our standard input: when it dies, so do we.
FOLLOW_PARENT: Final = "FEDMQ_FOLLOW_PARENT"


class Role(Protocol):
    """What the aggregator, the agent and the evaluator have in common."""

    def run(self) -> None:
        """Work until `stop`."""

    def stop(self) -> None:
        """May be called from any thread, and from a signal handler."""


def run_in_foreground(role: Role) -> None:
    """Run a role until SIGTERM, SIGINT, or the parent's death."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: role.stop())
    follow_parent(role.stop)
    role.run()


def follow_parent(stop: Callable[[], object]) -> None:
    """Call `stop` when standard input ends, if the parent wants to be followed."""
    if FOLLOW_PARENT not in os.environ:
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
