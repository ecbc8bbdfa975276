"""The store: all of a decision or nothing of it, and everything back as it was written."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fedmq.aggregator.decision import Record
from fedmq.aggregator.store import ChunkChanges, Snapshot, Store

from fedmq.errors import StoreError
from fedmq.types import ClientId, Receipt, Refusal, Rejection, UpdateId

Key = tuple[ClientId, int]
NOTHING = ChunkChanges()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where it lies."""
    return tmp_path / "aggregator.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A new one."""
    store = Store(path)
    yield store
    store.close()


def update_id(seq: int, client: str = "a") -> UpdateId:
    """With the largest epoch there is."""
    return UpdateId(client=ClientId(client), epoch=2**63 - 1, seq=seq)


def record(position: int, *, refused: bool = False, size: int = 50) -> Record:
    """A folded or refused update."""
    refusal = Refusal(reason=Rejection.STALE, detail="ältlich") if refused else None
    return Record(
        position=position,
        id=update_id(position),
        base_version=position,
        version=2**62,
        refusal=refusal,
        message=b"" if refused else bytes([position % 256]) * size,
        num_examples=2**63 - 1,
    )


def receipts(*marks: int) -> dict[Key, Receipt]:
    """Entries of the ledger."""
    return {
        (ClientId(f"c{i}"), i + 1): Receipt(client=ClientId(f"c{i}"), epoch=i + 1, high_water=mark)
        for i, mark in enumerate(marks)
    }


def snapshot(position: int) -> Snapshot:
    """Of anything."""
    return Snapshot(position=position, version=position // 2, state=bytes([position % 256]) * 1000)


def test_a_decision_comes_back_as_it_was_written(store: Store, path: Path) -> None:
    """After closing and opening: records in order, receipts, chunks."""
    records = [record(1), record(2, refused=True), record(3)]
    entries = receipts(5, 6)
    pieces = ((update_id(9), 0, b"piece 0"), (update_id(9), 1, b"piece 1"), (update_id(8, "b"), 0, b"other"))
    empty = store.has_history()
    store.append(records, entries, ChunkChanges(added=pieces), 1.0)
    store.close()
    store = Store(path)

    assert not empty
    assert store.has_history()
    assert records == list(store.records(0))
    assert records[1:] == list(store.records(1))
    assert set(entries.values()) == set(store.receipts())
    assert sorted(envelope for _, _, envelope in pieces) == sorted(store.chunks())
    store.close()


def test_a_newer_receipt_replaces_the_older(store: Store) -> None:
    """One row for each client and epoch."""
    store.append([], receipts(1, 1), NOTHING, 1.0)
    store.append([], receipts(2), NOTHING, 1.0)

    assert {("c0", 2), ("c1", 1)} == {(r.client, r.high_water) for r in store.receipts()}


def test_chunks_are_dropped_by_update_and_before_new_ones_are_added(store: Store) -> None:
    """An update that is cut anew in the same batch keeps its new pieces and none of the old."""
    old = tuple((update_id(1), piece, b"old") for piece in range(3))
    store.append([], {}, ChunkChanges(added=(*old, (update_id(2), 0, b"other"))), 1.0)
    store.append([], {}, ChunkChanges(dropped=(update_id(1),), added=((update_id(1), 1, b"new"),)), 1.0)

    assert [b"new", b"other"] == sorted(store.chunks())


def test_a_full_disk_leaves_nothing_of_a_decision(store: Store) -> None:
    """Neither record nor receipt nor chunk; when there is room again the same decision is taken."""
    store.append([record(1)], receipts(1), NOTHING, 1.0)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    decision = [record(2), record(3, size=20_000)]
    changes = ChunkChanges(added=((update_id(9), 0, b"piece"),))
    with pytest.raises(StoreError, match=r"cannot write: .*full\. Free some space"):
        store.append(decision, receipts(2), changes, 1.0)
    after_failure = (list(store.records(0)), [r.high_water for r in store.receipts()], list(store.chunks()))
    with pytest.raises(StoreError, match=r"cannot write a snapshot: .*full"):
        store.save_snapshot(replace(snapshot(1), state=bytes(50_000)), created=1.0, keep=1, keep_records=0)
    store._db.execute("PRAGMA max_page_count = 100000")
    store.append(decision, receipts(2), changes, 1.0)

    assert ([record(1)], [1], []) == after_failure
    assert [record(1), *decision] == list(store.records(0))
    assert [] == list(store.snapshots())


def test_a_record_at_a_place_that_is_taken_is_refused_whole(store: Store) -> None:
    """The journal is never written over."""
    store.append([record(1)], receipts(1), NOTHING, 1.0)
    with pytest.raises(StoreError, match="UNIQUE constraint failed"):
        store.append([record(2), record(1, refused=True)], receipts(2), NOTHING, 1.0)

    assert [record(1)] == list(store.records(0))
    assert [1] == [receipt.high_water for receipt in store.receipts()]


def test_snapshots_come_newest_first_without_the_damaged_ones(store: Store) -> None:
    """Each is checked against its SHA-256."""
    for position in (2, 4, 6):
        store.save_snapshot(snapshot(position), created=1.0, keep=5, keep_records=100)
    store._db.execute("UPDATE snapshot SET state = zeroblob(1000) WHERE position = 4")

    assert [snapshot(6), snapshot(2)] == list(store.snapshots())


def test_only_what_recovery_and_audit_need_is_kept(store: Store) -> None:
    """Messages behind the oldest snapshot that is kept, and as many records as are asked for."""
    store.append([record(i, refused=i % 4 == 0) for i in range(1, 21)], {}, NOTHING, 1.0)
    for position in (5, 10, 15, 20):
        store.save_snapshot(snapshot(position), created=1.0, keep=2, keep_records=12)
    (messages,) = store._db.execute("SELECT count(*) FROM message").fetchone()
    journal = [position for (position,) in store._db.execute("SELECT position FROM journal ORDER BY 1")]

    assert [20, 15] == [kept.position for kept in store.snapshots()]
    assert [record(i, refused=i % 4 == 0) for i in range(16, 21)] == list(store.records(15))
    assert len([i for i in range(16, 21) if i % 4]) == messages
    assert list(range(9, 21)) == journal


def test_the_journal_behind_every_kept_snapshot_stays_however_little_is_asked_for(store: Store) -> None:
    """keep_records is for audit, recovery comes first."""
    store.append([record(i) for i in range(1, 11)], {}, NOTHING, 1.0)
    for position in (4, 10):
        store.save_snapshot(snapshot(position), created=1.0, keep=2, keep_records=0)

    assert [record(i) for i in range(5, 11)] == list(store.records(4))


def test_a_missing_message_is_found_when_it_is_needed(store: Store) -> None:
    """A folded record cannot be folded again without it."""
    store.append([record(1), record(2)], {}, NOTHING, 1.0)
    store._db.execute("DELETE FROM message WHERE position = 2")
    with pytest.raises(StoreError, match="the message of record 2 is missing: run fedmq verify"):
        list(store.records(0))


def test_a_damaged_receipt_is_found(store: Store) -> None:
    """Its CRC tells."""
    store.append([], receipts(1), NOTHING, 1.0)
    store._db.execute("UPDATE receipt SET receipt = zeroblob(20)")
    with pytest.raises(StoreError, match=r"a ledger entry is damaged .* run fedmq verify"):
        list(store.receipts())


def test_two_aggregators_do_not_share_a_store(store: Store, path: Path) -> None:
    """The second is told to stop the first."""
    with pytest.raises(
        StoreError, match="in use by another process: stop it first, or use another aggregator"
    ):
        Store(path)
