"""Model files: a layout and its vector as safetensors.

Tensors are stored in the framework's own names, shapes and dtypes, so any safetensors reader can use the file. The
metadata entry `fedmq.kinds` names the tensors that are not trainable; a file without it holds trainable
tensors only. `fedmq.dtypes` names those whose dtype in the framework is not the file's.

A sparse file stores of a tensor with many zeros the other values only, in C order, and as `fedmq.kept.<name>` one bit
for each of its places, set where there is one, the first in the highest bit of a byte. `fedmq.sparse` tells the shapes
of these tensors. In numpy:

    bits = numpy.unpackbits(file["fedmq.kept.w"], count=math.prod(shape)).astype(bool)
    dense = numpy.zeros(bits.size, file["w"].dtype)
    dense[bits] = file["w"]                                          # then dense.reshape(shape)
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import LayoutError, ModelFileError
from .layout import DTYPES, ParamLayout, Segment, SegmentKind
from .types import ParamVector

_KINDS: Final = "fedmq.kinds"
_DTYPES: Final = "fedmq.dtypes"
_SPARSE: Final = "fedmq.sparse"
_KEPT: Final = "fedmq.kept."
#: About what one tensor more takes in the header, and in `fedmq.sparse`.
_ENTRY_BYTES: Final = 128


def save_model(
    path: Path, layout: ParamLayout, vector: ParamVector, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model as `model_bytes` makes it, dense.

    Raises:
        ModelFileError: the file cannot be written.
    """
    write_file(path, model_bytes(layout, vector, metadata))


def model_bytes(
    layout: ParamLayout,
    vector: ParamVector,
    metadata: Mapping[str, str] | None = None,
    *,
    sparse: bool = False,
) -> bytes:
    """A model as the bytes of a file.

    bfloat16 tensors are written as float32, which holds them exactly: numpy has no bfloat16.

    Args:
        layout: the model's.
        vector: float32, shape (layout.size,).
        metadata: what else to say of it.
        sparse: leave zeros out of those tensors that are smaller so.
    """
    dtypes = {s.name: s.dtype for s in layout.shared if s.dtype == "bfloat16"}
    kinds = {s.name: str(s.kind) for s in layout.shared if s.kind is not SegmentKind.TRAINABLE}
    parts = layout.unpack(vector)
    tensors = {
        s.name: parts[s.name] if s.name in dtypes else parts[s.name].astype(s.dtype) for s in layout.shared
    }
    notes = {_KINDS: json.dumps(kinds), _DTYPES: json.dumps(dtypes)}
    if sparse:
        notes[_SPARSE] = json.dumps(_leave_zeros_out(tensors))
    data: bytes = save(tensors, {**(metadata or {}), **notes})
    return data


def _leave_zeros_out(tensors: dict[str, NDArray[np.generic]]) -> dict[str, tuple[int, ...]]:
    """Replace tensors by their values and bits where that is smaller; the shapes of these."""
    shapes = {}
    for name, tensor in list(tensors.items()):
        values = tensor.ravel()
        is_kept = values.view(np.uint8).reshape(-1, values.itemsize).any(axis=1)  # a negative zero is kept
        bits = np.packbits(is_kept)
        kept = values[is_kept]
        if kept.nbytes + bits.nbytes + _ENTRY_BYTES < tensor.nbytes:
            shapes[name] = tensor.shape
            tensors[name], tensors[_KEPT + name] = kept, bits
    return shapes


def write_file(path: Path, data: bytes) -> None:
    """Write a file, so that a reader sees the old one or the new one and never a half.

    Raises:
        ModelFileError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ModelFileError(f"{path} cannot be written: {error}") from error


def load_model(path: Path) -> tuple[ParamLayout, ParamVector]:
    """Read a model. Tensors that are not floating point are left out; they do not travel.

    Raises:
        ModelFileError: there is no such file, it is no safetensors file, or holds no trainable tensor or a value
            that is not finite.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            kinds, dtypes, shapes = (_note(notes, key) for key in (_KINDS, _DTYPES, _SPARSE))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as a safetensors model: {error}") from error
    except (TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path} holds a dtype that numpy lacks ({error}): store it as float32"
        ) from error
    try:
        for name, shape in shapes.items():
            tensors[name] = _with_zeros(name, tensors, shape)
        layout = ParamLayout(
            tuple(
                Segment(
                    name=name,
                    shape=tensor.shape,
                    dtype=str(dtypes.get(name, tensor.dtype)),
                    kind=SegmentKind(str(kinds.get(name, SegmentKind.TRAINABLE))),
                )
                for name, tensor in tensors.items()
                if str(tensor.dtype) in DTYPES
            )
        )
        with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite: found below
            vector = layout.pack(tensors)
    except (LayoutError, ValueError) as error:
        raise ModelFileError(f"{path} is not a model: {error}") from error
    for name, place in layout.slices.items():
        if not np.isfinite(vector[place]).all():
            raise ModelFileError(f"{path} is no model to start from: tensor {name} holds infinity or NaN")
    return layout, vector


def _with_zeros(name: str, tensors: Mapping[str, NDArray[np.generic]], shape: object) -> NDArray[np.generic]:
    """A tensor of a sparse file as it was."""
    values, bits = tensors.get(name), tensors.get(_KEPT + name)
    sides = [side for side in shape if isinstance(side, int) and side >= 0] if isinstance(shape, list) else []
    if sides != shape:
        raise ValueError(f"tensor {name} has no shape in {_SPARSE}")
    size = math.prod(sides)
    if values is None or bits is None or bits.dtype != np.uint8 or bits.shape != ((size + 7) // 8,):
        raise ValueError(f"tensor {name} lacks its values, or its bits do not fit {size} places")
    is_kept = np.unpackbits(bits.astype(np.uint8), count=size).astype(np.bool_)
    if values.shape != (np.count_nonzero(is_kept),):
        raise ValueError(f"tensor {name} has {values.size} values for {np.count_nonzero(is_kept)} places")
    dense = np.zeros(size, values.dtype)
    dense[is_kept] = values
    return dense.reshape(sides)


def _note(metadata: Mapping[str, str], key: str) -> Mapping[str, object]:
    note = json.loads(metadata.get(key, "{}"))
    if not isinstance(note, dict):
        raise ValueError(f"its metadata entry {key} is not a JSON object")
    return note
