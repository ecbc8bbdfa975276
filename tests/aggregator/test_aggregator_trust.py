"""Trust: the checks against a reference by their formulas, and the guard that keeps the reference."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.consensus import Consensus
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.guard import Guard
from fedmq.aggregator.trust import Trust, TrustSettings, blend, check_agreement, check_reference, make_trust
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector
from fedmq.errors import LocalError, SettingError
from fedmq.types import GlobalModel, ParamVector, Rejection

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
DATA = Path("trusted.npz")


def dense(*values: float) -> DecodedVector:
    """A decoded update without buffers."""
    trainable = SparseVector(length=len(values), indices=None, values=np.array(values, np.float32))
    return DecodedVector(trainable=trainable, buffers=np.zeros(0, np.float32))


def at_angle(cosine: float, length: float = 1.0) -> DecodedVector:
    """An update with a given cosine to (1, 0)."""
    return dense(length * cosine, length * math.sqrt(1 - cosine * cosine))


AXIS = np.array([1, 0], np.float32)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_zeno_asks_for_a_cosine_of_rho_over_gamma_minus_epsilon(length: float) -> None:
    """Whatever the lengths: candidates are brought to the length of the server's own, as in the paper."""
    zeno = make_trust(TrustSettings(rule="zeno(0.02, 0.1, 0.1)", data=DATA))
    assert zeno is not None
    for reference in (AXIS, 100 * AXIS):
        assert check_reference(zeno, at_angle(0.11, length), reference) is None
        refusal = check_reference(zeno, at_angle(0.09, length), reference)

        assert refusal is not None
        assert Rejection.SUSPICIOUS is refusal.reason
        assert "cosine with the server's own is 0.09, at least 0.10" in refusal.detail


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
    st.floats(0.1, 3),
)
@settings(max_examples=100)
def test_aflguard_is_its_formula_for_updates_that_are_not_longer(
    update: list[float], own: list[float], radius: float
) -> None:
    """||u - v|| <= lambda ||v||; a longer one is taken at the length of the server's own."""
    u, v = np.array(update), np.array(own)
    trust = Trust("aflguard", (radius,))
    if not (np.linalg.norm(u) > 1e-3 and np.linalg.norm(v) > 1e-3):
        return
    u *= min(1.0, np.linalg.norm(v) / np.linalg.norm(u))
    distance = np.linalg.norm(u - v) - radius * np.linalg.norm(v)
    if abs(distance) < 1e-4:
        return

    refusal = check_reference(trust, dense(*update), np.array(own, np.float32))

    assert (distance > 0) == (refusal is not None)


@pytest.mark.parametrize("rule", ["zeno", "aflguard"])
def test_what_was_not_sent_is_not_compared(rule: str) -> None:
    """Half a percent of the coordinates with the right signs is as good as all of them."""
    trust = make_trust(TrustSettings(rule=rule, data=DATA))
    assert trust is not None
    reference = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    indices = np.array([3, 77, 500, 501, 999], np.int32)
    for sign in (1, -1):
        values = np.float32(sign) * np.sign(reference[indices])
        update = DecodedVector(
            trainable=SparseVector(length=1000, indices=indices, values=values),
            buffers=np.zeros(0, np.float32),
        )

        assert (check_reference(trust, update, reference) is None) == (sign == 1)


@pytest.mark.parametrize("rule", ["zeno", "aflguard"])
def test_where_nothing_can_be_compared_nothing_is_refused(rule: str) -> None:
    """An update of zeros, or where the server learned nothing."""
    trust = make_trust(TrustSettings(rule=rule, data=DATA))
    assert trust is not None

    assert check_reference(trust, dense(0, 0), AXIS) is None
    assert check_reference(trust, dense(0, -5), 0 * AXIS) is None


def test_agreement_waits_until_it_has_heard_enough() -> None:
    """Before n votes it refuses nothing, then what is below a."""
    trust, consensus = Trust("agreement", (0.5, 0.9, 2.0)), Consensus(memory=0.9)
    consensus.note(dense(1, 0))

    assert check_agreement(trust, dense(-1, 0), consensus) is None

    consensus.note(dense(1, 0))
    refusal = check_agreement(trust, dense(-1, 0), consensus)

    assert refusal is not None
    assert "its cosine with the others' updates is -1.00, at least 0.50 is allowed" == refusal.detail
    assert check_agreement(trust, at_angle(0.51), consensus) is None


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (TrustSettings(rule="zeno"), "trust.data"),
        (TrustSettings(rule="aflguard(2)"), "trust.data"),
        (TrustSettings(rule="krum(1)"), "one of none, agreement"),
        (TrustSettings(rule="agreement(-2)"), "a must be a number, at least -1"),
        (TrustSettings(rule="zeno(1, 1, 0)", data=DATA), "gamma must be"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(told: TrustSettings, what: str) -> None:
    """Before anything is judged."""
    with pytest.raises(SettingError, match=what.replace("(", r"\(")):
        make_trust(told)


def test_the_servers_updates_are_averaged_by_direction() -> None:
    """0.8 of the old direction, 0.2 of the new one, at the new length."""
    found = blend(np.array([10, 0], np.float32), np.array([0, 2], np.float32))

    assert 2.0 == pytest.approx(float(np.linalg.norm(found)))
    assert 0.25 == pytest.approx(float(found[1] / found[0]))
    assert AXIS.tolist() == blend(AXIS, 0 * AXIS).tolist() == blend(0 * AXIS, AXIS).tolist()


class FakeTutor:
    """Learns what it is told to, when it is told to; keeps a list of the models that it was given."""

    def __init__(self, update: ParamVector) -> None:
        self.update, self.versions = update, list[int]()
        self.is_ready, self.fails = True, False

    def begin(self, model: GlobalModel) -> None:
        """Note the version."""
        self.versions.append(model.version)

    def take(self, *, wait: bool = False) -> ParamVector | None:
        """What was set, when it is time."""
        if self.fails:
            raise LocalError("no data")
        return self.update if self.is_ready or wait else None


def send(engine: Engine, message: Message, seq: int, delta: np.ndarray) -> Rejection | None:
    """One update, judged and committed."""
    data = message("a", seq, base=engine.state.version, delta=delta)
    decision = engine.offer([Arrival(client="a", message=data)])
    engine.commit(decision)
    refusal = decision.records[0].refusal
    return refusal.reason if refusal else None


def test_the_guard_judges_from_the_first_update_on(new_engine: NewEngine, message: Message) -> None:
    """And a refreshed reference takes over when it is finished, not when it is begun."""
    pattern = np.linspace(-1, 1, 22, dtype=np.float32)
    engine, tutor = new_engine(buffer_size=1), FakeTutor(pattern)
    guard = Guard(TrustSettings(rule="zeno", data=DATA, every=2), engine, tutor)

    assert Rejection.SUSPICIOUS == send(engine, message, 1, -pattern)
    assert send(engine, message, 2, pattern) is None
    guard.refresh()
    assert [0] == tutor.versions  # one version is too few
    assert send(engine, message, 3, pattern) is None
    tutor.is_ready = False
    guard.refresh()
    guard.refresh()
    assert [0, 2] == tutor.versions  # begun once, not finished
    tutor.update = 1 - pattern
    assert send(engine, message, 4, pattern) is None
    tutor.is_ready = True
    for _ in range(20):
        guard.refresh()

    assert Rejection.SUSPICIOUS == send(engine, message, 5, pattern)


def test_a_tutor_that_fails_later_leaves_the_old_reference(new_engine: NewEngine, message: Message) -> None:
    """The federation goes on; the log says so."""
    pattern = np.linspace(-1, 1, 22, dtype=np.float32)
    engine, tutor = new_engine(buffer_size=1), FakeTutor(pattern)
    guard = Guard(TrustSettings(rule="aflguard", data=DATA, every=1), engine, tutor)
    tutor.fails = True
    guard.refresh()

    assert Rejection.SUSPICIOUS == send(engine, message, 1, -pattern)

    with pytest.raises(LocalError, match="no data"):
        Guard(TrustSettings(rule="aflguard", data=DATA), engine, tutor)


def test_trusted_data_needs_someone_who_learns_from_it(new_engine: NewEngine) -> None:
    """An aggregator without trainers has none."""
    with pytest.raises(SettingError, match="here nobody can learn"):
        Guard(TrustSettings(rule="zeno", data=DATA), new_engine(), None)


def test_without_a_rule_there_is_no_gate(new_engine: NewEngine) -> None:
    """And nothing to refresh."""
    engine = new_engine()
    Guard(TrustSettings(), engine, None).refresh()

    assert engine.gate is None
