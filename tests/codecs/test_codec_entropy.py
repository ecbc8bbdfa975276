"""How close the bytes come to the limit: closed forms for positions kept at random."""

import math

import numpy as np
import pytest

from fedmq.codecs import Geometry, parse_pipeline
from fedmq.codecs.positions import Rice

N = 101_770  # the MLP 784-128-10


def _entropy_per_kept(p: float) -> float:
    return (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / p


def _rice_bits_per_kept(p: float) -> float:
    """The expected cost for geometric gaps, by its best parameter."""
    return min(b + 1 / (1 - (1 - p) ** 2**b) for b in range(20))


def _uniform_positions(count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(N, count, replace=False)).astype(np.int32)


@pytest.mark.parametrize(
    ("p", "limit"),
    [(0.001, 1.025), (0.0025, 1.01), (0.005, 1.01), (0.01, 1.01), (0.02, 1.01), (0.04, 1.01), (0.1, 1.015)],
)
def test_rice_comes_within_a_percent_of_the_entropy(p: float, limit: float) -> None:
    """Its parameter byte included. At 0.1 the code itself is 1.4 % above; at 0.001 a byte is 0.7 % of it all."""
    count = round(p * N)
    bits = np.mean(
        [
            8 * len(Rice().encode(_uniform_positions(count, seed), Geometry.flat(N))) / count
            for seed in range(10)
        ]
    )

    assert bits <= limit * _entropy_per_kept(p)
    assert bits == pytest.approx(_rice_bits_per_kept(p), rel=0.015)


def test_a_whole_ternary_payload_is_positions_signs_and_a_few_bytes() -> None:
    """Count, Rice parameter and magnitude are 7 bytes; two paddings are at most 2."""
    vector = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    payload = parse_pipeline("topk(0.01) | ternary | rice").encode(vector)
    count = round(0.01 * N)

    assert len(payload) <= count * (1.005 * _entropy_per_kept(0.01) + 1) / 8 + 9


def _unequal_gaps(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.floor(10 ** rng.uniform(0, rng.uniform(0.1, 4), 200)).astype(np.int64)


# The last two have their best parameter below and above the logarithm of their mean gap.
@pytest.mark.parametrize(
    "gaps", [*map(_unequal_gaps, range(20)), np.array([3, 3, 18] * 60), np.array([1, 1, 3] * 60)]
)
def test_the_rice_parameter_is_the_best_one(gaps: np.ndarray) -> None:
    """Against all parameters, on gaps of very unequal sizes."""
    indices = np.cumsum(gaps + 1) - 1
    shortest = min(len(gaps) * (b + 1) + int((gaps >> b).sum()) for b in range(31))

    assert 1 + math.ceil(shortest / 8) == len(
        Rice().encode(indices.astype(np.int32), Geometry.flat(int(indices[-1]) + 1))
    )
