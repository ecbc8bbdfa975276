"""Virtual time: an agenda of what happens when, and parties that are given their turns by it. No clock, no thread.

What is due at the same moment happens in the order of its rank, and within a rank in the order in which it was put
down, so that the same calls always lead to the same course of events.
"""

import heapq
import math
from collections.abc import Callable
from typing import Final

#: A party that asks to be called again at once is called this much later: no two roundings of a float can stop time.
TICK: Final = 1e-6

#: What comes from a wire or from a device happens before anybody takes a turn.
FIRST: Final = -1


class Agenda:
    """What is still to happen.

    Attributes:
        now: virtual seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: list[tuple[float, int, int, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> float:
        """The present moment, for those who take a clock."""
        return self.now

    def at(self, time: float, action: Callable[[], None], rank: int = FIRST) -> None:
        """Put something down.

        Args:
            time: when, in virtual seconds; what lies in the past happens now.
            action: what.
            rank: of what happens at the same moment, the lower comes first.
        """
        self._count += 1
        heapq.heappush(self._entries, (max(time, self.now), rank, self._count, action))

    @property
    def next_time(self) -> float:
        """When the next thing is due; infinity when there is none."""
        return self._entries[0][0] if self._entries else math.inf

    def advance(self, time: float) -> None:
        """Let time pass, up to something that is kept elsewhere; nothing on the agenda is due before."""
        self.now = max(self.now, time)

    def step(self, until: float = math.inf) -> bool:
        """Let the next thing happen.

        Args:
            until: virtual seconds; nothing later happens.

        Returns:
            Whether there was anything.
        """
        if not self._entries or self._entries[0][0] > until:
            return False
        self.now, _, _, action = heapq.heappop(self._entries)
        action()
        return True


class Party:
    """One party's turns: it is called when something has come for it, and when the time is up that it asked for.

    Args:
        agenda: where its turns are put down.
        rank: its place among those whose turn is at the same moment.
        turn: lets it work until nothing is left to do; returns after how many seconds it wants to be called again.
        delay: seconds between the arrival of something and the turn.
    """

    def __init__(self, agenda: Agenda, rank: int, turn: Callable[[], float], *, delay: float = 0.0) -> None:
        self._agenda, self._rank, self._turn, self._delay = agenda, rank, turn, delay
        self._due = math.inf
        self._gone = False

    def wake(self) -> None:
        """Something has come."""
        self._call_at(self._agenda.now + self._delay)

    def leave(self) -> None:
        """Take no further turn."""
        self._gone = True

    def _call_at(self, time: float) -> None:
        if time < self._due:
            self._due = time
            self._agenda.at(time, self._take_turn, self._rank)

    def _take_turn(self) -> None:
        if self._gone or self._due > self._agenda.now:
            return  # an entry that an earlier turn has made void
        self._due = math.inf
        patience = self._turn()
        self._call_at(self._agenda.now + max(patience, TICK))
