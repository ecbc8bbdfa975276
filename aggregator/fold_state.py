"""The state of a fold: everything that the next step depends on, as arrays, numbers, texts and bytes.

A rule that does not need a part leaves it empty, and an empty part costs nothing. Updates that a rule has to look at
again are kept as they came over the wire, about 1 KB each with a sparse codec, and decoded when they are used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.encoding import DecodedVector
from fedmq.mask import Mask
from fedmq.types import ParamVector

from .optimizer import Moments
from .rarity import Heard

#: What a kept update takes besides its payload and its texts: the objects that hold them.
_OVERHEAD: Final = 400

DoubleVector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One update as it came.

    Attributes:
        client: whose it is.
        outbox: the epoch of the client's outbox; another one means that the device was made anew.
        version: the model's version when it was folded.
        codec: the pipeline that decodes it.
        payload: the encoded delta.
        scale: what it was multiplied with when it was folded.
        weight: its n_i.
        mask: digest of the mask that it was encoded under; empty for none.
    """

    client: str
    outbox: int
    version: int
    codec: str
    payload: bytes = field(repr=False)
    scale: float
    weight: float
    mask: bytes = b""

    @property
    def nbytes(self) -> int:
        """What it takes in memory, about."""
        return len(self.payload) + len(self.codec) + len(self.client) + _OVERHEAD


#: Decodes an update that is kept; what was decoded once decodes always.
Decode = Callable[[Kept], DecodedVector]


@dataclass(slots=True, kw_only=True)
class FoldState:
    """Everything that the next step depends on.

    Attributes:
        vector: the model w, float32, shape (size,).
        buffer: the weighted sum of the contributions since the last version, float32, shape (size,) or empty.
        moments: the optimiser's.
        average: the running mean of the models, float32, shape (size,); empty without.
        version: how often the model was stepped.
        filled: contributions in the buffer.
        weight: Σ n_i of the buffer.
        mean_staleness: running mean over all contributions.
        oldest: the largest staleness in the buffer.
        clip: the norm to which contributions are clipped; 0 before the first one.
        contributors: clients in the buffer, in order of arrival (synchronous rule only).
        past: the models that were served before this version, the newest last, each float32, shape (size,).
        squares: the running mean of Δ² (adaptive delay compensation), float32, shape (size,), or empty.
        window: the updates that are looked at again, in order of arrival (FedFa, robust rules).
        cache: each client's last updates, the newest last; the client that was heard last comes last (CA2FL).
        kept_bytes: what the cache takes.
        total: the sum of the cache or the window, float64, shape (size,), or empty.
        mean: the cache's mean when the version began (CA2FL's h), float32, shape (size,), or empty.
        discounts: the staleness weights in the buffer, summed (CA2FL).
        newcomers: those of clients that were not in the cache.
        gap: running mean of the versions between two updates of a client; 0 before the first (CA2FL).
        gap_square: that of their square.
        heard: when each client was heard last (`rarity`).
        masks: what is pruned, the present mask last, behind those that updates may still be under (`pruning`).
    """

    vector: ParamVector
    buffer: ParamVector
    moments: Moments
    average: ParamVector
    version: int = 0
    filled: int = 0
    weight: float = 0.0
    mean_staleness: float = 0.0
    oldest: int = 0
    clip: float = 0.0
    contributors: list[str] = field(default_factory=list)
    past: list[ParamVector] = field(default_factory=list)
    squares: ParamVector
    window: list[Kept] = field(default_factory=list)
    cache: dict[str, tuple[Kept, ...]] = field(default_factory=dict)
    kept_bytes: int = 0
    total: DoubleVector
    mean: ParamVector
    discounts: float = 0.0
    newcomers: float = 0.0
    gap: float = 0.0
    gap_square: float = 0.0
    heard: Heard = field(default_factory=Heard)
    masks: list[Mask] = field(default_factory=list)

    @property
    def momentum(self) -> ParamVector:
        """The optimiser's first moment m; empty without momentum."""
        return self.moments.first

    @momentum.setter
    def momentum(self, value: ParamVector) -> None:
        self.moments.first = value

    @property
    def served(self) -> ParamVector:
        """The model that clients get: the running mean where there is one."""
        return self.average if self.average.size else self.vector


def add_exactly(total: DoubleVector, delta: DecodedVector, scale: float, sign: int) -> None:
    """Add to a sum what will be subtracted again, or subtract it.

    The products are float32, and the same ones both times; their float64 sum is exact unless the magnitudes differ by
    more than 2^29, and rounds by at most 2^-53 of its size otherwise. So after N calls a coordinate is off by at most
    N 2^-53 of the largest sum it ever had: by a float32's last bit after 2^29 calls.

    Args:
        total: changed in place, shape (size,).
        delta: what to add.
        scale: its factor, rounded to float32.
        sign: 1 or −1.
    """
    trainable = delta.trainable
    values = trainable.values * np.float32(scale)
    head = total[: trainable.length]
    if trainable.indices is None:
        head += sign * values
    else:
        head[trainable.indices] += sign * values
    if delta.buffers.size:
        total[trainable.length :] += sign * (np.float32(scale) * delta.buffers)
