"""Delay compensation against a float64 transcription of DC-ASGD's formulas."""

from collections.abc import Callable

import numpy as np
import pytest
from fedmq.aggregator.compensation import compensate, parse_compensation
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from numpy.typing import NDArray

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector
from fedmq.errors import SettingError

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
Doubles = NDArray[np.float64]
SIZE = 22


def vectors(number: int, seed: int) -> Doubles:
    """Deltas that float32 holds exactly."""
    return np.random.default_rng(seed).standard_normal((number, SIZE)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("text", ["constant(0.3)", "adaptive(0.3, 0.9)"])
def test_a_late_update_is_compensated_as_in_its_paper(
    new_engine: NewEngine, message: Message, text: str
) -> None:
    """G <- g + lambda_t g g (w_t - w_bak), w <- w - eta g; adaptive: lambda_t = lambda / sqrt(MeanSquare + 1e-7)."""
    eta, factor, m = 0.1, 0.3, 0.9
    engine = new_engine(
        strategy="fedasync", staleness="constant", learning_rate=eta, compensation=text, max_staleness=5
    )
    models, mean_square = [np.zeros(SIZE)], np.zeros(SIZE)
    for number, delta in enumerate(vectors(25, seed=1)):
        tau = min(number % 4, number)
        g = -delta
        mean_square = m * mean_square + (1 - m) * g**2
        factor_t = factor / np.sqrt(mean_square + 1e-7) if text.startswith("adaptive") else factor
        g = g + factor_t * g * g * (models[-1] - models[-1 - tau])
        models.append(models[-1] - eta * g)
        update = message(seq=number + 1, base=number - tau, delta=delta)
        engine.commit(engine.offer([Arrival(client="a", message=update)]))

    assert np.allclose(models[-1], engine.state.vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["constant(0.5)", "adaptive(0.5)"])
def test_a_fresh_update_is_left_as_it_is(new_engine: NewEngine, message: Message, text: str) -> None:
    """To the last bit."""
    found = []
    for compensation in ("none", text):
        engine = new_engine(buffer_size=2, compensation=compensation)
        for number, delta in enumerate(vectors(6, seed=2)):
            update = message(seq=number + 1, base=engine.state.version, delta=delta)
            engine.commit(engine.offer([Arrival(client="a", message=update)]))
        found.append(engine.state.vector.tobytes())

    assert found[0] == found[1]


@pytest.mark.parametrize("text", ["constant(0.5)", "adaptive(0.5, 0.75)"])
def test_sparse_stays_sparse_and_comes_to_the_same(text: str) -> None:
    """A coordinate that was not sent is a zero, whose compensation is zero."""
    chosen = parse_compensation(text)
    assert chosen is not None
    values = np.array([0, 2, 0, 0, -1, 0, 3, 4], np.float32)
    w, b = (row[:8].astype(np.float32) for row in vectors(2, seed=3))
    sparse = DecodedVector(
        trainable=SparseVector(length=6, indices=np.array([1, 4], np.int32), values=values[[1, 4]]),
        buffers=values[6:],
    )
    dense = DecodedVector(
        trainable=SparseVector(length=6, indices=None, values=values[:6]), buffers=values[6:]
    )
    found = []
    for delta in (sparse, dense):
        squares = np.full(8 if chosen.is_adaptive else 0, 0.5, np.float32)
        result = compensate(chosen, delta, w, b, squares)
        found.append((result.to_dense().tolist(), squares.tolist()))
        assert delta.nbytes == result.nbytes

    assert found[0] == found[1]
    assert found[0][0] != values.tolist()


def test_none_is_none() -> None:
    """And nothing is kept for it."""
    assert parse_compensation("none") is None
    with pytest.raises(SettingError, match="lambda must be a number, at least 0"):
        parse_compensation("constant(-1)")
