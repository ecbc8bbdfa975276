"""Reputation: who was refused for what they sent, again and again, is not listened to for a while.

    g ← λ g + 1 for a folded update      b ← λ b + 1 for a refused one      score = (g + 1) / (g + b + 2)

Jøsang and Ismail, "The Beta Reputation System", Bled 2002, with their forgetting λ: the expected share of honest
updates, that of the last 1 / (1 − λ) or so. A refusal counts when what the update held was the reason (`COUNTED`); who
is late, or sends too much, is no liar.

A client whose score falls below `least` is in quarantine for `versions` versions: its updates are refused unseen,
which changes no score. After that it is on probation, with g and b as if it had just reached the limit: one more
counted refusal puts it back, for twice as long as the time before (64 times as long as the first time at most). With a
score of 0.7 its probation is over, and the next time would be a first one.

At most half of the clients that are remembered are in quarantine at a time. Where more would have to be, nobody can
tell who lies; and a quarantine counts versions, which somebody must be there to make.

Everything follows from the journal's records in their order, so it is part of the engine's state: snapshotted,
replayed, the same bits after a recovery. It is of clients, not of outboxes: a device that lost its outbox has not lost
its name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedmq.settings import setting
from fedmq.types import Refusal, Rejection

#: Reasons that say something about the sender's honesty, or its sanity.
COUNTED: Final = frozenset(
    {Rejection.SUSPICIOUS, Rejection.NORM, Rejection.NOT_FINITE, Rejection.BAD_PAYLOAD}
)
_MOST_DOUBLINGS: Final = 6
#: The score at which a probation is over: that of a new client after two or three updates that are folded.
_REHABILITATED: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ReputationSettings:
    """When a client is no longer listened to."""

    least: float = setting(
        0.0,
        help="score from 0 to 0.5 below which a client is put in quarantine; 0: nobody is",
        low=0,
        high=0.5,
    )
    memory: float = setting(
        0.9, help="what a score keeps at each update: 0.9 remembers about the last ten", low=0, high=0.999
    )
    versions: int = setting(50, help="how long a first quarantine lasts; it doubles each time", low=1)
    clients: int = setting(
        10_000, help="clients that are remembered; beyond them the one not heard of for longest goes", low=1
    )


@dataclass(slots=True, kw_only=True)
class Standing:
    """One client's.

    Attributes:
        good: g.
        bad: b.
        until: the version at which its last quarantine ends; 0 when it had none, or its probation is over.
        terms: quarantines since it last was in good standing.
    """

    good: float = 0.0
    bad: float = 0.0
    until: int = 0
    terms: int = 0

    @property
    def score(self) -> float:
        """The expected share of honest updates."""
        return (self.good + 1) / (self.good + self.bad + 2)


@dataclass(slots=True, kw_only=True)
class Reputation:
    """Everybody's.

    Attributes:
        settings: by which they are judged.
        standings: by client, the one heard of last comes last.
    """

    settings: ReputationSettings = field(default_factory=ReputationSettings)
    standings: dict[str, Standing] = field(default_factory=dict)

    def refusal(self, client: str, version: int) -> Refusal | None:
        """Why a client's update is refused unseen at this version; None when it is not."""
        found = self.standings.get(client)
        if found is None or version >= found.until:
            return None
        return Refusal(
            reason=Rejection.QUARANTINED,
            detail=f"until version {found.until}, this is {version}: too many of this client's updates were refused "
            f"for what they held (quarantine {found.terms})",
        )

    def note(self, client: str, version: int, refusal: Refusal | None) -> None:
        """Take note of what became of an update.

        Args:
            client: whose.
            version: the model's when that was decided.
            refusal: None when it was folded.
        """
        if not self.settings.least or (refusal is not None and refusal.reason not in COUNTED):
            return
        found = self.standings.pop(client, None) or Standing()
        memory = self.settings.memory
        found.good, found.bad = found.good * memory, found.bad * memory
        if refusal is None:
            found.good += 1
            if found.terms and found.score >= _REHABILITATED:
                found.until = found.terms = 0
        else:
            found.bad += 1
            # what was under way when the quarantine began is no second offence
            if found.score < self.settings.least and version >= found.until and self._has_room(version):
                self._lock_up(found, version)
        self.standings[client] = found
        self._forget(version)

    def _has_room(self, version: int) -> bool:
        """Whether one more in quarantine, who is not among the others just now, would be half of all at most."""
        return 2 * (sum(1 for _ in self.quarantined(version)) + 1) <= len(self.standings) + 1

    def _lock_up(self, found: Standing, version: int) -> None:
        found.until = version + (self.settings.versions << min(found.terms, _MOST_DOUBLINGS))
        found.terms += 1
        # on its return it stands at the limit: (1 + 0) / (b + 2) = least
        found.good, found.bad = 0.0, 1 / self.settings.least - 2

    def _forget(self, version: int) -> None:
        """Keep the bound: first those who are free, among them first those who were silent for longest."""
        while len(self.standings) > self.settings.clients:
            free = (client for client, found in self.standings.items() if version >= found.until)
            oldest = next(iter(self.standings))
            del self.standings[next(free, oldest)]

    def quarantined(self, version: int) -> Iterator[tuple[str, int]]:
        """Clients in quarantine at a version, each with the version at which it ends."""
        return ((client, found.until) for client, found in self.standings.items() if version < found.until)


def pack_reputation(reputation: Reputation) -> list[object]:
    """As msgpack can hold it; IEEE doubles keep every bit."""
    settings = reputation.settings
    return [
        [settings.least, settings.memory, settings.versions, settings.clients],
        [[name, s.good, s.bad, s.until, s.terms] for name, s in reputation.standings.items()],
    ]


def unpack_reputation(fields: Sequence[Any]) -> Reputation:
    """What `pack_reputation` packed.

    Raises:
        TypeError, ValueError: it is not that.
    """
    (least, memory, versions, clients), rows = fields
    return Reputation(
        settings=ReputationSettings(least=least, memory=memory, versions=versions, clients=clients),
        standings={
            name: Standing(good=good, bad=bad, until=until, terms=terms)
            for name, good, bad, until, terms in rows
        },
    )
