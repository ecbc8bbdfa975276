"""Clipping to a running quantile, against its paper's formulas."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from fedmq.aggregator.clipping import clip, norm
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ordered import ordered_sum, ordered_sums
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]


def dense(*values: float) -> DecodedVector:
    """A decoded update without buffers."""
    trainable = SparseVector(length=len(values), indices=None, values=np.array(values, np.float32))
    return DecodedVector(trainable=trainable, buffers=np.zeros(0, np.float32))


def test_a_norm_beyond_the_threshold_is_shrunk_to_it() -> None:
    """Delta min(1, C / ||Delta||), and C moves by exp(-0.2 (b - quantile))."""
    assert (0.4, pytest.approx(2 * math.exp(0.2 * 0.5))) == clip(2.0, 0.5, dense(3, 4))
    assert (1.0, pytest.approx(9 * math.exp(-0.2 * 0.5))) == clip(9.0, 0.5, dense(3, 4))
    assert (1.0, pytest.approx(9 * math.exp(-0.2 * 0.1))) == clip(9.0, 0.9, dense(3, 4))


def test_the_first_norm_is_where_it_begins() -> None:
    """A first contribution of zeros says nothing."""
    assert (1.0, 5.0) == clip(0.0, 0.5, dense(3, 4))
    assert (1.0, 0.0) == clip(0.0, 0.5, dense(0, 0))


@given(st.sampled_from([0.25, 0.5, 0.9]), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
@settings(max_examples=30)
def test_the_threshold_settles_at_the_quantile(quantile: float, seed: int, begin: float) -> None:
    """Wherever it begins; of uniform norms between 0 and 1 the quantile is itself."""
    rng = np.random.default_rng(seed)
    threshold, seen = begin, []
    for size in rng.uniform(0, 1, 700):
        _, threshold = clip(threshold, quantile, dense(size))
        seen.append(threshold)

    assert quantile == pytest.approx(np.mean(seen[-400:]), abs=0.1)


def test_a_clipped_contribution_moves_the_model_by_the_threshold_at_most(
    new_engine: NewEngine, message: Message
) -> None:
    """Whatever it claims; the others are not touched."""
    engine = new_engine(buffer_size=1, clip_quantile=0.5)
    for seq, size in enumerate([0.1, 0.1, 0.1, 100.0], start=1):
        before, threshold = engine.state.vector.astype(np.float64), engine.state.clip
        update = message(seq=seq, base=engine.state.version, delta=size)
        engine.commit(engine.offer([Arrival(client="a", message=update)]))
        moved = float(np.linalg.norm(engine.state.vector - before))

        assert moved == pytest.approx(min(size * 22**0.5, threshold or math.inf), rel=1e-5)


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=70))
def test_a_sum_in_order_is_the_sum(values: list[float]) -> None:
    """Up to rounding; of a matrix, of each row."""
    row = np.array(values, np.float64)
    expected = math.fsum(values)
    error = 1e-15 * math.fsum(map(abs, values))

    assert expected == pytest.approx(ordered_sum(row), abs=error)
    assert [expected, -expected] == pytest.approx(ordered_sums(np.stack([row, -row])).tolist(), abs=error)


def test_a_sum_in_order_does_not_change_its_summands() -> None:
    """They are of a contribution that is still to be folded."""
    row = np.arange(5.0)
    ordered_sum(row)

    assert [0, 1, 2, 3, 4] == row.tolist()


def test_a_norm_counts_the_buffers() -> None:
    """A fold adds them too."""
    delta = DecodedVector(trainable=dense(3).trainable, buffers=np.array([4], np.float32))

    assert 5.0 == norm(delta)
