"""No device's clock decides (law 10): wall clocks may jump as they like, and nothing but what people read changes."""

import logging
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.strategy import FoldSettings
from fedmq.edge_agent import update as update_module
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.session import EdgeSession
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_federation import LAYOUT, Federation

from fedmq.transport.memory import MemoryTransport

DEVICES = 2
FOLD = FoldSettings(strategy="fedbuff", buffer_size=2, max_staleness=3)
#: What a clock may say: before 1970, after a battery was changed, in the year 10000, or where it was a moment ago.
walls = st.lists(
    st.one_of(st.floats(-1e12, 1e12), st.integers(0, 2**40).map(float)), min_size=1, max_size=50
)


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
        for _ in range(25):
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
        journal=tuple(world.store.records(0)),
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


@given(seed=st.integers(0, 5), said=walls)
@settings(max_examples=12, derandomize=True, deadline=None)
def test_wall_clocks_that_jump_change_no_bit(seed: int, said: list[float]) -> None:
    """State, ledger, journal, outboxes, and all that lies at the broker are those of a steady clock."""
    readings = iter(said * 100_000)

    assert live(seed, lambda: 1.7e9) == live(seed, lambda: next(readings))
