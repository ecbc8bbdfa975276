"""Messages as bytes: one pair of functions for each kind of envelope.

`docs/protocol.md` describes every field; this module is the other half of that page. Each `unpack_*` returns
a value or raises `WireError`, whatever the bytes (law 7, see `fedmq.envelope`). A few lines over 350, since the
fields of all messages stand here and nowhere else.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from .codecs import MAX_TEXT
from .envelope import MAX_DETAIL, MAX_INTEGER, Fields, Kind, pack, unpack
from .errors import LayoutError
from .layout import MAX_DIMENSIONS, MAX_SEGMENTS, ParamLayout
from .mask import DIGEST_BYTES, EncodedMask, max_content_bytes
from .plan import MAX_TRAINER_SETTINGS, Plan, Scalar
from .share import MAX_JITTER_SECONDS, MAX_LOCAL_STEPS, MAX_WAIT_SECONDS, Share
from .types import (
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

MAX_CODEC: Final = MAX_TEXT
_REASONS: Final = frozenset(Rejection)
MAX_METRICS: Final = 16
MAX_CHUNKS: Final = 65_536
#: Frames that a head names at most.
MAX_FRAMES: Final = 64
#: Also the bound on a client's outbox: a receipt covers everything that may still lie in it.
MAX_RECEIPT_ENTRIES: Final = 256
#: A row of the layout is a list of four, one of which is a list of sides.
MAX_PLAN_VALUES: Final = MAX_SEGMENTS * (5 + MAX_DIMENSIONS) + 2 * MAX_TRAINER_SETTINGS + 64


def _pack_id(update_id: UpdateId) -> dict[str, object]:
    return {"c": update_id.client, "e": update_id.epoch, "s": update_id.seq}


def _read_id(fields: Fields) -> UpdateId:
    return UpdateId(
        client=ClientId(fields.name("c")), epoch=fields.integer("e", 1), seq=fields.integer("s", 1)
    )


def pack_update(update: ModelUpdate) -> bytes:
    """One update."""
    body = _pack_id(update.id) | {
        "f": update.floor,
        "m": update.model_epoch,
        "b": update.base_version,
        "l": update.fingerprint,
        "n": update.num_examples,
        "k": update.local_steps,
        "q": update.codec,
        "p": update.payload,
    }
    if update.metrics:
        body["x"] = dict(update.metrics)
    if update.mask:
        body["h"] = update.mask
    return pack(Kind.UPDATE, body)


def unpack_update(data: bytes) -> ModelUpdate:
    """Read one update.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(Kind.UPDATE, data)
    update_id = _read_id(fields)
    metrics = []
    for name, value in fields.pairs("x", MAX_METRICS) if fields.has("x") else ():
        if not isinstance(value, float):
            raise fields.wrong("x", f"{name[:40]!r} is not a float")
        metrics.append((name, value))
    return ModelUpdate(
        id=update_id,
        floor=fields.integer("f", 1, update_id.seq),
        model_epoch=fields.integer("m", 1),
        base_version=ModelVersion(fields.integer("b")),
        fingerprint=fields.binary("l", 8),
        num_examples=fields.integer("n"),
        local_steps=fields.integer("k"),
        codec=fields.text("q", MAX_CODEC),
        payload=fields.binary("p"),
        metrics=tuple(metrics),
        mask=fields.binary("h", DIGEST_BYTES) if fields.has("h") else b"",
    )


def pack_chunk(chunk: Chunk) -> bytes:
    """One piece of an update."""
    return pack(
        Kind.CHUNK,
        _pack_id(chunk.id)
        | {"i": chunk.index, "o": chunk.count, "z": chunk.size, "h": chunk.digest, "d": chunk.data},
    )


def unpack_chunk(data: bytes) -> Chunk:
    """Read one piece of an update.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(Kind.CHUNK, data)
    count = fields.integer("o", 1, MAX_CHUNKS)
    return Chunk(
        id=_read_id(fields),
        index=fields.integer("i", 0, count - 1),
        count=count,
        size=fields.integer("z", 1),
        digest=fields.binary("h", 8),
        data=fields.binary("d"),
    )


def pack_receipt(receipt: Receipt) -> bytes:
    """One client's receipt; at most `MAX_RECEIPT_ENTRIES` in each list."""
    body: dict[str, object] = {"c": receipt.client, "e": receipt.epoch, "w": receipt.high_water}
    if receipt.beyond:
        body["b"] = list(receipt.beyond)
    if receipt.refused:
        body["r"] = [[seq, *_pack_refusal(refusal)] for seq, refusal in receipt.refused]
    if receipt.notice is not None:
        body["n"] = _pack_refusal(receipt.notice)
    return pack(Kind.RECEIPT, body)


def unpack_receipt(data: bytes) -> Receipt:
    """Read a receipt.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(Kind.RECEIPT, data)
    beyond = []
    for seq in fields.items("b", MAX_RECEIPT_ENTRIES) if fields.has("b") else ():
        if not isinstance(seq, int) or isinstance(seq, bool) or not 0 < seq <= MAX_INTEGER:
            raise fields.wrong("b", "an entry is not a sequence number")
        beyond.append(seq)
    refused = []
    for entry in fields.items("r", MAX_RECEIPT_ENTRIES) if fields.has("r") else ():
        match entry:
            case [int(seq), *refusal] if 0 < seq <= MAX_INTEGER and not isinstance(seq, bool):
                refused.append((seq, _read_refusal(fields, "r", refusal)))
            case _:
                raise fields.wrong("r", "an entry is not [seq, reason, detail]")
    return Receipt(
        client=ClientId(fields.name("c")),
        epoch=fields.integer("e"),
        high_water=fields.integer("w"),
        beyond=tuple(beyond),
        refused=tuple(refused),
        notice=_read_refusal(fields, "n", fields.items("n", 2)) if fields.has("n") else None,
    )


def pack_share(share: Share) -> bytes:
    """One client's share of the work; what is the plan's is left out."""
    body: dict[str, object] = {"b": share.boot}
    if share.local_steps:
        body["k"] = share.local_steps
    if share.codec:
        body["q"] = share.codec
    if share.wait:
        body["w"] = float(share.wait)
    if share.jitter:
        body["j"] = float(share.jitter)
    return pack(Kind.TASK, body)


def unpack_share(data: bytes) -> Share:
    """Read a share of the work.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(Kind.TASK, data)
    return Share(
        boot=fields.integer("b", 1),
        local_steps=fields.integer("k", 0, MAX_LOCAL_STEPS) if fields.has("k") else 0,
        codec=fields.text("q", MAX_CODEC) if fields.has("q") else "",
        wait=_read_seconds(fields, "w", MAX_WAIT_SECONDS),
        jitter=_read_seconds(fields, "j", MAX_JITTER_SECONDS),
    )


def _read_seconds(fields: Fields, key: str, high: float) -> float:
    """An optional number of seconds."""
    if not fields.has(key):
        return 0.0
    value = fields.number(key)
    if not 0 <= value <= high:  # written so that NaN fails
        raise fields.wrong(key, f"{value} is not in [0, {high:g}]")
    return value


def _pack_refusal(refusal: Refusal) -> list[str]:
    return [str(refusal.reason), refusal.detail[:MAX_DETAIL]]


def _read_refusal(fields: Fields, key: str, entry: list[object]) -> Refusal:
    match entry:
        case [str(reason), str(detail)] if len(detail) <= MAX_DETAIL:
            if reason in _REASONS:
                return Refusal(reason=Rejection(reason), detail=detail)
            # A later release may know more reasons: the receipt must still be understood.
            return Refusal(reason=Rejection.UNKNOWN, detail=f"{reason[:40]}: {detail}"[:MAX_DETAIL])
        case _:
            raise fields.wrong(key, "a refusal is not [reason, detail]")


def _pack_object(ref: ObjectRef) -> dict[str, object]:
    return {"i": bytes.fromhex(ref.id), "z": ref.size, "o": ref.chunks}


def _read_object(fields: Fields) -> ObjectRef:
    return ObjectRef(
        id=fields.binary("i", 16).hex(),
        size=fields.integer("z", 1),
        chunks=fields.integer("o", 1, MAX_CHUNKS),
    )


def _read_frames(fields: Fields) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    for part in fields.subs("k", MAX_FRAMES):
        # a frame encoded like the one before it does not repeat the codec
        codec = part.text("q", MAX_CODEC) if part.has("q") or not frames else frames[-1].codec
        frames.append(Frame(codec=codec, content=_read_object(part)))
    if not frames:
        raise fields.wrong("k", "a head has at least one frame")
    return tuple(frames)


def pack_head(head: ModelHead) -> bytes:
    """The head of the newest model."""
    codecs = [None, *(frame.codec for frame in head.frames)]
    body: dict[str, object] = {
        "e": head.epoch,
        "v": head.version,
        "l": head.fingerprint,
        "h": head.digest,
        "k": [
            _pack_object(frame.content) | ({} if before == frame.codec else {"q": frame.codec})
            for before, frame in zip(codecs, head.frames, strict=False)
        ],
    }
    if head.delta is not None:
        content = head.delta.content
        place = _pack_object(content) if isinstance(content, ObjectRef) else content
        body["d"] = {"q": head.delta.codec, "o": place}
    return pack(Kind.MODEL, body)


def unpack_head(data: bytes) -> ModelHead:
    """Read the head of a model.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(Kind.MODEL, data)
    delta = None
    if fields.has("d"):
        part = fields.sub("d")
        content = part.binary("o") if part.is_binary("o") else _read_object(part.sub("o"))
        delta = CumulativeDelta(codec=part.text("q", MAX_CODEC), content=content)
    return ModelHead(
        epoch=fields.integer("e", 1),
        version=ModelVersion(fields.integer("v")),
        fingerprint=fields.binary("l", 8),
        frames=_read_frames(fields),
        delta=delta,
        digest=fields.binary("h", 16),
    )


def pack_presence(kind: Kind, presence: Presence) -> bytes:
    """A birth, goodbye or will; `kind` is CLIENT or AGGREGATOR."""
    return pack(
        kind, {"t": str(presence.state), "b": presence.boot, "e": presence.epoch, "w": presence.software}
    )


def unpack_presence(kind: Kind, data: bytes) -> Presence:
    """Read a birth, goodbye or will.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(kind, data)
    return Presence(
        state=_read_state(fields),
        boot=fields.integer("b", 1),
        epoch=fields.integer("e", 1),
        software=fields.text("w", 64),
    )


def _read_state(fields: Fields) -> PresenceState:
    text = fields.text("t", 16)
    if text not in list(PresenceState):
        raise fields.wrong("t", f"{text!r} is none of {', '.join(PresenceState)}")
    return PresenceState(text)


def pack_plan(plan: Plan) -> bytes:
    """The plan."""
    body: dict[str, object] = {
        "e": plan.epoch,
        "l": plan.layout.rows,
        "t": plan.trainer,
        "x": dict(plan.trainer_settings),
        "k": plan.local_epochs,
        "q": plan.codec,
        "o": plan.chunk_bytes,
        "z": plan.max_update_bytes,
        "a": plan.max_staleness,
        "w": plan.wait_for_new_version,
        "r": plan.resend_seconds,
    }
    if plan.clip_norm:
        body["n"] = plan.clip_norm
    if plan.mask is not None:
        body["m"] = {"h": plan.mask.digest, "d": plan.mask.content}
    return pack(Kind.PLAN, body)


def unpack_plan(data: bytes) -> Plan:
    """Read a plan.

    Raises:
        WireError: the bytes are not one.
    """
    fields = unpack(Kind.PLAN, data, MAX_PLAN_VALUES)
    settings: list[tuple[str, Scalar]] = []
    for name, value in fields.pairs("x", MAX_TRAINER_SETTINGS):
        if not isinstance(value, str | int | float | bool):
            raise fields.wrong("x", f"{name[:40]!r} is not a text, number or truth value")
        settings.append((name, value))
    resend_seconds = fields.number("r")
    if not 0 < resend_seconds < math.inf:  # written so that NaN fails
        raise fields.wrong("r", f"{resend_seconds} is not a number of seconds above 0")
    clip_norm = fields.number("n") if fields.has("n") else 0.0
    if not 0 <= clip_norm < math.inf:
        raise fields.wrong("n", f"{clip_norm} is no norm")
    layout = _read_layout(fields)
    return Plan(
        epoch=fields.integer("e", 1),
        layout=layout,
        trainer=fields.text("t", 200),
        trainer_settings=tuple(settings),
        local_epochs=fields.integer("k", 1, 10_000),
        codec=fields.text("q", MAX_CODEC),
        chunk_bytes=fields.integer("o", 1),
        max_update_bytes=fields.integer("z", 1),
        max_staleness=fields.integer("a"),
        wait_for_new_version=fields.flag("w"),
        resend_seconds=resend_seconds,
        clip_norm=clip_norm,
        mask=_read_mask(fields, layout) if fields.has("m") else None,
    )


def _read_mask(fields: Fields, layout: ParamLayout) -> EncodedMask:
    """A mask that is still to be decoded, by who has room for a model of that layout."""
    part = fields.sub("m")
    mask = EncodedMask(digest=part.binary("h", DIGEST_BYTES), content=part.binary("d"))
    if len(mask.content) > (most := max_content_bytes(layout)):
        raise part.wrong("d", f"{len(mask.content)} bytes, at most {most} are needed")
    return mask


def _read_layout(fields: Fields) -> ParamLayout:
    try:
        return ParamLayout.from_rows(fields.items("l", MAX_SEGMENTS))
    except LayoutError as error:
        raise fields.wrong("l", str(error)) from None


#: Every reader by kind, for tools and tests that take whatever comes.
READERS: Final[Mapping[Kind, Callable[[bytes], object]]] = {
    Kind.PLAN: unpack_plan,
    Kind.MODEL: unpack_head,
    Kind.UPDATE: unpack_update,
    Kind.CHUNK: unpack_chunk,
    Kind.RECEIPT: unpack_receipt,
    Kind.TASK: unpack_share,
    Kind.CLIENT: lambda data: unpack_presence(Kind.CLIENT, data),
    Kind.AGGREGATOR: lambda data: unpack_presence(Kind.AGGREGATOR, data),
}
