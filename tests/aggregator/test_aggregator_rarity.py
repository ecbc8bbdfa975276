"""Rarity: who is heard less often weighs more, within bounds, and the same in every replay."""

import itertools

import numpy as np
import pytest
from fedmq.aggregator import rarity, strategy
from fedmq.aggregator.dials import FoldSettings, make_rule
from fedmq.aggregator.rarity import Heard
from hypothesis import given
from hypothesis import strategies as st

from fedmq.codecs.vector import SparseVector
from fedmq.encoding import DecodedVector
from fedmq.errors import SettingError

CLIENTS = st.lists(st.sampled_from("abcde"), max_size=60)


@given(CLIENTS, st.sampled_from([0.5, 1.0, 2.0]))
def test_the_weight_is_the_gap_over_the_number_of_clients(visits: list[str], power: float) -> None:
    """Reckoned anew from the whole list of visits."""
    heard = Heard()
    for at, client in enumerate(visits):
        before = [index for index in range(at) if visits[index] == client]
        clients = len(set(visits[: at + 1]))
        expected = ((at - before[-1]) / clients) ** power if before else 1.0

        assert min(4.0, max(0.25, expected)) == pytest.approx(heard.weigh(client, power), rel=1e-12)


def test_clients_that_take_turns_weigh_the_same() -> None:
    """From the second turn on, and in the first, too."""
    heard = Heard()

    assert {1.0} == {heard.weigh(client, 0.7) for client in itertools.islice(itertools.cycle("abc"), 12)}


def test_with_rho_1_all_clients_have_the_same_part_over_time() -> None:
    """A client that comes three times as often as the two others, in an even order."""
    heard, parts = Heard(), dict.fromkeys("abc", 0.0)
    for client in "aabac" * 40:
        parts[client] += heard.weigh(client, 1.0)

    assert parts["b"] == pytest.approx(parts["c"], rel=0.02)
    assert parts["a"] == pytest.approx(parts["b"], rel=0.1)


def test_clients_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was silent for longest counts as new."""
    monkeypatch.setattr(rarity, "MAX_CLIENTS", 3)
    heard = Heard()
    for client in "abcabd":
        heard.weigh(client, 1.0)

    assert ["a", "b", "d"] == list(heard.last)
    assert 1.0 == heard.weigh("c", 1.0)


def test_clients_that_went_for_ever_are_not_counted_for_ever() -> None:
    """Of a hundred that were heard once, and two that go on taking turns, two are left; one that returns is new."""
    heard = Heard()
    for number in range(100):
        heard.weigh(f"gone {number}", 1.0)
    weights = [heard.weigh(client, 1.0) for client in "ab" * 1000]

    assert (0.25, 1.0) == (weights[10], weights[-1])
    assert ["a", "b"] == list(heard.last)
    assert 1.0 == heard.weigh("gone 7", 1.0)


def test_the_weights_are_those_of_the_mean() -> None:
    """D = Σ r_i s(τ_i) Δ_i / Σ r_i over the buffer: a, whose gap is 1 of two clients, weighs half; b three halves."""
    rule = make_rule(FoldSettings(buffer_size=2, rarity=1.0, staleness="constant"))
    deltas = {"a": 1.0, "b": -1.0}

    def update(client: str) -> DecodedVector:
        values = np.array([deltas[client]], np.float32)
        return DecodedVector(
            trainable=SparseVector(length=1, indices=None, values=values), buffers=values[:0]
        )

    state = strategy.init(rule, np.zeros(1, np.float32))
    for client in "baab":
        state = strategy.step(rule, state, update(client), client=client, num_examples=1, staleness=0)

    # b, a: both new, 0; then a with a gap of 1, b with one of 3
    assert (2, (0.5 - 1.5) / 2) == (state.version, pytest.approx(float(state.vector[0])))


@pytest.mark.parametrize(
    ("dials", "needed"),
    [
        ({"strategy": "ca2fl"}, "other than ca2fl"),
        ({"robust": "median"}, "none or geometric"),
        ({"strategy": "fedasync"}, "buffer_size > 1"),
    ],
)
def test_rarity_where_it_would_do_nothing_is_refused(dials: dict[str, str], needed: str) -> None:
    """With what it needs; a single update in a version has nobody to be weighed against."""
    with pytest.raises(SettingError, match=f"fold.rarity.*{needed}"):
        make_rule(FoldSettings(rarity=0.5, **dials))  # type: ignore[arg-type]
