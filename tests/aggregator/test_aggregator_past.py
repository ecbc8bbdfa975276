"""FedAsync's mixing form against a float64 transcription of its paper's algorithm, and the models it needs."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.past import base
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
Doubles = NDArray[np.float64]
SIZE = 22


def vectors(number: int, seed: int) -> Doubles:
    """Deltas that float32 holds exactly."""
    return np.random.default_rng(seed).standard_normal((number, SIZE)).astype(np.float32).astype(np.float64)


def feed(engine: Engine, message: Message, delta: Doubles, *, seq: int, behind: int = 0) -> None:
    """One update from the newest version, or from some before."""
    arrival = Arrival(client="a", message=message(seq=seq, base=engine.state.version - behind, delta=delta))
    engine.commit(engine.offer([arrival]))


def test_mixing_is_algorithm_1_of_fedasync(new_engine: NewEngine, message: Message) -> None:
    """X_t = (1 - alpha_t) x_(t-1) + alpha_t x_new, where x_new is what the client had: its own base plus its delta."""
    alpha, random = 0.6, Random(1)
    engine = new_engine(strategy="fedasync", mixing=True, max_staleness=4)
    models = [np.zeros(SIZE)]
    for number, delta in enumerate(vectors(30, seed=1)):
        tau = min(random.randrange(5), number)
        alpha_t = alpha * (1 + tau) ** -0.5
        x_new = models[-1 - tau] + delta
        models.append((1 - alpha_t) * models[-1] + alpha_t * x_new)
        feed(engine, message, delta, seq=number + 1, behind=tau)

    assert 30 == engine.state.version
    assert np.allclose(models[-1], engine.state.vector, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_for_fresh_updates_both_forms_are_the_same(
    new_engine: NewEngine, message: Message, seed: int, size: int
) -> None:
    """To the last bit: there is no drift."""
    found = []
    for mixing in (False, True):
        engine = new_engine(buffer_size=size, mixing=mixing, learning_rate=0.7)
        for number, delta in enumerate(vectors(8, seed)):
            feed(engine, message, delta, seq=number + 1)
        found.append(engine.state.vector.tobytes())

    assert found[0] == found[1]


def test_a_buffer_of_whole_models_is_their_mean(new_engine: NewEngine, message: Message) -> None:
    """With the step 1 and no discount the model becomes what the clients have, on average, wherever they began."""
    engine = new_engine(buffer_size=1, mixing=True, staleness="constant", learning_rate=1.0)
    one, two, three = vectors(3, seed=3)
    feed(engine, message, one, seq=1)
    engine.rule = new_engine(buffer_size=2, mixing=True, staleness="constant", learning_rate=1.0).rule
    feed(engine, message, two, seq=2, behind=1)
    feed(engine, message, three, seq=3)

    assert np.allclose(((0 + two) + (one + three)) / 2, engine.state.vector, rtol=1e-5, atol=1e-5)


def test_only_as_many_models_are_kept_as_an_update_may_be_late(
    new_engine: NewEngine, message: Message
) -> None:
    """4 bytes a parameter for each; by default there are 16, of other rules none."""
    engine = new_engine(strategy="fedasync", mixing=True, max_staleness=3)
    plain = new_engine(strategy="fedasync")
    seen = [engine.state.vector.copy()]
    for number, delta in enumerate(vectors(7, seed=4)):
        feed(engine, message, delta, seq=number + 1)
        feed(plain, message, delta, seq=number + 1)
        seen.append(engine.state.vector.copy())

    assert [vector.tolist() for vector in seen[4:7]] == [vector.tolist() for vector in engine.state.past]
    assert [] == plain.state.past
    assert 16 == new_engine(strategy="fedasync", mixing=True).rule.max_staleness


def test_a_base_from_before_the_oldest_model_stands_at_it(new_engine: NewEngine, message: Message) -> None:
    """After a restart with other dials, or where late updates are only discounted."""
    engine = new_engine(strategy="fedasync", mixing=True, max_staleness=2, late="discount")
    for number, delta in enumerate(vectors(5, seed=5)):
        feed(engine, message, delta, seq=number + 1)
    past = engine.state.past

    assert [engine.state.vector is base(engine.state, 0)] == [True]
    assert [past[-1] is base(engine.state, 1), past[-2] is base(engine.state, 2)] == [True, True]
    assert past[0] is base(engine.state, 3) is base(engine.state, 10**9)


def test_with_a_running_mean_the_base_is_what_was_served(new_engine: NewEngine, message: Message) -> None:
    """Clients train from the mean, so the mean is where they began."""
    engine = new_engine(
        strategy="fedasync", mixing=True, average=0.5, staleness="constant", learning_rate=1.0
    )
    one, two = vectors(2, seed=6)
    feed(engine, message, one, seq=1)
    served = engine.model.vector.astype(np.float64)
    feed(engine, message, two, seq=2)

    assert np.allclose(one / 2, served)
    assert np.allclose(served + two, engine.state.vector, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixing", [False, True])
def test_a_late_client_pulls_the_model_back_only_when_it_is_mixed(
    new_engine: NewEngine, message: Message, mixing: bool
) -> None:
    """A client that learned nothing since says nothing by its delta, and all by its model."""
    engine = new_engine(strategy="fedasync", mixing=mixing, staleness="constant", learning_rate=0.5)
    for seq in range(1, 4):
        feed(engine, message, np.ones(SIZE), seq=seq)
    feed(engine, message, np.zeros(SIZE), seq=4, behind=3)

    assert [0.75 if mixing else 1.5] * SIZE == engine.state.vector.tolist()
