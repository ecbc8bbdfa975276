"""Error feedback: what the codec dropped is added to the next delta.

Seide et al., Interspeech 2014; in federated learning STC, Sattler et al., arXiv 1903.02891, Algorithm 2.

The residual is state of the device, not of the codec. Law 8: its mass is conserved. For each trainable parameter, in
float32,

    sent + residual' = delta + residual,        residual' = (delta + residual) − sent

and when an update is refused, what it sent comes back: `residual'' = residual' + sent`. Buffers are sent dense and
leave no residual.

A plan may have the delta clipped to a norm. That is done before the residual is added: it bounds what one piece of
training may want, and what was clipped is given up on purpose, it does not return through the residual. Clipping the
sum instead would hold back what earlier updates still owe, and then that debt grows with every update.

A plan may have coordinates pruned. They are in no update, and what the residual still holds there is dropped on
purpose, too: such a weight is zero for good, so nobody will ever want it. The equations above hold for all others.
"""

from dataclasses import dataclass, field

import numpy as np

from fedmq import encoding
from fedmq.codecs import Pipeline
from fedmq.errors import CodecError
from fedmq.layout import ParamLayout
from fedmq.mask import Mask
from fedmq.types import ParamVector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """One delta on its way.

    Attributes:
        payload: for the update.
        residual: what stays behind, float32, shape (layout.trainable_size,).
    """

    payload: bytes = field(repr=False)
    residual: ParamVector = field(repr=False)


def encode_with_feedback(
    layout: ParamLayout,
    pipeline: Pipeline,
    delta: ParamVector,
    residual: ParamVector | None,
    clip_norm: float = 0.0,
    mask: Mask | None = None,
) -> Encoded:
    """Encode `delta + residual` and keep what the codec drops.

    Args:
        layout: the model's.
        pipeline: the plan's.
        delta: `local − base`, float32, shape (layout.size,).
        residual: what stayed behind before, shape (layout.trainable_size,); None for nothing.
        clip_norm: a trainable delta with a larger Euclidean norm is shortened to it; 0 for none.
        mask: what is pruned, and so neither sent nor kept.

    Raises:
        CodecError: the delta is not finite: training diverged.
    """
    if not np.isfinite(delta[layout.trainable_size :]).all():
        raise CodecError("a buffer's delta is not finite: check the training, the learning rate first")
    wanted = delta.copy()
    head = wanted[: layout.trainable_size]
    if mask is not None:
        mask.clear(head)
    if clip_norm:
        norm = float(np.linalg.norm(head.astype(np.float64)))
        if norm > clip_norm:
            head *= np.float32(clip_norm / norm)
    if residual is not None:
        head += residual
        if mask is not None:
            mask.clear(head)
    payload = encoding.encode(layout, pipeline, wanted, mask)
    sent = encoding.decode(layout, pipeline, payload, mask).trainable
    kept = head.copy()
    sent.add_to(kept, -1.0)
    return Encoded(payload=payload, residual=kept)


def give_back(
    layout: ParamLayout,
    pipeline: Pipeline,
    payload: bytes,
    residual: ParamVector,
    mask: Mask | None = None,
) -> ParamVector:
    """The residual after an update was refused: what it sent returns.

    Args:
        layout: the model's.
        pipeline: that encoded the update.
        payload: the update's.
        residual: as it is, shape (layout.trainable_size,).
        mask: that the update was encoded under.

    Raises:
        WireError: the payload is damaged.
    """
    returned = residual.copy()
    encoding.decode(layout, pipeline, payload, mask).trainable.add_to(returned)
    return returned
