"""A SQLite file that one process holds at a time: what the aggregator's store and the agent's outbox share.

WAL with `synchronous=FULL`: a committed transaction survives a power cut, as far as the disk tells the truth.
Every failure becomes a `StoreError` that names the file and says what to do.
"""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from .errors import StoreError

#: Pages in the log after which SQLite works it into the file, unless told otherwise.
DEFAULT_LOG_PAGES: Final = 1000
#: A page of the file, what of it a long value fills, and what it takes in the log (sqlite.org/fileformat2.html).
_PAGE: Final = 4096
_PAGE_DATA: Final = _PAGE - 4
_PAGE_IN_LOG: Final = _PAGE + 24
#: Pages that a transaction writes beside its long values: rows, tables, lists of free pages.
_OTHER_PAGES: Final = 16


class Database:
    """The open file.

    Args:
        path: the file; made when it is missing, with its folder.
        tables: the statements that make a new one, separated by semicolons.
        application_id: tells our files from others' (SQLite's `PRAGMA application_id`).
        schema: the number of this release's schema.
        purpose: what the file is, for messages.
        log_pages: pages of 4 KB after which the write-ahead log is worked into the file. The log beside the file grows
            to so many and one transaction; fewer mean less room, and more writing.
        read_only: look at it without holding it, also while another process writes; it must exist.

    Raises:
        StoreError: another process has it open, it is something else, it is damaged, or the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        *,
        tables: str,
        application_id: int,
        schema: int,
        purpose: str,
        log_pages: int = DEFAULT_LOG_PAGES,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self._purpose = purpose
        self._log_pages = log_pages
        self._lock = -1
        if read_only:
            self._open_read_only(application_id, schema)
            return
        with self.explained("open"):
            _make_folder(path.parent)
            self._take_lock()
            try:
                # The agent trains in one thread and publishes in another; it takes turns, SQLite need not check.
                self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            except BaseException:
                self._release_lock()
                raise
            try:
                self._prepare(tables, application_id, schema)
            except BaseException:
                self.close()
                raise

    def _open_read_only(self, application_id: int, schema: int) -> None:
        if not self.path.exists():
            raise StoreError(f"{self.path}: there is no such {self._purpose}")
        with self.explained("open"):
            address = f"file:{quote(str(self.path.resolve()))}?mode=ro"
            self.connection = sqlite3.connect(address, uri=True, isolation_level=None)
            try:
                if self._check(application_id, schema):
                    raise StoreError(f"{self.path} is empty, it is no {self._purpose}: give another path")
            except BaseException:
                self.connection.close()
                raise

    def _take_lock(self) -> None:
        lock = os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StoreError(
                f"{self.path} is in use by another process: stop it first, or use another {self._purpose}"
            ) from None
        self._lock = lock

    def _prepare(self, tables: str, application_id: int, schema: int) -> None:
        execute = self.connection.execute
        is_new = self._check(application_id, schema)
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA wal_autocheckpoint = {self._log_pages}")
        # Debian's SQLite overwrites with zeros what is deleted, which writes it once more, and takes room in the log.
        execute("PRAGMA secure_delete = OFF")
        if is_new:
            with self.transaction():
                for statement in tables.split(";"):
                    execute(statement)
                execute(f"PRAGMA application_id = {application_id}")
                execute(f"PRAGMA user_version = {schema}")
            _flush_folder(self.path.parent)

    def _check(self, application_id: int, schema: int) -> bool:
        """Whether the file is empty; raises when it is not ours."""
        execute = self.connection.execute
        (found,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        (entries,) = execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if found != application_id and (found or entries):
            raise StoreError(f"{self.path} is no {self._purpose} of fedmq: give another path")
        if found and version != schema:
            raise StoreError(
                f"{self.path} is a {self._purpose} with schema {version}, this release reads schema {schema}"
            )
        return not found

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed within is durable afterwards, or, when anything fails, nothing of it."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException as error:
            if self.connection.in_transaction:  # a full disk may have rolled it back already
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                self._empty_log()
            raise

    def _empty_log(self) -> None:
        """Move SQLite's write-ahead log into the file, so that the next attempt finds the room that it took.

        SQLite does so by itself only after `log_pages`: on a disk that is full, that may be never.
        """
        with suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check_room(self, adds: int, *, replaces: int = 0) -> None:
        """Refuse a transaction that would leave no room for a deletion after it.

        Its pages go into the log first and into the file later. If the file cannot grow by then, the log can never be
        emptied; and on a disk that it has filled, not even what makes room again can be written. So there must be
        room for both, and for as many pages again as may wait in the log.

        Args:
            adds: bytes of the long values that it writes.
            replaces: bytes of those that it removes, whose pages it uses again.

        Raises:
            OSError: there is less room (ENOSPC); made a `StoreError` by `explained`.
        """
        disk = os.statvfs(self.path.parent)
        log = self.path.with_name(f"{self.path.name}-wal").stat().st_size  # used again from its start
        (free_pages,) = self.connection.execute("PRAGMA freelist_count").fetchone()
        pages = adds // _PAGE_DATA + _OTHER_PAGES
        growth = max(pages - replaces // _PAGE_DATA - free_pages, 0)
        needed = (pages + growth + 2 * self._log_pages) * _PAGE_IN_LOG
        room = disk.f_bavail * disk.f_frsize + log
        if room < needed:
            raise OSError(errno.ENOSPC, f"No space left: {needed} bytes are needed, {room} are there")

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn what SQLite and the system raise into a `StoreError`.

        Args:
            doing: what is being done, for the message: "cannot <doing>".
        """
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: cannot {doing}: {error}. {_advice(str(error))}") from error

    def close(self) -> None:
        """Close the file and let others have it. Idempotent."""
        self.connection.close()
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that a power cut leaves them there."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _flush_folder(made.parent)


def _flush_folder(folder: Path) -> None:
    """Have a folder's new entries on the disk: flushing a file does not flush its name.

    As far as the file system does that for folders; SQLite, too, goes on where one does not.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _advice(error: str) -> str:
    for words, advice in (
        (("full", "No space"), "Free some space; nothing that was acknowledged is lost."),
        (
            ("malformed", "not a database", "corrupt"),
            "The file is damaged: keep a copy, restore a backup, or start with a new path.",
        ),
        (
            ("readonly", "Read-only", "Permission", "unable to open"),
            "Check that this user may write the file and its folder.",
        ),
        # SQLite says so of a full disk, too, for instance when it has no room for the log's index.
        (("disk I/O",), "Is the disk full, or failing? Nothing that was acknowledged is lost."),
    ):
        if any(word in error for word in words):
            return advice
    return "Check the disk."
