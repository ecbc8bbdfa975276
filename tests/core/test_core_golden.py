"""Bytes of wire schema 1 that every release reads to the same values, and writes the same.

`tests/golden/wire/<name>.bin` holds the message of the value below. The files are never regenerated in place: what
is in them lies retained on brokers, in outboxes and journals. A field is added with a default, as a new value and
a new file; anything else needs a new schema number. To make the file of a value that is new here, run this test
once with FEDMQ_GOLDEN=write: it writes files that are missing and touches no other.

The heads are the one exception: they were `model-*.bin` and named one keyframe until, before the first release, they
came to name a stack of frames. No broker of a release holds the earlier form.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmq import wire
from fedmq.envelope import Kind, kind_of
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.plan import Plan
from fedmq.share import Share
from fedmq.types import (
    Chunk,
    ClientId,
    CumulativeDelta,
    Frame,
    ModelHead,
    ModelUpdate,
    ModelVersion,
    ObjectRef,
    Presence,
    PresenceState,
    Receipt,
    Refusal,
    Rejection,
    UpdateId,
)

FOLDER = Path(__file__).parent.parent / "golden" / "wire"

ID = UpdateId(client=ClientId("press-07"), epoch=0x1122334455667788, seq=300)
LAYOUT = ParamLayout(
    (
        Segment(name="dense.weight", shape=(128, 784)),
        Segment(name="dense.bias", shape=(128,), dtype="bfloat16"),
        Segment(name="norm.running_mean", shape=(128,), kind=SegmentKind.BUFFER),
        Segment(name="temperature", shape=(), dtype="float64"),
        Segment(name="head.weight", shape=(2, 3, 4), kind=SegmentKind.PRIVATE),
    )
)
KEYFRAME = Frame(
    codec="float16", content=ObjectRef(id="00112233445566778899aabbccddeeff", size=203_540, chunks=1)
)
#: The second is encoded like the first, so its codec is left out; the third says its own.
FRAMES = (
    KEYFRAME,
    Frame(codec="float16", content=ObjectRef(id="0f" * 16, size=300, chunks=2)),
    Frame(codec="topk(0.03) | ternary | rice", content=ObjectRef(id="f0" * 16, size=70_000, chunks=300)),
    Frame(codec="topk(0.03) | ternary | rice", content=ObjectRef(id="a5" * 16, size=1, chunks=1)),
)
HEAD = ModelHead(
    epoch=0x0102030405060708,
    version=ModelVersion(70_000),
    fingerprint=bytes.fromhex("b0b1b2b3b4b5b6b7"),
    frames=(KEYFRAME,),
    delta=None,
    digest=bytes(range(16)),
)
UPDATE = ModelUpdate(
    id=ID,
    floor=298,
    model_epoch=0x0102030405060708,
    base_version=ModelVersion(69_999),
    fingerprint=bytes.fromhex("b0b1b2b3b4b5b6b7"),
    num_examples=1000,
    local_steps=32,
    codec="topk(0.01) | ternary | rice",
    payload=bytes(range(256)),
    metrics=(("loss", 0.75), ("seconds", 12.5)),
)
GOLDEN: dict[str, tuple[Kind, object]] = {
    "plan": (
        Kind.PLAN,
        Plan(
            epoch=0x0102030405060708,
            layout=LAYOUT,
            trainer="torch-mlp",
            trainer_settings=(("learning_rate", 0.05), ("batch_size", 32), ("name", "ü"), ("nesterov", True)),
            local_epochs=2,
            codec="topk(0.01) | ternary | rice",
            chunk_bytes=65_536,
            max_update_bytes=1_048_576,
            max_staleness=50,
            wait_for_new_version=True,
            resend_seconds=90.5,
        ),
    ),
    "head-keyframe": (Kind.MODEL, HEAD),
    "head-frames": (Kind.MODEL, replace(HEAD, frames=FRAMES)),
    "head-inline-delta": (
        Kind.MODEL,
        ModelHead(
            epoch=HEAD.epoch,
            version=ModelVersion(70_001),
            fingerprint=HEAD.fingerprint,
            frames=FRAMES,
            delta=CumulativeDelta(codec="topk(0.1) | int8 | rice", content=b"\x00\x01\xfe\xff"),
            digest=HEAD.digest,
        ),
    ),
    "head-delta-object": (
        Kind.MODEL,
        ModelHead(
            epoch=HEAD.epoch,
            version=ModelVersion(70_001),
            fingerprint=HEAD.fingerprint,
            frames=(KEYFRAME,),
            delta=CumulativeDelta(
                codec="topk(0.1) | int8 | rice",
                content=ObjectRef(id="ffeeddccbbaa99887766554433221100", size=600_000, chunks=3),
            ),
            digest=HEAD.digest,
        ),
    ),
    "update": (Kind.UPDATE, UPDATE),
    "update-first": (
        Kind.UPDATE,
        ModelUpdate(
            id=UpdateId(client=ClientId("a"), epoch=1, seq=1),
            floor=1,
            model_epoch=1,
            base_version=ModelVersion(0),
            fingerprint=bytes(8),
            num_examples=0,
            local_steps=0,
            codec="float32",
            payload=b"",
        ),
    ),
    "chunk": (
        Kind.CHUNK,
        Chunk(id=ID, index=1, count=3, size=700, digest=bytes(range(8)), data=bytes(range(255, -1, -1))),
    ),
    "receipt": (
        Kind.RECEIPT,
        Receipt(
            client=ID.client,
            epoch=ID.epoch,
            high_water=299,
            beyond=(301, 70_000),
            refused=(
                (299, Refusal(reason=Rejection.STALE, detail="51 versions old, at most 50 are allowed")),
            ),
            notice=Refusal(reason=Rejection.UNREADABLE, detail="update: the CRC does not match"),
        ),
    ),
    "receipt-unknown": (Kind.RECEIPT, Receipt(client=ID.client, epoch=0)),
    "task": (
        Kind.TASK,
        Share(boot=2**62, local_steps=70_000, codec="topk(0.01) | int8 | rice", wait=12.5, jitter=0.75),
    ),
    "task-plan": (Kind.TASK, Share(boot=5)),
    "client": (
        Kind.CLIENT,
        Presence(state=PresenceState.ASLEEP, boot=5, epoch=ID.epoch, software="fedmq 0.1.0"),
    ),
    "aggregator": (
        Kind.AGGREGATOR,
        Presence(state=PresenceState.ONLINE, boot=2**62, epoch=HEAD.epoch, software="fedmq 0.1.0"),
    ),
}


def _pack(kind: Kind, value: object) -> bytes:
    packers: dict[type, Callable[..., bytes]] = {
        Plan: wire.pack_plan,
        ModelHead: wire.pack_head,
        ModelUpdate: wire.pack_update,
        Chunk: wire.pack_chunk,
        Receipt: wire.pack_receipt,
        Share: wire.pack_share,
        Presence: lambda presence: wire.pack_presence(kind, presence),
    }
    return packers[type(value)](value)


def _read(name: str) -> bytes:
    path = FOLDER / f"{name}.bin"
    if not path.exists() and os.environ.get("FEDMQ_GOLDEN") == "write":
        path.write_bytes(_pack(*GOLDEN[name]))
    if not path.exists():
        pytest.fail(
            f"{path} is missing. Was it deleted? Restore it. Is the value new? See this module's docstring."
        )
    return path.read_bytes()


golden = pytest.mark.parametrize("name", GOLDEN)


def test_every_kind_of_message_and_every_file_is_golden() -> None:
    """A kind without a golden file could change unnoticed; a file without a value is tested by nobody."""
    assert set(Kind) == {kind for kind, _ in GOLDEN.values()}
    assert {path.stem for path in FOLDER.iterdir()} <= set(GOLDEN)


@golden
def test_golden_messages_are_read_to_the_same_values(name: str) -> None:
    """What an old release wrote, a new one reads."""
    kind, value = GOLDEN[name]
    data = _read(name)

    assert kind is kind_of(data)
    assert value == wire.READERS[kind](data)


@golden
def test_the_same_values_are_written_to_the_golden_bytes(name: str) -> None:
    """What a new release writes, an old one reads; a duplicate's receipt has the same bytes for ever."""
    assert _read(name) == _pack(*GOLDEN[name])


def test_the_fingerprint_of_a_layout_is_for_ever() -> None:
    """It stands in every update and head: computed otherwise, all of them would be of a wrong layout."""
    assert "24f4f084362d57af" == LAYOUT.fingerprint.hex()
