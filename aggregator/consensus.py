"""Consensus: the direction in which clients' updates have been going, and how far an update agrees with it.

    c ← β c + Δ / ‖Δ‖        agreement(Δ) = ⟨Δ, c_S⟩ / (‖Δ‖ ‖c_S‖),  S the coordinates that Δ has

Each folded update has one vote of the same length: a liar that shouts has no more than one that whispers. c holds what
about the last 1 / (1 − β) of them said. It is compared on the coordinates that were sent and nowhere else: a codec
that keeps half a percent of them gives vectors whose cosines with anything dense are close to 0 although every sign is
right.

The idea is FLTrust's (Cao et al., NDSS 2021, arXiv 2012.13995: the cosine with a reference, lengths made equal) with
the past of the federation in the place of trusted data. That rests on honest clients being the majority of those who
vote, and on their having something in common: with labels so uneven that honest clients contradict each other, less
can be told. Colluders that agree on coordinates that no one else sends agree with themselves there.

This is part of the engine's state: made of what was folded and of nothing else, elementwise or in a written-down
order, so a recovered aggregator has the same bits.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from .ordered import ordered_sum

#: Votes are made longer instead of c shorter; beyond this length all is scaled back.
_LONGEST_VOTE: Final = 1e6


@dataclass(slots=True, kw_only=True, eq=False)
class Consensus:
    """What the folded updates have in common.

    Attributes:
        memory: β; 0 for none, and then nothing is kept.
        vector: c up to a factor, float32, shape (trainable_size,); empty before the first vote.
        length: of the next vote, in units of `vector`.
        votes: how many there were.
    """

    memory: float = 0.0
    vector: ParamVector = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    length: float = 1.0
    votes: int = 0

    def note(self, delta: DecodedVector) -> None:
        """Count the vote of an update that is folded; buffers have none."""
        if not self.memory:
            return
        values = delta.trainable.values.astype(np.float64)
        size = math.sqrt(ordered_sum(values * values))
        if not size:
            return
        if not self.vector.size:
            self.vector = np.zeros(delta.trainable.length, np.float32)
        # in float64 until it has its length: a tiny update must not become an infinite vote
        vote = (values * (self.length / size)).astype(np.float32)
        indices = delta.trainable.indices
        if indices is None:
            self.vector += vote
        else:
            self.vector[indices] += vote
        self.length /= self.memory
        self.votes += 1
        if self.length > _LONGEST_VOTE:
            self.vector *= np.float32(1 / self.length)
            self.length = 1.0

    def agreement(self, delta: DecodedVector) -> float:
        """From −1 to 1; 0 when there is nothing to compare."""
        return cosine(delta, self.vector) if self.vector.size else 0.0


def cosine(delta: DecodedVector, reference: ParamVector) -> float:
    """The cosine of an update's trainable part with a dense vector, on the coordinates that the update has.

    Args:
        delta: the update.
        reference: float32, at least the trainable part of a vector.

    Returns:
        A number from −1 to 1; 0 when either has nothing there.
    """
    values, there = _both(delta, reference)
    product = ordered_sum(values * values) * ordered_sum(there * there)
    return ordered_sum(values * there) / math.sqrt(product) if product > 0 else 0.0


def _both(delta: DecodedVector, reference: ParamVector) -> tuple[np.ndarray, np.ndarray]:
    trainable = delta.trainable
    chosen = reference[: trainable.length] if trainable.indices is None else reference[trainable.indices]
    return trainable.values.astype(np.float64), chosen.astype(np.float64)
