"""Model files: a layout and its vector as safetensors.

Tensors are stored in the framework's own names, shapes and dtypes, so any safetensors reader can use the file. The
metadata entry `fedmq.kinds` names the tensors that are not trainable; a file without it holds trainable
tensors only. `fedmq.dtypes` names those whose dtype in the framework is not the file's.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import LayoutError, ModelFileError
from .layout import DTYPES, ParamLayout, Segment, SegmentKind
from .types import ParamVector

_KINDS: Final = "fedmq.kinds"
_DTYPES: Final = "fedmq.dtypes"


def save_model(
    path: Path, layout: ParamLayout, vector: ParamVector, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model, so that a reader sees the old file or the new one and never a half.

    bfloat16 tensors are written as float32, which holds them exactly: numpy has no bfloat16.

    Raises:
        ModelFileError: the file cannot be written.
    """
    dtypes = {s.name: s.dtype for s in layout.shared if s.dtype == "bfloat16"}
    kinds = {s.name: str(s.kind) for s in layout.shared if s.kind is not SegmentKind.TRAINABLE}
    parts = layout.unpack(vector)
    tensors = {
        s.name: parts[s.name] if s.name in dtypes else parts[s.name].astype(s.dtype) for s in layout.shared
    }
    notes = {_KINDS: json.dumps(kinds), _DTYPES: json.dumps(dtypes)}
    data = save(tensors, {**(metadata or {}), **notes})
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
            kinds, dtypes = (_note(file.metadata() or {}, key) for key in (_KINDS, _DTYPES))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as a safetensors model: {error}") from error
    except (TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path} holds a dtype that numpy lacks ({error}): store it as float32"
        ) from error
    try:
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


def _note(metadata: Mapping[str, str], key: str) -> Mapping[str, object]:
    note = json.loads(metadata.get(key, "{}"))
    if not isinstance(note, dict):
        raise ValueError(f"its metadata entry {key} is not a JSON object")
    return note
