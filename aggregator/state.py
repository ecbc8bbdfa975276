"""The engine's state as bytes, for snapshots.

One msgpack map: scalars, the rule they were folded with, the layout, and the arrays as little-endian float32. The
rule is in it because the journal behind a snapshot must be folded again with the rule that it was folded with,
whatever the settings say today. Floats are IEEE doubles, so a round trip changes no bit.
"""

import dataclasses
from collections import Counter

import msgpack
import numpy as np
from numpy.typing import NDArray

from fedmq.errors import LayoutError, SettingError, StoreError
from fedmq.layout import ParamLayout

from .admission import AdmissionSettings
from .engine import Engine, Tally
from .ledger import Ledger
from .staleness import parse_staleness
from .strategy import FoldState, Rule

SCHEMA = 1


def pack_state(engine: Engine) -> bytes:
    """Everything but the ledger, which the store keeps entry by entry."""
    state = engine.state
    packed: bytes = msgpack.packb(
        {
            "schema": SCHEMA,
            "epoch": engine.epoch,
            "position": engine.position,
            "layout": engine.layout.rows,
            "rule": dataclasses.asdict(engine.rule) | {"staleness": str(engine.rule.staleness)},
            "folded": engine.tally.folded,
            "refused": dict(engine.tally.refused),
            "version": state.version,
            "filled": state.filled,
            "weight": state.weight,
            "mean_staleness": state.mean_staleness,
            "contributors": state.contributors,
            "vector": _pack_array(state.vector),
            "buffer": _pack_array(state.buffer),
            "momentum": _pack_array(state.momentum),
        }
    )
    return packed


def unpack_state(
    data: bytes, *, ledger: Ledger, admission: AdmissionSettings, max_update_bytes: int
) -> Engine:
    """An engine that goes on from a snapshot.

    Raises:
        StoreError: the bytes are not a snapshot of this release's schema.
    """
    try:
        fields = msgpack.unpackb(data)
        if fields["schema"] != SCHEMA:
            raise StoreError(
                f"the snapshot has schema {fields['schema']}, this release reads schema {SCHEMA}"
            )
        return Engine(
            epoch=fields["epoch"],
            layout=ParamLayout.from_rows(fields["layout"]),
            rule=Rule(**fields["rule"] | {"staleness": parse_staleness(fields["rule"]["staleness"])}),
            state=FoldState(
                vector=_array(fields["vector"]),
                buffer=_array(fields["buffer"]),
                momentum=_array(fields["momentum"]),
                version=fields["version"],
                filled=fields["filled"],
                weight=fields["weight"],
                mean_staleness=fields["mean_staleness"],
                contributors=fields["contributors"],
            ),
            ledger=ledger,
            admission=admission,
            max_update_bytes=max_update_bytes,
            position=fields["position"],
            tally=Tally(folded=fields["folded"], refused=Counter(fields["refused"])),
        )
    except (KeyError, TypeError, ValueError, LayoutError, SettingError, msgpack.UnpackException) as error:
        raise StoreError(f"the snapshot cannot be read ({error!r}): run fedmq verify") from error


def _pack_array(array: NDArray[np.float32]) -> bytes:
    return array.astype("<f4", copy=False).tobytes()


def _array(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").astype(np.float32)
