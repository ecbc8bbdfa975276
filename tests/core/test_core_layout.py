"""Layouts: one order whatever the file's, a fingerprint for everything that matters, strict packing."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.errors import LayoutError
from fedmq.layout import MAX_SEGMENTS, MAX_SIZE, ParamLayout, Segment, SegmentKind

SEGMENTS = (
    Segment(name="b.weight", shape=(2, 3)),
    Segment(name="a.bias", shape=(2,), dtype="float16"),
    Segment(name="0.mean", shape=(3,), kind=SegmentKind.BUFFER),
    Segment(name="scale", shape=()),
    Segment(name="a.private", shape=(4,), kind=SegmentKind.PRIVATE),
)
LAYOUT = ParamLayout(SEGMENTS)


def tensors() -> dict[str, np.ndarray]:
    """Numbered values for all segments, the private one included."""
    return {
        "b.weight": np.arange(6, dtype=np.float64).reshape(2, 3),
        "a.bias": np.array([10, 11], np.float16),
        "0.mean": np.array([20, 21, 22], np.float32),
        "scale": np.array(30, np.float32),
        "a.private": np.array([40, 41, 42, 43], np.float32),
    }


def test_trainable_segments_come_first_then_buffers_each_by_name() -> None:
    """And the private one has no place."""
    expected = {
        "a.bias": slice(0, 2),
        "b.weight": slice(2, 8),
        "scale": slice(8, 9),
        "0.mean": slice(9, 12),
    }

    assert expected == dict(LAYOUT.slices)
    assert list(expected) == [segment.name for segment in LAYOUT.shared]
    assert (12, 9, 3) == (LAYOUT.size, LAYOUT.trainable_size, LAYOUT.buffer_size)


@given(st.permutations(SEGMENTS))
def test_the_order_in_a_file_does_not_matter(segments: list[Segment]) -> None:
    """Same vector, same places, same fingerprint, no difference."""
    other = ParamLayout(tuple(segments))

    assert LAYOUT.fingerprint == other.fingerprint
    assert LAYOUT.slices == other.slices
    assert "" == LAYOUT.difference(other)
    assert LAYOUT.pack(tensors()).tolist() == other.pack(tensors()).tolist()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"name": "b.weights"}, r"b.weight \[2, 3\] float32 trainable here, b.weights"),
        ({"shape": (3, 2)}, r"here, b.weight \[3, 2\] float32 trainable there"),
        ({"shape": (6,)}, r"here, b.weight \[6\] float32 trainable there"),
        ({"dtype": "bfloat16"}, "bfloat16 trainable there"),
        ({"kind": SegmentKind.BUFFER}, "scale"),
        ({"kind": SegmentKind.PRIVATE}, "scale"),
    ],
    ids=["name", "shape", "flat", "dtype", "buffer", "private"],
)
def test_every_property_of_a_shared_segment_changes_the_fingerprint(
    change: dict[str, Any], difference: str
) -> None:
    """And the difference is put in words."""
    other = ParamLayout((replace(SEGMENTS[0], **change), *SEGMENTS[1:]))

    assert LAYOUT.fingerprint != other.fingerprint
    assert re.search(difference, LAYOUT.difference(other))


def test_private_segments_are_nobody_elses_business() -> None:
    """Two devices with different private heads train one model."""
    other = ParamLayout((*SEGMENTS[:4], Segment(name="head", shape=(9, 9), kind=SegmentKind.PRIVATE)))

    assert LAYOUT.fingerprint == other.fingerprint
    assert "" == LAYOUT.difference(other)


def test_one_tensor_more_is_a_difference() -> None:
    """When all the others agree."""
    other = ParamLayout((*SEGMENTS, Segment(name="zz", shape=(1,), kind=SegmentKind.BUFFER)))

    assert "4 tensors here, 5 there" == LAYOUT.difference(other)


def test_what_is_packed_is_unpacked() -> None:
    """In the tensors' shapes, as float32, without the private ones."""
    unpacked = LAYOUT.unpack(LAYOUT.pack(tensors()))

    assert {"a.bias", "b.weight", "scale", "0.mean"} == set(unpacked)
    for name, tensor in unpacked.items():
        assert np.float32 == tensor.dtype
        assert np.array_equal(tensors()[name], tensor)
        assert tensors()[name].shape == tensor.shape


def test_unpacked_tensors_are_views() -> None:
    """No copy of a large model is made; what is written into a tensor stands in the vector."""
    vector = LAYOUT.pack(tensors())
    LAYOUT.unpack(vector)["b.weight"][1, 2] = 99

    assert 99 == vector[7]


def test_a_tensor_that_is_not_contiguous_is_packed_by_its_rows() -> None:
    """A transposed weight means the same as its copy."""
    turned = tensors() | {"b.weight": np.arange(6, dtype=np.float32).reshape(3, 2).T}

    assert [0, 2, 4, 1, 3, 5] == LAYOUT.pack(turned)[2:8].tolist()


def test_a_missing_tensor_is_named() -> None:
    """The private one may be missing."""
    found = tensors()
    del found["a.private"]
    LAYOUT.pack(found)
    del found["0.mean"]
    with pytest.raises(LayoutError, match=r"tensor 0\.mean is missing"):
        LAYOUT.pack(found)


def test_a_tensor_of_another_shape_is_named() -> None:
    """Also when it has as many scalars."""
    with pytest.raises(LayoutError, match=r"tensor b\.weight has shape \(3, 2\), not \(2, 3\)"):
        LAYOUT.pack(tensors() | {"b.weight": np.zeros((3, 2))})


def test_a_vector_of_another_length_is_refused() -> None:
    """With both sizes in the message."""
    with pytest.raises(LayoutError, match=r"a vector of shape \(11,\) does not fit a layout of 12"):
        LAYOUT.unpack(np.zeros(11, np.float32))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((), "0 trainable parameters"),
        ((Segment(name="m", shape=(3,), kind=SegmentKind.BUFFER),), "0 trainable parameters"),
        ((Segment(name="w", shape=(0,)),), "0 trainable parameters"),
        ((Segment(name="w", shape=(1,)), Segment(name="w", shape=(2,))), "tensor names repeat: w"),
        ((Segment(name="w", shape=(MAX_SIZE + 1,)),), "1 to 2147483647 are allowed"),
        (
            (
                Segment(name="w", shape=(1,)),
                Segment(name="m", shape=(MAX_SIZE,), kind=SegmentKind.BUFFER),
            ),
            "1 to 2147483647 are allowed",
        ),
        (
            tuple(Segment(name=str(i), shape=(1,)) for i in range(MAX_SEGMENTS + 1)),
            "10001 tensors: at most 10000 are allowed",
        ),
    ],
    ids=["none", "only buffers", "empty", "repeated", "too long", "buffers too long", "too many"],
)
def test_what_is_no_model_is_refused(segments: tuple[Segment, ...], message: str) -> None:
    """Each with what is wrong."""
    with pytest.raises(LayoutError, match=message):
        ParamLayout(segments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "1 to 200 characters"),
        ({"name": "x" * 201}, "1 to 200 characters"),
        ({"dtype": "int64"}, "tensor w has dtype int64: allowed are bfloat16, float16, float32, float64"),
        ({"shape": (1,) * 9}, "at most 8 sides"),
        ({"shape": (-1,)}, "sides ≥ 0"),
    ],
)
def test_what_is_no_tensor_is_refused(fields: dict[str, Any], message: str) -> None:
    """Each with its name and what would be allowed."""
    with pytest.raises(LayoutError, match=message):
        Segment(**{"name": "w", "shape": (1,), **fields})


def test_rows_are_the_layout() -> None:
    """As the plan and the snapshot carry it, private segments included."""
    assert LAYOUT == ParamLayout.from_rows(LAYOUT.rows)
