"""What particular codecs keep, round and refuse, beyond the contract that all share."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.codecs import MAX_LENGTH, Geometry, SparseVector, codec_from_config, parse_pipeline
from fedmq.codecs.bits import encode_varint
from fedmq.codecs.positions import U32, Bitmap, Rice
from fedmq.codecs.quantize import Int8
from fedmq.codecs.sparse import TopK
from fedmq.errors import CodecError, WireError


def _f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_top_k_breaks_ties_by_the_lowest_index() -> None:
    """Equal magnitudes: the threshold is shared, the first ones win, and signs do not matter."""
    selected = TopK(fraction=0.5).select(_f32(1, -2, 2, 5, -2, 2, 0, 1), Geometry.flat(8))

    assert selected.tolist() == [1, 2, 3, 4]


@given(
    vector=hnp.arrays(np.float32, st.integers(1, 60), elements=st.integers(-3, 3).map(float)),
    fraction=st.floats(0.001, 1),
)
def test_top_k_agrees_with_sorting(vector: np.ndarray, fraction: float) -> None:
    """The plain definition: sort by magnitude, then by index; take k; drop zeros."""
    order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))
    kept = order[: max(1, round(fraction * len(vector)))]
    expected = sorted(i for i in kept if vector[i] != 0)

    assert expected == TopK(fraction=fraction).select(vector, Geometry.flat(len(vector))).tolist()


def test_a_zero_vector_is_one_byte_of_sparse_payload() -> None:
    """Zeros are never sent: nothing is kept."""
    pipeline = parse_pipeline("topk(0.1) | ternary | rice")

    assert pipeline.encode(np.zeros(1000, np.float32)) == b"\x00"
    assert pipeline.decode(b"\x00", 1000).to_dense().tolist() == [0.0] * 1000


def test_ternary_sends_the_mean_magnitude_with_signs() -> None:
    """STC, Algorithm 1, by hand."""
    pipeline = parse_pipeline("topk(0.5) | ternary | rice")

    decoded = pipeline.decode(pipeline.encode(_f32(0.5, -3, 0, 2, 1, -7)), 6)

    assert decoded.to_dense().tolist() == [0, -4, 0, 4, 0, -4]


def test_error_feedback_delivers_every_coordinate_in_the_end() -> None:
    """Law 8 over many messages: with exact values, encoding the residual again sends each value once, as it was."""
    pipeline = parse_pipeline("topk(0.1) | float32 | rice")
    vector = np.random.default_rng(3).standard_normal(500).astype(np.float32)
    residual, received = vector.copy(), np.zeros(500, np.float32)
    for _ in range(10):
        decoded = pipeline.decode(pipeline.encode(residual), 500)
        decoded.add_to(received)
        decoded.add_to(residual, -1)

    assert vector.tobytes() == received.tobytes()
    assert not residual.any()


def test_int8_keeps_the_error_of_a_block_apart_from_other_blocks() -> None:
    """A thousand-fold larger block does not coarsen its neighbour."""
    small = np.linspace(-1e-3, 1e-3, 8, dtype=np.float32)
    vector = np.concatenate((small, small * 1000))
    codec = parse_pipeline("int8(8)")
    decoded = codec.decode(codec.encode(vector), 16).values

    assert np.abs(decoded[:8] - small).max() <= 1e-3 / 254 * 1.001


def test_float16_saturates_instead_of_sending_infinity() -> None:
    """65504 is the largest half; the rest of the value stays in the residual."""
    codec = parse_pipeline("float16")
    decoded = codec.decode(codec.encode(_f32(1e6, -3e38, 65504, 65519)), 4)

    assert decoded.values.tolist() == [65504, -65504, 65504, 65504]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["float32", "float16", "int8", "topk(0.1) | ternary | rice"])
def test_a_vector_that_is_not_finite_is_refused_by_name(text: str, bad: float) -> None:
    """The message says what and where."""
    vector = np.zeros(50, np.float32)
    vector[[17, 30]] = bad

    with pytest.raises(CodecError, match=re.escape(f"cannot encode {bad} at coordinate 17 (2 of 50")):
        parse_pipeline(text).encode(vector)


@pytest.mark.parametrize("vector", [np.zeros(3), np.zeros((3, 1), np.float32), np.zeros(3, np.int32)])
def test_only_flat_float32_is_encoded(vector: np.ndarray) -> None:
    """Other shapes and dtypes are our mistake, not silently converted."""
    with pytest.raises(CodecError, match="takes float32 in one dimension"):
        parse_pipeline("float32").encode(vector)


@pytest.mark.parametrize("length", [-1, MAX_LENGTH + 1])
def test_a_length_that_no_vector_has_is_refused(length: int) -> None:
    """The receiver's own mistake, so a CodecError."""
    with pytest.raises(CodecError, match="coordinates, not"):
        parse_pipeline("float32").decode(b"", length)


def test_a_vector_that_is_not_contiguous_encodes_like_its_copy() -> None:
    """A stride changes nothing."""
    every_other = np.arange(40, dtype=np.float32)[::2]
    for text in (
        *("float32", "float16", "int8", "sign", "qsgd(4)", "eden(2)", "lowrank(1) | int8"),
        *("topk(0.5) | ternary | rice", "topk_each(0.5) | ternary | rice", "randomk(0.5) | eden(2)"),
    ):
        assert parse_pipeline(text).encode(every_other.copy()) == parse_pipeline(text).encode(every_other)


@pytest.mark.parametrize(
    ("text", "payload", "length", "reason"),
    [
        ("float32", b"\x00\x00\xc0\x7f", 1, "not finite"),
        ("float32", b"\x01\x00\x80\x7f", 1, "not finite"),  # a signalling NaN
        ("float16", b"\x00\x7c", 1, "not finite"),
        ("int8", b"\x00\x00\x80\x3f\x80", 1, "code -128"),
        ("int8", b"\x00\x00\x80\xbf\x01", 1, "a scale of -1.0 cannot be used"),
        ("int8", b"\x01\x00\x00\x00\x01", 1, "a scale of 1.40"),
        ("int8", b"\xff\xff\x7f\x7f\x01", 1, "a scale of 3.40"),
        ("int8", b"\x00\x00\xc0\x7f\x01", 1, "not finite"),
        ("topk(1) | ternary | u32", b"\x01\x00\x00\x00\x00\x00\x00\x80\x7f\x00", 2, "a magnitude of inf"),
        ("topk(1) | ternary | u32", b"\x01\x00\x00\x00\x00\x00\x00\x80\xbf\x00", 2, "a magnitude of -1.0"),
        ("topk(1) | ternary | u32", b"\x01\x00\x00\x00\x00\x00\x00\x80\x3f\x40", 2, "padding bits"),
        ("topk(1) | ternary | u32", b"\x01\x02\x00\x00\x00\x00\x00\x80\x3f\x00", 2, "position 2 is outside"),
        ("topk(1) | ternary | u32", b"\x01\xff\xff\xff\xff\x00\x00\x80\x3f\x00", 2, "position 4294967295"),
        ("topk(1) | float16 | u32", b"\x02" + bytes([1, 0, 0, 0] * 2) + bytes(4), 2, "do not increase"),
        (
            "topk(1) | float16 | u32",
            b"\x02" + bytes([1, 0, 0, 0, 0, 0, 0, 0]) + bytes(4),
            2,
            "do not increase",
        ),
        ("topk(0.5) | float16 | u32", b"\x02", 2, "2 coordinates where 1 are the most"),
        ("topk(1) | float16 | bitmap", b"\x02\x80\x00\x00\x00\x00", 2, "the bitmap has 1 positions, 2 were"),
        ("topk(1) | float16 | bitmap", b"\x01\xa0\x00\x00", 2, "padding bits"),
        ("topk(1) | float16 | rice", b"\x01\x03\x00\x00\x00", 4, "rice parameter 3 is too large for 4"),
        ("topk(1) | float16 | rice", b"\x01\x00\x08\x00\x00", 4, "position 4 is outside of 4"),
        ("topk(1) | float16 | rice", b"\x01\x00\x84\x00\x00", 4, "padding bits"),
        ("topk(1) | float16 | rice", b"\x01\x00\x00\x00\x00", 4, "cut off or lead past"),
        ("topk(1) | float16 | rice", b"\x04\x02\xff", 4, "4 positions need more than the 1 bytes"),
        ("topk(1) | float16 | rice", b"\x81\x00\x00\x80\x00\x00", 4, "count is padded with a zero byte"),
        ("topk(1) | float16 | rice", b"\xff\xff\xff\xff\xff\x01", 4, "count is longer than 5 bytes"),
        ("topk(1) | float16 | rice", b"", 4, "count needs 1 bytes, 0 are left"),
        ("topk(1) | float16 | rice", b"\x00\x00", 4, "1 bytes follow its end"),
        ("float32", bytes(8), 1, "8 bytes where 4 are the most"),
    ],
)
def test_a_payload_that_no_encoder_writes_is_refused_with_its_reason(
    text: str, payload: bytes, length: int, reason: str
) -> None:
    """One case for each way to be wrong."""
    with pytest.raises(WireError, match=re.escape(reason)):
        parse_pipeline(text).decode(payload, length)


def test_a_position_beyond_the_quotients_window_is_refused() -> None:
    """Quotients that add up to more than the vector holds."""
    payload = encode_varint(2) + b"\x00" + b"\x80\x00\x00\x00\x01" + bytes(4)

    with pytest.raises(WireError, match="cut off or lead past the vector's end"):
        parse_pipeline("topk(1) | float16 | rice").decode(payload, 20)


@pytest.mark.parametrize("codec", [Rice(), Bitmap()])
def test_the_stated_maximum_of_a_position_coder_is_reached_but_not_exceeded(codec: Rice | Bitmap) -> None:
    """Every set of positions in a short vector."""
    length = 11
    sizes: dict[int, int] = {}
    for chosen in range(1, 2**length):
        indices = np.flatnonzero([chosen >> bit & 1 for bit in range(length)]).astype(np.int32)
        size = len(codec.encode(indices, Geometry.flat(length)))
        sizes[len(indices)] = max(size, sizes.get(len(indices), 0))

    for count, largest in sizes.items():
        assert largest <= codec.max_bytes(count, Geometry.flat(length)) <= largest + 1


@pytest.mark.parametrize("codec", [Rice(), Bitmap(), U32()])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_more_positions_never_have_a_smaller_maximum(codec: Rice | Bitmap | U32, length: int) -> None:
    """So the maximum at a sparsifier's largest count bounds all its payloads."""
    maxima = [codec.max_bytes(count, Geometry.flat(length)) for count in range(1, length + 1)]

    assert maxima == sorted(maxima)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"id": "topk"}, "topk needs its argument 'fraction'"),
        ({"id": "topk", "fraction": "0.1"}, "topk: fraction = '0.1' cannot be used: it is a number"),
        ({"id": "topk", "fraction": True}, "topk: fraction = True cannot be used"),
        ({"id": "topk", "fraction": 10**400}, "cannot be used: it is a number"),
        ({"id": "topk", "fraction": 0.1, "seed": 1}, "topk has no argument 'seed'"),
        ({"id": "int8", "block": 2.0}, "int8: block = 2.0 cannot be used: it is a whole number"),
        ({"fraction": 0.1}, "needs its id as text, not None"),
        ({"id": 3}, "needs its id as text, not 3"),
        ({"id": "zip"}, "there is no codec 'zip'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: dict[str, object], complaint: str) -> None:
    """The message names the codec and the argument."""
    with pytest.raises(CodecError, match=re.escape(complaint)):
        codec_from_config(config)


def test_a_config_of_another_codec_is_refused() -> None:
    """A class builds only what bears its id."""
    with pytest.raises(CodecError, match="a config with id 'int8' was given to codec 'topk'"):
        TopK.from_config(Int8().get_config())


def test_a_sparse_vector_is_added_in_place_with_float32_rounding() -> None:
    """Product and sum are rounded separately, and other coordinates keep their bits."""
    out = _f32(-0.0, 0.1, 0.2, 0.3)
    vector = SparseVector(length=4, indices=np.array([1, 3], np.int32), values=_f32(0.7, -5))

    vector.add_to(out, 0.1)

    scale = np.float32(0.1)
    expected = _f32(
        -0.0, np.float32(0.1) + np.float32(0.7) * scale, 0.2, np.float32(0.3) + np.float32(-5) * scale
    )
    assert expected.tobytes() == out.tobytes()


def test_a_dense_vector_is_added_everywhere() -> None:
    """No indices: every coordinate."""
    out = _f32(1, 2)
    vector = SparseVector(length=2, indices=None, values=_f32(10, 20))

    vector.add_to(out)

    assert out.tolist() == [11, 22]
    assert vector.norm() == 500**0.5


def test_to_dense_returns_an_array_of_its_own() -> None:
    """Changing it does not change the vector."""
    vector = SparseVector(length=2, indices=None, values=_f32(1, 2))

    vector.to_dense()[0] = 9

    assert vector.values.tolist() == [1, 2]


def test_the_norm_does_not_overflow_in_float32() -> None:
    """It is accumulated in float64."""
    vector = SparseVector(length=9, indices=np.array([0, 8], np.int32), values=_f32(3e38, 4e38 / 1.2))

    assert vector.norm() == pytest.approx(math.hypot(3e38, 4e38 / 1.2), rel=1e-7)


def test_finite_is_told_from_not_finite() -> None:
    """For vectors that did not come from a decode."""
    assert SparseVector(length=1, indices=None, values=_f32(1)).is_finite()
    assert not SparseVector(length=1, indices=None, values=_f32(math.nan)).is_finite()


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        (None, np.zeros(3, np.float32)),
        (None, np.zeros(4)),
        (np.zeros(2, np.int32), np.zeros(3, np.float32)),
        (np.zeros(2, np.int64), np.zeros(2, np.float32)),
        (np.zeros((2, 1), np.int32), np.zeros(2, np.float32)),
    ],
)
def test_a_sparse_vector_of_the_wrong_shape_is_refused(
    indices: np.ndarray | None, values: np.ndarray
) -> None:
    """Dtypes and shapes are checked when it is built."""
    with pytest.raises(CodecError, match="a sparse vector needs"):
        SparseVector(length=4, indices=indices, values=values)


@pytest.mark.parametrize("out", [np.zeros(3, np.float32), np.zeros(4), np.zeros((4, 1), np.float32)])
def test_a_vector_is_not_added_to_another_shape(out: np.ndarray) -> None:
    """No broadcasting, no conversion."""
    vector = SparseVector(length=4, indices=np.array([1], np.int32), values=_f32(1))

    with pytest.raises(CodecError, match="4 coordinates is added to float32"):
        vector.add_to(out)


@pytest.mark.parametrize("kind", ["gauss", "mostly zeros", "few values", "tiny"])
def test_top_k_finds_the_threshold_that_sorting_finds(kind: str) -> None:
    """Whatever the values: the selection works on their bits."""
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(5000).astype(np.float32)
    if kind == "mostly zeros":
        vector[rng.random(5000) < 0.9] = 0
    elif kind == "few values":
        vector = np.round(vector * 2) / 2
    elif kind == "tiny":
        vector *= np.float32(1e-42)
    for fraction in (0.0002, 0.01, 0.3, 0.9998):
        count = min(round(fraction * 5000), np.count_nonzero(vector))
        order = np.lexsort((np.arange(5000), -np.abs(vector)))[:count]

        assert sorted(order) == TopK(fraction=fraction).select(vector, Geometry.flat(len(vector))).tolist()
