"""The factors of matrices: how good they are against the best ones, and how they are multiplied."""

import re

import numpy as np
import pytest

from fedmq.codecs import Geometry, parse_pipeline
from fedmq.codecs.lowrank import LowRank
from fedmq.errors import WireError

MLP = Geometry.of([(64, 200), (64,), (10, 64), (10,)])


def _orthonormal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


def _matrix(rows: int, columns: int, strengths: np.ndarray) -> np.ndarray:
    """A matrix with these singular values."""
    width = len(strengths)
    product = _orthonormal(rows, width, 1) * strengths @ _orthonormal(columns, width, 2).T
    return product.astype(np.float32)


def _through(text: str, vector: np.ndarray, geometry: Geometry) -> np.ndarray:
    pipeline = parse_pipeline(text)
    return pipeline.decode(pipeline.encode(vector, geometry), geometry).values


def _error(text: str, matrix: np.ndarray) -> float:
    """The squared error."""
    geometry = Geometry((matrix.shape,))
    decoded = _through(text, matrix.reshape(-1), geometry).reshape(matrix.shape)
    return float(np.square(matrix.astype(np.float64) - decoded).sum())


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (60, 60)])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_matrix_of_low_rank_comes_back(shape: tuple[int, int], rank: int) -> None:
    """Up to the rounding of float32, in a small part of the bytes; a higher rank than needed does no harm."""
    matrix = _matrix(*shape, np.linspace(1, 2, rank))
    energy = float(np.square(matrix, dtype=np.float64).sum())

    assert _error(f"lowrank({rank}) | float32", matrix) <= 1e-12 * energy
    assert _error(f"lowrank({rank + 2}) | float32", matrix) <= 1e-12 * energy
    payload = parse_pipeline(f"lowrank({rank}) | float32").encode(matrix.reshape(-1), Geometry((shape,)))
    assert len(payload) == 4 * rank * sum(shape)


@pytest.mark.parametrize(
    "spectrum", [lambda i: i**-0.5, lambda i: 1 / i, lambda i: 0.9**i], ids=["root", "inverse", "exponential"]
)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_factors_are_nearly_the_best_ones(spectrum: object, rank: int) -> None:
    """Against the singular value decomposition: the squared error is at most a tenth above the least one."""
    assert callable(spectrum)
    strengths = spectrum(np.arange(1.0, 65.0))
    matrix = _matrix(64, 200, strengths)

    assert _error(f"lowrank({rank}) | float32", matrix) <= 1.1 * np.square(strengths[rank:]).sum()


@pytest.mark.parametrize(
    ("quantizer", "scale", "most"),
    [
        ("float16", 1.0, 1e-5),
        *(("int8", scale, 1e-3) for scale in (1e-6, 1.0, 1e4)),
        *(("eden(4)", scale, 0.05) for scale in (1e-6, 1.0, 1e4)),
    ],
)
def test_a_quantiser_behind_it_adds_little_at_any_scale(quantizer: str, scale: float, most: float) -> None:
    """Factors have the scale of what they stand for, so they mix with the tensors beside them."""
    rng = np.random.default_rng(3)
    weights = _matrix(64, 200, 1 / np.arange(1.0, 65.0))
    rest = np.abs(weights).max() * rng.standard_normal(MLP.length - weights.size)
    vector = (scale * np.concatenate((weights.reshape(-1), rest))).astype(np.float32)
    energy = np.square(vector, dtype=np.float64).sum()
    exact, rounded = (
        np.square(vector.astype(np.float64) - _through(f"lowrank(4) | {last}", vector, MLP)).sum()
        for last in ("float32", quantizer)
    )

    assert rounded - exact <= most * energy


def test_matrices_that_factors_would_not_shorten_are_sent_as_they_are() -> None:
    """Rows, small matrices, and vectors of which nothing is known."""
    geometry = Geometry.of([(128, 784), (128,), (10, 128), (3, 3), (10,)])
    codec = LowRank(rank=4)
    vector = np.random.default_rng(1).standard_normal(geometry.length).astype(np.float32)
    decoded = _through("lowrank(4) | float32", vector, geometry)

    assert codec.size(geometry) == 4 * (128 + 784) + 128 + 4 * (10 + 128) + 9 + 10
    for tensor in (1, 3, 4):
        part = slice(geometry.starts[tensor], geometry.starts[tensor + 1])
        assert vector[part].tobytes() == decoded[part].tobytes()
    assert vector.tobytes() == _through("lowrank(4) | float32", vector, Geometry.flat(len(vector))).tobytes()


def test_the_product_is_taken_in_the_documented_order() -> None:
    """One float32 rounding for each quotient, product and sum, column after column."""
    geometry, rows, columns = Geometry(((20, 30), (1, 2))), 20, 30
    factors = np.random.default_rng(1).standard_normal(3 * 50 + 2).astype(np.float32)
    factors[5], factors[25], factors[100:120] = 1e-9, 1e-20, 1e-20
    expected = np.zeros((rows, columns), np.float32)
    for i in range(3):
        p, q = factors[50 * i : 50 * i + rows], factors[50 * i + rows : 50 * (i + 1)]
        largest = max(abs(number) for number in p)
        for a in range(rows):
            share = np.float32(p[a] / largest) if largest >= 2.0**-60 else np.float32(0)
            for b in range(columns):
                if abs(share) >= 2.0**-24 and abs(q[b]) >= 2.0**-60:
                    expected[a, b] = np.float32(expected[a, b] + np.float32(share * q[b]))

    decoded = LowRank(rank=3).inverse(factors, geometry)

    assert expected.reshape(-1).tolist() == decoded[:600].tolist()
    assert factors[150:].tobytes() == decoded[600:].tobytes()


def test_both_factors_have_the_magnitude_of_what_they_stand_for() -> None:
    """The largest value of a column of P, of its partner in Q, and of their product are the same."""
    matrix = _matrix(30, 40, np.array([5.0, 2.0]))
    factors = LowRank(rank=2).forward(matrix.reshape(-1), Geometry(((30, 40),))).reshape(2, 70)
    for column in factors:
        p, q = column[:30], column[30:]
        largest = np.abs(np.outer(p / p.max(), q)).max()

        assert p.max() == pytest.approx(largest, rel=1e-5)
        assert np.abs(q).max() == pytest.approx(largest, rel=1e-5)


def test_zeros_stay_zeros() -> None:
    """A layer that was not trained."""
    assert not _through("lowrank(2) | int8", np.zeros(600, np.float32), Geometry(((20, 30),))).any()


def test_the_largest_floats_are_cut_so_that_the_residual_is_finite() -> None:
    """What is cut stays in the residual."""
    vector = np.full(600, np.finfo(np.float32).max)
    vector[::3] *= -1
    for quantizer in ("float32", "int8", "eden(2)"):
        decoded = _through(f"lowrank(2) | {quantizer}", vector, Geometry(((20, 30),)))

        assert np.isfinite(vector - decoded).all()
        assert decoded.any()


def test_a_factor_whose_product_could_be_infinite_is_refused() -> None:
    """The other factor is divided by its largest, so only this one matters."""
    geometry = Geometry(((3, 4),))
    pipeline = parse_pipeline("lowrank(1) | float32")
    factors = np.full(7, np.finfo(np.float32).max)
    factors[3:] = 2.0**120

    assert pipeline.decode(factors.tobytes(), geometry).values.tolist() == [2.0**120] * 12
    factors[5] = -(2.0**121)
    with pytest.raises(WireError, match=re.escape("lowrank: a factor of -2.658455991569832e+36 cannot")):
        pipeline.decode(factors.tobytes(), geometry)
