"""The staleness weights against the papers' formulas, value by value.

The values are worked out by hand from FedAsync (arXiv 1903.03934, section 5.2) and FedBuff (AISTATS 2022, section 3).
Several public implementations differ from them: see the last tests.
"""

import math

import pytest
from fedmq.aggregator.staleness import parse_staleness
from hypothesis import given
from hypothesis import strategies as st

from fedmq.errors import SettingError

TABLE = [
    ("constant", 0, 1.0),
    ("constant", 1000, 1.0),
    # polynomial: (1 + tau) to the power of -a
    ("polynomial(0.5)", 0, 1.0),
    ("polynomial(0.5)", 1, 0.7071067811865476),
    ("polynomial(0.5)", 3, 0.5),
    ("polynomial(0.5)", 8, 0.3333333333333333),
    ("polynomial(0.5)", 15, 0.25),
    ("polynomial(0.5)", 99, 0.1),
    ("polynomial(1)", 4, 0.2),
    ("polynomial(2)", 4, 0.04),
    ("polynomial(0)", 50, 1.0),
    # hinge: 1 up to b, then 1 / (a (tau - b) + 1)
    ("hinge(10, 4)", 0, 1.0),
    ("hinge(10, 4)", 4, 1.0),
    ("hinge(10, 4)", 5, 0.09090909090909091),
    ("hinge(10, 4)", 6, 0.047619047619047616),
    ("hinge(10, 6)", 6, 1.0),
    ("hinge(10, 6)", 16, 0.009900990099009901),
    ("hinge(0.5, 2)", 3, 0.6666666666666666),
    ("hinge(0.5, 2)", 4, 0.5),
    ("hinge(0, 0)", 7, 1.0),
    # exponential: e to the power of -a tau
    ("exponential(0.1)", 0, 1.0),
    ("exponential(0.1)", 10, 0.36787944117144233),
    ("exponential(0.5)", 4, 0.1353352832366127),
]


@pytest.mark.parametrize(("text", "tau", "weight"), TABLE)
def test_a_weight_is_that_of_the_paper(text: str, tau: int, weight: float) -> None:
    """Within a unit or two of the last place."""
    assert weight == pytest.approx(parse_staleness(text)(tau), rel=1e-15)


WEIGHTS = ["constant", "polynomial(0.5)", "hinge(10, 4)", "hinge(0.3, 0)", "exponential(0.2)"]


@given(st.sampled_from(WEIGHTS), st.integers(0, 2000), st.integers(0, 2000))
def test_an_older_update_never_counts_more(text: str, one: int, other: int) -> None:
    """A fresh one counts fully, and no weight is below zero."""
    weight = parse_staleness(text)

    assert 1.0 == weight(0)
    assert 0 <= weight(max(one, other)) <= weight(min(one, other)) <= 1


def test_the_hinge_has_no_jump() -> None:
    """FLGo leaves out the "+ 1": twice the full weight right behind the threshold for a = 0.5."""
    weight = parse_staleness("hinge(0.5, 6)")

    assert weight(7) == pytest.approx(1 / 1.5)
    assert weight(7) < weight(6)


def test_the_square_root_is_of_one_plus_tau() -> None:
    """NVFlare computes 1 / (1 + sqrt(tau)), which is 0.5 at tau = 1; FedCompass once let the weight grow."""
    assert 0.7071067811865476 == parse_staleness("polynomial(0.5)")(1)


numbers = st.floats(0, 1e6, allow_nan=False)


@given(st.sampled_from(["polynomial", "exponential"]), numbers, numbers)
def test_the_text_of_a_weight_is_the_weight(form: str, a: float, b: float) -> None:
    """To the last bit: a snapshot keeps the text, and the journal is folded again with what it says."""
    for text in (f"{form}({a!r})", f"hinge({a!r}, {b!r})"):
        weight = parse_staleness(text)

        assert weight == parse_staleness(str(weight))


def test_blanks_do_not_matter() -> None:
    """They are a matter of taste."""
    assert parse_staleness("hinge(10, 4)") == parse_staleness("  hinge ( 10,4 ) ")


@pytest.mark.parametrize(
    "text",
    [
        "", "linear", "constant(1)", "polynomial", "polynomial()", "polynomial(0.5, 1)", "polynomial(-0.5)",
        "polynomial(nan)", "polynomial(inf)", "polynomial(1e999)", "polynomial(half)", "hinge(10)",
        "hinge(10 4)", "hinge(10, -4)", "polynomial(0.5", "polynomial(0.5))", "Polynomial(0.5)",
    ],
)  # fmt: skip
def test_what_is_no_weight_is_refused(text: str) -> None:
    """With the setting, what was given, and all that would do."""
    with pytest.raises(SettingError) as caught:
        parse_staleness(text)

    assert ("fold.staleness", text) == (caught.value.name, caught.value.value)
    for allowed in ("constant", "polynomial(a)", "hinge(a, b)", "exponential(a)"):
        assert allowed in str(caught.value)


def test_a_weight_may_come_to_nothing_but_not_to_an_error() -> None:
    """The steepest that can be written, at an age that nobody reaches."""
    for text in ("polynomial(1e300)", "exponential(1e300)", "hinge(1e300, 0)"):
        assert 0 <= parse_staleness(text)(10**9) < math.ulp(1)
