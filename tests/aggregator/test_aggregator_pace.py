"""The pace of one client, and how little is remembered of it."""

from fedmq.aggregator.pace import LEAST_BURST, Pace


def test_a_full_outbox_may_come_at_once_and_then_so_many_a_second() -> None:
    """Whatever the rate; what was not admitted costs nothing later."""
    pace = Pace(8)
    at_once = [pace.admits("a", 0.0) for _ in range(LEAST_BURST + 100)]
    a_second_later = [pace.admits("a", 1.0) for _ in range(100)]

    assert [True] * LEAST_BURST + [False] * 100 == at_once
    assert 8 == sum(a_second_later)


def test_a_seconds_worth_may_come_at_once() -> None:
    """When that is more."""
    pace = Pace(2048)

    assert 2048 == sum(pace.admits("a", 5.0) for _ in range(9000))


def test_a_client_that_rests_has_its_whole_burst_again() -> None:
    """And no more than that."""
    pace = Pace(128)
    for _ in range(LEAST_BURST):
        pace.admits("a", 0.0)

    assert LEAST_BURST == sum(pace.admits("a", 1024.0) for _ in range(2 * LEAST_BURST))


def test_one_client_takes_nothing_from_another() -> None:
    """Each has a bucket."""
    pace = Pace(1)
    for _ in range(2 * LEAST_BURST):
        pace.admits("a", 0.0)

    assert pace.admits("b", 0.0)
    assert not pace.admits("a", 0.0)


def test_clients_that_rest_are_forgotten() -> None:
    """A hundred thousand names leave a few thousand entries, and nobody gains by it."""
    pace = Pace(100)
    for number in range(100_000):
        pace.admits(f"c{number}", number * 0.001)

    assert len(pace) < 3000
