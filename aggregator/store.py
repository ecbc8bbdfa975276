"""The store: journal, ledger, snapshots and unfinished chunks in one SQLite file.

One file, so that one transaction covers them all: a record, the receipt that it leads to and the chunks that it
used up are durable together or not at all.

    journal    one row for each update that was folded or refused, in the order of folding
    message    the envelope of a folded update, kept until a snapshot that is old enough covers it
    receipt    the ledger: one packed receipt for each client and outbox epoch, and the record that last added to it
    snapshot   the engine's state at a position of the journal, with its SHA-256
    chunk      pieces of updates that are not complete yet
    frame      the frames that the published model stands on: without them a restart would cost every client a keyframe
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedmq import wire
from fedmq.database import Database
from fedmq.errors import StoreError, WireError
from fedmq.types import ClientId, Receipt, Refusal, Rejection, UpdateId

from .decision import Record
from .ledger import Key
from .publisher import PublishedFrame

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
    client TEXT NOT NULL, epoch INTEGER NOT NULL, receipt BLOB NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (client, epoch)
) WITHOUT ROWID;
CREATE TABLE snapshot (
    position INTEGER PRIMARY KEY, version INTEGER NOT NULL, created REAL NOT NULL,
    digest BLOB NOT NULL, state BLOB NOT NULL
);
CREATE TABLE chunk (
    client TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, piece INTEGER NOT NULL,
    envelope BLOB NOT NULL, PRIMARY KEY (client, epoch, seq, piece)
) WITHOUT ROWID;
CREATE TABLE frame (
    place INTEGER PRIMARY KEY, version INTEGER NOT NULL, codec TEXT NOT NULL, content BLOB NOT NULL
);
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
class JournalEntry:
    """One journal row as people see it.

    Attributes:
        position: its place.
        client: who contributed.
        epoch: from which outbox.
        seq: its number there.
        base_version: the version it was trained from.
        version: the model's version when it was folded or refused.
        examples: as claimed.
        reason: why it was refused; empty when it was folded.
        detail: the facts that led to the refusal.
        received: wall time in seconds since 1970.
        message_bytes: size of its envelope; None when that is no longer kept, or never was.
    """

    position: int
    client: str
    epoch: int
    seq: int
    base_version: int
    version: int
    examples: int
    reason: str
    detail: str
    received: float
    message_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkChanges:
    """What a batch does to the unfinished chunks.

    Attributes:
        dropped: updates whose pieces up to now are no longer needed.
        added: new pieces, each with its update, number and envelope.
    """

    dropped: tuple[UpdateId, ...] = ()
    added: tuple[tuple[UpdateId, int, bytes], ...] = ()


class Store:
    """The open file, held by one process at a time.

    Args:
        path: the file; made when it is missing, with its folder.
        read_only: look at it without holding it, also while an aggregator works on it; it must exist.

    Raises:
        StoreError: another process has it open, it is no fedmq store, it is damaged, or the disk refuses.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._file = Database(
            path,
            tables=_TABLES,
            application_id=_APPLICATION_ID,
            schema=SCHEMA,
            purpose="aggregator's store",
            read_only=read_only,
        )
        self._db = self._file.connection

    def append(
        self,
        records: Sequence[Record],
        receipts: Mapping[Key, Receipt],
        chunks: ChunkChanges,
        received: float,
        forgotten: Collection[Key] = (),
    ) -> None:
        """Make a decision durable: all of it, in one transaction, or nothing.

        Args:
            records: for the journal.
            receipts: the ledger's new entries.
            chunks: what changes among the unfinished chunks.
            received: wall time in seconds since 1970, for people.
            forgotten: the ledger's entries that go.

        Raises:
            StoreError: the disk is full or fails; nothing of the decision is kept.
        """
        rows = [_row(record, received) for record in records]
        messages = [(record.position, record.message) for record in records if record.refusal is None]
        position = {(record.id.client, record.id.epoch): record.position for record in records}
        entries = [(*key, wire.pack_receipt(entry), position.get(key, 0)) for key, entry in receipts.items()]
        pieces = [(i.client, i.epoch, i.seq, piece, envelope) for i, piece, envelope in chunks.added]
        with self._file.explained("write"), self._file.transaction():
            many = self._db.executemany
            many("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            many("INSERT INTO message VALUES (?, ?)", messages)
            many("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?, ?)", entries)
            if forgotten:
                many("DELETE FROM receipt WHERE client = ? AND epoch = ?", list(forgotten))
            if chunks.dropped:
                gone = [(i.client, i.epoch, i.seq) for i in chunks.dropped]
                many("DELETE FROM chunk WHERE client = ? AND epoch = ? AND seq = ?", gone)
            if pieces:
                many("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?)", pieces)

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
        with self._file.explained("write a snapshot"), self._file.transaction():
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
        with self._file.explained("read the snapshots"):
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
        with self._file.explained("read the journal"):
            rows = self._db.execute(
                "SELECT j.position, client, epoch, seq, base_version, version, examples, reason, detail, envelope "
                "FROM journal j LEFT JOIN message m ON m.position = j.position "
                "WHERE j.position > ? ORDER BY j.position",
                (after,),
            )
            for position, client, epoch, seq, base, version, examples, reason, detail, envelope in rows:
                if reason is None and envelope is None:
                    raise StoreError(
                        f"{self._file.path}: the message of record {position} is missing: run fedmq verify"
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

    def journal(self) -> Iterator[JournalEntry]:
        """Every journal row that is kept, in order, without messages."""
        with self._file.explained("read the journal"):
            rows = self._db.execute(
                "SELECT j.position, client, epoch, seq, base_version, version, examples, reason, detail, received, "
                "length(envelope) FROM journal j LEFT JOIN message m ON m.position = j.position ORDER BY j.position"
            )
            for position, client, epoch, seq, base, version, examples, reason, detail, received, size in rows:
                yield JournalEntry(
                    position=position,
                    client=client,
                    epoch=epoch,
                    seq=seq,
                    base_version=base,
                    version=version,
                    examples=examples,
                    reason=reason or "",
                    detail=detail or "",
                    received=received,
                    message_bytes=size,
                )

    def damaged_snapshots(self) -> list[int]:
        """Positions of the snapshots whose digest does not match."""
        with self._file.explained("read the snapshots"):
            rows = self._db.execute("SELECT position, digest, state FROM snapshot ORDER BY position")
            return [place for place, digest, state in rows if hashlib.sha256(state).digest() != digest]

    def check_integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty when nothing."""
        with self._file.explained("check"):
            lines = [line for (line,) in self._db.execute("PRAGMA integrity_check(20)")]
            return [] if lines == ["ok"] else lines

    def receipts(self) -> Iterator[Receipt]:
        """The whole ledger, in the order in which the entries were last added to."""
        with self._file.explained("read the ledger"):
            for (packed,) in self._db.execute("SELECT receipt FROM receipt ORDER BY position"):
                try:
                    yield wire.unpack_receipt(packed)
                except WireError as error:
                    raise StoreError(
                        f"{self._file.path}: a ledger entry is damaged ({error}): run fedmq verify"
                    ) from error

    def chunks(self) -> Iterator[bytes]:
        """The envelopes of all unfinished chunks."""
        with self._file.explained("read the chunks"):
            for (envelope,) in self._db.execute("SELECT envelope FROM chunk"):
                yield envelope

    def visits(self, most: int) -> list[tuple[str, int]]:
        """Client and base version of the updates that were folded last, oldest first."""
        with self._file.explained("read the journal"):
            rows = self._db.execute(
                "SELECT client, base_version FROM journal WHERE reason IS NULL ORDER BY position DESC LIMIT ?",
                (most,),
            )
            return rows.fetchall()[::-1]

    def frames(self) -> tuple[PublishedFrame, ...]:
        """The frames that were last saved, the keyframe first."""
        with self._file.explained("read the frames"):
            rows = self._db.execute("SELECT version, codec, content FROM frame ORDER BY place")
            return tuple(
                PublishedFrame(version=v, codec=codec, content=content) for v, codec, content in rows
            )

    def save_frames(self, frames: Sequence[PublishedFrame], unchanged: int) -> None:
        """Replace the frames by others, of which the first `unchanged` are there already.

        Raises:
            StoreError: the disk is full or fails; nothing has changed.
        """
        rows = [(place, frame.version, frame.codec, frame.content) for place, frame in enumerate(frames)]
        with self._file.explained("write"), self._file.transaction():
            self._db.execute("DELETE FROM frame WHERE place >= ?", (unchanged,))
            self._db.executemany("INSERT INTO frame VALUES (?, ?, ?, ?)", rows[unchanged:])

    def has_history(self) -> bool:
        """Whether anything was ever written."""
        with self._file.explained("read"):
            query = "SELECT EXISTS (SELECT 1 FROM journal) OR EXISTS (SELECT 1 FROM snapshot)"
            return bool(self._db.execute(query).fetchone()[0])

    def close(self) -> None:
        """Close the file and let others have it. Idempotent."""
        self._file.close()


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
