"""No device's clock decides (law 10): wall clocks may jump as they like, and nothing but what people read changes."""

import logging
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import pytest
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.strategy import FoldSettings
from fedmq.edge_agent.session import EdgeSession
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_federation import LAYOUT, Federation

from fedmq.transport.memory import MemoryTransport

DEVICES = 2
FOLD = FoldSettings(strategy="fedbuff", buffer_size=2, max_staleness=3)
#: What clocks may say, one reading after the other: before 1970, today, in the year 30000.
walls = st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that a federation has come to, but for the times of day in it."""

    state: bytes
    ledger: tuple[object, ...]
    journal: tuple[object, ...]
    retained: dict[str, bytes]
    outboxes: tuple[object, ...]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Warnings say what is meant to happen."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live(seed: int, wall: Callable[[], float]) -> Outcome:
    """A life with some faults, always the same for a seed, in which all wall clocks say what they are told to."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(time, "time", wall)
        patch.setattr(secrets, "randbits", random.Random(seed).getrandbits)
        world = Federation(Path(folder), devices=DEVICES, fold=FOLD, seed=seed)
        for _ in range(20):
            world.now += chance.choice((0.0, 0.5, 6.0))
            for _ in range(chance.randrange(25)):
                world.turn(chance.randrange(DEVICES + 1))
            fault = chance.random()
            if fault < 0.2:
                world.kill(chance.randrange(DEVICES + 1), chance.randrange(25))
            elif fault < 0.4:
                world.broker.disconnect(world.client_id(chance.randrange(DEVICES + 1)))
        outcome = look(world)
        world.close()
        return outcome


def look(world: Federation) -> Outcome:
    """What there is, on both sides and at the broker between them."""
    visitor = MemoryTransport(world.broker, "visitor", clean_start=True)
    visitor.start()
    visitor.subscribe("fedmq/v1/default/#")
    retained = {}
    while (event := visitor.poll(0)) is not None:
        topic = getattr(event, "topic", "")
        if topic and "/stats/" not in topic:  # statistics have the time of day, for people
            retained[topic] = event.payload
            event.ack()
    engine = world.service.engine
    return Outcome(
        state=pack_state(engine),
        ledger=tuple(sorted(engine.ledger, key=repr)),
        journal=tuple(replace(entry, received=0.0) for entry in world.store.journal()),
        retained=retained,
        outboxes=tuple(
            (
                device.outbox.epoch,
                device.outbox.next_seq,
                [device.outbox.get(seq) for seq in device.outbox.pending()],
                None if (left := device.outbox.residual(LAYOUT.fingerprint)) is None else left.tobytes(),
            )
            for device in world.devices
        ),
    )


def steady() -> float:
    """A clock that stands still; one that goes would give other figures than another run of it."""
    return 1.7e9


@given(seed=st.integers(0, 99), readings=walls)
@settings(max_examples=4, derandomize=True, deadline=None)
def test_wall_clocks_that_jump_change_no_bit(seed: int, readings: list[float]) -> None:
    """State, ledger, journal, outboxes, and all that lies at the broker are those of a steady clock."""
    jumping = cycle(readings)

    assert live(seed, steady) == live(seed, lambda: next(jumping))


def test_an_agent_that_goes_by_the_wall_clock_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: law 10 broken, when an update is sent again depends on the time of day."""
    handle, tick = EdgeSession.handle, EdgeSession.tick
    monkeypatch.setattr(EdgeSession, "handle", lambda self, event, now: handle(self, event, time.time()))
    monkeypatch.setattr(EdgeSession, "tick", lambda self, now: tick(self, time.time()))
    jumping = cycle([1.7e9, 1.7e9 + 3600, 0.0, 1.8e9])

    assert live(1, steady) != live(1, lambda: next(jumping))
