"""The random rotation, and what few bits are worth after it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.codecs import parse_pipeline, splitmix
from fedmq.codecs.base import Symbols
from fedmq.codecs.rotate import Eden, rotate, rotate_back, rotation_length
from fedmq.errors import WireError

# By Lloyd's conditions for N(0, 1); EDEN's README gives the same figures rounded.
LEAST_ERROR = {1: 0.36338, 2: 0.11748, 3: 0.034548, 4: 0.009501}
UNBIASED_ERROR = {1: 0.57080, 2: 0.13312, 3: 0.035784, 4: 0.009592}


def _gauss(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def _through(text: str, vector: np.ndarray) -> np.ndarray:
    pipeline = parse_pipeline(text)
    return pipeline.decode(pipeline.encode(vector), len(vector)).values.astype(np.float64)


def _error(text: str, vector: np.ndarray) -> float:
    """The error's energy as a share of the vector's."""
    exact = vector.astype(np.float64)
    return float(np.square(exact - _through(text, vector)).sum() / np.square(exact).sum())


def _dense_rotation(seed: int, length: int) -> np.ndarray:
    """The documented rotation as a matrix in float64: signs, Hadamard blocks; signs, Hadamard at the end."""
    run = 1
    while 2 * run <= min(length, 4096):
        run *= 2
    hadamard = np.ones((1, 1))
    while len(hadamard) < run:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= np.sqrt(run)
    signs = 1.0 - 2 * splitmix.draw_bits(seed, length + run)
    matrix = np.diag(signs[:length])
    whole = np.eye(length)
    for start in range(0, length - run + 1, run):
        whole[start : start + run, start : start + run] = hadamard
    matrix = whole @ matrix
    if length % run:
        last = np.eye(length)
        last[-run:, -run:] = hadamard @ np.diag(signs[length:])
        matrix = last @ matrix
    return matrix


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 12, 100, 256])
def test_the_rotation_is_the_documented_one(length: int) -> None:
    """Against the matrix that the module's header describes."""
    vector = _gauss(length)

    np.testing.assert_allclose(_dense_rotation(5, length) @ vector, rotate(vector, 5), atol=1e-5)


@given(
    length=st.integers(1, 300) | st.sampled_from([4095, 4096, 4097, 8191, 8192, 10_000]),
    seed=st.integers(0, 9),
)
def test_turning_back_undoes_the_turn_and_keeps_the_norm(length: int, seed: int) -> None:
    """Whatever the length: it is a rotation."""
    vector = _gauss(length, seed)
    turned = rotate(vector, seed)

    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    np.testing.assert_allclose(vector, rotate_back(turned, seed), atol=1e-5)


@pytest.mark.parametrize("length", [256, 300, 384, 500, 4096, 6000])
def test_one_large_value_is_spread_over_all(length: int) -> None:
    """No turned value stands out, wherever the large one was and however the length divides."""
    for place in (0, length // 3, length // 2, length - 1):
        vector = np.zeros(length, np.float32)
        vector[place] = 1

        assert np.abs(rotate(vector, 3)).max() <= 6 / np.sqrt(rotation_length(length))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [100_000, 101_770])
def test_the_error_on_gaussian_values_is_the_published_one(bits: int, length: int) -> None:
    """The vNMSE within 2 %, with the scale for error feedback and with the unbiased one."""
    vector = _gauss(length)

    assert LEAST_ERROR[bits] == pytest.approx(_error(f"eden({bits})", vector), rel=0.02)
    assert UNBIASED_ERROR[bits] == pytest.approx(_error(f"eden({bits}, 1)", vector), rel=0.02)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_error_does_not_depend_on_the_values(bits: int) -> None:
    """Heavy tails, and a vector of zeros with a hundredth of large values: no worse than Gaussian noise."""
    rng = np.random.default_rng(1)
    heavy = rng.standard_t(2.1, 50_000).astype(np.float32)
    spiky = np.where(rng.random(50_000) < 0.01, 100 * rng.standard_normal(50_000), 0).astype(np.float32)

    for vector in (heavy, spiky):
        assert _error(f"eden({bits})", vector) <= 1.02 * LEAST_ERROR[bits]


@pytest.mark.parametrize("bits", [1, 2])
def test_the_unbiased_scale_is_right_in_the_mean(bits: int) -> None:
    """The mean over 400 seeds comes near the vector, that of the other scale near a part of it."""
    vector, codec = _gauss(64), Eden(bits=bits, unbiased=1)
    exact = vector.astype(np.float64)
    total = np.zeros(64)
    for message in range(400):
        # A change in the last bit of one value is another seed.
        varied = vector.copy()
        varied[0] = np.float32(varied[0]) * np.float32(1 + message * 2**-22)
        total += codec.dequantize(codec.quantize(varied), 64)
    error = np.square(total / 400 - exact).sum() / np.square(exact).sum()

    assert error <= 2 * UNBIASED_ERROR[bits] / 400


@pytest.mark.parametrize(
    "values", [np.zeros(5), np.full(5, 1e-20), np.full(5000, -1e-30)], ids=["0", "20", "30"]
)
def test_values_that_are_too_small_are_sent_as_zeros(values: np.ndarray) -> None:
    """They stay in the residual."""
    assert not _through("eden(2)", values.astype(np.float32)).any()


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("length", [1, 3, 5000])
def test_the_largest_floats_are_cut_so_that_the_residual_is_finite(bits: int, length: int) -> None:
    """Rotating them as they are would be infinite."""
    vector = np.full(length, np.finfo(np.float32).max)
    for unbiased in (0, 1):
        decoded = _through(f"eden({bits}, {unbiased})", vector)

        assert np.isfinite(vector - decoded.astype(np.float32)).all()
        assert decoded.any()


def test_a_block_of_small_values_keeps_its_scale_beside_one_of_large_values() -> None:
    """Each run of 4096 has its own."""
    small, large = 1e-3 * _gauss(4096), 1e3 * _gauss(4096)
    decoded = _through("eden(4)", np.concatenate((small, large)))
    error = np.square(decoded[:4096] - small).sum() / np.square(small.astype(np.float64)).sum()

    assert error <= 1.1 * LEAST_ERROR[4]


@pytest.mark.parametrize(
    ("count", "scales"), [(0, 0), (1, 1), (2, 1), (4095, 1), (4096, 1), (8191, 1), (8192, 2)]
)
def test_a_payload_is_a_seed_scales_and_codes(count: int, scales: int) -> None:
    """A rest that fills no run of its own shares the scale of the last one."""
    payload = parse_pipeline("eden(3)").encode(_gauss(count))

    assert len(payload) == (4 + 4 * scales + -(-3 * count // 8) if count else 0)


def test_another_seed_decodes_to_another_vector() -> None:
    """So it is part of the message."""
    codec, vector = Eden(bits=4), _gauss(100)
    symbols = codec.quantize(vector)
    other = Symbols(parameters=symbols.parameters, codes=symbols.codes, seed=symbols.seed ^ 1)

    assert np.abs(codec.dequantize(symbols, 100) - vector).max() < 0.5
    assert np.abs(codec.dequantize(other, 100) - vector).max() > 1


@pytest.mark.parametrize("scale", [np.inf, np.nan, -1.0, 2.0**-61, 2.0**60 * 1.0000002])
def test_a_scale_that_nobody_sends_is_refused(scale: float) -> None:
    """Within the bounds, decoding can neither overflow nor meet subnormal numbers."""
    payload = b"\x00\x00\x00\x00" + np.float32(scale).tobytes() + b"\x80"
    with pytest.raises(WireError, match=re.escape("eden: a ")):
        parse_pipeline("eden(1)").decode(payload, 1)
