"""COMPASS: FedCompass's way of sharing out work (Li et al. 2024, ICLR, §3.2 and Algorithm 1). Pure.

Clients are put into groups that are to arrive together. Who arrives joins the group that leaves it the most steps
within the bounds, Q = ⌊(T_group − now) / v⌋; who fits into none begins one, to arrive when the fastest of another
group will have done its most steps after that group's latest time.

One difference: here nobody waits for his group. There the server keeps the early ones until the group is complete;
here what comes is folded, and its client goes on at once.
"""

import math
from dataclasses import dataclass, field

from .acquaintance import Acquaintances


@dataclass(slots=True, kw_only=True, eq=False)
class _Group:
    """Clients that are to arrive together: when, and until when at the latest."""

    expected: float
    latest: float
    members: set[str] = field(default_factory=set)


class Compass:
    """The groups.

    Args:
        clients: what is known of them.
        min_steps: Q_min.
        max_steps: Q_max.
        latest_factor: λ: how much later than expected a group's latest time is, in times of its work.
    """

    def __init__(
        self, clients: Acquaintances, *, min_steps: int, max_steps: int, latest_factor: float
    ) -> None:
        self._clients, self._factor = clients, latest_factor
        self._low, self._high = min_steps, max_steps
        self._groups: list[_Group] = []
        self._group_of: dict[str, _Group] = {}

    def forget(self, client: str) -> None:
        """A client is gone."""
        group = self._group_of.pop(client, None)
        if group is not None:
            group.members.discard(client)

    def steps(self, client: str, now: float) -> int:
        """The steps of a client that has just arrived, Q_min to Q_max; its speed is known."""
        known = self._clients.get(client)
        speed = known.step_seconds if known is not None else None
        if known is None or not speed:
            return self._high
        self.forget(client)
        self._groups = [group for group in self._groups if group.members]
        left = now + known.link_seconds  # its work begins and ends on the link
        fits = [
            (steps, group)
            for group in self._groups
            if self._low <= (steps := _floor((group.expected - left) / speed)) <= self._high
        ]
        if fits:
            steps, group = max(fits, key=lambda fit: fit[0])
        else:
            steps = self._steps_of_new_group(left, speed, now)
            work = known.link_seconds + steps * speed
            group = _Group(expected=now + work, latest=now + self._factor * work)
            self._groups.append(group)
        group.members.add(client)
        self._group_of[client] = group
        return steps

    def _steps_of_new_group(self, left: float, speed: float, now: float) -> int:
        found = []
        for group in self._groups:
            speeds = (
                known.step_seconds for c in group.members if (known := self._clients.get(c)) is not None
            )
            fastest = min((v for v in speeds if v), default=None)
            if now < group.latest and fastest is not None:
                steps = _floor((group.latest + fastest * self._high - left) / speed)
                if steps <= self._high:
                    found.append(steps)
        return max(self._low, max(found)) if found else self._high


def _floor(number: float) -> int:
    """⌊x⌋, of a number that may be too large for an integer to be of use."""
    return math.floor(min(max(number, -1.0), 1e9))
