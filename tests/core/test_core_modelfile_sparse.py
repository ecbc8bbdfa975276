"""Sparse model files: the same model in fewer bytes, readable by anyone with the three lines of the documentation."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedmq.errors import ModelFileError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.modelfile import load_model, model_bytes, write_file

LAYOUT = ParamLayout(
    (
        Segment(name="dense.weight", shape=(40, 9)),
        Segment(name="dense.bias", shape=(200,), dtype="float16"),
        Segment(name="scale", shape=(20, 7), dtype="bfloat16"),
        Segment(name="square", shape=(6, 5), dtype="float64", kind=SegmentKind.BUFFER),
        Segment(name="nothing", shape=(0, 3)),
        Segment(name="temperature", shape=()),
    )
)


def vector_with(zeros: float, seed: int = 0) -> NDArray[np.float32]:
    """Values that float16 holds, of which a share is zero."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 100, LAYOUT.size).astype(np.float32) / 8
    return np.where(rng.random(LAYOUT.size) < zeros, np.float32(0), values)


@given(st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40)
def test_a_sparse_file_holds_the_same_model(
    tmp_path_factory: pytest.TempPathFactory, zeros: float, seed: int
) -> None:
    """To the last bit, whatever its share of zeros, dtypes and kinds; negative zeros, too."""
    path = tmp_path_factory.getbasetemp() / "sparse.safetensors"
    vector = vector_with(zeros, seed)
    vector[::17] = -0.0
    write_file(path, model_bytes(LAYOUT, vector, sparse=True))
    layout, found = load_model(path)

    assert LAYOUT.fingerprint == layout.fingerprint
    assert vector.tobytes() == found.tobytes()


def test_a_tensor_is_left_as_it_is_where_that_is_smaller(tmp_path: Path) -> None:
    """With few zeros everything is; with many, all but what is tiny."""
    path = tmp_path / "sparse.safetensors"
    write_file(path, model_bytes(LAYOUT, vector_with(0.0), sparse=True))
    full = set(load_file(path))
    write_file(path, model_bytes(LAYOUT, vector_with(0.9), sparse=True))
    packed = set(load_file(path)) - full

    assert {segment.name for segment in LAYOUT.shared} == full
    assert {f"fedmq.kept.{name}" for name in ("dense.weight", "dense.bias", "scale", "square")} == packed


def test_three_lines_of_numpy_read_it(tmp_path: Path) -> None:
    """Those of the module's docstring and of docs/pruning.md."""
    path = tmp_path / "sparse.safetensors"
    vector = vector_with(0.8)
    write_file(path, model_bytes(LAYOUT, vector, sparse=True))
    file = load_file(path)
    with safe_open(path, framework="numpy") as opened:
        shape = json.loads(opened.metadata()["fedmq.sparse"])["dense.weight"]
    bits = np.unpackbits(file["fedmq.kept.dense.weight"], count=math.prod(shape)).astype(bool)
    dense = np.zeros(bits.size, file["dense.weight"].dtype)
    dense[bits] = file["dense.weight"]

    assert LAYOUT.unpack(vector)["dense.weight"].tolist() == dense.reshape(shape).tolist()


def test_a_sparse_file_is_about_as_large_as_what_it_keeps() -> None:
    """Four bytes for each value that is no zero, and a bit for each that may be one."""
    layout = ParamLayout((Segment(name="w", shape=(1000, 100)),))
    vector = np.zeros(100_000, np.float32)
    vector[::10] = 1

    assert 40_000 + 12_500 < len(model_bytes(layout, vector, sparse=True)) < 40_000 + 12_500 + 500
    assert len(model_bytes(layout, vector)) > 400_000


DAMAGE: dict[str, Callable[[dict[str, NDArray[np.generic]], dict[str, object]], object]] = {
    "no bits": lambda tensors, shapes: tensors.pop("fedmq.kept.w"),
    "no values": lambda tensors, shapes: tensors.pop("w"),
    "bits of another type": lambda tensors, shapes: tensors.update(
        {"fedmq.kept.w": tensors["fedmq.kept.w"].astype(np.int8)}
    ),
    "too few bits": lambda tensors, shapes: tensors.update({"fedmq.kept.w": tensors["fedmq.kept.w"][1:]}),
    "too few values": lambda tensors, shapes: tensors.update({"w": tensors["w"][1:]}),
    "a giant's shape": lambda tensors, shapes: shapes.update({"w": [10**9, 10**9]}),
    "a shape that is none": lambda tensors, shapes: shapes.update({"w": "40"}),
    "sides that are none": lambda tensors, shapes: shapes.update({"w": [-4, -10]}),
    "a tensor that is not there": lambda tensors, shapes: shapes.update({"v": [4, 10]}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    """With the tensor's name, and without making room for what is announced."""
    tensors: dict[str, NDArray[np.generic]] = {
        "w": np.ones(3, np.float32),
        "fedmq.kept.w": np.array([0xE0, 0, 0, 0, 0], np.uint8),
        "b": np.ones(2, np.float32),
    }
    shapes: dict[str, object] = {"w": [4, 10]}
    path = tmp_path / "sparse.safetensors"
    save_file(tensors, path, {"fedmq.sparse": json.dumps(shapes)})
    assert 42 == load_model(path)[0].size
    DAMAGE[name](tensors, shapes)
    save_file(tensors, path, {"fedmq.sparse": json.dumps(shapes)})

    with pytest.raises(ModelFileError, match=r"is not a model: tensor [wv] "):
        load_model(path)
