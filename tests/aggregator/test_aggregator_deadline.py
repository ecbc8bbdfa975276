"""A version that does not fill in time steps with what it has, live as in replay."""

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from fedmq.aggregator import strategy
from fedmq.aggregator.deadline import Deadline, deadline_arrival
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import ChunkChanges, Store
from fedmq.aggregator.strategy import FoldSettings, FoldState, make_rule
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.types import Rejection

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
FEDAVG = {"strategy": "fedavg", "buffer_size": 4, "deadline": 60.0}


def update(message: Message, client: str, seq: int = 1, **more: object) -> Arrival:
    """One of a client."""
    return Arrival(client=client, message=message(client, seq, **more))


def test_a_version_that_is_closed_is_the_average_of_those_who_came(
    new_engine: NewEngine, message: Message
) -> None:
    """By examples, as FedAvg's."""
    engine = new_engine(**FEDAVG)
    engine.commit(engine.offer([update(message, "a", delta=0.5, examples=10)]))
    engine.commit(engine.offer([update(message, "b", delta=-0.25, examples=30)]))
    decision = engine.offer([deadline_arrival(0)])
    before = engine.state.version
    engine.commit(decision)

    assert (0, 1, 0) == (before, engine.state.version, engine.state.filled)
    assert [(10 * 0.5 - 30 * 0.25) / 40] * 22 == engine.state.vector.tolist()
    assert 2 == engine.tally.folded
    assert (frozenset(), {}) == (decision.answers, dict(decision.receipts))


def test_who_comes_after_the_deadline_is_late(new_engine: NewEngine, message: Message) -> None:
    """In the same batch, too; its content goes back to its residual."""
    engine = new_engine(**FEDAVG)
    decision = engine.offer(
        [update(message, "a"), deadline_arrival(0), update(message, "b"), update(message, "a", 2)]
    )

    assert [None, None, Rejection.STALE, Rejection.STALE] == [
        record.refusal and record.refusal.reason for record in decision.records
    ]
    assert [0, 0, 1, 1] == [record.version for record in decision.records]


def test_a_deadline_that_comes_too_late_changes_nothing(new_engine: NewEngine, message: Message) -> None:
    """The batch at hand completes its version, and the next one has begun; or nobody came at all."""
    engine = new_engine(**(FEDAVG | {"buffer_size": 2}))
    batch = [update(message, "a"), update(message, "b"), update(message, "a", 2, base=1), deadline_arrival(0)]
    decision = engine.offer(batch)
    engine.commit(decision)

    assert 3 == len(decision.records)
    assert (1, 1) == (engine.state.version, engine.state.filled)
    assert () == new_engine(**FEDAVG).offer([deadline_arrival(0)]).records


@pytest.mark.parametrize(
    "fold",
    [FEDAVG, {"buffer_size": 4, "momentum": 0.5}, {"strategy": "ca2fl"}, {"robust": "median"}],
    ids=str,
)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=20), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_replay_closes_the_same_versions(
    new_engine: NewEngine, message: Message, fold: dict[str, object], history: list[str | None], seed: int
) -> None:
    """Without a clock, to the last bit, and however the arrivals were batched (law 2)."""
    random = Random(seed)
    fold = fold | {"deadline": 60.0, "max_staleness": 2}
    live, replayed = new_engine(**fold), new_engine(**fold)
    records, seqs = [], dict.fromkeys("abc", 0)
    for client in history:
        arrival = deadline_arrival(live.state.version)
        if client is not None:
            seqs[client] += 1
            base = max(live.state.version - random.randrange(2), 0)
            arrival = update(message, client, seqs[client], base=base, delta=random.uniform(-1, 1))
        decision = live.offer([arrival])
        live.commit(decision)
        records += [replace(record, delta=None) for record in decision.records]
    replayed.replay(records)

    assert pack_state(live) == pack_state(replayed)


def test_a_closed_version_survives_the_store(
    new_engine: NewEngine, message: Message, tmp_path: object
) -> None:
    """The journal holds its record like any other."""
    engine, again = new_engine(**FEDAVG), new_engine(**FEDAVG)
    store = Store(tmp_path / "store.db")  # type: ignore[operator]
    for arrival in (
        update(message, "a"),
        deadline_arrival(0),
        update(message, "b", base=1),
        deadline_arrival(1),
    ):
        decision = engine.offer([arrival])
        store.append(decision.records, decision.receipts, ChunkChanges(), 1.0)
        engine.commit(decision)
    again.replay(store.records(0))
    store.close()

    assert 2 == again.state.version
    assert pack_state(engine) == pack_state(again)


def test_the_window_opens_with_the_first_contribution() -> None:
    """And again with each version's; without one nothing is due."""
    deadline = Deadline(60.0)

    def state(version: int, filled: int) -> FoldState:
        found = strategy.init(make_rule(FoldSettings()), np.zeros(1, np.float32))
        found.version, found.filled = version, filled
        return found

    assert math.inf == deadline.left(state(0, 0), 100.0)
    assert 60.0 == deadline.left(state(0, 1), 110.0)
    assert 10.0 == deadline.left(state(0, 3), 160.0)
    assert 0.0 == deadline.left(state(0, 3), 171.0)
    assert math.inf == deadline.left(state(1, 0), 171.0)
    assert 60.0 == deadline.left(state(1, 1), 400.0)
    assert math.inf == Deadline(None).left(state(0, 1), 1e9)
