"""Rarity: more weight to what is rarely heard.

    r_i = (gap_i / n)^ρ, between 1/4 and 4

multiplies n_i, the weight of a contribution: gap_i contributions were folded since the client's last one, and n clients
take part: those that were heard within the last 16 n contributions. Who was silent for longer counts as new. Where all
are heard equally often each gap is n and each weight 1. A client that is heard once while the others are heard four
times weighs as much as ρ says: with ρ = 1 four times as much, so that over time all clients have the same part in the
model, as they have in synchronous FedAvg; with ρ = 1/2, the half way, twice as much. Fast clients make most of an
asynchronous model otherwise: FedBuff and FedAsync have no such term. The bounds keep a client that comes back after a
while from deciding a version.

The rarest updates tend to be the stalest. Their discount stays: it shrinks the step and moves no weight to the others.
"""

from dataclasses import dataclass, field
from typing import Final

#: Clients that are remembered; beyond them the one that has been silent for longest counts as new.
MAX_CLIENTS: Final = 65_536
#: In contributions for each client: so the clients that went for ever are not counted for ever.
_SILENT: Final = 16
_MOST: Final = 4.0


@dataclass(slots=True, kw_only=True)
class Heard:
    """When each client was heard last. Part of the fold's state.

    Attributes:
        folds: contributions folded since this was begun.
        last: which of them was each client's last; the client that was heard last comes last.
    """

    folds: int = 0
    last: dict[str, int] = field(default_factory=dict)

    def weigh(self, client: str, power: float) -> float:
        """Take note of a contribution.

        Args:
            client: whose it is.
            power: ρ ≥ 0.

        Returns:
            r_i; 1 for a client that is not remembered.
        """
        self.folds += 1
        before = self.last.pop(client, None)
        self.last[client] = self.folds
        while self._is_gone(oldest := next(iter(self.last))):
            del self.last[oldest]
        if before is None:
            return 1.0
        ratio = (self.folds - before) / len(self.last)
        return min(_MOST, max(1 / _MOST, float(ratio**power)))

    def _is_gone(self, client: str) -> bool:
        silent = self.folds - self.last[client]
        return silent > _SILENT * len(self.last) or len(self.last) > MAX_CLIENTS
