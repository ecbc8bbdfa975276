"""IDX files, the format of the MNIST family, read strictly and within a bound."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import DataError

#: The only type of number that is read.
UNSIGNED_BYTE: Final = 0x08
#: Bound on one file's decompressed content: five times Fashion-MNIST's largest. Stops decompression bombs.
_MAX_CONTENT: Final = 256 << 20


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or (by its suffix `.gz`) compressed.

    Strict: the magic number, the number of dimensions and the exact length must agree. Format: two zero
    bytes, the type 0x08, the number of dimensions, each dimension as a big-endian uint32, then the data in C
    order (Y. LeCun, "The MNIST database", section "File formats").

    Returns:
        A read-only uint8 array with `dimensions` axes.

    Raises:
        DataError: the file cannot be read, is larger than 256 MiB decompressed, or is not such a file.
    """
    content = read_content(path)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(path, f"is cut off: {len(content)} bytes, but the header alone has {header}")
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if content[:4] != magic:
        raise DataError(
            path,
            f"begins with {content[:4].hex()} instead of {magic.hex()} (IDX of bytes, {dimensions} axes)",
        )
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))
    expected = math.prod(shape)
    if len(content) - header != expected:
        stated = "×".join(map(str, shape))
        raise DataError(path, f"holds {len(content) - header} bytes of data where its header states {stated}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_content(path: Path) -> bytes:
    """Read a whole file, decompressed if it ends in `.gz`, within the bound."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read(_MAX_CONTENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    if len(content) > _MAX_CONTENT:
        raise DataError(path, f"holds more than {_MAX_CONTENT} bytes; a dataset this large is not supported")
    return content
