"""What quantisers with blocks round to, and that error feedback can live with them."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.codecs import Geometry, Pipeline, parse_pipeline
from fedmq.codecs.sign import Sign, Ternary
from fedmq.codecs.stochastic import QSGD
from fedmq.errors import WireError


def _f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _gauss(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def _through(pipeline: Pipeline, vector: np.ndarray, geometry: Geometry | None = None) -> np.ndarray:
    geometry = geometry or Geometry.flat(len(vector))
    return pipeline.decode(pipeline.encode(vector, geometry), geometry).to_dense()


def test_ternary_takes_a_mean_for_each_block_of_kept_values() -> None:
    """Blocks count what was kept, not where it was; the last one is shorter."""
    vector = _f32(0, 1, -3, 0, 0, 10, 20, 0, -7, 0)
    decoded = _through(parse_pipeline("topk(0.5) | ternary(2) | rice"), vector)

    assert decoded.tolist() == [0, 2, -2, 0, 0, 15, 15, 0, -7, 0]


@pytest.mark.parametrize("count", [1, 2, 63, 1000])
def test_ternary_with_one_block_is_ternary_without_blocks(count: int) -> None:
    """The bytes of the plain codec are those of a block that holds everything."""
    vector = _gauss(count)
    plain = parse_pipeline("topk(1.0) | ternary | rice").encode(vector)

    assert plain == parse_pipeline(f"topk(1.0) | ternary({count}) | rice").encode(vector)
    mean = np.abs(vector).mean(dtype=np.float64).astype(np.float32)
    assert Ternary().quantize(vector).parameters.tolist() == [mean]


def test_sign_sends_the_mean_magnitude_of_each_block_with_signs() -> None:
    """EF-signSGD by hand; a zero counts as positive, a block of nothing else stays zero."""
    vector = _f32(1, -3, 0, 4, 0, -0.0, 0, 0, -5)

    assert _through(parse_pipeline("sign(4)"), vector).tolist() == [2, -2, 2, 2, 0, 0, 0, 0, -5]


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)))
def test_sign_takes_from_the_residual_what_the_paper_says(vector: np.ndarray) -> None:
    """Karimireddy et al., Lemma 8: the error is (1 - |x|_1^2 / (d |x|_2^2)) |x|^2, so it never grows."""
    exact = vector.astype(np.float64)
    error = np.square(exact - _through(Pipeline(quantizer=Sign()), vector)).sum()
    expected = np.square(exact).sum() - np.abs(exact).sum() ** 2 / len(exact)

    assert error == pytest.approx(expected, rel=1e-5, abs=1e-6 * np.square(exact).sum() + 1e-30)


@pytest.mark.parametrize("quantizer", [Sign(block=3), Ternary(block=3)], ids=str)
def test_a_magnitude_that_nobody_sends_is_refused(quantizer: Sign | Ternary) -> None:
    """In any block."""
    good = quantizer.quantize(_gauss(8))
    for bad in (np.inf, np.nan, -1.0, -0.0):
        good.parameters[2] = bad
        with pytest.raises(ValueError, match=re.escape(f"a magnitude of {np.float32(bad)} cannot be used")):
            quantizer.dequantize(good, 8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.001, 0.123, 0.5, 0.77])
def test_qsgd_is_right_in_the_mean(bits: int, value: float) -> None:
    """A hundred thousand equal values, each rounded on its own: mean within five deviations, two neighbours only."""
    count, steps = 100_000, 2 ** (bits - 1) - 1
    vector = np.full(count, value, np.float32)
    vector[::400] = 1  # the largest of each block, so that the scale is 1 / steps
    decoded = _through(parse_pipeline(f"qsgd({bits}, 400)"), vector).astype(np.float64)
    levels = np.delete(decoded, np.s_[::400]) * steps
    below = np.floor(value * steps)
    chance = value * steps - below

    assert decoded[::400].tolist() == [1.0] * 250
    assert set(np.round(levels).tolist()) <= {below, below + 1}
    assert levels.mean() == pytest.approx(
        value * steps, abs=5 * np.sqrt(chance * (1 - chance) / count) + 1e-5
    )


def test_qsgd_rounds_each_message_anew() -> None:
    """The random numbers follow from the values: equal ones, equal bytes; others, other roundings everywhere."""
    codec, vector = QSGD(bits=4), _gauss(5000)
    other = vector.copy()
    other[0] = np.nextafter(other[0], np.float32(9))

    assert codec.quantize(vector).codes.tolist() == codec.quantize(vector.copy()).codes.tolist()
    assert np.count_nonzero(codec.quantize(vector).codes != codec.quantize(other).codes) > 500


def test_qsgd_on_the_wire_is_scales_and_planes_of_two_s_complement() -> None:
    """By hand, with values that need no chance: 7, -7, -3, 0 and 1 in the first block, 0 in the second."""
    pipeline = parse_pipeline("qsgd(4, 5)")
    payload = pipeline.encode(_f32(14, -14, -6, 0, 2, 0))
    signs, fours, twos, ones = "011000", "101000", "100000", "111010"
    bits = "".join((signs, fours, twos, ones))

    assert payload[:8] == _f32(2, 0).tobytes()
    assert "".join(f"{byte:08b}" for byte in payload[8:]) == bits
    assert pipeline.decode(payload, 6).values.tolist() == [14, -14, -6, 0, 2, 0]


@pytest.mark.parametrize(
    ("text", "payload", "reason"),
    [
        ("qsgd(2)", b"\x00\x00\x80\x3f\x80", "code -2 is not used"),
        ("qsgd(4)", b"\x00\x00\x80\x3f\x80", "code -8 is not used"),
        ("qsgd(8)", b"\x00\x00\x80\x3f\x80", "code -128 is not used"),
        ("qsgd(8)", b"\x00\x00\x80\xbf\x01", "a scale of -1.0 cannot be used"),
        ("qsgd(4)", b"\x01\x00\x00\x00\x80", "a scale of 1.4"),
        ("qsgd(4)", b"\xff\xff\x7f\x7f\x10", "a scale of 3.40"),
        ("qsgd(2)", b"\x00\x00\x80\x7f\x40", "not finite"),
    ],
)
def test_a_qsgd_payload_that_no_encoder_writes_is_refused(text: str, payload: bytes, reason: str) -> None:
    """One case for each way to be wrong."""
    with pytest.raises(WireError, match=re.escape(reason)):
        parse_pipeline(text).decode(payload, 1)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("int8", 0.02),
        ("sign", 0.9),
        ("qsgd(2, 16)", 1.8),
        ("qsgd(4)", 0.3),
        ("eden(1)", 0.9),
        ("eden(1, 1)", 1.5),
        ("eden(4)", 0.15),
        ("topk(0.1) | ternary(64) | rice", 1.5),
        ("topk_each(0.1) | ternary | rice", 1.5),
        ("randomk(0.3) | eden(2)", 2.5),
        ("lowrank(4) | int8", 2.0),
        ("lowrank(4) | eden(3)", 2.2),
    ],
)
def test_error_feedback_keeps_the_residual_within_bounds(text: str, most: float) -> None:
    """Law 8 over a hundred messages of noise: what a codec drops does not pile up, in multiples of a message's norm."""
    geometry, pipeline = Geometry(((30, 40), (1, 50))), parse_pipeline(text)
    residual, norms = np.zeros(geometry.length, np.float32), []
    for message in range(100):
        wanted = residual + _gauss(geometry.length, seed=message)
        residual = wanted - _through(pipeline, wanted, geometry)
        norms.append(np.linalg.norm(residual) / np.sqrt(geometry.length))

    assert max(norms[50:]) <= most
    assert np.mean(norms[75:]) <= 1.1 * np.mean(norms[50:75])
