"""The values that cross module boundaries: ids, versions, updates, models, receipts.

All are frozen. Two epochs occur and must not be confused:

* `UpdateId.epoch` belongs to a client's outbox. It is drawn at random when the outbox is created, so a
  re-imaged device, which counts from 1 again, cannot collide with what it sent in its former life.
* `model_epoch` belongs to the aggregator's store. Versions grow within one model epoch and only there.

Sign convention, everywhere: `delta = local − base`. Folding adds.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .layout import ParamLayout

ClientId = NewType("ClientId", str)
ModelVersion = NewType("ModelVersion", int)

#: A model, or a difference of two, as one flat float32 vector of shape (layout.size,).
ParamVector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class UpdateId:
    """Names one update for ever.

    Attributes:
        client: who made it.
        epoch: which outbox of that client, 1 … 2^63 − 1.
        seq: its number in that outbox, from 1 without gaps.
    """

    client: ClientId
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.client}/{self.epoch:x}/{self.seq}"


class Rejection(StrEnum):
    """Why an update was refused. The value stands on the wire, in journal and statistics."""

    UNREADABLE = "unreadable"
    FOREIGN_CLIENT = "foreign-client"
    TOO_LARGE = "too-large"
    WRONG_EPOCH = "wrong-epoch"
    WRONG_LAYOUT = "wrong-layout"
    UNKNOWN_MASK = "unknown-mask"
    FUTURE_VERSION = "future-version"
    STALE = "stale"
    SAMPLE_COUNT = "sample-count"
    BAD_PAYLOAD = "bad-payload"
    NOT_FINITE = "not-finite"
    NORM = "norm"
    SUSPICIOUS = "suspicious"
    QUARANTINED = "quarantined"
    ALREADY_CONTRIBUTED = "already-contributed"
    SEQUENCE = "sequence"
    QUOTA = "quota"
    #: Never sent: stands for a reason of a later release, whose text is then in the detail.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A rejection with the facts that led to it, for the person who reads the receipt."""

    reason: Rejection
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUpdate:
    """What one client learned from one base version.

    Attributes:
        id: its name; a second arrival of the same id changes nothing.
        floor: the lowest `seq` still in the client's outbox when this was made; all below are settled or
            given up, so the ledger need not wait for them.
        model_epoch: the model epoch of the base.
        base_version: the version it was trained from.
        fingerprint: the layout's, 8 bytes.
        num_examples: how many training examples stand behind it.
        local_steps: how many optimiser steps were taken.
        codec: the pipeline that encoded the delta, as its line of text.
        payload: the encoded delta, see `fedmq.encoding`.
        metrics: what the trainer reports, for people (loss, seconds, …).
        mask: digest of the mask that the payload was encoded under, see `fedmq.mask`; empty for none.
    """

    id: UpdateId
    floor: int
    model_epoch: int
    base_version: ModelVersion
    fingerprint: bytes
    num_examples: int
    local_steps: int
    codec: str
    payload: bytes = field(repr=False)
    metrics: tuple[tuple[str, float], ...] = ()
    mask: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalModel:
    """The model at one version. `vector` must not be written to."""

    epoch: int
    version: ModelVersion
    layout: ParamLayout
    vector: ParamVector = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of one client's updates, complete for everything still in its outbox.

    A `seq` is settled when it is at most `high_water` or in `beyond`. A settled `seq` was folded unless it
    is in `refused`.

    Attributes:
        client: whose updates.
        epoch: of which outbox; 0 when the aggregator knows of none.
        high_water: every seq up to here is settled.
        beyond: settled seqs above `high_water`, ascending.
        refused: the settled seqs at or above the client's floor that were not folded, with the reason.
        notice: why the client's last message was dropped when it could not even be read, and so has no
            number to be settled by. Not part of the ledger.
    """

    client: ClientId
    epoch: int
    high_water: int = 0
    beyond: tuple[int, ...] = ()
    refused: tuple[tuple[int, Refusal], ...] = ()
    notice: Refusal | None = None

    def is_settled(self, seq: int) -> bool:
        """Whether the aggregator has folded or refused `seq`, for good."""
        return seq <= self.high_water or seq in self.beyond

    def refusal(self, seq: int) -> Refusal | None:
        """Why `seq` was refused; None when it was folded or is not settled."""
        return next((refusal for refused, refusal in self.refused if refused == seq), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """A content-addressed object, published as retained chunks.

    Attributes:
        id: the first 32 hexadecimal digits of the content's SHA-256.
        size: its length in bytes.
        chunks: in how many pieces it is published.
    """

    id: str
    size: int
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A published state of the model that later heads refer to.

    Attributes:
        codec: the pipeline that encoded it.
        content: where its bytes are.
    """

    codec: str
    content: ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class CumulativeDelta:
    """The difference from the last frame to this version, whatever lies between.

    Attributes:
        codec: the pipeline that encoded it.
        content: the bytes themselves when they fit one chunk, otherwise where they are.
    """

    codec: str
    content: bytes | ObjectRef = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHead:
    """The newest model, as the retained message on the model topic tells it.

    Attributes:
        epoch: the model epoch.
        version: the version.
        fingerprint: the layout's, 8 bytes.
        frames: the full model to start from, the keyframe, and what to add to it, one after the other.
        delta: what to add to that; None when the last frame is this version.
        digest: `fedmq.encoding.digest` of the decoded vector; both ends check it (law 6).
    """

    epoch: int
    version: ModelVersion
    fingerprint: bytes
    frames: tuple[Frame, ...]
    delta: CumulativeDelta | None
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One piece of an update's message that is too large for one packet.

    Attributes:
        id: the update's.
        index: which piece, from 0.
        count: of how many.
        size: length of the whole in bytes.
        digest: `fedmq.chunks.checksum` of the whole, 8 bytes.
        data: the piece.
    """

    id: UpdateId
    index: int
    count: int
    size: int
    digest: bytes
    data: bytes = field(repr=False)


class PresenceState(StrEnum):
    """What a birth message or a will says of its sender."""

    ONLINE = "online"
    ASLEEP = "asleep"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A birth, a goodbye or a will, of a client or an aggregator.

    Attributes:
        state: what it says.
        boot: drawn at random at each start of the process, so that a late will of a former life can be told
            from the present one, and edges see that the aggregator was started anew.
        epoch: of a client its outbox epoch, of an aggregator its model epoch.
        software: name and version, for people.
    """

    state: PresenceState
    boot: int
    epoch: int
    software: str = ""
