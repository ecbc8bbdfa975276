"""Absence: how many versions clients miss between two downloads. Pure.

An update says from which version it was trained, so two updates of one client tell what it held when it came for the
newer one. The publisher chooses its frames by what such visits would cost.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Clients whose last version is remembered; beyond them the one that has been silent for longest counts as new.
MAX_CLIENTS: Final = 65_536
#: Longer absences count as this long.
MAX_VERSIONS: Final = 4096
#: Visits after which all that was counted weighs half, so that a change of habits shows.
_HALF_LIFE: Final = 2048
#: The share of newcomers is a running mean over about so many visits: a federation begins with nothing else.
_RECENT: Final = 32


class Absence:
    """A running distribution, for each visit the versions missed; a first visit missed everything."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        # One visit, so that there is something to reckon with before anybody came.
        self._missed = np.zeros(MAX_VERSIONS + 1)
        self._missed[1] = self._visits = 1.0
        self._newcomers = 0.5
        # Of `lacking`, from the newest version on; None when it has changed.
        self._sums: NDArray[np.float64] | None = None

    def note(self, client: str, version: int) -> None:
        """An update of a client came that was trained from a version."""
        before = self._held.pop(client, None)
        self._held[client] = version if before is None else max(version, before)
        if len(self._held) > MAX_CLIENTS:
            del self._held[next(iter(self._held))]
        if before is not None and version <= before:
            return  # a second update from the same download
        self._sums = None
        self._newcomers += ((before is None) - self._newcomers) / _RECENT
        if before is None:
            return
        self._missed[min(version - before, MAX_VERSIONS)] += 1
        self._visits += 1
        if self._visits >= _HALF_LIFE:
            self._missed /= 2  # not in whole numbers: long absences are rare, and hardly two are equal
            self._visits /= 2

    def lacking(self) -> NDArray[np.float64]:
        """The share of visitors that lack what was made 0, 1, … `MAX_VERSIONS` versions ago."""
        longer = 1.0 - np.cumsum(self._missed) / self._visits  # of those who were here before
        return self._newcomers + (1.0 - self._newcomers) * longer

    def usual(self) -> int:
        """Versions within which nine in ten of those who return have returned."""
        return int(np.searchsorted(np.cumsum(self._missed), 0.9 * self._visits))

    def cost(self, version: int, frames: Iterable[tuple[int, int]], horizon: int = 1) -> float:
        """Expected bytes of frames that a visitor downloads, on average over the next versions.

        Args:
            version: the newest.
            frames: version and bytes of each; a visitor has those that were there when it came last.
            horizon: how many versions, the newest among them.
        """
        if self._sums is None:
            self._sums = np.concatenate(([0.0], np.cumsum(self.lacking())))
        sums = self._sums

        def until(age: int) -> float:
            beyond = max(0, age - MAX_VERSIONS - 1)
            return float(sums[age - beyond] + beyond * (sums[-1] - sums[-2]))

        return sum(
            size * (until(version - made + horizon) - until(version - made)) / horizon
            for made, size in frames
        )
