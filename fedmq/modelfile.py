"""Model files: a layout and its vector as safetensors.

Tensors are stored in the framework's own names, shapes and dtypes, so any safetensors reader can use the file. The
metadata entry `fedmq.kinds` names the tensors that are not trainable; a file without it holds trainable
tensors only.
"""

import json
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


def save_model(
    path: Path, layout: ParamLayout, vector: ParamVector, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model, so that a reader sees the old file or the new one and never a half.

    bfloat16 tensors are written as float32, which holds them exactly: numpy has no bfloat16.

    Raises:
        ModelFileError: the file cannot be written.
    """
    dtypes = {segment.name: segment.dtype for segment in layout.shared}
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, tensor in layout.unpack(vector).items():
        dtype = dtypes[name]
        tensors[name] = np.ascontiguousarray(tensor if dtype == "bfloat16" else tensor.astype(dtype))
    kinds = {s.name: str(s.kind) for s in layout.shared if s.kind is not SegmentKind.TRAINABLE}
    data = save(tensors, {**(metadata or {}), _KINDS: json.dumps(kinds)})
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error}") from error


def load_model(path: Path) -> tuple[ParamLayout, ParamVector]:
    """Read a model. Tensors that are not floating point are left out; they do not travel.

    Raises:
        ModelFileError: there is no such file, it is no safetensors file, or holds no trainable tensor.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            kinds = json.loads((file.metadata() or {}).get(_KINDS, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
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
                    dtype=str(tensor.dtype),
                    kind=SegmentKind(kinds.get(name, SegmentKind.TRAINABLE)),
                )
                for name, tensor in tensors.items()
                if str(tensor.dtype) in DTYPES
            )
        )
        return layout, layout.pack(tensors)
    except (LayoutError, ValueError) as error:
        raise ModelFileError(f"{path} is not a model: {error}") from error
