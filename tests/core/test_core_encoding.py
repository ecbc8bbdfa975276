"""Vectors as payloads: the head through the codec, the buffers as they are."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq import encoding
from fedmq.codecs import SparseVector, parse_pipeline
from fedmq.encoding import DecodedVector
from fedmq.errors import CodecError, WireError
from fedmq.layout import ParamLayout, Segment, SegmentKind

LAYOUT = ParamLayout(
    (Segment(name="w", shape=(20,)), Segment(name="mean", shape=(3,), kind=SegmentKind.BUFFER))
)
BARE = ParamLayout((Segment(name="w", shape=(20,)),))
CODECS = ["float32", "float16", "int8", "topk(0.2) | ternary | rice", "topk(1.0) | float32 | u32"]
vectors = hnp.arrays(np.float32, LAYOUT.size, elements=st.floats(-100, 100, width=32))


@given(vectors, st.sampled_from(CODECS))
def test_both_ends_decode_the_same_bits(vector: np.ndarray, codec: str) -> None:
    """Adding what was decoded to zeros is the decoded vector, buffers bit for bit (law 6)."""
    pipeline = parse_pipeline(codec)
    payload = encoding.encode(LAYOUT, pipeline, vector)
    decoded = encoding.decode(LAYOUT, pipeline, payload)
    out = np.zeros(LAYOUT.size, np.float32)
    decoded.add_to(out)

    assert len(payload) <= encoding.max_payload_bytes(LAYOUT, pipeline)
    assert encoding.digest(out) == encoding.digest(decoded.to_dense() + np.float32(0))
    assert vector[20:].tobytes() == decoded.buffers.tobytes()
    assert decoded.is_finite()


@given(vectors)
def test_a_lossless_codec_gives_the_vector_back(vector: np.ndarray) -> None:
    """With and without buffers."""
    pipeline = parse_pipeline("float32")
    for layout in (LAYOUT, BARE):
        part = vector[: layout.size]
        payload = encoding.encode(layout, pipeline, part)

        assert 4 * layout.size == len(payload)
        assert part.tobytes() == encoding.decode(layout, pipeline, payload).to_dense().tobytes()


def test_a_scaled_addition_is_rounded_to_float32_at_each_step() -> None:
    """As the formula says: out + float32(scale) · value."""
    values = np.array([0.1, 0.2, 0.3], np.float32)
    decoded = DecodedVector(
        trainable=SparseVector(length=2, indices=None, values=values[:2]), buffers=values[2:]
    )
    out = np.array([1, 2, 3], np.float32)
    decoded.add_to(out, 0.7)
    expected = np.array([1, 2, 3], np.float32) + np.float32(0.7) * values

    assert expected.tobytes() == out.tobytes()


def test_the_norm_is_of_the_whole() -> None:
    """Buffers are folded, too: one without bound would poison the model."""
    decoded = DecodedVector(
        trainable=SparseVector(length=9, indices=np.array([4], np.int32), values=np.array([3], np.float32)),
        buffers=np.array([4, 12], np.float32),
    )

    assert 13.0 == decoded.norm()


def test_a_buffer_that_is_not_finite_is_seen() -> None:
    """Codecs refuse such values, but buffers go past them."""
    payload = encoding.encode(LAYOUT, parse_pipeline("float32"), np.zeros(23, np.float32))
    for value in (np.inf, np.nan):
        poisoned = payload[:-4] + np.float32(value).tobytes()

        assert not encoding.decode(LAYOUT, parse_pipeline("float32"), poisoned).is_finite()


def test_a_vector_that_is_not_finite_is_not_encoded() -> None:
    """The trainer diverged; the message says so."""
    vector = np.zeros(23, np.float32)
    vector[3] = np.nan
    with pytest.raises(CodecError, match="not finite"):
        encoding.encode(LAYOUT, parse_pipeline("float32"), vector)


def test_a_payload_of_another_length_is_refused() -> None:
    """Shorter than its buffers, shorter than its values, and longer."""
    pipeline = parse_pipeline("float32")
    for size, message in (
        (11, "11 bytes cannot hold 3 buffer"),
        (91, "80 bytes, 79 are left"),
        (93, "81 bytes"),
    ):
        with pytest.raises(WireError, match=message):
            encoding.decode(LAYOUT, pipeline, bytes(size))


def test_digest_and_object_id_are_those_of_the_protocol() -> None:
    """BLAKE2b-128 over little-endian float32, and half of a SHA-256."""
    vector = np.array([1.5, -2.25], np.float32)

    assert hashlib.blake2b(b"\x00\x00\xc0\x3f\x00\x00\x10\xc0", digest_size=16).digest() == encoding.digest(
        vector
    )
    assert encoding.digest(vector) == encoding.digest(np.array([1.5, 0, -2.25, 0], np.float32)[::2])
    assert "ba7816bf8f01cfea414140de5dae2223" == encoding.object_id(b"abc")
