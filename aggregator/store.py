"""The store: journal, ledger, snapshots and unfinished chunks in one SQLite file.

One file, so that one transaction covers them all: a record, the receipt that it leads to and the chunks that it
used up are durable together or not at all. WAL with `synchronous=FULL`: a committed transaction survives
a power cut, as far as the disk tells the truth.

    journal    one row for each update that was folded or refused, in the order of folding
    message    the envelope of a folded update, kept until a snapshot that is old enough covers it
    receipt    the ledger: one packed receipt for each client and outbox epoch
    snapshot   the engine's state at a position of the journal, with its SHA-256
    chunk      pieces of updates that are not complete yet
"""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedmq import wire
from fedmq.errors import StoreError, WireError
from fedmq.types import ClientId, Receipt, Refusal, Rejection, UpdateId

from .engine import Record
from .ledger import Key

SCHEMA: Final = 1
_APPLICATION_ID: Final = 0x464D5141  # "FMQA"

_TABLES: Final = """
CREATE TABLE journal (
    position INTEGER PRIMARY KEY, client TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    base_version INTEGER NOT NULL, version INTEGER NOT NULL, examples INTEGER NOT NULL,
    reason TEXT, detail TEXT, received REAL NOT NULL
);
CREATE TABLE message (position INTEGER PRIMARY KEY, envelope BLOB NOT NULL);
CREATE TABLE receipt (
    client TEXT NOT NULL, epoch INTEGER NOT NULL, receipt BLOB NOT NULL, PRIMARY KEY (client, epoch)
) WITHOUT ROWID;
CREATE TABLE snapshot (
    position INTEGER PRIMARY KEY, version INTEGER NOT NULL, created REAL NOT NULL,
    digest BLOB NOT NULL, state BLOB NOT NULL
);
CREATE TABLE chunk (
    client TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, piece INTEGER NOT NULL,
    envelope BLOB NOT NULL, PRIMARY KEY (client, epoch, seq, piece)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The engine's state after `position` journal records.

    Attributes:
        position: how many records it covers.
        version: the model's version.
        state: what `state.pack_state` made.
    """

    position: int
    version: int
    state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkChanges:
    """What a batch does to the unfinished chunks.

    Attributes:
        added: piece number and envelope by update.
        dropped: updates whose pieces are no longer needed.
    """

    added: tuple[tuple[UpdateId, int, bytes], ...] = ()
    dropped: tuple[UpdateId, ...] = ()


class Store:
    """The open file, held by one process at a time.

    Args:
        path: the file; made when it is missing, with its folder.

    Raises:
        StoreError: another process has it open, it is no fedmq store, it is damaged, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explained("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._prepare()

    def _take_lock(self) -> int:
        lock = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StoreError(
                f"{self._path} is in use by another aggregator: stop it first, or give this one its own store"
            ) from None
        return lock

    def _prepare(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application == 0 and tables == 0:
            with self._transaction():
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA}")
        elif application != _APPLICATION_ID:
            raise StoreError(f"{self._path} is not an aggregator's store: give another path")
        elif schema != SCHEMA:
            raise StoreError(f"{self._path} has schema {schema}, this release reads schema {SCHEMA}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have rolled it back already
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: cannot {doing}: {error}. {_advice(error)}") from error

    def append(
        self,
        records: Iterable[Record],
        receipts: Mapping[Key, Receipt],
        chunks: ChunkChanges,
        received: float,
    ) -> None:
        """Make a decision durable: all of it, in one transaction, or nothing.

        Args:
            records: for the journal.
            receipts: the ledger's new entries.
            chunks: what changes among the unfinished chunks.
            received: wall time in seconds since 1970, for people.

        Raises:
            StoreError: the disk is full or fails; nothing of the decision is kept.
        """
        rows = [_row(record, received) for record in records]
        messages = [(record.position, record.message) for record in records if record.refusal is None]
        entries = [(*key, wire.pack_receipt(receipt)) for key, receipt in receipts.items()]
        pieces = [(i.client, i.epoch, i.seq, piece, envelope) for i, piece, envelope in chunks.added]
        with self._explained("write"), self._transaction():
            many = self._db.executemany
            many("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            many("INSERT INTO message VALUES (?, ?)", messages)
            many("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?)", entries)
            if pieces:
                many("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?)", pieces)
            if chunks.dropped:
                gone = [(i.client, i.epoch, i.seq) for i in chunks.dropped]
                many("DELETE FROM chunk WHERE client = ? AND epoch = ? AND seq = ?", gone)

    def save_snapshot(self, snapshot: Snapshot, *, created: float, keep: int, keep_records: int) -> None:
        """Add a snapshot and prune what it makes superfluous.

        Args:
            snapshot: the engine's state.
            created: wall time in seconds since 1970, for people.
            keep: how many snapshots stay; messages older than the oldest are dropped.
            keep_records: how many journal rows stay for audit.

        Raises:
            StoreError: the disk is full or fails; nothing is changed.
        """
        digest = hashlib.sha256(snapshot.state).digest()
        with self._explained("write a snapshot"), self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?, ?)",
                (snapshot.position, snapshot.version, created, digest, snapshot.state),
            )
            self._db.execute(
                "DELETE FROM snapshot WHERE position NOT IN "
                "(SELECT position FROM snapshot ORDER BY position DESC LIMIT ?)",
                (keep,),
            )
            (oldest,) = self._db.execute("SELECT min(position) FROM snapshot").fetchone()
            self._db.execute("DELETE FROM message WHERE position <= ?", (oldest,))
            horizon = min(oldest, snapshot.position - keep_records)
            self._db.execute("DELETE FROM journal WHERE position <= ?", (horizon,))

    def snapshots(self) -> Iterator[Snapshot]:
        """The snapshots whose digest matches, newest first."""
        with self._explained("read the snapshots"):
            rows = self._db.execute(
                "SELECT position, version, digest, state FROM snapshot ORDER BY position DESC"
            )
            for position, version, digest, state in rows:
                if hashlib.sha256(state).digest() == digest:
                    yield Snapshot(position=position, version=version, state=state)

    def records(self, after: int) -> Iterator[Record]:
        """The journal behind a position, in order.

        Raises:
            StoreError: a folded record's message is missing or the journal cannot be read.
        """
        with self._explained("read the journal"):
            rows = self._db.execute(
                "SELECT j.position, client, epoch, seq, base_version, version, examples, reason, detail, envelope "
                "FROM journal j LEFT JOIN message m ON m.position = j.position "
                "WHERE j.position > ? ORDER BY j.position",
                (after,),
            )
            for position, client, epoch, seq, base, version, examples, reason, detail, envelope in rows:
                if reason is None and envelope is None:
                    raise StoreError(
                        f"{self._path}: the message of record {position} is missing: run fedmq verify"
                    )
                yield Record(
                    position=position,
                    id=UpdateId(client=ClientId(client), epoch=epoch, seq=seq),
                    base_version=base,
                    version=version,
                    refusal=Refusal(reason=Rejection(reason), detail=detail) if reason else None,
                    message=envelope or b"",
                    num_examples=examples,
                )

    def receipts(self) -> Iterator[Receipt]:
        """The whole ledger."""
        with self._explained("read the ledger"):
            for (packed,) in self._db.execute("SELECT receipt FROM receipt"):
                try:
                    yield wire.unpack_receipt(packed)
                except WireError as error:
                    raise StoreError(
                        f"{self._path}: a ledger entry is damaged ({error}): run fedmq verify"
                    ) from error

    def chunks(self) -> Iterator[bytes]:
        """The envelopes of all unfinished chunks."""
        with self._explained("read the chunks"):
            for (envelope,) in self._db.execute("SELECT envelope FROM chunk"):
                yield envelope

    def close(self) -> None:
        """Close the file and let others have it. Idempotent."""
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _row(record: Record, received: float) -> tuple[object, ...]:
    refusal = record.refusal
    return (
        record.position,
        record.id.client,
        record.id.epoch,
        record.id.seq,
        record.base_version,
        record.version,
        record.num_examples,
        str(refusal.reason) if refusal else None,
        refusal.detail if refusal else None,
        received,
    )


def _advice(error: Exception) -> str:
    text = str(error)
    if "full" in text or "No space" in text:
        return "Free some space; nothing that was acknowledged is lost, and the aggregator goes on by itself."
    if "malformed" in text or "not a database" in text:
        return "The file is damaged: keep a copy, restore a backup, or start with a new store path."
    if "readonly" in text or "Permission" in text or "Read-only" in text or "unable to open" in text:
        return "Check that this user may write the file and its folder."
    return "Check the disk."
