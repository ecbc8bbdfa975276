"""Who is blamed for a broken connection."""

from fedmq.transport.base import PublishToken
from fedmq.transport.flight import (
    PACKET_TOO_LARGE,
    SERVER_SHUTTING_DOWN,
    STRIKES,
    TAKEN_OVER,
    Flight,
    Publish,
)


def flight_of(*sizes: int) -> Flight:
    """A flight with publishes of these sizes, all sent, with packet ids and tokens from 1."""
    flight = Flight(max_inflight=10)
    for number, size in enumerate(sizes, start=1):
        flight.add(
            Publish(token=PublishToken(number), topic="t", payload=b"", retain=False, expiry=None, size=size)
        )
        flight.send(number)
    return flight


def tokens(publishes: list[Publish]) -> list[int]:
    """What they are known by."""
    return [publish.token for publish in publishes]


def test_the_oldest_is_blamed_when_the_broker_gives_no_reason() -> None:
    """It handles them in order, so it did not get past that one."""
    flight = flight_of(10, 20, 30)
    verdicts = [flight.broke(None) for _ in range(STRIKES)]
    flight.recall()

    assert verdicts == [False] * (STRIKES - 1) + [True]
    assert tokens(flight.take_hopeless()) == [1]
    assert len(flight) == 2


def test_the_largest_is_blamed_when_the_broker_says_too_large() -> None:
    """Even when others were acknowledged before it."""
    flight = flight_of(10, 30, 20)
    flight.acknowledge(1)
    verdicts = [flight.broke(PACKET_TOO_LARGE) for _ in range(STRIKES)]
    flight.recall()

    assert verdicts[-1]
    assert tokens(flight.take_hopeless()) == [2]


def test_nobody_is_blamed_when_something_was_acknowledged() -> None:
    """A flaky line that carries something is no poison."""
    flight = flight_of(10, 20)
    flight.acknowledge(1)

    assert not any(flight.broke(None) for _ in range(STRIKES * 2))


def test_nobody_is_blamed_for_a_takeover_or_a_shutdown() -> None:
    """Those have nothing to do with what was sent."""
    flight = flight_of(10)

    assert not any(flight.broke(code) for code in (TAKEN_OVER, SERVER_SHUTTING_DOWN) * STRIKES)


def test_what_is_recalled_goes_out_again_in_its_order() -> None:
    """Before what had not been sent."""
    flight = flight_of(10, 20)
    flight.add(Publish(token=PublishToken(3), topic="t", payload=b"", retain=False, expiry=None, size=30))
    flight.recall()
    order = []
    while publish := flight.next():
        order.append(publish)
        flight.send(len(order))

    assert tokens(order) == [1, 2, 3]


def test_limits_that_what_was_sent_exceeds_are_reported() -> None:
    """A narrower window, or a smaller packet; equal ones are kept."""
    flight = flight_of(10, 20)

    assert not flight.opened(receive_maximum=2, largest=20)
    assert flight.opened(receive_maximum=1, largest=20)
    assert flight.opened(receive_maximum=2, largest=19)
