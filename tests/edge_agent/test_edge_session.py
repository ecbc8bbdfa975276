"""The session's table and its timers, one at a time."""

import math
import re
from collections.abc import Iterable

import pytest
from fedmq.edge_agent import session as session_module
from fedmq.edge_agent.events import (
    AggregatorSeen,
    Effect,
    Event,
    Linked,
    ModelSeen,
    NotTaken,
    PieceSeen,
    PlanSeen,
    Pull,
    Send,
    Settled,
    ShareSeen,
    StopPulling,
    Taken,
    Train,
    Trained,
    TrainingFailed,
    Unlinked,
)
from fedmq.edge_agent.session import (
    MAX_RESEND_SECONDS,
    MAX_REST_SECONDS,
    MIN_RESEND_SECONDS,
    PULL_SECONDS,
    RECEIPT_GRACE,
    RECEIPT_WAIT,
    REST_SECONDS,
    TRANSITIONS,
    EdgeSession,
    Signal,
    State,
)
from hypothesis import given
from hypothesis import strategies as st

ONLINE = AggregatorSeen(online=True, boot=1)
OFFLINE = AggregatorSeen(online=False, boot=1)
MODEL = ModelSeen(epoch=1, version=1)


def plan(*, usable: bool = True, once: bool = False, resend: float = 60.0) -> PlanSeen:
    """A plan."""
    return PlanSeen(usable=usable, once_per_version=once, resend_seconds=resend)


def made(*events: Event, now: float = 0.0, pending: Iterable[int] = (), is_full: bool = False) -> EdgeSession:
    """A session to which all this has happened at one moment."""
    session = EdgeSession(pending=pending, is_full=is_full)
    for event in events:
        session.handle(event, now)
    return session


def pulling(*, once: bool = False) -> EdgeSession:
    """A session that waits for a model."""
    return made(Linked(), plan(once=once), ONLINE)


def uploading(*, is_full: bool = False, once: bool = False) -> EdgeSession:
    """Update 1 is on its way to the broker."""
    session = pulling(once=once)
    session.handle(MODEL, 0.0)
    session.handle(Trained(seq=1, is_full=is_full), 0.0)
    return session


def sends(effects: list[Effect]) -> list[int]:
    """Which updates are to be sent."""
    return [effect.seq for effect in effects if isinstance(effect, Send)]


def test_the_table_in_the_docstring_is_the_table() -> None:
    """Every step of the chains is an entry, and every entry is drawn."""
    drawn = {}
    for line in (session_module.__doc__ or "").splitlines():
        words = re.findall(r"[A-Z]+", line.split("  ")[2]) if re.match(r"    [A-Z]+ [─|]", line) else []
        if "|" in line:
            *befores, signal, after = words
            drawn.update({(State[before], Signal[signal]): State[after] for before in befores})
        else:
            for before, signal, after in zip(words[::2], words[1::2], words[2::2], strict=False):
                drawn[State[before], Signal[signal]] = State[after]

    assert drawn == TRANSITIONS


def test_every_state_is_entered_and_left() -> None:
    """No state is a dead end, none is unreachable."""
    assert set(TRANSITIONS.values()) == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {signal for _, signal in TRANSITIONS} == set(Signal)


@pytest.mark.parametrize(
    ("start", "event", "now", "expected"),
    [
        (made(Linked(), plan()), ONLINE, 0.0, State.PULLING),
        (pulling(), MODEL, 0.0, State.TRAINING),
        (pulling(), OFFLINE, 0.0, State.IDLE),
        (uploading(), Settled(seqs=(1,), is_full=False), 0.0, State.PULLING),
        (uploading(), Taken(seq=1), 0.0, State.UPLOADING),
        (uploading(), NotTaken(seq=1), 0.0, State.PULLING),
        (uploading(), Unlinked(), 0.0, State.IDLE),
        (made(Linked(), plan(), ONLINE, MODEL), Trained(seq=1, is_full=False), 0.0, State.UPLOADING),
        (made(Linked(), plan(), ONLINE, MODEL), Trained(seq=1, is_full=True), 0.0, State.WAITING),
        (made(Linked(), plan(), ONLINE, MODEL), TrainingFailed(), 0.0, State.SLEEPING),
        (uploading(is_full=True), Settled(seqs=(1,), is_full=False), 0.0, State.PULLING),
        (uploading(is_full=True), OFFLINE, 0.0, State.IDLE),
    ],
)
def test_a_step_is_taken(start: EdgeSession, event: Event, now: float, expected: State) -> None:
    """Each entry of the table that one event reaches from outside."""
    start.handle(event, now)

    assert expected == start.state


def test_every_entry_of_the_table_is_taken() -> None:
    """Also those behind a clock or a version: what is never taken does not belong in the table."""
    taken = set()

    class Watched(EdgeSession):
        def _move(self, signal: Signal, now: float) -> list[Effect]:
            if (self.state, signal) in TRANSITIONS:
                taken.add((self.state, signal))
            return super()._move(signal, now)

    watched = Watched(pending=(), is_full=False, draw=lambda: 0.5)
    story: list[tuple[Event | None, float]] = [
        (Linked(), 0),
        (plan(once=True), 0),
        (ONLINE, 0),
        (OFFLINE, 0),
        (ONLINE, 0),
        (MODEL, 0),
        (TrainingFailed(), 0),
        (None, REST_SECONDS),
        (MODEL, 10),
        (Trained(seq=1, is_full=False), 10),
        (Settled(seqs=(1,), is_full=False), 10),
        (MODEL, 10),
        (ModelSeen(epoch=1, version=2), 10),
        (Trained(seq=2, is_full=True), 10),
        (Settled(seqs=(2,), is_full=False), 10),
        (ModelSeen(epoch=1, version=3), 10),
        (Trained(seq=3, is_full=True), 10),
        (OFFLINE, 10),
        (Settled(seqs=(3,), is_full=False), 10),
        (ONLINE, 10),
        (ModelSeen(epoch=1, version=4), 10),
        (Trained(seq=4, is_full=False), 10),
        (OFFLINE, 10),
        (ShareSeen(boot=ONLINE.boot, wait=5.0, jitter=8.0), 10),
        (ONLINE, 10),
        (None, 14),
        (ModelSeen(epoch=1, version=5), 14),
        (Trained(seq=5, is_full=False), 14),
        (Settled(seqs=(5,), is_full=False), 14),
        (None, 19),
        (ModelSeen(epoch=1, version=6), 19),
        (Trained(seq=6, is_full=True), 19),
        (AggregatorSeen(online=True, boot=ONLINE.boot + 1), 19),
        (Settled(seqs=(6,), is_full=False), 19),
    ]
    for event, now in story:
        watched.tick(now) if event is None else watched.handle(event, now)

    assert taken == set(TRANSITIONS)


def test_nothing_is_trained_without_a_model() -> None:
    """Connection, plan and aggregator are not enough."""
    session = pulling()

    assert Train() not in session.tick(1.0)
    assert State.PULLING == session.state


def test_a_pull_that_brings_nothing_is_begun_anew() -> None:
    """The retained head may have been lost on its way."""
    session = pulling()

    assert session.tick(PULL_SECONDS - 0.1) == []
    assert session.next_tick() == PULL_SECONDS
    assert session.tick(PULL_SECONDS) == [StopPulling(), Pull()]
    assert session.listening


def test_a_slow_pull_that_brings_something_goes_on() -> None:
    """A large model over a thin line takes longer than the pause after which a pull counts as lost."""
    session = pulling()
    for second in range(20, 200, 20):
        assert session.handle(PieceSeen(), float(second)) == []

    assert session.next_tick() == 180 + PULL_SECONDS


def test_a_model_that_comes_after_the_pull_does_not_count_as_trained_on() -> None:
    """Version 2 was on its way when version 1 was taken: with one training per version, 2 is still to come."""
    session = pulling(once=True)
    session.handle(MODEL, 0.0)
    session.handle(ModelSeen(epoch=1, version=2), 0.0)
    session.handle(Trained(seq=1, is_full=False), 0.0)
    session.handle(Settled(seqs=(1,), is_full=False), 0.0)
    effects = session.handle(ModelSeen(epoch=1, version=2), 0.0)

    assert effects == [StopPulling(), Train()]


def test_a_version_is_trained_on_once_when_the_plan_says_so() -> None:
    """The agent goes on listening, and trains on the next version as soon as it comes."""
    session = uploading(once=True)
    session.handle(Settled(seqs=(1,), is_full=False), 0.0)
    session.handle(MODEL, 0.0)

    assert (State.WAITING, True) == (session.state, session.listening)
    assert session.handle(MODEL, 1.0) == []
    assert session.handle(ModelSeen(epoch=1, version=2), 2.0) == [StopPulling(), Train()]


def test_a_version_may_be_trained_on_again_otherwise() -> None:
    """Asynchronous federations do not wait."""
    session = uploading()
    session.handle(Settled(seqs=(1,), is_full=False), 0.0)

    assert session.handle(MODEL, 0.0) == [StopPulling(), Train()]


def test_the_next_pull_waits_for_the_receipt() -> None:
    """So that the model that it brings holds the last update; for so long from the PUBACK, and no longer."""
    session = uploading()

    assert session.next_tick() is None  # it is on its way
    assert session.handle(Taken(seq=1), 5.0) == []
    assert session.next_tick() == 5.0 + RECEIPT_WAIT
    assert session.tick(5.0 + RECEIPT_WAIT - 0.1) == []
    assert session.tick(5.0 + RECEIPT_WAIT) == [Pull()]


def test_sending_again_does_not_make_the_wait_longer() -> None:
    """An update may be sent again sooner than its receipt is given up: the agent would wait for ever."""
    session = made(Linked(), plan(resend=0.4), ONLINE, MODEL)
    session.handle(Trained(seq=1, is_full=False), 0.0)
    pulls = []
    for step in range(30):
        effects = session.handle(Taken(seq=1), step / 10)
        effects += session.tick((step + 1) / 10)
        pulls += [(step + 1) / 10 for effect in effects if effect == Pull()]

    assert [RECEIPT_WAIT] == pulls


def test_the_next_pull_waits_for_no_receipt_of_an_older_update() -> None:
    """A receipt that settles only what came before leaves the newest one waiting; one that settles it does not."""
    session = made(Linked(), plan(), ONLINE, MODEL, pending=(1,))
    session.handle(Trained(seq=2, is_full=False), 0.0)
    session.handle(Taken(seq=2), 0.0)

    assert session.handle(Settled(seqs=(1,), is_full=False), 0.1) == []
    assert session.handle(Settled(seqs=(2,), is_full=False), 0.2) == [Pull()]


def test_an_update_is_sent_as_soon_as_it_is_there() -> None:
    """In the step that takes note of it."""
    session = pulling()
    session.handle(MODEL, 0.0)

    assert session.handle(Trained(seq=1, is_full=False), 5.0) == [Send(seq=1)]


def test_an_update_without_a_receipt_is_sent_again() -> None:
    """After the plan's seconds, counted from the PUBACK, and again and again (law 4)."""
    session = uploading()
    session.handle(Taken(seq=1), 7.0)

    assert sends(session.tick(66.9)) == []
    assert sends(session.tick(67.0)) == [1]
    assert sends(session.tick(500.0)) == []  # it is on its way
    session.handle(Taken(seq=1), 500.0)
    assert sends(session.tick(560.0)) == [1]


def test_an_update_with_a_receipt_is_not_sent_again() -> None:
    """Neither when it is due, nor after an outcome that comes late."""
    session = uploading()
    session.handle(Settled(seqs=(1,), is_full=False), 0.0)
    session.handle(Taken(seq=1), 0.0)
    session.handle(NotTaken(seq=1), 0.0)

    assert sends(session.tick(1e9)) == []


def test_a_refused_update_backs_off() -> None:
    """2, 4, 8 … seconds, and never longer than the plan's resend_seconds."""
    session, now, waits = uploading(), 0.0, []
    for _ in range(12):
        session.handle(NotTaken(seq=1), now)
        session.handle(OFFLINE, now)  # so that no other timer is set
        session.handle(ONLINE, now)
        due = session._due[1]
        assert due is not None
        waits.append(due - now)
        now = due
        assert sends(session.tick(now)) == [1]

    assert waits == [2, 4, 8, 16, 32, *[60] * 7]


def test_nothing_is_sent_while_the_aggregator_is_away() -> None:
    """Updates wait on the device, where they are safe, and go when it is back."""
    session = made(Linked(), pending=(1, 2))

    assert sends(session.tick(1e6)) == []
    assert session.next_tick() is None
    session.handle(OFFLINE, 1e6)
    assert sends(session.tick(2e6)) == []
    assert sends(session.handle(ONLINE, 2e6) + session.tick(2e6 + RECEIPT_GRACE)) == [1, 2]


def test_the_retained_receipt_gets_a_moment_before_anything_is_sent_again() -> None:
    """After a connect most updates turn out to be settled."""
    session = made(pending=(1, 2))
    effects = session.handle(Linked(), 10.0) + session.handle(ONLINE, 10.0)
    effects += session.handle(Settled(seqs=(1,), is_full=False), 10.5)

    assert sends(effects) == []
    assert session.next_tick() == 10 + RECEIPT_GRACE
    assert sends(session.tick(10 + RECEIPT_GRACE)) == [2]


def test_an_aggregator_that_was_started_anew_gets_everything_again() -> None:
    """It may have lost what it had not made durable."""
    session = uploading()
    session.handle(Taken(seq=1), 0.0)
    session.handle(AggregatorSeen(online=True, boot=2), 5.0)

    assert sends(session.tick(5.0 + RECEIPT_GRACE)) == [1]


def test_a_reconnect_of_the_same_aggregator_changes_nothing() -> None:
    """Its broker session kept what we sent."""
    session = uploading()
    session.handle(Taken(seq=1), 0.0)
    session.handle(OFFLINE, 5.0)
    session.handle(ONLINE, 6.0)

    assert sends(session.tick(59.9)) == []
    assert sends(session.tick(60.0)) == [1]


def test_a_late_will_of_a_former_life_is_ignored() -> None:
    """The will of boot 1 arrives after the birth of boot 2: the aggregator is there."""
    session = made(Linked(), plan(), ONLINE, AggregatorSeen(online=True, boot=2))
    session.handle(OFFLINE, 0.0)

    assert session.listening
    session.handle(AggregatorSeen(online=False, boot=2), 0.0)
    assert not session.listening


def test_what_is_on_its_way_is_not_sent_twice_after_a_reconnect() -> None:
    """The transport does that by itself."""
    session = uploading()
    session.handle(Unlinked(), 1.0)
    session.handle(Linked(), 2.0)
    session.handle(ONLINE, 2.0)

    assert sends(session.tick(1e6)) == []


@pytest.mark.parametrize("seconds", [math.nan, -math.inf, -5.0, 0.0, 0.01])
def test_a_plan_cannot_make_the_agent_send_without_a_pause(seconds: float) -> None:
    """NaN included: every comparison with it is false."""
    session = made(Linked(), plan(resend=seconds), ONLINE, pending=(1,), is_full=True)
    session.tick(RECEIPT_GRACE)
    session.handle(Taken(seq=1), 10.0)

    assert session.next_tick() == 10.0 + MIN_RESEND_SECONDS
    session.tick(20.0)
    session.handle(NotTaken(seq=1), 30.0)
    assert session.next_tick() == 30.0 + MIN_RESEND_SECONDS


def test_a_plan_cannot_make_the_agent_wait_for_ever() -> None:
    """A day at most."""
    session = made(Linked(), plan(resend=math.inf), ONLINE, pending=(1,), is_full=True)
    session.tick(RECEIPT_GRACE)
    session.handle(Taken(seq=1), 10.0)

    assert session.next_tick() == 10.0 + MAX_RESEND_SECONDS


@given(failures=st.integers(1, 40))
def test_the_rest_after_failures_doubles_up_to_a_bound(failures: int) -> None:
    """5, 10, 20 … 600 seconds; a success starts it over."""
    session, now, rest = pulling(), 0.0, 0.0
    for _ in range(failures):
        session.handle(MODEL, now)
        session.handle(TrainingFailed(), now)
        due = session.next_tick()
        assert due is not None
        rest, now = due - now, due
        session.tick(now)

    assert rest == pytest.approx(min(REST_SECONDS * 2 ** (failures - 1), MAX_REST_SECONDS))
    session.handle(MODEL, now)
    session.handle(Trained(seq=1, is_full=False), now)
    session.handle(Settled(seqs=(1,), is_full=False), now)
    session.handle(MODEL, now)
    session.handle(TrainingFailed(), now)
    assert session._timer == now + REST_SECONDS


def test_a_full_outbox_stops_the_cycle_but_not_the_delivery() -> None:
    """From the start, too: a device that comes back with a full outbox first empties it."""
    session = made(Linked(), plan(), ONLINE, pending=(1, 2), is_full=True)

    assert State.IDLE == session.state
    assert sends(session.tick(RECEIPT_GRACE)) == [1, 2]
    assert Pull() not in session.handle(Settled(seqs=(1,), is_full=True), 2.0)
    assert Pull() in session.handle(Settled(seqs=(2,), is_full=False), 3.0)


def test_training_goes_on_while_the_connection_is_away() -> None:
    """And its update waits for the aggregator."""
    session = pulling()
    session.handle(MODEL, 0.0)
    session.handle(Unlinked(), 1.0)

    assert session.state is State.TRAINING
    assert session.handle(Trained(seq=1, is_full=False), 2.0) == []
    assert sends(session.handle(Linked(), 3.0) + session.handle(ONLINE, 3.0)) == []
    assert sends(session.tick(3.0 + RECEIPT_GRACE)) == [1]


def test_an_unusable_plan_ends_the_pull_but_not_the_delivery() -> None:
    """What was trained under the plan before still wants its receipt."""
    session = uploading()
    session.handle(Taken(seq=1), 0.0)

    assert session.tick(RECEIPT_WAIT) == [Pull()]
    assert session.handle(plan(usable=False), 2.0) == [StopPulling()]
    assert sends(session.tick(60.0)) == [1]


def test_a_pull_that_brings_nothing_gets_more_time_when_it_is_begun_anew() -> None:
    """On a link where a chunk takes minutes it would otherwise be asked for again and again, and never come."""
    session = pulling()
    now, waits = 0.0, []
    for _ in range(9):
        due = session.next_tick()
        assert due is not None
        waits.append(due - now)
        now = due
        assert session.tick(now) == [StopPulling(), Pull()]
    session.handle(ModelSeen(epoch=1, version=1), now)
    session.handle(Trained(seq=1, is_full=False), now)
    session.handle(Settled(seqs=(1,), is_full=False), now)

    assert [30 * 2**n for n in range(8)] + [3840] == waits
    assert session.state is State.PULLING
    assert now + PULL_SECONDS == session.next_tick()
