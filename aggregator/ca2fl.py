"""CA2FL: the buffer's mean, corrected by what the server remembers of every client.

    v = (1/K) Σ_{i in buffer} (Δ_i − h_i) + h        h_i ← Δ_i        w ← w + η v        h ← (1/n) Σ_i h_i

Wang, Cao, Wu, Chen, Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached Update
Calibration", ICLR 2024, Algorithm 2. It takes away, to first order, the bias to clients that send often.

h_i is the client's last update *as it came over the wire*. Σ h_i is kept beside it and follows each exchange: what a
client added is decoded again and subtracted (`fold_state.add_exactly`), so an arrival costs two decodings and not n.

Where the paper is silent:

* A client that contributes twice to one version: its second update replaces the first, as in public implementations.
  The two terms then sum to Δ_i − h_i with the newer Δ_i.
* The paper knows its n clients beforehand and starts from h_i = 0. `fold.clients` is that n. Without it n is the
  number of clients in the cache, and a client that is not in it counts as if its h_i were the mean of the others.
  (With h_i = 0 and n growing, the first versions would be twice too long: h has full length already, and so has Δ_i.)
* Clients come and go: one that was not heard for `fold.forget_versions` versions leaves the cache and the mean, and so
  do the one that was silent for longest while the cache takes more than `fold.cache_bytes`, and a device that was made
  anew (another outbox epoch), which joins again as a newcomer.

Memory: 12 bytes a parameter beyond FedBuff, and each client's payload with some 400 bytes around it.
"""

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from .fold_state import Decode, FoldState, Kept, add_exactly
from .rule import Rule


def init(state: FoldState) -> None:
    """Make room for the sums."""
    state.total = np.zeros(state.vector.size, np.float64)
    state.mean = np.zeros_like(state.vector)


def add(
    state: FoldState, rule: Rule, update: Kept, delta: DecodedVector, discount: float, decode: Decode
) -> None:
    """Put the difference from the client's last update into the buffer, and this update in its place.

    Args:
        state: changed.
        rule: the dials.
        update: what came.
        delta: the same, decoded.
        discount: the staleness weight of the difference.
        decode: for updates that are remembered.
    """
    delta.add_to(state.buffer, discount * update.scale)
    before = state.cache.get(update.client)
    if before is not None and before.outbox == update.outbox:
        last = decode(before)
        last.add_to(state.buffer, -discount * before.scale)
        _forget(state, before, last)
    elif not rule.clients:
        state.newcomers += discount
    refresh(state, rule, update, delta, decode)


def refresh(state: FoldState, rule: Rule, update: Kept, delta: DecodedVector, decode: Decode) -> None:
    """Remember an update as its client's last one; nothing else."""
    before = state.cache.get(update.client)
    if before is not None:
        _forget(state, before, decode(before))
    add_exactly(state.total, delta, update.scale, 1)
    state.cache[update.client] = update
    state.kept_bytes += update.nbytes
    while state.kept_bytes > rule.cache_bytes:
        _forget_oldest(state, decode)


def direction(state: FoldState, rule: Rule, decode: Decode) -> ParamVector:
    """v, and the clients that were silent for too long leave before the next version begins."""
    v = state.buffer
    share = 1.0
    if state.weight > 0:
        v /= np.float32(state.weight)
        share -= state.newcomers / state.weight
    v += np.float32(share) * state.mean
    horizon = state.version - rule.forget_versions
    while state.cache and next(iter(state.cache.values())).version < horizon:
        _forget_oldest(state, decode)
    count = max(len(state.cache), rule.clients or 1)
    state.mean = (state.total / count).astype(np.float32)
    state.newcomers = 0.0
    return v


def _forget_oldest(state: FoldState, decode: Decode) -> None:
    oldest = next(iter(state.cache.values()))
    _forget(state, oldest, decode(oldest))


def _forget(state: FoldState, update: Kept, delta: DecodedVector) -> None:
    """Let a client's update leave the sum."""
    del state.cache[update.client]
    state.kept_bytes -= update.nbytes
    add_exactly(state.total, delta, update.scale, -1)
    if not state.cache:
        state.total[:] = 0  # what rounding left goes with the last client
