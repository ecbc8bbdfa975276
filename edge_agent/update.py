"""Updates: from what a trainer brought back to an envelope in the outbox, and back when it is refused. No network here.

Law 8, and who decides what: a refused update's mass returns to the residual and goes out with a later one. It is
dropped, and the log says so, when the residual is of another model by now, when the update can no longer be decoded
(its codec or its mask is gone), and when the refusal says that training had diverged: then the residual goes, too,
because what stayed behind is as wrong as what was sent, and every later update would be refused for it.
"""

import logging
import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from fedmq import wire
from fedmq.codecs import parse_pipeline, pipeline_from_wire
from fedmq.errors import CodecError, WireError
from fedmq.layout import ParamLayout
from fedmq.mask import EncodedMask, Mask
from fedmq.plan import Plan
from fedmq.types import ClientId, GlobalModel, ModelUpdate, Receipt, Refusal, Rejection, UpdateId

from .feedback import encode_with_feedback, give_back
from .outbox import Outbox
from .trainer import TrainerError, TrainResult

log = logging.getLogger(__name__)

_DIVERGED: Final = frozenset({Rejection.NORM, Rejection.NOT_FINITE})


def put_update(
    outbox: Outbox,
    client: ClientId,
    plan: Plan,
    base: GlobalModel,
    result: TrainResult,
    mask: Mask | None = None,
) -> int:
    """Encode what was learned and keep it, with what the codec dropped.

    Args:
        outbox: where.
        client: who learned it.
        plan: says with which codec.
        base: the model it was trained from, of the plan's layout.
        result: what the trainer brought back.
        mask: the plan's, decoded. It may prune more than the one that was trained under.

    Returns:
        The update's number.

    Raises:
        TrainerError: the trainer's vector has another length than the model.
        CodecError: training diverged, or the update is larger than the plan allows.
        StoreError: the disk is full or fails; nothing has changed.
    """
    layout = plan.layout
    if result.vector.shape != base.vector.shape:
        raise TrainerError(
            f"the trainer returned a vector of shape {result.vector.shape}, the model has {base.vector.shape}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # the encoder finds it and says what it means
        delta = result.vector - base.vector
        encoded = encode_with_feedback(
            layout,
            parse_pipeline(plan.codec),
            delta,
            outbox.residual(layout.fingerprint),
            plan.clip_norm,
            mask,
        )
    message = wire.pack_update(
        ModelUpdate(
            id=UpdateId(client=client, epoch=outbox.epoch, seq=outbox.next_seq),
            floor=outbox.floor,
            model_epoch=base.epoch,
            base_version=base.version,
            fingerprint=layout.fingerprint,
            num_examples=int(result.num_examples),
            local_steps=int(result.local_steps),
            codec=plan.codec,
            payload=encoded.payload,
            metrics=tuple((name, float(value)) for name, value in result.metrics.items()),
            mask=mask.digest if mask is not None else b"",
        )
    )
    if len(message) > plan.max_update_bytes:
        raise CodecError(
            f"codec {plan.codec} makes an update of {len(message)} bytes, the plan allows {plan.max_update_bytes}"
        )
    return outbox.put(
        message,
        residual=encoded.residual,
        fingerprint=layout.fingerprint,
        created=time.time(),
        mask=mask.encoded if mask is not None else None,
    )


def settle(outbox: Outbox, receipt: Receipt, layout: ParamLayout) -> Iterator[tuple[int, Refusal | None]]:
    """Let go of the updates that a receipt settles, one after the other.

    Args:
        outbox: holds them.
        receipt: for this client; one for an outbox of its former life settles nothing. A notice that a message was
            unreadable lets go of what the disk has damaged.
        layout: the present plan's.

    Yields:
        The number of each, and why it was refused; None when it was folded.

    Raises:
        StoreError: the disk is full or fails; what was not yielded has not changed.
    """
    if receipt.notice is not None and receipt.notice.reason is Rejection.UNREADABLE:
        yield from _drop_damaged(outbox)
    if receipt.epoch != outbox.epoch:
        return
    newest = max((receipt.high_water, *receipt.beyond))
    if newest >= outbox.next_seq:
        log.error(
            "the aggregator knows update %d, this outbox has made none behind %d: was it restored from a copy? It "
            "goes on with number %d; what its residual holds may have been sent before",
            newest,
            outbox.next_seq - 1,
            newest + 1,
        )
        outbox.skip_to(newest + 1)
    for seq in filter(receipt.is_settled, outbox.pending()):
        refusal = receipt.refusal(seq)
        if refusal is None:
            outbox.forget(seq)
        else:
            take_back(outbox, seq, refusal, layout)
        yield seq, refusal


def take_back(outbox: Outbox, seq: int, refusal: Refusal, layout: ParamLayout) -> None:
    """Drop a refused update from the outbox, and decide about what it carried.

    Args:
        outbox: holds it.
        seq: its number.
        refusal: why.
        layout: the present plan's.

    Raises:
        StoreError: the disk is full or fails; nothing has changed.
    """
    message = outbox.get(seq).message
    try:
        update = wire.unpack_update(message)
        residual = outbox.residual(update.fingerprint)
        if update.fingerprint != layout.fingerprint or residual is None:
            outbox.forget(seq)
            log.warning("update %d was refused, and dropped: it is of another model. %s", seq, refusal)
            return
        mask = _mask_of(update, outbox, layout)
        returned = give_back(layout, pipeline_from_wire(update.codec), update.payload, residual, mask)
    except WireError as error:
        outbox.forget(seq)
        log.error("update %d was refused, and dropped: it cannot be decoded (%s). %s", seq, error, refusal)
        return
    diverged = refusal.reason in _DIVERGED
    if diverged:
        returned = np.zeros_like(residual)
    outbox.give_up(seq, residual=returned, fingerprint=update.fingerprint)
    where = "it and the residual are dropped" if diverged else "its content returns to the residual"
    log.warning("update %d was refused, %s: %s", seq, where, refusal)


def _mask_of(update: ModelUpdate, outbox: Outbox, layout: ParamLayout) -> Mask | None:
    if not update.mask:
        return None
    content = outbox.mask(update.mask)
    if content is None:
        raise WireError("update", f"its mask {update.mask.hex()} is not kept any more")
    return Mask.decode(layout, EncodedMask(digest=update.mask, content=content))


def _drop_damaged(outbox: Outbox) -> Iterator[tuple[int, Refusal | None]]:
    """Drop what the disk has damaged: nobody can fold it, settle it, or take it back."""
    for seq in outbox.pending():
        try:
            wire.unpack_update(outbox.get(seq).message)
        except WireError as error:
            outbox.forget(seq)
            log.error(
                "update %d was damaged on the disk, and dropped: what it carried is lost (%s)", seq, error
            )
            yield seq, Refusal(reason=Rejection.UNREADABLE, detail="damaged on the disk")
