"""Folding against direct float64 transcriptions of the papers' formulas."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pytest
from fedmq.aggregator import strategy
from fedmq.aggregator.strategy import FoldSettings, FoldState, Rule, make_rule
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector
from fedmq.errors import SettingError

SIZE = 8
Doubles: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contribution:
    delta: Doubles
    examples: int
    staleness: int


def start(seed: int = 0) -> Doubles:
    """Some model, exact in float32."""
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32).astype(np.float64)


def contributions(number: int, *, seed: int = 1, most_stale: int = 0) -> list[Contribution]:
    """Random deltas of some size, exact in float32."""
    rng = np.random.default_rng(seed)
    return [
        Contribution(
            delta=rng.standard_normal(SIZE).astype(np.float32).astype(np.float64),
            examples=int(rng.integers(1, 1000)),
            staleness=int(rng.integers(0, most_stale + 1)),
        )
        for _ in range(number)
    ]


def dense(delta: Doubles) -> DecodedVector:
    """A decoded update: six trainable scalars and two of buffers."""
    values = delta.astype(np.float32)
    return DecodedVector(
        trainable=SparseVector(length=6, indices=None, values=values[:6]), buffers=values[6:]
    )


def fold(rule: Rule, w: Doubles, updates: list[Contribution]) -> FoldState:
    """What `strategy.step` makes of contributions."""
    state = strategy.init(rule, w.astype(np.float32))
    for number, one in enumerate(updates):
        state = strategy.step(
            rule,
            state,
            dense(one.delta),
            client=f"c{number}",
            num_examples=one.examples,
            staleness=one.staleness,
        )
    return state


def close(expected: Doubles, state: FoldState) -> bool:
    """Whether a float32 state is the float64 reference but for rounding."""
    return bool(np.allclose(expected, state.vector, rtol=1e-5, atol=1e-5))


def test_fedbuff_is_algorithm_1_of_its_paper() -> None:
    """After K updates: D = (1/K) sum s(tau_i) Delta_i, s = 1/sqrt(1 + tau), w <- w + eta_g D."""
    k, eta = 4, 0.7
    updates = contributions(3 * k, most_stale=20)
    w = start()
    for round_ in range(3):
        buffer = updates[round_ * k : (round_ + 1) * k]
        w = w + eta * sum(one.delta / np.sqrt(1 + one.staleness) for one in buffer) / k
    state = fold(make_rule(FoldSettings(buffer_size=k, learning_rate=eta)), start(), updates)

    assert close(w, state)
    assert (3, 0, 0.0) == (state.version, state.filled, state.weight)


def test_fedasync_is_algorithm_1_of_its_paper_on_deltas() -> None:
    """With alpha_t = alpha s(tau): x_t = (1 - alpha_t) x_(t-1) + alpha_t x_new, where x_new is x_(t-1) + Delta.

    For a fresh update x_(t-1) is its base; for a late one the delta is taken to the newest model.
    """
    alpha = 0.6
    updates = contributions(10, most_stale=9)
    x = start()
    for one in updates:
        alpha_t = alpha * (1 + one.staleness) ** -0.5
        x_new = x + one.delta
        x = (1 - alpha_t) * x + alpha_t * x_new
    state = fold(make_rule(FoldSettings(strategy="fedasync")), start(), updates)

    assert close(x, state)
    assert 10 == state.version


def test_fedavg_is_algorithm_1_of_its_paper() -> None:
    """w_(t+1) = sum (n_k / n) w_k over the clients' models, all trained from w_t."""
    updates = contributions(5)
    w = start()
    n = sum(one.examples for one in updates)
    expected = sum((one.examples / n * (w + one.delta) for one in updates), np.zeros(SIZE))
    state = fold(make_rule(FoldSettings(strategy="fedavg", buffer_size=5)), w, updates)

    assert close(expected, state)
    assert 1 == state.version


def test_fedasync_with_a_hinge_discounts_only_behind_the_threshold() -> None:
    """FedAsync's other weight: 1 up to b, then 1 / (a (tau - b) + 1)."""
    updates = contributions(6, most_stale=9)
    x = start()
    for one in updates:
        s = 1 if one.staleness <= 4 else 1 / (10 * (one.staleness - 4) + 1)
        x = x + 0.9 * s * one.delta
    settings = FoldSettings(strategy="fedasync", staleness="hinge(10, 4)", learning_rate=0.9)

    assert close(x, fold(make_rule(settings), start(), updates))


def test_server_momentum_is_that_of_fedavgm() -> None:
    """V <- beta v + D, w <- w + eta v (arXiv 1909.06335, section 4.3), over four versions."""
    k, beta, eta = 2, 0.9, 0.5
    updates = contributions(4 * k)
    w, v = start(), np.zeros(SIZE)
    for round_ in range(4):
        direction = sum(one.delta for one in updates[round_ * k : (round_ + 1) * k]) / k
        v = beta * v + direction
        w = w + eta * v
    rule = make_rule(FoldSettings(buffer_size=k, momentum=beta, learning_rate=eta))

    assert close(w, fold(rule, start(), updates))


def test_fedbuff_may_weigh_by_examples() -> None:
    """D = sum n_i s(tau_i) Delta_i / sum n_i: the discount shrinks the step, it does not move weight to others."""
    updates = contributions(3, most_stale=8)
    n = sum(one.examples for one in updates)
    weighted = sum(one.examples * (1 + one.staleness) ** -0.5 * one.delta for one in updates)
    rule = make_rule(FoldSettings(buffer_size=3, weighting="examples"))

    assert close(start() + weighted / n, fold(rule, start(), updates))


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_fresh_updates_of_equal_weight_are_plainly_averaged(k: int, seed: int) -> None:
    """Whatever the weight function: s(0) is 1."""
    updates = contributions(k, seed=seed)
    expected = start() + np.mean([one.delta for one in updates], axis=0)
    for staleness in ("constant", "polynomial(0.5)", "hinge(10, 4)", "exponential(1)"):
        rule = make_rule(FoldSettings(buffer_size=k, staleness=staleness))

        assert close(expected, fold(rule, start(), updates))


def test_nothing_moves_before_the_buffer_is_full() -> None:
    """The model and its version stay; the buffer remembers."""
    rule = make_rule(FoldSettings(buffer_size=3))
    state = fold(rule, start(), contributions(2))

    assert start().astype(np.float32).tolist() == state.vector.tolist()
    assert (0, 2, 2.0) == (state.version, state.filled, state.weight)


def test_a_buffer_of_no_examples_at_all_makes_a_version_without_a_step() -> None:
    """Rather than a division by zero."""
    updates = [replace(one, examples=0) for one in contributions(2)]
    state = fold(make_rule(FoldSettings(buffer_size=2, weighting="examples")), start(), updates)

    assert start().astype(np.float32).tolist() == state.vector.tolist()
    assert 1 == state.version


def test_a_normalised_weight_is_1_at_the_running_mean() -> None:
    """With all updates equally late, the mean tends to that lateness and the step to its full size."""
    late = [replace(one, staleness=8) for one in contributions(500)]
    rule = make_rule(FoldSettings(buffer_size=1, normalise_staleness=True, learning_rate=1.0))
    before = fold(rule, start(), late[:-1])
    mean = before.mean_staleness
    vector = before.vector.astype(np.float64)
    after = strategy.step(rule, before, dense(late[-1].delta), client="c", num_examples=1, staleness=8)
    mean += 0.02 * (8 - mean)

    assert mean == after.mean_staleness == pytest.approx(8, abs=1e-3)
    assert close(vector + (1 + 8) ** -0.5 / (1 + mean) ** -0.5 * late[-1].delta, after)
    assert close(vector + late[-1].delta, after)


def test_a_mean_from_before_the_limit_was_lowered_does_no_harm() -> None:
    """S of the mean may have come to 0; the divisor is s at the limit at least."""
    rule = make_rule(FoldSettings(staleness="exponential(1)", normalise_staleness=True, max_staleness=2))
    state = strategy.init(rule, start().astype(np.float32))
    state.mean_staleness = 2000.0
    state = strategy.step(rule, state, dense(np.ones(SIZE)), client="c", num_examples=1, staleness=0)

    assert state.buffer.tolist() == pytest.approx([np.exp(2)] * SIZE, rel=1e-6)


def test_sparse_and_dense_contributions_are_the_same() -> None:
    """A coordinate that was not sent counts as zero."""
    rule = make_rule(FoldSettings(buffer_size=1))
    values = np.array([0, 2, 0, 0, -1, 0, 3, 4], np.float32)
    sparse = DecodedVector(
        trainable=SparseVector(length=6, indices=np.array([1, 4], np.int32), values=values[[1, 4]]),
        buffers=values[6:],
    )
    states = [
        strategy.step(rule, strategy.init(rule, np.ones(SIZE, np.float32)), delta, client="c", num_examples=1,
                      staleness=2)
        for delta in (sparse, dense(values.astype(np.float64)))
    ]  # fmt: skip

    assert states[0].vector.tobytes() == states[1].vector.tobytes()


def test_only_the_synchronous_rule_remembers_who_contributed() -> None:
    """Until the version grows."""
    updates = contributions(3)
    synchronous = make_rule(FoldSettings(strategy="fedavg", buffer_size=4))

    assert ["c0", "c1", "c2"] == fold(synchronous, start(), updates).contributors
    assert [] == fold(synchronous, start(), contributions(4)).contributors
    assert [] == fold(make_rule(FoldSettings()), start(), updates).contributors


def test_the_model_given_to_init_is_not_touched() -> None:
    """The state owns its arrays."""
    vector = start().astype(np.float32)
    rule = make_rule(FoldSettings(buffer_size=1))
    state = strategy.init(rule, vector)
    strategy.step(rule, state, dense(np.ones(SIZE)), client="c", num_examples=1, staleness=0)

    assert start().tolist() == vector.astype(np.float64).tolist()


def test_a_strategys_name_fills_the_dials_that_are_open() -> None:
    """FedAsync's alpha, FedBuff's root of the staleness, and a FedAvg that waits."""
    fedbuff = make_rule(FoldSettings())
    fedasync = make_rule(FoldSettings(strategy="fedasync"))
    fedavg = make_rule(FoldSettings(strategy="fedavg", buffer_size=7))

    assert (5, "polynomial(0.5)", False, 1.0, 100, False) == dials(fedbuff)
    assert (1, "polynomial(0.5)", False, 0.6, 100, False) == dials(fedasync)
    assert (7, "constant", True, 1.0, 0, True) == dials(fedavg)


def dials(rule: Rule) -> tuple[object, ...]:
    """The dials that a name fills."""
    return (
        rule.buffer_size,
        str(rule.staleness),
        rule.by_examples,
        rule.learning_rate,
        rule.max_staleness,
        rule.synchronous,
    )


def test_a_dial_that_is_given_stays() -> None:
    """Also when it is 0, which is not the same as open."""
    rule = make_rule(
        FoldSettings(
            strategy="fedavg",
            buffer_size=2,
            staleness="hinge(1, 2)",
            weighting="uniform",
            learning_rate=0.0,
            momentum=0.5,
            max_staleness=9,
        )
    )

    assert (2, "hinge(1.0, 2.0)", False, 0.0, 9, True) == dials(rule)
    assert 0.5 == rule.momentum


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        (FoldSettings(strategy="fedavg"), "fold.buffer_size", "say how many"),
        (FoldSettings(strategy="fedasync", buffer_size=2), "fold.buffer_size", "1 is allowed"),
        (FoldSettings(staleness="cubic(2)"), "fold.staleness", "polynomial"),
        (
            FoldSettings(staleness="exponential(1)", normalise_staleness=True),
            "fold.normalise_staleness",
            "exponential(1.0) falls to 3.72008e-44 at fold.max_staleness = 100",
        ),
    ],
)
def test_dials_that_contradict_each_other_are_refused(
    settings: FoldSettings, name: str, message: str
) -> None:
    """With the setting to change."""
    with pytest.raises(SettingError) as caught:
        make_rule(settings)

    assert name == caught.value.name
    assert message in str(caught.value)


def test_a_running_mean_of_the_models_is_served_and_the_model_steps_as_without() -> None:
    """E <- a e + (1 - a) w at each version, from the first model on."""
    updates, a = contributions(6, most_stale=3), 0.8
    rule = make_rule(FoldSettings(buffer_size=1, average=a))
    plain = make_rule(FoldSettings(buffer_size=1))
    e = start()
    for number in range(1, 7):
        state = fold(rule, start(), updates[:number])
        w = fold(plain, start(), updates[:number]).vector
        e = a * e + (1 - a) * w.astype(np.float64)

        assert w.tobytes() == state.vector.tobytes()
        assert np.allclose(e, state.served, rtol=1e-5, atol=1e-5)
    assert plain.average == fold(plain, start(), updates).average.size == 0


def test_a_schedule_and_a_warm_up_shrink_the_step_of_each_version() -> None:
    """By the version before the step."""
    updates = contributions(5)
    rule = make_rule(
        FoldSettings(buffer_size=1, schedule="step(2, 0.5)", warmup_versions=2, learning_rate=0.6)
    )
    w = start()
    for factor, one in zip((0.5, 1.0, 0.5, 0.5, 0.25), updates, strict=True):
        w = w + 0.6 * factor * one.delta

    assert close(w, fold(rule, start(), updates))


def test_beyond_the_delay_limit_the_step_falls_with_the_largest_delay() -> None:
    """FADAS: eta_t = eta if tau_max <= tau_c else min(eta, 1 / tau_max), here for eta = 1, of each buffer."""
    k, tau_c = 3, 2
    updates = contributions(5 * k, most_stale=5)
    rule = make_rule(FoldSettings(buffer_size=k, staleness="constant", delay_limit=tau_c))
    w, seen = start(), set()
    for first in range(0, 5 * k, k):
        buffer = updates[first : first + k]
        tau_max = max(one.staleness for one in buffer)
        eta = 1.0 if tau_max <= tau_c else min(1.0, 1 / tau_max)
        w = w + eta * sum(one.delta for one in buffer) / k
        seen.add(eta)

    assert close(w, fold(rule, start(), updates))
    assert 1 < len(seen)


def test_late_updates_may_be_discounted_instead() -> None:
    """Koloskova et al.: beyond a limit the step falls with 1 / tau; up to it nothing changes, and there is no jump."""
    rule = make_rule(FoldSettings(buffer_size=1, late="discount", max_staleness=4, staleness="constant"))
    ones = Contribution(delta=np.ones(SIZE), examples=1, staleness=0)
    found = {
        tau: float(fold(rule, np.zeros(SIZE), [replace(ones, staleness=tau)]).vector[0])
        for tau in (0, 4, 5, 8, 400)
    }

    assert pytest.approx({0: 1.0, 4: 1.0, 5: 0.8, 8: 0.5, 400: 0.01}) == found
    strict = make_rule(FoldSettings(buffer_size=1, late="discount", max_staleness=0, staleness="constant"))
    assert pytest.approx(0.5) == fold(strict, np.zeros(SIZE), [replace(ones, staleness=2)]).vector[0]


LINEAR: list[dict[str, object]] = [
    {},
    {"optimizer": "adam"},
    {"optimizer": "yogi", "momentum": 0.0},
    {"average": 0.9, "momentum": 0.9},
    {"strategy": "fadas"},
    {"weighting": "examples", "staleness": "hinge(2, 3)"},
    {"mixing": True},
]


@pytest.mark.parametrize("dials", LINEAR, ids=str)
@given(st.permutations(range(5)), st.integers(0, 2**32 - 1))
def test_within_a_version_the_order_does_not_matter(
    dials: dict[str, object], order: list[int], seed: int
) -> None:
    """Up to the rounding of float32: a buffer is a sum."""
    updates = contributions(5, seed=seed, most_stale=6)
    rule = make_rule(FoldSettings(**(dials | {"buffer_size": 5})))  # type: ignore[arg-type]
    one, other = fold(rule, start(), updates), fold(rule, start(), [updates[place] for place in order])

    assert np.allclose(one.vector, other.vector, rtol=1e-4, atol=1e-5)
    assert 1 == one.version == other.version


@given(st.integers(0, 2**32 - 1), st.sampled_from(["fedbuff", "fedavg"]))
def test_n_examples_weigh_as_much_as_n_contributions_of_one(seed: int, name: str) -> None:
    """Of the same delta."""
    updates = contributions(3, seed=seed)
    weighted = [replace(one, examples=place + 1) for place, one in enumerate(updates)]
    repeated = [replace(one, examples=1) for place, one in enumerate(updates) for _ in range(place + 1)]
    one = fold(make_rule(FoldSettings(strategy=name, buffer_size=3, weighting="examples")), start(), weighted)
    other = fold(
        make_rule(FoldSettings(strategy=name, buffer_size=6, weighting="examples")), start(), repeated
    )

    assert np.allclose(one.vector, other.vector, rtol=1e-4, atol=1e-5)


def test_a_changed_rule_goes_on_from_the_same_model() -> None:
    """What it has a use for stays; a buffer that it cannot read is stepped with first, and nothing is lost."""
    updates = contributions(2)
    fedbuff = make_rule(FoldSettings(buffer_size=4, momentum=0.5))
    ca2fl = make_rule(FoldSettings(strategy="ca2fl", optimizer="adam", average=0.5))
    before = fold(fedbuff, start(), updates)
    vector = before.vector.astype(np.float64)
    state = strategy.adapt(fedbuff, ca2fl, before)

    assert close(vector + (updates[0].delta + updates[1].delta) / 2, state)
    assert (1, 0) == (state.version, state.filled)
    assert state.vector.tolist() == state.average.tolist()
    assert [SIZE] * 4 == [state.momentum.size, state.moments.second.size, state.total.size, state.mean.size]
    assert not state.momentum.any()


@pytest.mark.parametrize(
    "dials", [{"learning_rate": 0.1}, {"buffer_size": 9}, {"momentum": 0.7}, {"average": 0.5}]
)
def test_a_buffer_that_the_new_rule_can_read_stays(dials: dict[str, object]) -> None:
    """As does the momentum of the same optimiser."""
    old = make_rule(FoldSettings(buffer_size=4, momentum=0.5))
    new = make_rule(FoldSettings(**({"buffer_size": 4, "momentum": 0.5} | dials)))  # type: ignore[arg-type]
    before = fold(old, start(), contributions(6))
    expected = before.buffer.tolist(), before.momentum.tolist(), before.version, before.filled
    state = strategy.adapt(old, new, before)

    assert expected == (state.buffer.tolist(), state.momentum.tolist(), state.version, state.filled)
    assert 2 == state.filled


def test_a_rule_that_keeps_updates_is_told_how_to_decode_them() -> None:
    """Or says so."""
    rule = make_rule(FoldSettings(strategy="fedfa", window=1))
    state = fold(rule, start(), contributions(1))
    with pytest.raises(ValueError, match="an update of c0 is to be decoded, and nobody said how"):
        strategy.step(rule, state, dense(np.ones(SIZE)), client="b", num_examples=1, staleness=0)
