"""The schedules of the server's step, value by value."""

import pytest
from fedmq.aggregator.schedule import parse_schedule
from hypothesis import given
from hypothesis import strategies as st

from fedmq.errors import SettingError

TABLE = [
    ("constant", 0, 1.0),
    ("constant", 10**9, 1.0),
    ("step(10, 0.5)", 9, 1.0),
    ("step(10, 0.5)", 10, 0.5),
    ("step(10, 0.5)", 39, 0.125),
    ("exponential(0.9)", 0, 1.0),
    ("exponential(0.9)", 2, 0.81),
    ("root(3)", 0, 1.0),
    ("root(3)", 9, 0.5),
    ("root(100, 0.25)", 300, 0.5),
    ("root(100, 0.25)", 10**6, 0.25),
    ("cosine(100)", 0, 1.0),
    ("cosine(100)", 50, 0.5),
    ("cosine(100)", 100, 0.0),
    ("cosine(100, 0.2)", 50, 0.6),
    ("cosine(100, 0.2)", 10**6, 0.2),
]


@pytest.mark.parametrize(("text", "version", "factor"), TABLE)
def test_a_schedule_is_its_formula(text: str, version: int, factor: float) -> None:
    """Worked out by hand."""
    assert factor == pytest.approx(parse_schedule(text)(version), abs=1e-12)


@given(st.sampled_from([text for text, _, _ in TABLE]), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_schedule_rises_again(text: str, one: int, other: int) -> None:
    """Each begins at 1, and none falls below 0."""
    schedule = parse_schedule(text)

    assert 1.0 == schedule(0)
    assert 0 <= schedule(max(one, other)) <= schedule(min(one, other)) <= 1


def test_a_warm_up_rises_in_equal_steps_and_then_leaves_the_schedule_alone() -> None:
    """The first step is 1/u, the u-th is whole."""
    schedule = parse_schedule("step(4, 0.5)")

    assert [0.25, 0.5, 0.75, 1.0, 0.5] == [schedule(version, 4) for version in range(5)]


@given(st.sampled_from([text for text, _, _ in TABLE]))
def test_the_text_of_a_schedule_is_the_schedule(text: str) -> None:
    """A snapshot keeps it."""
    schedule = parse_schedule(text)

    assert schedule == parse_schedule(str(schedule))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "linear(5)",
            "one of constant, step(n, g), exponential(g), root(n, low=0), cosine(n, low=0) is allowed",
        ),
        ("step(0, 0.5)", "n must be a whole number, at least 1"),
        ("step(1.5, 0.5)", "n must be a whole number"),
        ("exponential(1.01)", "g must be a number, at least 0 and at most 1"),
        ("root(inf)", "n must be"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    """With what would do."""
    with pytest.raises(SettingError) as caught:
        parse_schedule(text)

    assert "fold.schedule" == caught.value.name
    assert message in str(caught.value)
