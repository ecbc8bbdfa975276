"""The audit: a healthy store is found healthy, each kind of damage is named, and every version can be built again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.audit import replay, verify
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import ChunkChanges, Snapshot, Store

from fedmq import encoding
from fedmq.errors import StoreError

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "aggregator.db"


@pytest.fixture
def vectors() -> list[np.ndarray]:
    """The model at each version, filled by `store`."""
    return []


@pytest.fixture
def store(path: Path, new_engine: NewEngine, message: Message, vectors: list[np.ndarray]) -> Iterator[Store]:
    """Ten versions of two updates each and some refusals, with snapshots at records 0, 8 and 16."""
    engine, store = new_engine(buffer_size=2), Store(path)
    rng = np.random.default_rng(0)
    vectors.append(engine.state.vector.copy())
    for seq in range(1, 25):
        if engine.position % 8 == 0:
            snapshot = Snapshot(
                position=engine.position, version=engine.state.version, state=pack_state(engine)
            )
            store.save_snapshot(snapshot, created=1.0, keep=9, keep_records=1000)
        data = message(seq=seq, delta=rng.standard_normal(22), examples=0 if seq % 6 == 0 else 3)
        decision = engine.offer([Arrival(client="a", message=data)])
        store.append(decision.records, decision.receipts, ChunkChanges(), 1.0)
        engine.commit(decision)
        if engine.state.version == len(vectors):
            vectors.append(engine.state.vector.copy())
    yield store
    store.close()


def test_a_healthy_store_has_no_damage(store: Store) -> None:
    """And its journal leads from each snapshot to the next."""
    findings = verify(store)

    assert () == findings.damage
    assert (24, 20, 1, 3, 2) == (
        findings.records,
        findings.folded,
        findings.clients,
        findings.snapshots,
        findings.replayed,
    )


def test_a_store_can_be_looked_at_while_an_aggregator_holds_it(store: Store, path: Path) -> None:
    """Without taking the lock, and without a way to change anything."""
    reader = Store(path, read_only=True)
    findings = verify(reader)
    with pytest.raises(StoreError, match="readonly database"):
        reader.append(list(store.records(20)), {}, ChunkChanges(), 1.0)
    reader.close()

    assert () == findings.damage
    assert 24 == len(list(store.journal()))


DAMAGE = {
    "a snapshot": (
        "UPDATE snapshot SET state = zeroblob(9) WHERE position = 8",
        "the snapshot at record 8 does not match its hash",
    ),
    "a message": (
        "UPDATE message SET envelope = zeroblob(99) WHERE position = 10",
        "the journal cannot be folded from record 8 on: the message of journal record 10 cannot be decoded",
    ),
    "a message behind the newest snapshot": (
        "UPDATE message SET envelope = zeroblob(99) WHERE position = 19",
        "the newest snapshot cannot be brought up to date: the message of journal record 19",
    ),
    "a missing message": ("DELETE FROM message WHERE position = 10", "the message of record 10 is missing"),
    "a missing record": (
        "DELETE FROM journal WHERE position = 10",
        "records 10 to 10 are missing from the journal",
    ),
    "an update twice": (
        "UPDATE journal SET seq = 4 WHERE position = 5",
        "records 4 and 5 are the same update: a seq 4",
    ),
    "a receipt": (
        "DELETE FROM receipt",
        "the ledger has no entry for the outbox 7 of a, last heard of at record 24",
    ),
    "all snapshots": ("UPDATE snapshot SET state = zeroblob(9)", "there is no intact snapshot"),
    "an update that was weighed otherwise": (
        "UPDATE journal SET base_version = 1 WHERE position = 10",
        "the journal leads from record 8 to another state than the snapshot's",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(store: Store, name: str) -> None:
    """With the record it is at."""
    statement, words = DAMAGE[name]
    store._db.execute(statement)
    damage = verify(store).damage

    assert [line for line in damage if words in line]


def test_every_version_that_is_kept_can_be_built_again(store: Store, vectors: list[np.ndarray]) -> None:
    """Bit for bit; a later snapshot vouches for it where there is one."""
    built = [replay(store, version) for version in range(len(vectors))]

    assert [vector.tobytes() for vector in vectors] == [each.vector.tobytes() for each in built]
    assert list(range(11)) == [each.engine.state.version for each in built]
    assert [encoding.digest(vector) for vector in vectors] == [each.digest for each in built]
    assert {True, None} == {each.is_identical for each in built}
    assert all(each.is_identical for each in built if each.anchor is not None)


def test_the_newest_version_is_built_when_none_is_asked_for(store: Store, vectors: list[np.ndarray]) -> None:
    """From the last snapshot but one, so that the last vouches for it."""
    built = replay(store)

    assert vectors[-1].tobytes() == built.vector.tobytes()


def test_a_version_that_is_not_there_is_refused(store: Store) -> None:
    """Not yet, or no longer."""
    with pytest.raises(StoreError, match="version 11 does not exist yet: 10 is the newest"):
        replay(store, 11)
    store._db.execute("DELETE FROM snapshot WHERE position < 8")
    with pytest.raises(StoreError, match="version 0 is no longer kept: 3 is the oldest"):
        replay(store, 0)
    store._db.execute("DELETE FROM snapshot")
    with pytest.raises(StoreError, match="there is no intact snapshot to start from"):
        replay(store)
