"""The engine's state as bytes, for snapshots.

One msgpack map: scalars, the rule they were folded with, the layout, the arrays as little-endian floats, and the
updates that the rule keeps. The rule is in it because the journal behind a snapshot must be folded again with the rule
that it was folded with, whatever the settings say today. Floats are IEEE doubles, so a round trip changes no bit.

Older snapshots are read. Schema 1 knew fewer rules: its snapshots lack the parts that its rules did not need. Schema 2
knew neither consensus nor reputation, schema 3 not when clients were heard last.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from fedmq.errors import LayoutError, SettingError, StoreError, WireError
from fedmq.layout import ParamLayout
from fedmq.mask import EncodedMask, Mask
from fedmq.types import ParamVector

from . import strategy
from .admission import AdmissionSettings
from .consensus import Consensus
from .engine import Engine, Tally
from .fold_state import FoldState, Kept
from .ledger import Ledger
from .optimizer import Moments
from .rarity import Heard
from .reputation import Reputation, pack_reputation, unpack_reputation
from .rule import pack_rule, unpack_rule

SCHEMA: Final = 4
_OLD_SCHEMAS: Final = (1, 2, 3)


def pack_state(engine: Engine) -> bytes:
    """Everything but the ledger, which the store keeps entry by entry."""
    packed: bytes = msgpack.packb(
        {
            "schema": SCHEMA,
            "epoch": engine.epoch,
            "position": engine.position,
            "layout": engine.layout.rows,
            "rule": pack_rule(engine.rule),
            "folded": engine.tally.folded,
            "refused": dict(engine.tally.refused),
        }
        | _pack_trust(engine.consensus, engine.reputation)
        | _pack_fold(engine.state)
    )
    return packed


def _pack_fold(state: FoldState) -> dict[str, object]:
    return {
        "version": state.version,
        "filled": state.filled,
        "weight": state.weight,
        "mean_staleness": state.mean_staleness,
        "oldest": state.oldest,
        "clip": state.clip,
        "contributors": state.contributors,
        "vector": _bytes(state.vector),
        "buffer": _bytes(state.buffer),
        "momentum": _bytes(state.moments.first),
        "second": _bytes(state.moments.second),
        "peak": _bytes(state.moments.peak),
        "average": _bytes(state.average),
        "past": [_bytes(vector) for vector in state.past],
        "squares": _bytes(state.squares),
        "window": [_pack_kept(update) for update in state.window],
        "cache": [_pack_kept(update) for updates in state.cache.values() for update in updates],
        "total": state.total.astype("<f8", copy=False).tobytes(),
        "mean": _bytes(state.mean),
        "discounts": state.discounts,
        "newcomers": state.newcomers,
        "gap": [state.gap, state.gap_square],
        "heard": [state.heard.folds, list(state.heard.last.items())],
        "masks": [[mask.digest, mask.encoded.content] for mask in state.masks],
    }


def unpack_state(
    data: bytes, *, ledger: Ledger, admission: AdmissionSettings, max_update_bytes: int
) -> Engine:
    """An engine that goes on from a snapshot.

    Raises:
        StoreError: the bytes are not a snapshot of a schema that this release knows.
    """
    try:
        fields = msgpack.unpackb(data)
        if fields["schema"] not in (*_OLD_SCHEMAS, SCHEMA):
            raise StoreError(
                f"the snapshot has schema {fields['schema']}, this release reads schemas {_OLD_SCHEMAS[0]} to {SCHEMA}"
            )
        rule = unpack_rule(fields["rule"])
        if fields["schema"] in _OLD_SCHEMAS:
            fields = (
                _pack_fold(strategy.init(rule, _vector(fields["vector"])))
                | _pack_trust(Consensus(), Reputation())
                | fields
            )
        layout = ParamLayout.from_rows(fields["layout"])
        return Engine(
            epoch=fields["epoch"],
            layout=layout,
            rule=rule,
            state=_unpack_fold(fields, layout),
            ledger=ledger,
            admission=admission,
            max_update_bytes=max_update_bytes,
            position=fields["position"],
            tally=Tally(folded=fields["folded"], refused=Counter(fields["refused"])),
            consensus=_unpack_consensus(fields["consensus"]),
            reputation=unpack_reputation(fields["reputation"]),
        )
    except (
        KeyError, TypeError, ValueError, LayoutError, SettingError, WireError, msgpack.UnpackException
    ) as error:  # fmt: skip
        raise StoreError(f"the snapshot cannot be read ({error!r}): run fedmq verify") from error


def _unpack_fold(fields: Mapping[str, Any], layout: ParamLayout) -> FoldState:
    gap, gap_square = fields["gap"]
    folds, last = fields["heard"]
    cache: dict[str, tuple[Kept, ...]] = {}
    for update in map(_unpack_kept, fields["cache"]):
        cache[update.client] = (*cache.get(update.client, ()), update)
    return FoldState(
        version=fields["version"],
        filled=fields["filled"],
        weight=fields["weight"],
        mean_staleness=fields["mean_staleness"],
        oldest=fields["oldest"],
        clip=fields["clip"],
        contributors=fields["contributors"],
        vector=_vector(fields["vector"]),
        buffer=_vector(fields["buffer"]),
        moments=Moments(
            first=_vector(fields["momentum"]),
            second=_vector(fields["second"]),
            peak=_vector(fields["peak"]),
        ),
        average=_vector(fields["average"]),
        past=[_vector(data) for data in fields["past"]],
        squares=_vector(fields["squares"]),
        window=[_unpack_kept(row) for row in fields["window"]],
        cache=cache,
        kept_bytes=sum(update.nbytes for updates in cache.values() for update in updates),
        total=np.frombuffer(fields["total"], "<f8").astype(np.float64),
        mean=_vector(fields["mean"]),
        discounts=fields["discounts"],
        newcomers=fields["newcomers"],
        gap=gap,
        gap_square=gap_square,
        heard=Heard(folds=folds, last=dict(last)),
        masks=[
            Mask.decode(layout, EncodedMask(digest=digest, content=content))
            for digest, content in fields["masks"]
        ],
    )


def _pack_trust(consensus: Consensus, reputation: Reputation) -> dict[str, object]:
    return {
        "consensus": [consensus.memory, _bytes(consensus.vector), consensus.length, consensus.votes],
        "reputation": pack_reputation(reputation),
    }


def _unpack_consensus(row: list[Any]) -> Consensus:
    memory, vector, length, votes = row
    return Consensus(memory=memory, vector=_vector(vector), length=length, votes=votes)


def _pack_kept(update: Kept) -> list[object]:
    return [
        update.client,
        update.outbox,
        update.version,
        update.codec,
        update.payload,
        update.scale,
        update.weight,
        update.mask,
    ]


def _unpack_kept(row: list[Any]) -> Kept:
    client, outbox, version, codec, payload, scale, weight, mask = row
    return Kept(
        client=client,
        outbox=outbox,
        version=version,
        codec=codec,
        payload=payload,
        scale=scale,
        weight=weight,
        mask=mask,
    )


def _bytes(array: NDArray[np.float32]) -> bytes:
    return array.astype("<f4", copy=False).tobytes()


def _vector(data: bytes) -> ParamVector:
    return np.frombuffer(data, "<f4").astype(np.float32)
