"""FedFa's sliding window against a float64 transcription of its formula."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.types import Rejection

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
Doubles = NDArray[np.float64]
SIZE = 22


def vectors(number: int, seed: int) -> Doubles:
    """Deltas that float32 holds exactly."""
    return np.random.default_rng(seed).standard_normal((number, SIZE)).astype(np.float32).astype(np.float64)


def feed(
    engine: Engine, message: Message, delta: Doubles, *, seq: int, behind: int = 0, **how: object
) -> None:
    """One update from the newest version, or from some before."""
    base = max(engine.state.version - behind, 0)
    decision = engine.offer([Arrival(client="a", message=message(seq=seq, base=base, delta=delta, **how))])
    assert [None] == [record.refusal for record in decision.records]
    engine.commit(decision)


@pytest.mark.parametrize("staleness", ["constant", "polynomial(0.5)"])
def test_fedfa_is_a_step_along_the_window_at_every_arrival(
    new_engine: NewEngine, message: Message, staleness: str
) -> None:
    """W <- w + (eta / K) sum of the last K of s(tau_i) Delta_i, with s of the moment at which each came."""
    k, eta, random = 4, 0.3, Random(3)
    engine = new_engine(strategy="fedfa", window=k, learning_rate=eta, staleness=staleness)
    w, window = np.zeros(SIZE), []
    for number, delta in enumerate(vectors(25, seed=1)):
        tau = min(random.randrange(5), number)
        s = (1 + tau) ** -0.5 if staleness.startswith("poly") else 1.0
        window = [*window, s * delta][-k:]
        w = w + eta / k * np.sum(window, axis=0)
        feed(engine, message, delta, seq=number + 1, behind=tau)

    assert (25, 0) == (engine.state.version, engine.state.filled)
    assert np.allclose(w, engine.state.vector, rtol=1e-5, atol=1e-5)


def test_a_window_may_weigh_by_examples(new_engine: NewEngine, message: Message) -> None:
    """Sum n_i Delta_i / sum n_i over the window."""
    engine = new_engine(strategy="fedfa", window=2, weighting="examples", learning_rate=1.0)
    one, two, three = vectors(3, seed=2)
    for seq, (delta, examples) in enumerate([(one, 10), (two, 30), (three, 50)], start=1):
        feed(engine, message, delta, seq=seq, examples=examples)
    expected = one / 2 + (10 * one + 30 * two) / 40 + (30 * two + 50 * three) / 80

    assert np.allclose(expected, engine.state.vector, rtol=1e-5, atol=1e-5)


@given(st.permutations(range(3)), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_full_window_of_fresh_updates_is_their_plain_average_in_any_order(
    new_engine: NewEngine, message: Message, order: list[int], seed: int
) -> None:
    """The step that the last of them makes."""
    deltas = vectors(3, seed)
    engine = new_engine(strategy="fedfa", window=3, learning_rate=1.0)
    before = engine.state.vector.copy()
    for seq, number in enumerate(order, start=1):
        before = engine.state.vector.copy()
        feed(engine, message, deltas[number], seq=seq)

    assert np.allclose(before + deltas.mean(axis=0), engine.state.vector, rtol=1e-5, atol=1e-5)


def test_what_leaves_the_window_leaves_the_sum_to_the_last_bit(
    new_engine: NewEngine, message: Message
) -> None:
    """A thousand large and small ones later."""
    engine = new_engine(strategy="fedfa", window=2, max_staleness=10**6)
    for seq, delta in enumerate(vectors(300, seed=4), start=1):
        feed(engine, message, (1000.0 if seq % 3 else 0.001) * delta / 10, seq=seq, floor=seq)
    for seq in range(301, 303):
        feed(engine, message, np.full(SIZE, 0.25), seq=seq, floor=seq)

    assert [0.5] * SIZE == engine.state.total.tolist()


def test_an_update_that_is_larger_than_its_share_of_the_window_is_refused(
    new_engine: NewEngine, message: Message
) -> None:
    """So the window stays within its bytes; the receipt says which settings to change."""
    engine = new_engine(strategy="fedfa", window=4, kept_bytes=4096, max_update_bytes=100_000)
    arrival = Arrival(client="a", message=message(payload=bytes(1500)))
    decision = engine.offer([arrival])
    (record,) = decision.records

    assert record.refusal is not None
    assert Rejection.TOO_LARGE is record.refusal.reason
    assert "at most 1024 are kept for each contribution (fold.kept_bytes)" in record.refusal.detail
