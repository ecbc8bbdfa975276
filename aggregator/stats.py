"""Statistics: what dashboards are told, as small JSON."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from .engine import Engine

#: Clients in quarantine that are named; the journal knows all.
_SHOWN: Final = 50


@dataclass(slots=True, kw_only=True)
class Counters:
    """What happened since this process started.

    Attributes:
        received: messages on the update topics, chunks and duplicates among them.
        received_bytes: their payloads.
        duplicates: updates that were settled before.
        batches: transactions' worth of messages.
        versions_published: heads sent.
        dropped: messages that could not be read or settled, by reason.
    """

    received: int = 0
    received_bytes: int = 0
    duplicates: int = 0
    batches: int = 0
    versions_published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def summary(self, engine: Engine, strategy: str, now: float) -> dict[str, object]:
        """These counters and the federation's, which began with its store.

        Args:
            engine: whose state to tell.
            strategy: its name.
            now: wall time in seconds since 1970, for people.
        """
        state = engine.state
        return {
            "version": state.version,
            "updates_folded": engine.tally.folded,
            "updates_refused": dict(engine.tally.refused + self.dropped),
            "duplicates": self.duplicates,
            "received": self.received,
            "received_bytes": self.received_bytes,
            "batches": self.batches,
            "versions_published": self.versions_published,
            "mean_staleness": round(state.mean_staleness, 3),
            "buffered": state.filled,
            "buffer_size": engine.rule.buffer_size,
            "strategy": strategy,
            "quarantined": dict(islice(engine.reputation.quarantined(state.version), _SHOWN)),
            "time": now,
        }
