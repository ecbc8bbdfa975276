"""The outbox: updates on disk until their receipt, with the residual that belongs to them.

One SQLite file. An update's bytes, its sequence number and the residual that it leaves behind are written in one
transaction, so that a power cut leaves either all three or none: no number is used twice and no mass is lost or
doubled.

The bounds, and what happens at each:

    number, bytes    the agent trains no further until receipts have made room; nothing is dropped
    the disk         likewise: an update is not taken unless there is room left to take it out again
    age              counted in versions, and judged by the aggregator: an update that is more than the plan's
                     `max_staleness` behind is refused as stale, and its content returns to the residual

No clock expires an update here, and not its age in versions either: what was ever sent may have been folded, with only
the receipt lost, and to give it back would count it twice. Only a receipt tells (docs/decisions/0013).

With an update that was encoded under a mask its mask is kept, once for all updates under it and as long as there is
one: without it a refused one could not be decoded again, once the plan has another.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from fedmq.database import Database
from fedmq.errors import StoreError
from fedmq.mask import EncodedMask
from fedmq.types import ParamVector
from fedmq.wire import MAX_RECEIPT_ENTRIES

SCHEMA: Final = 1
_APPLICATION_ID: Final = 0x464D514F  # "FMQO"
#: Pages in SQLite's log after which it is worked into the file: 128 KB. SQLite's own 1000 are the whole of a 4 MB disk.
#: An update leaves its model's residual, 100 pages for 407 KB, and so is worked in at once: written twice, once for
#: each training. Small models share a round.
_LOG_PAGES: Final = 32

#: Keys of the state: a mask's content, and the number of the newest update under it.
_MASK, _MASK_USE = "mask ", "newest under mask "

_TABLES: Final = """
CREATE TABLE outbox (seq INTEGER PRIMARY KEY, message BLOB NOT NULL, created REAL NOT NULL);
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One update that has no receipt yet.

    Attributes:
        seq: its number.
        message: its envelope.
    """

    seq: int
    message: bytes = field(repr=False)


class Outbox:
    """The open file, held by one process at a time.

    Args:
        path: the file; made when it is missing, with its folder. A new file means a new epoch.
        max_updates: how many updates it holds at most.
        max_bytes: how many bytes of updates it holds at most.

    Raises:
        StoreError: another process has it open, it is no outbox, it is damaged, or the disk refuses.
    """

    def __init__(self, path: Path, *, max_updates: int = 64, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._max_updates = min(max_updates, MAX_RECEIPT_ENTRIES)
        self._max_bytes = max_bytes
        self._file = Database(
            path,
            tables=_TABLES,
            application_id=_APPLICATION_ID,
            schema=SCHEMA,
            purpose="agent's outbox",
            log_pages=_LOG_PAGES,
        )
        self._db = self._file.connection
        try:
            with self._file.explained("read"):
                with self._file.transaction():
                    self._insert_if_new("epoch", secrets.randbits(31) + 1)  # in every update: 5 bytes, not 9
                    self._insert_if_new("next", 1)
                self.epoch = self._number("epoch")
                self._next = self._number("next")
                rows = self._db.execute("SELECT seq, length(message) FROM outbox ORDER BY seq")
                self._sizes: dict[int, int] = dict(rows.fetchall())
                rows = self._db.execute("SELECT key, value FROM state WHERE key LIKE ?", (_MASK_USE + "%",))
                # By its digest in hexadecimal digits: the newest update under a mask.
                self._mask_uses = {key.removeprefix(_MASK_USE): value for key, value in rows.fetchall()}
        except BaseException:
            self.close()  # lets another attempt have the file
            raise

    @property
    def next_seq(self) -> int:
        """The number of the next update."""
        return self._next

    @property
    def floor(self) -> int:
        """The lowest number still kept; `next_seq` when the outbox is empty."""
        return min(self._sizes, default=self._next)

    @property
    def is_full(self) -> bool:
        """Whether no further update may be put in.

        Also when one update has waited while so many later ones were settled that a receipt could not tell of all
        of them: the aggregator drops an update that is `MAX_RECEIPT_ENTRIES` or more beyond its floor, and since the
        floor is part of its bytes, it would be dropped each time, for ever.
        """
        return (
            len(self._sizes) >= self._max_updates
            or sum(self._sizes.values()) >= self._max_bytes
            or self.next_seq - self.floor >= MAX_RECEIPT_ENTRIES
        )

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, seq: int) -> bool:
        return seq in self._sizes

    def put(
        self,
        message: bytes,
        *,
        residual: ParamVector,
        fingerprint: bytes,
        created: float,
        mask: EncodedMask | None = None,
    ) -> int:
        """Keep one update and what it leaves behind.

        Args:
            message: its envelope, made for `next_seq` and `floor`.
            residual: float32, replaces the one before.
            fingerprint: of the layout that the residual belongs to.
            created: wall time in seconds since 1970, for people.
            mask: that it was encoded under.

        Returns:
            Its number.

        Raises:
            StoreError: the disk is full, or nearly, or fails; nothing has changed.
        """
        seq = self._next
        uses = {digest: last for digest, last in self._mask_uses.items() if last >= self.floor}
        content = b""
        if mask is not None:
            uses[mask.digest.hex()] = seq
            content = mask.content if mask.digest.hex() not in self._mask_uses else b""
        with self._file.explained("write"):
            adds = len(message) + residual.nbytes + len(content)
            self._file.check_room(adds, replaces=self._residual_bytes())
        with self._file.explained("write"), self._file.transaction():
            self._db.execute("INSERT INTO outbox VALUES (?, ?, ?)", (seq, message, created))
            self._set("next", seq + 1)
            self._set_residual(residual, fingerprint)
            if mask is not None:
                self._set(_MASK_USE + mask.digest.hex(), seq)
            if mask is not None and content:
                self._set(_MASK + mask.digest.hex(), content)
            for digest in self._mask_uses.keys() - uses.keys():
                keys = _MASK + digest, _MASK_USE + digest
                self._db.execute("DELETE FROM state WHERE key IN (?, ?)", keys)
        self._mask_uses = uses
        self._next = seq + 1
        self._sizes[seq] = len(message)
        return seq

    def forget(self, seq: int) -> None:
        """Drop an update that was folded."""
        with self._file.explained("write"), self._file.transaction():
            self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
        self._sizes.pop(seq, None)

    def give_up(self, seq: int, *, residual: ParamVector, fingerprint: bytes) -> None:
        """Drop an update that was refused, and take back what it carried, in one transaction."""
        with self._file.explained("write"), self._file.transaction():
            self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
            self._set_residual(residual, fingerprint)
        self._sizes.pop(seq, None)

    def skip_to(self, seq: int) -> None:
        """Use no number below `seq` any more: a former life of this file, before it was restored, has used them."""
        with self._file.explained("write"), self._file.transaction():
            self._set("next", seq)
        self._next = seq

    def get(self, seq: int) -> Outgoing:
        """One update.

        Raises:
            StoreError: it is not there.
        """
        with self._file.explained("read"):
            row = self._db.execute("SELECT message FROM outbox WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise StoreError(f"{self._file.path} holds no update {seq}")
        return Outgoing(seq=seq, message=row[0])

    def pending(self) -> list[int]:
        """The numbers of all updates without a receipt, ascending."""
        return sorted(self._sizes)

    def residual(self, fingerprint: bytes) -> ParamVector | None:
        """What stayed behind for a layout; None when there is nothing, or it belongs to another layout."""
        with self._file.explained("read"):
            row = self._db.execute("SELECT value FROM state WHERE key = 'residual'").fetchone()
            owner = self._db.execute("SELECT value FROM state WHERE key = 'fingerprint'").fetchone()
        if row is None or owner[0] != fingerprint:
            return None
        return np.frombuffer(row[0], "<f4").astype(np.float32)

    def mask(self, digest: bytes) -> bytes | None:
        """The content of a mask that an update in here was encoded under; None when it is not kept."""
        with self._file.explained("read"):
            row = self._db.execute(
                "SELECT value FROM state WHERE key = ?", (_MASK + digest.hex(),)
            ).fetchone()
        return bytes(row[0]) if row else None

    def close(self) -> None:
        """Close the file and let others have it. Idempotent."""
        self._file.close()

    def _number(self, key: str) -> int:
        return int(self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()[0])

    def _insert_if_new(self, key: str, value: int) -> None:
        self._db.execute("INSERT OR IGNORE INTO state VALUES (?, ?)", (key, value))

    def _set(self, key: str, value: int | bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def _residual_bytes(self) -> int:
        row = self._db.execute("SELECT length(value) FROM state WHERE key = 'residual'").fetchone()
        return int(row[0]) if row else 0

    def _set_residual(self, residual: ParamVector, fingerprint: bytes) -> None:
        self._set("residual", residual.astype("<f4", copy=False).tobytes())
        self._set("fingerprint", fingerprint)
