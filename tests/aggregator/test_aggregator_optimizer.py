"""The server's optimisers against float64 transcriptions of their papers' algorithms."""

from collections.abc import Callable

import numpy as np
import pytest
from fedmq.aggregator import optimizer
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.optimizer import parse_optimizer
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.errors import SettingError

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
Doubles = NDArray[np.float64]
SIZE = 8


def directions(number: int, seed: int = 1) -> list[Doubles]:
    """Random ones, exact in float32; the third is zero in places, as a sparse one is."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((number, SIZE)).astype(np.float32).astype(np.float64)
    rows[2::3, ::2] = 0
    return list(rows)


def run(text: str, rows: list[Doubles], *, rate: float, momentum: float = 0.0) -> NDArray[np.float32]:
    """What `optimizer.step` makes of directions, from a model of zeros."""
    chosen = parse_optimizer(text)
    moments = optimizer.init(chosen, momentum, SIZE)
    w = np.zeros(SIZE, np.float32)
    for row in rows:
        optimizer.step(chosen, momentum, moments, w, row.astype(np.float32), rate)
    return w


@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_an_adaptive_optimiser_is_algorithm_2_of_its_paper(name: str) -> None:
    """Reddi et al.: m, then v by the name, then x + eta m / (sqrt(v) + tau); v starts at tau squared."""
    beta1, beta2, tau, eta = 0.8, 0.95, 0.01, 0.1
    x, m, v = np.zeros(SIZE), np.zeros(SIZE), np.full(SIZE, tau**2)
    for delta in directions(12):
        m = beta1 * m + (1 - beta1) * delta
        if name == "adagrad":
            v = v + delta**2
        elif name == "yogi":
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + eta * m / (np.sqrt(v) + tau)
    numbers = f"{beta1}, {tau}" if name == "adagrad" else f"{beta1}, {beta2}, {tau}"

    assert run(f"{name}({numbers})", directions(12), rate=eta) == pytest.approx(x, rel=1e-4, abs=1e-5)


def test_amsgrad_is_algorithm_1_of_fadas() -> None:
    """Its v never forgets a large direction."""
    beta1, beta2, epsilon, eta = 0.9, 0.9, 1e-3, 0.05
    x, m, v, peak = (np.zeros(SIZE) for _ in range(4))
    rows = [5 * directions(1)[0], *directions(11, seed=2)]
    for delta in rows:
        m = beta1 * m + (1 - beta1) * delta
        v = beta2 * v + (1 - beta2) * delta**2
        peak = np.maximum(peak, v)
        x = x + eta * m / (np.sqrt(peak) + epsilon)

    assert run(f"amsgrad({beta1}, {beta2}, {epsilon})", rows, rate=eta) == pytest.approx(
        x, rel=1e-4, abs=1e-6
    )


def test_sgd_with_momentum_is_fedavgm() -> None:
    """V <- beta v + D, w <- w + eta v."""
    x, v = np.zeros(SIZE), np.zeros(SIZE)
    for delta in directions(9):
        v = 0.7 * v + delta
        x = x + 0.3 * v

    assert run("sgd", directions(9), rate=0.3, momentum=0.7) == pytest.approx(x, rel=1e-5, abs=1e-5)


@given(st.floats(0.01, 1), st.floats(0, 0.99))
def test_momentum_is_linear_in_the_weights(share: float, momentum: float) -> None:
    """Contributions that weigh a fraction move the model by that fraction: the decay is of versions, not of weights."""
    full = run("sgd", directions(9), rate=0.3, momentum=momentum)
    part = run("sgd", [share * row for row in directions(9)], rate=0.3, momentum=momentum)

    assert part == pytest.approx(share * full, rel=1e-4, abs=1e-5)


def test_momentum_does_not_depend_on_how_many_contributions_make_a_direction(
    new_engine: NewEngine, message: Message
) -> None:
    """Six equal contributions of half weight a version are worth two of them: D is divided by their number."""
    vectors = []
    for size in (2, 6):
        engine = new_engine(buffer_size=size, momentum=0.9, staleness="polynomial(1)")
        seq = 0
        for version in range(4):
            for _ in range(size):
                seq += 1
                base = max(version - 1, 0)
                arrival = Arrival(client="a", message=message(seq=seq, base=base, delta=0.5))
                engine.commit(engine.offer([arrival]))
        vectors.append(engine.state.vector.tolist())

    assert vectors[0] == pytest.approx(vectors[1], rel=1e-6)
    # 0.5, then 0.25 three times with the momentum of all before
    m = [0.5, 0.7, 0.88, 1.042]
    assert vectors[0] == pytest.approx([sum(m)] * 22, rel=1e-6)


@pytest.mark.parametrize("text", ["adagrad", "adam", "yogi", "amsgrad"])
def test_the_step_of_an_adaptive_optimiser_does_not_depend_on_the_size_of_the_directions(text: str) -> None:
    """Which is why it wants another rate than sgd."""
    small, large = (run(text, [scale * row for row in directions(6)], rate=0.01) for scale in (1e3, 1e5))

    assert small == pytest.approx(large, rel=1e-3, abs=1e-5)
    assert np.abs(small).max() < 6 * 0.01 * 1.5


def test_without_momentum_sgd_remembers_nothing() -> None:
    """An empty part of the state costs nothing."""
    moments = optimizer.init(parse_optimizer("sgd"), 0.0, SIZE)

    assert (0, 0, 0) == (moments.first.size, moments.second.size, moments.peak.size)


def test_numbers_that_are_left_out_are_those_of_the_papers() -> None:
    """And any of them may be given from the left on."""
    assert "adam(0.9, 0.99, 0.001)" == str(parse_optimizer("adam"))
    assert "yogi(0.5, 0.99, 0.001)" == str(parse_optimizer(" yogi ( 0.5 )"))
    assert "adagrad(0.9, 0.001)" == str(parse_optimizer("adagrad()"))
    assert "amsgrad(0.9, 0.99, 1e-08)" == str(parse_optimizer("amsgrad"))
    assert "sgd" == str(parse_optimizer("sgd"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lion", "one of sgd, adagrad(beta1=0.9, epsilon=0.001), adam("),
        ("sgd(0.9)", "sgd is meant"),
        ("adam(1)", "beta1 must be a number, at least 0 and at most 0.9999"),
        ("adam(0.9, 0.99, 0)", "epsilon must be a number, at least 1e-12"),
        ("adam(0.9, 0.99, 0.1, 1)", "adam(beta1=0.9, beta2=0.99, epsilon=0.001) is meant"),
        ("adam(nan)", "beta1 must be"),
        ("adam(a)", "is meant"),
    ],
)
def test_what_is_no_optimiser_is_refused(text: str, message: str) -> None:
    """With what would do."""
    with pytest.raises(SettingError) as caught:
        parse_optimizer(text)

    assert ("fold.optimizer", text) == (caught.value.name, caught.value.value)
    assert message in str(caught.value)
