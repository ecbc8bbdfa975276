"""Acquaintance: what arrivals tell of each client's speed, link and reliability. Pure, and relearned in every life.

Two arrivals of one client are an interval apart, in which it rested as it was asked to, trained, and was on the link.
What it says of its training is taken within that interval and no further: it may seem slower or faster than it is,
which changes its own share within the operator's bounds and nobody else's.

Speed is a running mean in seconds per step, v ← (1 − β) v + β v_new, as in FedCompass (Li et al. 2024, §3.2); the
link's is the same of what remains of the interval.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fedmq.share import Share

#: Clients remembered; beyond them the one that has been silent for longest counts as new. About 1 kB each.
MAX_CLIENTS: Final = 16_384
#: Reliability is a running mean over about so many arrivals.
_RECENT: Final = 8
#: An interval of so many times the expected one is an absence, and tells nothing of speed or link.
ABSENCE: Final = 4.0
#: A second update from one base after this part of the expected interval waited in the outbox: likewise.
_BURST: Final = 0.5
#: A client that does so much less than it was asked for is bounded by its operator.
_LESS: Final = 0.85
_GROWTH: Final = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An update that was folded.

    Attributes:
        client: whose.
        time: when it came, seconds, monotonic.
        local_steps: as claimed.
        base_version: which it was trained from.
        size: of its message, in bytes.
        train_seconds: as claimed; None when it says nothing.
        accepts: whether it says that it follows shares.
    """

    client: str
    time: float
    local_steps: int
    base_version: int
    size: int
    train_seconds: float | None = None
    accepts: bool = True


@dataclass(slots=True, kw_only=True, eq=False)
class Acquaintance:
    """One client, as far as it is known.

    Attributes:
        heard_at: when it was heard last.
        base_version: of its newest update.
        steps: of its newest update.
        accepts: whether it follows shares.
        step_seconds: v, running mean; None until two updates came.
        link_seconds: what an update takes beside training and resting; likewise.
        reliability: running mean of expected over actual interval, 0 to 1.
        limit: steps that it does at most, as far as it has shown; None for no limit.
        asked: the share that is in force; None for the plan.
        is_published: whether the broker has it, as far as is known.
        before: the steps asked for before it, which the next update may still be of.
        rung: on the ladder of codecs, 0 the first.
        sizes: bytes of its newest update on each rung.
    """

    heard_at: float
    base_version: int
    steps: int
    accepts: bool = True
    step_seconds: float | None = None
    link_seconds: float = 0.0
    reliability: float = 1.0
    limit: int | None = None
    asked: Share | None = None
    is_published: bool = True
    before: int = 0
    rung: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def busy(self, steps: int) -> float:
        """Seconds that an update of so many steps takes, rests aside; 0 when nothing is known."""
        return self.link_seconds + steps * (self.step_seconds or 0.0)

    @property
    def expected_steps(self) -> int:
        """Steps of the next update."""
        asked = self.asked.local_steps if self.asked is not None else 0
        return min(asked, self.limit or asked) if asked else self.steps

    @property
    def period(self) -> float:
        """Seconds until it is to be heard again, from when it was heard; 0 when nothing is known."""
        return self.busy(self.expected_steps) + (self.asked.wait if self.asked else 0.0)

    def is_silent(self, now: float) -> bool:
        """Whether it has been away for longer than its work takes."""
        return self.step_seconds is not None and now - self.heard_at > ABSENCE * self.period

    def learn(self, heard: Heard, momentum: float) -> None:
        """Take note of another update."""
        interval, expected = max(heard.time - self.heard_at, 0.0), self.period
        is_burst = heard.base_version <= self.base_version and interval < _BURST * expected
        if interval > 0 and not is_burst:
            is_known = self.step_seconds is not None
            is_absence = is_known and interval > ABSENCE * expected
            if is_known:
                self.reliability += (min(expected / interval, 1.0) - self.reliability) / _RECENT
            if is_absence and heard.train_seconds is None:
                self.step_seconds = None  # it was away, or is slower by far: its next update tells
            elif heard.local_steps > 0:
                self._time(heard, interval, 0.0 if is_absence else momentum, momentum)
        asked = self.asked.local_steps if self.asked is not None else 0
        if asked and self.accepts:
            least = min(asked, self.before or asked)
            if heard.local_steps < _LESS * least:
                self.limit = max(heard.local_steps, 1)
            elif self.limit is not None and heard.local_steps >= self.limit:  # perhaps it may do more by now
                self.limit = math.ceil(_GROWTH * heard.local_steps)
        self.accepts, self.steps = heard.accepts, heard.local_steps
        self.heard_at, self.base_version = heard.time, max(heard.base_version, self.base_version)
        self.sizes[self.rung] = heard.size

    def _time(self, heard: Heard, interval: float, link_momentum: float, momentum: float) -> None:
        """Learn link and speed from an interval."""
        worked = max(interval - (self.asked.wait if self.asked else 0.0), 0.1 * interval)
        claim = heard.train_seconds
        trained = (
            max(worked - self.link_seconds, 0.1 * worked) if claim is None else min(max(claim, 0.0), worked)
        )
        speed = trained / heard.local_steps
        if self.step_seconds is None:
            self.step_seconds, self.link_seconds = speed, worked - trained
            return
        self.step_seconds += momentum * (speed - self.step_seconds)
        if claim is not None:
            self.link_seconds += link_momentum * (worked - trained - self.link_seconds)


class Acquaintances:
    """All clients, in the order in which they were heard last; at most `MAX_CLIENTS`.

    Args:
        momentum: β of speed and link.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._clients: dict[str, Acquaintance] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[tuple[str, Acquaintance]]:
        return iter(self._clients.items())

    def get(self, client: str) -> Acquaintance | None:
        """What is known of a client."""
        return self._clients.get(client)

    def learn(self, heard: Heard) -> Acquaintance:
        """Take note of an update."""
        known = self._clients.pop(heard.client, None)
        if known is None:
            known = Acquaintance(
                heard_at=heard.time,
                base_version=heard.base_version,
                steps=heard.local_steps,
                accepts=heard.accepts,
                sizes={0: heard.size},
            )
        else:
            known.learn(heard, self._momentum)
        self._clients[heard.client] = known
        return known

    def forget(self, now: float, seconds: float) -> Iterator[tuple[str, Acquaintance]]:
        """Forget who has been silent for so long, and who is one too many; yields them."""
        while self._clients:
            client, known = next(iter(self._clients.items()))
            if now - known.heard_at <= seconds and len(self._clients) <= MAX_CLIENTS:
                return
            del self._clients[client]
            yield client, known
