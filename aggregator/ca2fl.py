"""CA2FL: the buffer's mean, corrected by what the server remembers of every client.

    v = (1/K) Σ_{i in buffer} s(τ_i) (Δ_i − β h_i + β h)        h_i ← Δ_i        w ← w + η v        h ← (1/n) Σ_i h_i

Wang, Cao, Wu, Chen, Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached Update
Calibration", ICLR 2024, Algorithm 2, where s = β = 1. It takes away, to first order, the bias to clients that send
often.

The price of the correction is delay: what it takes from an update comes back through h, later. Clients that take turns
need none, and with a long step the delay makes the model swing. So β is measured unless `fold.calibration` gives it:
β = min(1, 2 Var(g) / E(g)²), where g are the versions between two updates of a client, the last 50 or so. That is 0 for
clients that take turns, which leaves FedBuff, and 1 where they differ by half as much as those who come at random
moments. The staleness weight stands before h, too, so that the length of a step does not depend on β.

With `fold.memory` m, h_i is the mean of the client's last m updates instead; m = 1 is the paper's. A sparse update
holds only the coordinates whose turn it was, so it says little about the next one, and the difference of the two is as
large as both together; the mean of several is what the client keeps saying.

Updates are remembered *as they came over the wire*. Σ h_i is kept beside them and follows each exchange: what a client
added is decoded again and subtracted (`fold_state.add_exactly`), so an arrival costs m + 1 decodings and not n.

Where the paper is silent:

* A client that contributes twice to one version: its second update replaces the first, as in public implementations.
  The two terms then sum to Δ_i − h_i with the newer Δ_i.
* The paper knows its n clients beforehand and starts from h_i = 0. `fold.clients` is that n. Without it n is the
  number of clients in the cache, and a client that is not in it counts as if its h_i were the mean of the others.
  (With h_i = 0 and n growing, the first versions would be twice too long: h has full length already, and so has Δ_i.)
* Clients come and go: one that was not heard for `fold.forget_versions` versions leaves the cache and the mean, and so
  do the one that was silent for longest while the cache takes more than `fold.cache_bytes`, and a device that was made
  anew (another outbox epoch), which joins again as a newcomer.

Memory: 12 bytes a parameter beyond FedBuff, and m payloads of each client with some 400 bytes around each.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.types import ParamVector

from .fold_state import Decode, FoldState, Kept, add_exactly
from .rule import Rule

#: The running means of the gaps forget with this rate: about the last 50 count.
_GAP_RATE: Final = 0.02
#: Var(g) / E(g)² from which on the correction is whole.
_FULL_SPREAD: Final = 0.5


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
    state.discounts += discount
    before = state.cache.get(update.client, ())
    decoded = [decode(kept) for kept in before]
    if before:
        _note_gap(state, state.version - before[-1].version)
    if before and before[-1].outbox == update.outbox:
        discount *= beta(state, rule)
        for kept, last in zip(before, decoded, strict=True):
            last.add_to(state.buffer, -discount * kept.scale / len(before))
    elif not rule.clients:
        state.newcomers += discount
    _remember(state, rule, update, delta, decoded, decode)


def refresh(state: FoldState, rule: Rule, update: Kept, delta: DecodedVector, decode: Decode) -> None:
    """Remember an update as its client's last one; nothing else."""
    decoded = [decode(kept) for kept in state.cache.get(update.client, ())]
    _remember(state, rule, update, delta, decoded, decode)


def direction(state: FoldState, rule: Rule, decode: Decode) -> ParamVector:
    """v, and the clients that were silent for too long leave before the next version begins."""
    v = state.buffer
    share = 0.0
    if state.weight > 0:
        v /= np.float32(state.weight)
        share = (state.discounts - state.newcomers) / state.weight
    v += np.float32(beta(state, rule) * share) * state.mean
    horizon = state.version - rule.forget_versions
    while state.cache and next(iter(state.cache.values()))[-1].version < horizon:
        _forget_oldest(state, decode)
    count = max(len(state.cache), rule.clients or 1)
    state.mean = (state.total / count).astype(np.float32)
    state.discounts = state.newcomers = 0.0
    return v


def beta(state: FoldState, rule: Rule) -> float:
    """How much of the correction is made, from 0 to 1."""
    if rule.calibration is not None:
        return rule.calibration
    spread = state.gap_square / (state.gap * state.gap) - 1.0 if state.gap else 0.0
    return min(1.0, max(0.0, spread / _FULL_SPREAD))


def _note_gap(state: FoldState, versions: int) -> None:
    rate = _GAP_RATE if state.gap_square else 1.0
    state.gap += rate * (versions - state.gap)
    state.gap_square += rate * (versions * versions - state.gap_square)


def _remember(
    state: FoldState,
    rule: Rule,
    update: Kept,
    delta: DecodedVector,
    decoded: Sequence[DecodedVector],
    decode: Decode,
) -> None:
    """Put an update behind its client's earlier ones, which are given decoded; the oldest may make room for it."""
    before = state.cache.get(update.client, ())
    if before:
        _forget(state, update.client, decoded)
    is_same = bool(before) and before[-1].outbox == update.outbox
    kept = (*before, update)[-rule.memory :] if is_same else (update,)
    deltas = (*decoded, delta)[-len(kept) :]
    for one, values in zip(kept, deltas, strict=True):
        add_exactly(state.total, values, one.scale / len(kept), 1)
    state.cache[update.client] = kept
    state.kept_bytes += sum(one.nbytes for one in kept)
    while state.kept_bytes > rule.cache_bytes:
        _forget_oldest(state, decode)


def _forget_oldest(state: FoldState, decode: Decode) -> None:
    client, kept = next(iter(state.cache.items()))
    _forget(state, client, [decode(one) for one in kept])


def _forget(state: FoldState, client: str, decoded: Sequence[DecodedVector]) -> None:
    """Let a client leave the sum."""
    kept = state.cache.pop(client)
    for one, values in zip(kept, decoded, strict=True):
        state.kept_bytes -= one.nbytes
        add_exactly(state.total, values, one.scale / len(kept), -1)
    if not state.cache:
        state.total[:] = 0  # what rounding left goes with the last client
