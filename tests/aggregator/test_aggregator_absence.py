"""Absence: what a visitor is expected to download, against visits that are counted one by one."""

import itertools
from random import Random

import pytest
from fedmq.aggregator import absence as absence_module
from fedmq.aggregator.absence import MAX_VERSIONS, Absence
from hypothesis import given, settings
from hypothesis import strategies as st

#: Versions from one visit of a client to the next.
gaps = st.integers(1, 40) | st.integers(1, MAX_VERSIONS + 50)
#: Who comes, and how long it was away.
visits = st.lists(st.tuples(st.sampled_from("abcde"), gaps), max_size=60)
#: How old frames are, and their bytes.
stacks = st.lists(st.tuples(gaps, st.integers(1, 10_000)), max_size=6)


def expected(missed: list[int | None], stack: list[tuple[int, int]], horizon: int) -> float:
    """Bytes, by brute force: each visit that there was comes again, at each version of the horizon.

    Args:
        missed: the versions that each visit missed; None for a first one, which lacks everything.
        stack: age and bytes of each frame.
        horizon: how many versions, from the present one.
    """
    counted = [min(gap, MAX_VERSIONS) for gap in missed if gap is not None]
    share = 0.5  # of newcomers, as a running mean over 32 visits
    for gap in missed:
        share += ((gap is None) - share) / 32
    total = 0.0
    for later in range(horizon):
        for age, size in stack:
            # one visit after one version is there from the beginning
            lacking = sum(gap > age + later for gap in [1, *counted]) / (1 + len(counted))
            total += size * (share + (1 - share) * lacking)
    return total / horizon


@given(visits, stacks, st.integers(1, 12))
def test_the_cost_is_what_the_visits_that_there_were_would_cost(
    visits: list[tuple[str, int]], stack: list[tuple[int, int]], horizon: int
) -> None:
    """Averaged over the versions to come; ages beyond what is counted are all the same."""
    absence, held, missed = Absence(), dict[str, int](), list[int | None]()
    for client, gap in visits:
        missed.append(gap if client in held else None)
        held[client] = held.get(client, 1000) + gap
        absence.note(client, held[client])
    cost = absence.cost(9000, [(9000 - age, size) for age, size in stack], horizon)

    assert expected(missed, stack, horizon) == pytest.approx(cost, rel=1e-9, abs=1e-6)


@given(visits)
@settings(max_examples=20)
def test_fewer_lack_what_is_older(visits: list[tuple[str, int]]) -> None:
    """A share, which everybody lacks who comes right after a frame was made."""
    absence = Absence()
    for number, (client, gap) in enumerate(visits):
        absence.note(client, 100 * number + gap)
    lacking = absence.lacking().tolist()

    assert MAX_VERSIONS + 1 == len(lacking)
    assert 1.0 == pytest.approx(lacking[0])
    assert all(0.0 <= after <= before + 1e-12 for before, after in itertools.pairwise(lacking))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
@settings(max_examples=40)
def test_the_usual_visitors_are_nine_in_ten(gaps: list[int]) -> None:
    """Of those who return, the one visit included that is there from the beginning."""
    absence, version = Absence(), 0
    absence.note("a", version)
    for gap in gaps:
        version += gap
        absence.note("a", version)
    missed, usual = [1, *gaps], absence.usual()

    assert sum(gap <= usual for gap in missed) >= 0.9 * len(missed) - 1e-9
    assert sum(gap < usual for gap in missed) < 0.9 * len(missed)


def test_a_second_update_from_the_same_download_is_no_visit() -> None:
    """Nor is one that was on its way for longer than a later one, nor the same one again."""
    once, often = Absence(), Absence()
    for version in (3, 10, 12):
        once.note("a", version)
        for again in (version, version, 3, version - 1, version):
            often.note("a", again)

    assert once.lacking().tolist() == often.lacking().tolist()


def test_habits_change() -> None:
    """Everybody came after each version, then nobody comes within a hundred: soon that is what counts."""
    absence = Absence()
    version = 0
    for gap, times in ((1, 5000), (100, 3000)):
        for _ in range(times):
            version += gap
            absence.note("a", version)

    assert absence.lacking()[50] > 0.7
    assert absence.lacking()[100] < 0.01


def test_rare_absences_are_not_rounded_away() -> None:
    """Each of them is of another length, and halved more than once; together they are one visit in ten."""
    absence, random = Absence(), Random(1)
    version = 0
    for _ in range(20_000):
        version += random.randint(500, 4000) if random.random() < 0.1 else 1
        absence.note("a", version)

    assert 0.1 == pytest.approx(absence.lacking()[400], rel=0.2)


def test_newcomers_are_soon_forgotten() -> None:
    """A federation begins with nothing else, which says nothing of what comes."""
    absence = Absence()
    for client in range(1000):
        absence.note(str(client), 1)
    before = absence.lacking()[MAX_VERSIONS]
    for version in range(2, 200):
        absence.note("1", version)

    assert before > 0.99
    assert absence.lacking()[MAX_VERSIONS] < 0.01


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was silent for longest is forgotten, and new when it comes again."""
    monkeypatch.setattr(absence_module, "MAX_CLIENTS", 10)
    absence = Absence()
    for client in range(1000):
        absence.note("here", client)
        absence.note(str(client), client)
    absence.note("here", 2000)
    known = absence.lacking()[MAX_VERSIONS]
    absence.note("5", 2000)

    assert 10 == len(absence._held)
    assert MAX_VERSIONS + 1 == absence._missed.shape[0]
    assert known < absence.lacking()[MAX_VERSIONS]
