"""The deadline of a version: synchronous FedAvg that does without the clients that are missing.

Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, §2.2: a round takes what was reported
within its window. Here the window opens with a version's first contribution: a version without any has nothing to step
along, and waits. Buffered rules may have one, too, so that the last contributions of the evening do not wait for the
morning.

The clock is the shell's. What it finds goes the way of an update: as an arrival that no client can send, since nobody's
name is empty, it is judged in its place among the others, written into the journal and then committed. So replay closes
the same versions without a clock (law 2), and no version is published before what closed it is durable.
"""

import math
from typing import Final

from fedmq.types import ClientId, UpdateId

from .decision import Arrival
from .fold_state import FoldState

#: Whose the journal's records of deadlines are.
NOBODY: Final = ClientId("")


def closing(version: int) -> UpdateId:
    """The name of the record that closes a version."""
    return UpdateId(client=NOBODY, epoch=0, seq=version)


def deadline_arrival(version: int) -> Arrival:
    """What the shell offers to the engine when a version's deadline has passed; too late, it changes nothing."""
    return Arrival(client=NOBODY, message=b"", id=closing(version))


class Deadline:
    """Knows since when a version has contributions.

    Args:
        seconds: of the window; None for none.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._version, self._since = -1, 0.0

    def left(self, state: FoldState, now: float) -> float:
        """Seconds until the version at hand is to be closed: 0 when it is, infinity when nothing waits.

        Args:
            state: the fold's.
            now: seconds, monotonic.
        """
        if not state.filled:
            return math.inf
        if state.version != self._version:
            self._version, self._since = state.version, now
        return max(self._since + self._seconds - now, 0.0)
