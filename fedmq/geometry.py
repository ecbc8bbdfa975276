"""`Geometry`: which stretch of a vector is which matrix.

Some codecs do better when they know that a vector is a row of matrices: the positions of an update cluster by
hidden unit, a matrix has a low rank, a magnitude is right for one tensor and wrong for the next. This is all that
they may know: sizes, in order. Names, frameworks and messages are none of their business.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from .errors import CodecError

MAX_LENGTH = 2**31 - 1
"""The longest vector in coordinates: an index is an int32."""


@dataclass(frozen=True)
class Geometry:
    """The matrices that a vector consists of, one behind the other, each row by row.

    A tensor of another rank counts as the matrix of its first side and all others together, as PyTorch's layers
    have it: one row for each output unit or channel. A tensor of rank 0 or 1 is one row.

    Attributes:
        shapes: (rows, columns) of each; both at least 1.

    Raises:
        CodecError: a side is below 1, or the vector would be longer than `MAX_LENGTH`.

    Examples:
        >>> Geometry.of([(128, 784), (128,)]).length
        100480
    """

    shapes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for rows, columns in self.shapes:
            if rows < 1 or columns < 1:
                raise CodecError(f"a matrix of {rows} rows and {columns} columns has no coordinates")
        if self.length > MAX_LENGTH:
            raise CodecError(f"a vector has 0 to {MAX_LENGTH} coordinates, not {self.length}")

    @classmethod
    def flat(cls, length: int) -> "Geometry":
        """A vector of which nothing is known: one row.

        Raises:
            CodecError: the length is negative or above `MAX_LENGTH`.
        """
        if not 0 <= length <= MAX_LENGTH:
            raise CodecError(f"a vector has 0 to {MAX_LENGTH} coordinates, not {length}")
        return cls(((1, length),) if length else ())

    @classmethod
    def of(cls, shapes: Iterable[tuple[int, ...]]) -> "Geometry":
        """The geometry of tensors in the order of the vector; those without coordinates take no place."""
        matrices = []
        for shape in shapes:
            rows, columns = (shape[0] if len(shape) > 1 else 1), 1
            for side in shape[1:] if len(shape) > 1 else shape:
                columns *= side
            if rows and columns:
                matrices.append((rows, columns))
        return cls(tuple(matrices))

    @cached_property
    def length(self) -> int:
        """Coordinates of the whole vector."""
        return sum(rows * columns for rows, columns in self.shapes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each matrix begins, and at the end the length."""
        sizes = (rows * columns for rows, columns in self.shapes)
        return tuple(itertools.accumulate(sizes, initial=0))
