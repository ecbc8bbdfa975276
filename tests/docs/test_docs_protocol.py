"""`docs/protocol.md` against the code: its bytes, its tables, its limits.

Run as a script it prints the worked example's blocks as the code makes them, for a person who changes the page.
"""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import msgpack
import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.engine import Arrival, Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.publisher import Publisher, PublishSettings
from fedmq.aggregator.strategy import FoldSettings, init, make_rule
from fedmq.edge_agent.feedback import encode_with_feedback

from fedmq import encoding, wire
from fedmq.chunks import checksum, split
from fedmq.codecs import BUILT_IN, parse_pipeline
from fedmq.envelope import HEADER_BYTES, Kind
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.plan import Plan
from fedmq.topics import Topics
from fedmq.types import (
    Chunk,
    ClientId,
    ModelUpdate,
    ModelVersion,
    ParamVector,
    Presence,
    PresenceState,
    Receipt,
    Refusal,
    Rejection,
    UpdateId,
)

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
CODEC = "topk(0.4) | ternary | rice"
LAYOUT = ParamLayout(
    (
        Segment(name="linear.weight", shape=(1, 4)),
        Segment(name="linear.bias", shape=(1,)),
        Segment(name="norm.mean", shape=(1,), kind=SegmentKind.BUFFER),
    )
)
CLIENT = ClientId("ada")
EPOCH, OUTBOX = 1001, 2002


def _update(seq: int, floor: int, model_epoch: int, base: ParamVector, delta: ParamVector) -> bytes:
    encoded = encode_with_feedback(LAYOUT, parse_pipeline(CODEC), delta, None)
    return wire.pack_update(
        ModelUpdate(
            id=UpdateId(client=CLIENT, epoch=OUTBOX, seq=seq),
            floor=floor,
            model_epoch=model_epoch,
            base_version=ModelVersion(0),
            fingerprint=LAYOUT.fingerprint,
            num_examples=32,
            local_steps=4,
            codec=CODEC,
            payload=encoded.payload,
            metrics=(("loss", 0.5),),
        )
    )


def worked_example() -> dict[str, bytes]:
    """Every message of the page's worked example, made by the parts that make them in production."""
    vector = np.array([0.1, 0.5, -0.25, 0.75, 1.0, 0.0], np.float32)
    rule = make_rule(FoldSettings(strategy="fedasync", staleness="constant", learning_rate=1.0))
    engine = Engine(
        epoch=EPOCH,
        layout=LAYOUT,
        rule=rule,
        state=init(rule, vector),
        ledger=Ledger(),
        admission=AdmissionSettings(),
        max_update_bytes=67_108_864,
    )
    publisher = Publisher(PublishSettings(delta_codec="topk(0.4) | int8 | rice"))
    first = publisher.publish(engine.model)
    ((_, (keyframe,)),) = first.objects
    base = encoding.decode(LAYOUT, parse_pipeline("float16"), keyframe).to_dense()
    delta = np.array([0.02, 0.3, -0.01, -0.2, 0.05, 0.5], np.float32)
    update = _update(1, 1, EPOCH, base, delta)
    refused = _update(3, 1, 999, base, delta)

    receipts = []
    for message in (update, refused):
        engine.commit(engine.offer([Arrival(client=CLIENT, message=message)]))
        receipts.append(wire.pack_receipt(engine.ledger.get(CLIENT, OUTBOX)))
    second = publisher.publish(engine.model)
    pieces = split(update, 100)
    chunk = Chunk(
        id=UpdateId(client=CLIENT, epoch=OUTBOX, seq=1),
        index=1,
        count=len(pieces),
        size=len(update),
        digest=checksum(update),
        data=pieces[1],
    )

    def presence(kind: Kind, state: PresenceState, boot: int, epoch: int) -> bytes:
        return wire.pack_presence(kind, Presence(state=state, boot=boot, epoch=epoch, software="fedmq 0.1.0"))

    return {
        "layout": msgpack.packb([row for row in map(list, _rows())]),
        "fingerprint": LAYOUT.fingerprint,
        "aggregator": presence(Kind.AGGREGATOR, PresenceState.ONLINE, 4004, EPOCH),
        "client": presence(Kind.CLIENT, PresenceState.ONLINE, 3003, OUTBOX),
        "will": presence(Kind.CLIENT, PresenceState.OFFLINE, 3003, OUTBOX),
        "plan": wire.pack_plan(
            Plan(
                epoch=EPOCH,
                layout=LAYOUT,
                trainer="linear",
                trainer_settings=(("learning_rate", 0.1),),
                codec=CODEC,
            )
        ),
        "keyframe": keyframe,
        "head": wire.pack_head(first.head),
        "base": base.astype("<f4").tobytes(),
        "update": update,
        "payload": wire.unpack_update(update).payload,
        "chunk": wire.pack_chunk(chunk),
        "receipt": receipts[0],
        "refusal": receipts[1],
        "head-1": wire.pack_head(second.head),
    }


def _rows() -> list[list[object]]:
    return [[s.name, list(s.shape), s.dtype, str(s.kind)] for s in LAYOUT.shared]


def render(value: object, indent: str = "") -> str:
    """A decoded body as the page writes it: bytes as h'…', one entry of the outer map a line."""
    match value:
        case dict() if not indent:
            lines = [f"  {json.dumps(key)}: {render(entry, '  ')}" for key, entry in value.items()]
            return "{\n" + ",\n".join(lines) + "\n}"
        case dict():
            return "{" + ", ".join(f"{json.dumps(k)}: {render(v, indent)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(render(entry, indent) for entry in value) + "]"
        case bytes():
            return f"h'{value.hex()}'"
        case _:
            return json.dumps(value)


def blocks(kind: str) -> dict[str, str]:
    """The page's fenced blocks of one kind, by what follows the kind on the fence's line."""
    found = re.findall(rf"^```{kind} ([^\n]+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def table(heading: str) -> list[list[str]]:
    """The rows of all tables between a heading and the next one, cells stripped; the header rows are left out."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/protocol.md has no heading {heading!r}"
    rows = [line for line in section[1].splitlines() if line.startswith("|")]
    body = [row for row, below in zip(rows, [*rows[1:], ""], strict=True) if not {*row, *below} <= {*row, *"|- "} or True]
    heads = {index for index, row in enumerate(rows) if set(rows[index + 1] if index + 1 < len(rows) else "x") <= set("|- ")}
    return [
        [cell.strip() for cell in row.strip("|").split("|")]
        for index, row in enumerate(body)
        if index not in heads and not set(row) <= set("|- ")
    ]
