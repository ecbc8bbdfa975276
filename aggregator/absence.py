"""Absence: how many versions clients miss between two downloads. Pure.

An update says from which version it was trained, so two updates of one client tell what it held when it came for the
newer one. The publisher chooses its frames by what such visits would cost.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

#: Clients whose last version is remembered; beyond them the one that has been silent for longest counts as new.
MAX_CLIENTS: Final = 65_536
#: Longer absences count as this long.
MAX_VERSIONS: Final = 4096
#: Visits after which all that was counted weighs half, so that a change of habits shows.
_HALF_LIFE: Final = 2048


class Absence:
    """A running distribution, for each visit the versions missed; a first visit missed everything."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        # One visit of either kind, so that there is something to reckon with before anybody came.
        self._missed: Counter[int] = Counter({1: 1})
        self._newcomers = 1
        self._visits = 2

    def note(self, client: str, version: int) -> None:
        """An update of a client came that was trained from a version."""
        before = self._held.pop(client, None)
        self._held[client] = version if before is None else max(version, before)
        if len(self._held) > MAX_CLIENTS:
            del self._held[next(iter(self._held))]
        if before is None:
            self._newcomers += 1
        elif version <= before:
            return  # a second update from the same download
        else:
            self._missed[min(version - before, MAX_VERSIONS)] += 1
        self._visits += 1
        if self._visits >= _HALF_LIFE:
            self._missed = Counter({gap: count // 2 for gap, count in self._missed.items() if count > 1})
            self._newcomers = max(1, self._newcomers // 2)
            self._visits = self._missed.total() + self._newcomers

    def cost(self, version: int, frames: Iterable[tuple[int, int]]) -> float:
        """Expected bytes of frames that a visitor downloads.

        Args:
            version: the newest.
            frames: version and bytes of each; a visitor has those that were there when it came last.
        """
        frames = tuple(frames)
        total = self._newcomers * sum(size for _, size in frames)
        for gap, visits in self._missed.items():
            total += visits * sum(size for made, size in frames if made > version - gap)
        return total / self._visits
