"""Shares of the work: within bounds whatever arrives, learned from arrivals, and even where they should be."""

import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import pytest
from fedmq.aggregator import acquaintance
from fedmq.aggregator.acquaintance import ABSENCE, Acquaintance, Acquaintances, Heard
from fedmq.aggregator.allocation import Allocation, AllocationSettings
from fedmq.aggregator.compass import Compass
from fedmq.aggregator.even import Even
from hypothesis import given
from hypothesis import strategies as st

from fedmq import wire
from fedmq.errors import SettingError
from fedmq.share import MAX_WAIT_SECONDS, Share

BOOT: Final = 9
LINK: Final = 0.02


def heard(client: str, time: float, steps: int = 10, base: int = 0, **more: object) -> Heard:
    """An update that was folded."""
    return Heard(
        client=client,
        time=time,
        local_steps=steps,
        base_version=base,
        size=1000,
        **more,  # type: ignore[arg-type]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a federation fared: of the second half of its time, gaps between arrivals and staleness; all messages."""

    gaps: Sequence[float]
    staleness: Sequence[int]
    arrivals: int
    messages: int

    @property
    def unevenness(self) -> float:
        """Coefficient of variation of the gaps: 1 when they are as by chance (Poisson), 0 when all are equal."""
        return statistics.pstdev(self.gaps) / statistics.mean(self.gaps)


def play(
    speeds: Sequence[float], *, until: float, noise: float = 0.05, buffer: int = 5, **settings: object
) -> Course:
    """Let devices work as they are asked to; nothing is learned, but when, and from which version.

    Args:
        speeds: seconds per step of each device.
        until: seconds.
        noise: log-spread of each piece of work.
        buffer: updates in a version.
        settings: of the allocation.
    """
    random_ = random.Random(1)
    allocation = Allocation(AllocationSettings(**settings), BOOT)  # type: ignore[arg-type]
    shares: dict[int, Share] = {}
    # When, which device, after how many steps; from which version, -1 for a pull; seconds of training.
    agenda = [(0.0, index, 32, -1, speed * 32) for index, speed in enumerate(speeds)]
    times, staleness, messages = [], [], 0
    while agenda[0][0] < until:
        now, index, steps, base, training = heapq.heappop(agenda)
        if base < 0:
            heapq.heappush(agenda, (now + training + LINK, index, steps, len(times) // buffer, training))
            continue
        staleness.append(len(times) // buffer - base)
        times.append(now)
        if allocation.is_on:
            claim = training if index in shares else None
            for client, share in allocation.hear(
                heard(str(index), now, steps, base=base, train_seconds=claim)
            ):
                assert share is not None
                shares[int(client)] = share
                messages += 1
        asked = shares.get(index)
        steps = (asked.local_steps if asked else 0) or 32
        training = steps * speeds[index] * random_.lognormvariate(0, noise)
        heapq.heappush(agenda, (now + (asked.wait if asked else 0.0), index, steps, -1, training))
    late = [time for time in times if time > until / 2]
    return Course(
        gaps=[after - before for before, after in pairwise(late)],
        staleness=staleness[-len(late) :],
        arrivals=len(times),
        messages=messages,
    )


W2: Final = (0.0078,) * 8 + (0.064,) * 2
_DRAW: Final = random.Random(1)
WIDE: Final = tuple(_DRAW.lognormvariate(0, 1) / 20 for _ in range(40))
FEDERATIONS: Final = {"W2": (W2, 100.0, 20, 100), "wide": (WIDE, 200.0, 5, 50)}


@pytest.mark.parametrize("name", FEDERATIONS)
def test_even_arrivals_are_more_even_than_in_groups_or_by_chance(name: str) -> None:
    """In gaps and in staleness, of two devices ten times slower and of speeds that span two orders."""
    speeds, until, low, high = FEDERATIONS[name]
    none, compass, even = (
        play(speeds, until=until, policy=policy, min_steps=low, max_steps=high)
        for policy in ("none", "compass", "even")
    )

    assert even.unevenness < none.unevenness < compass.unevenness
    spreads = [statistics.pstdev(course.staleness) for course in (even, compass, none)]
    assert sorted(spreads) == spreads
    assert max(even.staleness) < max(compass.staleness)


def test_even_spaces_arrivals_as_evenly_as_the_devices_noise_allows() -> None:
    """Ten devices that are alike: noise of half a percent of a period is a twentieth of a slot."""
    course = play((0.01,) * 10, until=100.0, noise=0.005, policy="even")

    assert 0.4 > course.unevenness
    assert 0.3 * course.arrivals > course.messages


def test_groups_arrive_together() -> None:
    """By chance, one gap in six is below a fifth of the mean, 1 − exp(−0.2)."""
    course = play((0.01,) * 10, until=100.0, noise=0.005, policy="compass", min_steps=20, max_steps=100)
    mean = statistics.mean(course.gaps)

    assert 0.4 < sum(gap < 0.2 * mean for gap in course.gaps) / len(course.gaps)


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_limit_on_concurrency_lowers_staleness(name: str) -> None:
    """Little's law: updates in flight, over updates in a version."""
    speeds, until, low, high = FEDERATIONS[name]
    course = play(speeds, until=until, policy="even", concurrency=5, min_steps=low, max_steps=high)

    assert 5 / 5 == pytest.approx(statistics.mean(course.staleness), abs=0.35)
    assert 6 >= max(course.staleness)


arrivals = st.builds(
    Heard,
    client=st.sampled_from("abcdef"),
    time=st.floats(0, 1e7),
    local_steps=st.integers(0, 10**9),
    base_version=st.integers(0, 2**62),
    size=st.integers(1, 10**9),
    train_seconds=st.none() | st.floats(0, allow_nan=False, allow_infinity=True),
    accepts=st.booleans(),
)
ordered = st.lists(arrivals, max_size=60).map(lambda found: sorted(found, key=lambda heard: heard.time))
LADDER: Final = "topk(0.1) | int8 | rice; topk(0.01) | ternary | rice"


@given(
    ordered,
    st.sampled_from(("compass", "even")),
    st.integers(0, 5),
    st.integers(1, 100),
    st.integers(0, 100),
)
def test_no_arrivals_lead_to_a_share_out_of_bounds(
    course: list[Heard], policy: str, concurrency: int, low: int, more: int
) -> None:
    """Whatever clients claim, and whenever they come: what is asked for can be written, read and done."""
    settings = AllocationSettings(
        policy=policy, concurrency=concurrency, min_steps=low, max_steps=low + more, codecs=LADDER
    )
    allocation = Allocation(settings, BOOT)
    for arrival in course:
        for _, share in allocation.hear(arrival):
            if share is None:
                continue
            assert share == wire.unpack_share(wire.pack_share(share))
            assert share.local_steps == 0 or low <= share.local_steps <= low + more
            assert 0 <= share.wait <= MAX_WAIT_SECONDS
            assert share.codec in settings.ladder


@given(ordered)
def test_what_is_known_of_a_client_is_always_a_number(course: list[Heard]) -> None:
    """No claim makes its speed negative, infinite or NaN."""
    clients = Acquaintances(0.9)
    for arrival in course:
        known = clients.learn(arrival)
        for value in (known.step_seconds or 0.0, known.link_seconds, known.period):
            assert 0 <= value < math.inf
        assert 0 <= known.reliability <= 1


def test_speed_is_the_running_mean_of_the_paper() -> None:
    """Nine tenths of it are the newest: v ← 0.1 v + 0.9 v_new."""
    clients = Acquaintances(0.9)
    for time, base in ((0.0, 0), (10.0, 1), (15.0, 2)):
        known = clients.learn(heard("a", time, steps=10, base=base))

    assert 0.1 * 1.0 + 0.9 * 0.5 == pytest.approx(known.step_seconds)


def test_what_a_client_says_of_its_training_is_taken_within_the_interval() -> None:
    """The rest of the interval is the link's; nobody trains for longer than there was time."""
    clients = Acquaintances(1.0)
    clients.learn(heard("a", 0.0))
    honest = clients.learn(heard("a", 10.0, base=1, train_seconds=8.0))

    assert (0.8, 2.0) == (honest.step_seconds, pytest.approx(honest.link_seconds))
    boastful = clients.learn(heard("a", 20.0, base=2, train_seconds=1e300))
    assert (1.0, 0.0) == (boastful.step_seconds, boastful.link_seconds)


def test_an_absence_tells_nothing_of_speed_or_link_but_of_reliability() -> None:
    """A night is no slow device; one that does not say for how long it trained is measured anew."""
    clients = Acquaintances(0.9)
    for base, time in enumerate((0.0, 10.0, 10.0 + 10 * ABSENCE * 2)):
        for client, claim in (("tells", 10.0), ("mute", None)):
            clients.learn(heard(client, time, base=base, train_seconds=claim))
    tells, mute = clients.get("tells"), clients.get("mute")

    assert tells is not None
    assert mute is not None
    assert (1.0, None) == (tells.step_seconds, mute.step_seconds)
    assert 1.0 > tells.reliability
    assert tells.is_silent(1000.0)
    assert not tells.is_silent(91.0)
    assert 2.0 == clients.learn(heard("mute", 110.0, base=3)).step_seconds


def test_updates_that_waited_in_an_outbox_tell_nothing_of_speed() -> None:
    """They come at once, from one base."""
    clients = Acquaintances(0.9)
    for time, base in ((0.0, 0), (10.0, 1), (20.0, 2), (20.01, 2), (20.02, 2)):
        known = clients.learn(heard("a", time, base=base))

    assert 1.0 == pytest.approx(known.step_seconds)


def test_who_is_silent_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by clients, and its share is cleared."""
    monkeypatch.setattr(acquaintance, "MAX_CLIENTS", 2)
    allocation = Allocation(AllocationSettings(policy="even"), BOOT)
    said = [list(allocation.hear(heard(client, time))) for time, client in enumerate("abcab")]

    assert [[], [], [("a", None)], [("b", None)], [("c", None)]] == [
        [(client, share) for client, share in news if share is None] for news in said
    ]
    assert 2 == len(allocation.clients)


def test_the_share_of_a_client_that_is_unseen_for_long_is_cleared() -> None:
    """When somebody else is heard."""
    allocation = Allocation(AllocationSettings(policy="compass", forget_seconds=100.0), BOOT)
    list(allocation.hear(heard("a", 0.0)))

    assert [("a", None)] == [news for news in allocation.hear(heard("b", 101.0)) if news[1] is None]
    assert [] == [news for news in allocation.hear(heard("b", 111.0)) if news[1] is None]


def test_the_first_share_asks_for_the_plans_work() -> None:
    """Nothing is known yet; the jitter is for when the aggregator comes back, the share for its `train_seconds`."""
    allocation = Allocation(AllocationSettings(policy="even", jitter=7.0), BOOT)

    assert [("a", Share(boot=BOOT, jitter=7.0))] == list(allocation.hear(heard("a", 0.0)))


def _settle(allocation: Allocation, **more: object) -> list[tuple[str, Share | None]]:
    """Two clients that are alike, until nothing changes; the news of client a's last three updates."""
    said: list[tuple[str, Share | None]] = []
    for turn in range(12):
        if turn == 9:
            said.clear()
        said += allocation.hear(heard("a", 10.0 * turn, base=turn, **more))
        said += allocation.hear(heard("b", 10.0 * turn + 5.0, base=turn))
    return [news for news in said if news[0] == "a"]


def test_a_share_is_published_again_only_if_it_changes_by_much() -> None:
    """And when the broker may have lost it."""
    allocation = Allocation(AllocationSettings(policy="compass", min_steps=10, max_steps=10), BOOT)
    assert [] == _settle(allocation)

    allocation.doubt()
    (news,) = allocation.hear(heard("a", 121.0, base=12))
    assert ("a", Share(boot=BOOT, local_steps=10, jitter=5.0)) == news
    assert [] == list(allocation.hear(heard("a", 131.0, base=13)))


def test_who_refuses_shares_is_left_alone() -> None:
    """What it was asked for is cleared, once."""
    allocation = Allocation(AllocationSettings(policy="even"), BOOT)
    list(allocation.hear(heard("a", 0.0)))

    assert [("a", None)] == list(allocation.hear(heard("a", 10.0, base=1, accepts=False)))
    assert [] == list(allocation.hear(heard("a", 20.0, base=2, accepts=False)))


def test_who_does_less_is_asked_for_no_more_than_it_does() -> None:
    """Its operator has bounded it; its arrivals are expected accordingly."""
    allocation = Allocation(AllocationSettings(policy="even", min_steps=20, max_steps=100), BOOT)
    _settle(allocation, steps=10)
    known = allocation.clients.get("a")

    assert isinstance(known, Acquaintance)
    assert 10 == known.limit == known.expected_steps


def test_the_bound_that_a_client_has_shown_grows_while_it_does_what_it_is_asked_for() -> None:
    """Its operator may have lifted it. Until he does, what is asked for stays near it."""
    clients = Acquaintances(0.9)
    known = clients.learn(heard("a", 0.0))
    limits = []
    for turn in range(1, 60):
        may = 30 if turn < 30 else 100
        known.asked = Share(boot=BOOT, local_steps=min(90, known.limit or 90))
        known.before = known.asked.local_steps
        clients.learn(heard("a", 10.0 * turn, min(may, known.asked.local_steps), base=turn))
        limits.append(known.limit)

    assert all(limit is not None and 30 <= limit <= 36 for limit in limits[:29])
    assert (limits[-1] or 90) >= 90


def test_slow_links_get_the_next_codec_and_keep_it() -> None:
    """Better ones keep the first. Nobody goes up again to where his updates took too long."""
    allocation = Allocation(
        AllocationSettings(policy="even", min_steps=10, max_steps=10, codecs=LADDER), BOOT
    )
    first, second = allocation._settings.ladder
    chosen = {}
    for turn in range(10):
        for client, link in (("near", 0.5), ("far", 30.0)):
            rung = chosen.get(client, first)
            spent = link if rung == first else link / 10
            last = allocation.clients.get(client)
            time = (last.heard_at if last else 0.0) + 10.0 + spent
            size = 1000 if rung == first else 100
            news = Heard(
                client=client, time=time, local_steps=10, base_version=turn, size=size, train_seconds=10.0
            )
            chosen |= {name: share.codec for name, share in allocation.hear(news) if share is not None}

    assert {"near": first, "far": second} == chosen


def test_the_compass_joins_the_group_that_leaves_most_steps() -> None:
    """Q = ⌊(T_group − now) / v⌋ within the bounds; who fits nowhere begins a group."""
    clients = Acquaintances(0.9)
    for client, speed in (("fast", 1.0), ("other", 2.0), ("slow", 10.0)):
        clients.learn(heard(client, 0.0))
        clients.learn(heard(client, 10 * speed, base=1))
    compass = Compass(clients, min_steps=20, max_steps=100, latest_factor=1.2)

    assert 100 == compass.steps("fast", 100.0)  # the first group, until 200 and 220 at the latest
    assert 45 == compass.steps("other", 110.0)  # ⌊(200 − 110) / 2⌋
    # ⌊(220 + 1 · 100 − 110) / 10⌋: after the group's latest time and the most that its fastest then does
    assert 21 == compass.steps("slow", 110.0)
    assert 100 == compass.steps("fast", 220.0)  # ⌊(110 + 210 − 220) / 1⌋: with the slow one
    compass.forget("slow")
    assert 100 == compass.steps("stranger", 230.0)


def test_the_even_period_is_that_of_the_most_clients() -> None:
    """One that is or seems a thousand times slower does its fewest steps, and the others what they would."""
    periods = []
    for slowest in (1.0, 1000.0):
        clients = Acquaintances(0.9)
        for index, speed in enumerate((1.0, 1.0, 2.0, 1.0, slowest)):
            clients.learn(heard(str(index), 0.0, train_seconds=None))
            clients.learn(heard(str(index), 10 * speed, base=1))
        even = Even(clients, min_steps=20, max_steps=100, concurrency=0)
        turns = [even.turn(str(index), 20.0) for index in range(5)]
        assert [0.0] * 5 == [turn.wait for turn in turns]
        periods.append(even._work)
        steps = [turn.steps for turn in turns]
        assert all(20 <= count <= 100 for count in steps)

    assert periods == [pytest.approx(math.sqrt(40 * 100)), pytest.approx(math.sqrt(40 * 100))]
    assert 20 == steps[4]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"min_steps": 11, "max_steps": 10}, "allocate.min_steps"),
        ({"codecs": "int8; nonsense(3)"}, "allocate.codecs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], name: str) -> None:
    """Naming the one to change."""
    with pytest.raises(SettingError) as found:
        AllocationSettings(**settings)  # type: ignore[arg-type]
    assert name == found.value.name


@pytest.mark.parametrize("claim", [None, 0.0, 1e-12])
def test_a_client_that_seems_infinitely_fast_does_not_take_the_slots_of_the_others(
    claim: float | None,
) -> None:
    """It claims a million steps in no time, and counts for eight at most: of five others, slots are 10 / 5 seconds."""
    allocation = Allocation(AllocationSettings(policy="even", min_steps=20, max_steps=100), BOOT)
    for turn in range(40):
        for index in range(5):
            now = 10.0 * turn + 2.0 * index
            list(allocation.hear(heard(f"good-{index}", now, steps=50, base=turn)))
            for more in range(3):
                base = 3 * (5 * turn + index) + more
                evil = heard("evil", now + more * 1e-6, steps=10**6, base=base, train_seconds=claim)
                list(allocation.hear(evil))

    assert 0.6 * 10 / (5 + 8) < allocation._even._slot < 1.2 * 10 / 5
