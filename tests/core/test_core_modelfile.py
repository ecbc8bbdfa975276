"""Model files: what is saved is loaded, what is damaged is refused, and no half is ever seen."""

import contextlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fedmq.errors import LayoutError, ModelFileError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.modelfile import load_model, save_model

LAYOUT = ParamLayout(
    (
        Segment(name="dense.weight", shape=(4, 3)),
        Segment(name="dense.bias", shape=(4,), dtype="float16"),
        Segment(name="norm.scale", shape=(4,), dtype="bfloat16"),
        Segment(name="norm.mean", shape=(4,), kind=SegmentKind.BUFFER),
        Segment(name="norm.count", shape=(), dtype="float64", kind=SegmentKind.BUFFER),
        Segment(name="temperature", shape=()),
        Segment(name="nothing", shape=(0, 3)),
        Segment(name="head", shape=(9,), kind=SegmentKind.PRIVATE),
    )
)
VECTOR = np.linspace(-2, 2, 33, dtype=np.float32)[: LAYOUT.size]  # eighths: exact in float16 and bfloat16


def test_a_model_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Every dtype, scalars, empty tensors and buffers; the fingerprint, too."""
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, LAYOUT, VECTOR)
    layout, vector = load_model(path)

    assert "" == LAYOUT.difference(layout)
    assert LAYOUT.fingerprint == layout.fingerprint
    assert VECTOR.tobytes() == vector.tobytes()
    assert "head" not in [segment.name for segment in layout.segments]


dtypes = st.sampled_from(["float32", "float64", "bfloat16"])  # those that hold every float32
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
kinds = st.sampled_from([SegmentKind.TRAINABLE, SegmentKind.BUFFER])
segments = st.builds(Segment, name=st.text(min_size=1, max_size=20), shape=shapes, dtype=dtypes, kind=kinds)


@given(st.lists(segments, max_size=5, unique_by=lambda s: s.name), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_any_model_is_loaded_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, others: list[Segment], seed: int
) -> None:
    """Whatever its names, shapes, dtypes and kinds."""
    first = Segment(name="first of all its tensors", shape=(2,))
    layout = ParamLayout((first, *others))
    vector = np.random.default_rng(seed).standard_normal(layout.size, np.float32)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_model(path, layout, vector)
    loaded, found = load_model(path)

    assert layout.fingerprint == loaded.fingerprint
    assert vector.tobytes() == found.tobytes()


def test_any_reader_of_safetensors_can_use_the_file(tmp_path: Path) -> None:
    """The framework's names, shapes and, but for bfloat16, dtypes."""
    path = tmp_path / "model.safetensors"
    save_model(path, LAYOUT, VECTOR, {"fedmq.version": "7"})
    tensors = load_file(path)

    assert {s.name: s.shape for s in LAYOUT.shared} == {name: t.shape for name, t in tensors.items()}
    assert ("float16", "float64", "float32") == tuple(
        str(tensors[name].dtype) for name in ("dense.bias", "norm.count", "norm.scale")
    )
    assert LAYOUT.unpack(VECTOR)["dense.weight"].tolist() == tensors["dense.weight"].tolist()


def test_a_file_of_another_program_is_a_model_of_trainable_tensors(tmp_path: Path) -> None:
    """Tensors of integers are left out: they do not travel."""
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((2, 2), np.float32), "steps": np.ones(1, np.int64)}, path)
    layout, vector = load_model(path)

    assert ParamLayout((Segment(name="w", shape=(2, 2)),)) == layout
    assert [1.0] * 4 == vector.tolist()


def safetensors(header: object, data: bytes = b"") -> bytes:
    """A file with any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, data: bytes, **metadata: str) -> bytes:
    """A file with one tensor w of two values."""
    entry = {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}
    return safetensors({"w": entry, "__metadata__": metadata}, data)


ONES = struct.pack("<2f", 1, 1)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read as a safetensors model"),
    "text": (b"This is not a model.", "cannot be read as a safetensors model"),
    "huge header": (struct.pack("<Q", 2**62), "cannot be read as a safetensors model"),
    "cut off": (tensor("F32", ONES)[:-1], "cannot be read as a safetensors model"),
    "no tensor": (safetensors({}), "0 trainable parameters"),
    "integers only": (tensor("I64", bytes(16)), "0 trainable parameters"),
    "bfloat16": (tensor("BF16", bytes(4)), "holds a dtype that numpy lacks"),
    "float8": (tensor("F8_E4M3", bytes(2)), "holds a dtype that numpy lacks"),
    "NaN": (tensor("F32", struct.pack("<2f", 1, np.nan)), "tensor w holds infinity or NaN"),
    "beyond float32": (tensor("F64", struct.pack("<2d", 1, 1e300)), "tensor w holds infinity or NaN"),
    "kinds that are no JSON": (tensor("F32", ONES, **{"fedmq.kinds": "{"}), "cannot be read as"),
    "kinds that are no object": (tensor("F32", ONES, **{"fedmq.kinds": "[]"}), "fedmq.kinds is not a JSON"),
    "an unknown kind": (tensor("F32", ONES, **{"fedmq.kinds": '{"w": "frozen"}'}), "is not a model"),
    "a kind that is a list": (tensor("F32", ONES, **{"fedmq.kinds": '{"w": []}'}), "is not a model"),
    "an unknown dtype": (tensor("F32", ONES, **{"fedmq.dtypes": '{"w": "int8"}'}), "has dtype int8"),
    "all private": (tensor("F32", ONES, **{"fedmq.kinds": '{"w": "private"}'}), "0 trainable parameters"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_model_is_refused_with_its_path(tmp_path: Path, name: str) -> None:
    """And with what is wrong."""
    path = tmp_path / "model.safetensors"
    content, message = DAMAGED[name]
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(path)

    assert str(path) in str(caught.value)


@given(st.integers(0, 2**32), st.integers(1, 255))
@settings(max_examples=60)
def test_no_damage_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    """One byte of a good file changed: it is refused, or it is another model."""
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_model(path, LAYOUT, VECTOR)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= change
    path.write_bytes(data)
    with contextlib.suppress(ModelFileError):
        assert np.isfinite(load_model(path)[1]).all()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Or that is a folder."""
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(ModelFileError, match="cannot be read") as caught:
            load_model(path)

        assert str(path) in str(caught.value)


def test_a_vector_of_another_layout_is_not_saved(tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(LayoutError):
        save_model(tmp_path / "model.safetensors", LAYOUT, VECTOR[:-1])

    assert [] == list(tmp_path.iterdir())


def test_a_disk_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is written beside it and takes its place only when it is on the disk."""
    path = tmp_path / "model.safetensors"
    save_model(path, LAYOUT, VECTOR)

    def fail(descriptor: int) -> None:
        assert path.read_bytes() != b"", "the old file was touched before the new one was safe"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ModelFileError, match=r"cannot be written: .*No space left on device"):
        save_model(path, LAYOUT, VECTOR + 1)

    assert [path] == list(tmp_path.iterdir())
    assert VECTOR.tobytes() == load_model(path)[1].tobytes()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file is where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match=r"file/model\.safetensors cannot be written"):
        save_model(tmp_path / "file" / "model.safetensors", LAYOUT, VECTOR)
