"""Even: shares under which updates come at even intervals, from everybody about as often. Pure.

Two things make them even. *Periods*: one period for all, as far as the bounds on the steps allow it: the one that lies
within the bounds of the most clients, so that no single one, however slow it is or says it is, sets the pace of the
others. *Phases*: time is cut into slots of 1 / Σ (reliability / period) seconds, one for each update that is to come.
Who arrives takes the free slot nearest to a period from then, and does as many more or fewer steps as bring it there:
nobody idles for the sake of order. So a version of the model holds updates of many clients, and none is much staler
than another.

A limit on concurrency lengthens the period until, on average, no more clients are at work; the rest of the period
they rest.
"""

from dataclasses import dataclass
from typing import Final

from .acquaintance import Acquaintance, Acquaintances

#: By this part of its usual steps a client does more or fewer to get into a free slot.
_ROOM: Final = 0.5
#: The period and the slots are worked out anew after a part of all clients has been heard, at least so many arrivals.
_LEAST_ARRIVALS: Final = 4
#: A client is counted as coming at most so many times in a period.
_MOST_OFTEN: Final = 8
#: So many slots to either side are tried.
_FARTHEST: Final = 64
#: Slots are kept while their length stays within this part of the right one.
_KEEP: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one client is to do next: so many steps, after so many seconds of rest."""

    steps: int
    wait: float


class Even:
    """The period and the slots.

    Args:
        clients: what is known of them.
        min_steps: Q_min.
        max_steps: Q_max.
        concurrency: clients at work at a time on average; 0 for all.
    """

    def __init__(self, clients: Acquaintances, *, min_steps: int, max_steps: int, concurrency: int) -> None:
        self._clients, self._low, self._high = clients, min_steps, max_steps
        self._concurrency = concurrency
        self._arrivals = 0
        # seconds; the period is longer than the work by the rests
        self._work = self._period = self._slot = 0.0
        self._taken: dict[int, str] = {}
        self._slot_of: dict[str, int] = {}

    def forget(self, client: str) -> None:
        """A client is gone."""
        slot = self._slot_of.pop(client, None)
        if slot is not None:
            del self._taken[slot]

    def turn(self, client: str, now: float) -> Turn:
        """What a client does next that has just arrived; its speed is known."""
        known = self._clients.get(client)
        if known is None or not known.step_seconds:
            return Turn(steps=self._high, wait=0.0)
        self._arrivals -= 1
        if self._arrivals < 0:
            self._survey(now)
        usual = self._usual_steps(known)
        wait = max(self._period - known.busy(usual), 0.0) if self._period > self._work else 0.0
        steps = self._steps_to_slot(client, known, now, usual, wait)
        return Turn(steps=min(max(steps, self._low), self._high), wait=wait)

    def _steps_to_slot(self, client: str, known: Acquaintance, now: float, usual: int, wait: float) -> int:
        """The steps that bring a client to the nearest free slot, which is then its own."""
        low, high = self._bounds(known)
        low, high = max(low, round(usual * (1 - _ROOM))), min(high, round(usual * (1 + _ROOM)))
        period = known.busy(usual) + wait
        before = self._slot_of.get(client)
        self.forget(client)
        speed = known.step_seconds or 0.0
        if self._slot <= 0 or speed <= 0:
            return usual
        due = now + period
        if before is not None and abs(before * self._slot - now) < _ROOM * period:
            due = before * self._slot + period  # from when it should have come, not from when it did
        first = (now + wait + known.busy(low)) / self._slot
        last = (now + wait + known.busy(high)) / self._slot
        wished = round(due / self._slot)
        for distance in range(min(int(last - first) + 2, _FARTHEST)):
            for slot in (wished - distance, wished + distance):
                if first <= slot <= last and slot not in self._taken:
                    self._taken[slot], self._slot_of[client] = client, slot
                    return round((slot * self._slot - now - wait - known.link_seconds) / speed)
        return usual

    def _bounds(self, known: Acquaintance) -> tuple[int, int]:
        """Fewest and most steps that a client will do, whatever it is asked for."""
        high = min(self._high, known.limit or self._high)
        return min(self._low, high), high

    def _usual_steps(self, known: Acquaintance) -> int:
        """The steps with which a client's work comes nearest to everybody's."""
        if not known.accepts or not known.step_seconds:
            return max(known.steps, 1)
        low, high = self._bounds(known)
        return round(min(max((self._work - known.link_seconds) / known.step_seconds, low), high))

    def _survey(self, now: float) -> None:
        """Work out period and slots from all who are there."""
        there = [known for _, known in self._clients if known.step_seconds and not known.is_silent(now)]
        self._arrivals = max(len(there) // 4, _LEAST_ARRIVALS)
        reaches = []
        for known in there:
            if known.accepts:
                low, high = self._bounds(known)
                reaches.append((known.busy(low), known.busy(high)))
        self._work = _most_common(reaches)
        busy = [known.busy(self._usual_steps(known)) for known in there]
        self._period = max(self._work, _least_period(busy, self._concurrency))
        # no client, however fast it seems, counts for more than a few: slots of no length would be of no use
        least = self._period if self._period > self._work else self._work / _MOST_OFTEN
        rate = sum(
            known.reliability / max(seconds, least)
            for known, seconds in zip(there, busy, strict=True)
            if max(seconds, least) > 0
        )
        slot = 1 / rate if rate > 0 else 0.0
        if abs(slot - self._slot) > _KEEP * self._slot:
            self._slot = slot
            self._taken.clear()
            self._slot_of.clear()


def _most_common(reaches: list[tuple[float, float]]) -> float:
    """The point that lies in the most intervals: the geometric middle of the first stretch of such points."""
    ends = sorted([(low, 0) for low, _ in reaches] + [(high, 1) for _, high in reaches])
    most = open_now = 0
    best = (0.0, 0.0)
    for index, (point, is_end) in enumerate(ends):
        open_now += -1 if is_end else 1
        if open_now > most:
            most, best = open_now, (point, ends[index + 1][0])
    low, high = best
    return float((low * high) ** 0.5) if low > 0 else high / 2


def _least_period(busy: list[float], concurrency: int) -> float:
    """The shortest period in which at most so many are at work on average, Σ min(1, busy / period) ≤ concurrency."""
    if not concurrency or len(busy) <= concurrency:
        return 0.0
    longest_first = sorted(busy, reverse=True)
    rest = sum(longest_first)
    for full, seconds in enumerate(longest_first):
        # `full` of them work without a rest, since their work is longer than the period
        if concurrency > full and (period := rest / (concurrency - full)) >= seconds:
            return period
        rest -= seconds
    return longest_first[0]
