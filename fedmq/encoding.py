"""A whole parameter vector as bytes: trainable parameters through a codec, buffers dense.

    payload = the codec's bytes for the trainable head · little-endian float32 for each buffer scalar

Updates, frames and cumulative deltas all travel in this form. Buffers (BatchNorm's running statistics) are
few and must not be sparsified, so they are never given to the codec. Of a pruned model the codec sees the kept
coordinates only.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .codecs import Pipeline, SparseVector
from .errors import WireError
from .layout import ParamLayout
from .mask import Mask
from .types import ParamVector

_FLOAT = np.dtype("<f4")
#: Bytes of all objects that one head names, for each scalar of the model and besides: what an edge has to hold.
MODEL_BYTES_PER_SCALAR: Final = 64
MODEL_BYTES_ALWAYS: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedVector:
    """What the receiver of a payload knows.

    Attributes:
        trainable: the head of the vector.
        buffers: its tail, shape (layout.buffer_size,).
    """

    trainable: SparseVector
    buffers: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        indices = self.trainable.indices
        return self.trainable.values.nbytes + self.buffers.nbytes + (0 if indices is None else indices.nbytes)

    def add_to(self, out: ParamVector, scale: float = 1.0) -> None:
        """Add `scale` times this to `out`, in place, in float32."""
        self.trainable.add_to(out[: self.trainable.length], scale)
        if self.buffers.size:
            out[self.trainable.length :] += np.float32(scale) * self.buffers

    def to_dense(self) -> ParamVector:
        """The vector itself, shape (layout.size,)."""
        return np.concatenate((self.trainable.to_dense(), self.buffers))

    def norm(self) -> float:
        """Euclidean norm of the whole, buffers included: a fold adds them too."""
        return math.hypot(self.trainable.norm(), np.linalg.norm(self.buffers.astype(np.float64)))

    def is_finite(self) -> bool:
        """Whether no value is infinite or NaN."""
        return self.trainable.is_finite() and bool(np.isfinite(self.buffers).all())


def encode(layout: ParamLayout, pipeline: Pipeline, vector: ParamVector, mask: Mask | None = None) -> bytes:
    """Encode a vector of shape (layout.size,); what a mask prunes of it is not looked at.

    Raises:
        CodecError: the vector is not finite.
    """
    head = vector[: layout.trainable_size]
    if mask is None:
        payload = pipeline.encode(head, layout.geometry)
    else:
        payload = pipeline.encode(head[mask.kept], mask.geometry)
    return payload + vector[layout.trainable_size :].astype(_FLOAT).tobytes()


def decode(
    layout: ParamLayout, pipeline: Pipeline, payload: bytes, mask: Mask | None = None
) -> DecodedVector:
    """Decode what `encode` made with the same mask.

    Raises:
        WireError: the bytes are not that.
    """
    tail = layout.buffer_size * _FLOAT.itemsize
    if len(payload) < tail:
        raise WireError("payload", f"{len(payload)} bytes cannot hold {layout.buffer_size} buffer scalars")
    body = memoryview(payload)[: len(payload) - tail]
    buffers = np.frombuffer(payload, _FLOAT, layout.buffer_size, len(payload) - tail).astype(np.float32)
    if mask is None:
        return DecodedVector(trainable=pipeline.decode(body, layout.geometry), buffers=buffers)
    return DecodedVector(trainable=mask.spread(pipeline.decode(body, mask.geometry)), buffers=buffers)


def max_payload_bytes(layout: ParamLayout, pipeline: Pipeline) -> int:
    """No valid payload of a whole vector is longer."""
    return pipeline.max_payload_bytes(layout.geometry) + layout.buffer_size * _FLOAT.itemsize


def max_model_bytes(layout: ParamLayout) -> int:
    """No head's objects are longer together."""
    return MODEL_BYTES_PER_SCALAR * layout.size + MODEL_BYTES_ALWAYS


def digest(vector: ParamVector) -> bytes:
    """16 bytes of BLAKE2b over the vector as little-endian float32: equal bits, equal digest (law 6)."""
    return hashlib.blake2b(np.ascontiguousarray(vector, _FLOAT).data, digest_size=16).digest()


def object_id(content: bytes) -> str:
    """The content address of an object: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]
