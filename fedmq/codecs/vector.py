"""`SparseVector`: what a codec decodes to and what a fold adds to the model.

It knows nothing of codecs, models or messages. Arithmetic here is elementwise float32 in a defined order, so
that two machines that decode the same bytes also fold them to the same bits (law 6). Two exceptions: `norm`,
which says so, and processors that flush subnormal numbers to zero, for sums below 1.2e-38.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import CodecError

FloatVector: TypeAlias = NDArray[np.float32]
IndexVector: TypeAlias = NDArray[np.int32]


# eq=False: comparing arrays gives arrays; tests compare the fields they mean.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseVector:
    """A float32 vector of which only some coordinates are stored; the others are zero.

    Attributes:
        length: coordinates of the whole vector, stored or not.
        indices: where the stored values belong, int32, shape (k,), strictly increasing, in [0, length).
            None means dense: every coordinate is stored.
        values: the stored values, float32, shape (k,), or (length,) when dense.

    Raises:
        CodecError: a shape or dtype is not as said above. The order and range of the indices are the
            builder's to guarantee; `Pipeline.decode` has checked them.
    """

    length: int
    indices: IndexVector | None
    values: FloatVector

    def __post_init__(self) -> None:
        stored = self.length if self.indices is None else self.indices.shape[0]
        if self.values.dtype != np.float32 or self.values.shape != (stored,):
            raise CodecError(
                f"a sparse vector needs float32 values of shape ({stored},), "
                f"not {self.values.dtype} of shape {self.values.shape}"
            )
        if self.indices is not None and (self.indices.dtype != np.int32 or self.indices.ndim != 1):
            raise CodecError(
                f"a sparse vector needs int32 indices in one dimension, "
                f"not {self.indices.dtype} of shape {self.indices.shape}"
            )

    def to_dense(self) -> FloatVector:
        """Return the whole vector as a new float32 array of shape (length,)."""
        if self.indices is None:
            return self.values.copy()
        dense = np.zeros(self.length, np.float32)
        dense[self.indices] = self.values
        return dense

    def add_to(self, out: FloatVector, scale: float | np.float32 = 1.0) -> None:
        """Add `scale` times this vector to `out`, in place.

        The scale is rounded to float32, each product is rounded to float32, then each sum: two roundings per
        stored coordinate, in that order on every machine. Other coordinates of `out` are not touched.

        Args:
            out: float32, shape (length,).
            scale: the factor.

        Raises:
            CodecError: `out` has another shape or dtype.
        """
        if out.dtype != np.float32 or out.shape != (self.length,):
            raise CodecError(
                f"a vector of {self.length} coordinates is added to float32 of the same length, "
                f"not to {out.dtype} of shape {out.shape}"
            )
        scaled = self.values * np.float32(scale)
        if self.indices is None:
            out += scaled
        else:
            out[self.indices] += scaled

    def norm(self) -> float:
        """Return the Euclidean norm, accumulated in float64.

        The order of the sum is numpy's, so the last bits of the float64 may differ between machines: good for
        judging an update, not for arithmetic that two machines must agree on.
        """
        return float(np.sqrt(np.square(self.values, dtype=np.float64).sum()))

    def is_finite(self) -> bool:
        """Tell whether every stored value is finite. Always true of what `Pipeline.decode` returns."""
        return bool(np.isfinite(self.values).all())
