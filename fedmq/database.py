"""A SQLite file that one process holds at a time: what the aggregator's store and the agent's outbox share.

WAL with `synchronous=FULL`: a committed transaction survives a power cut, as far as the disk tells the truth.
Every failure becomes a `StoreError` that names the file and says what to do.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from .errors import StoreError


class Database:
    """The open file.

    Args:
        path: the file; made when it is missing, with its folder.
        tables: the statements that make a new one, separated by semicolons.
        application_id: tells our files from others' (SQLite's `PRAGMA application_id`).
        schema: the number of this release's schema.
        purpose: what the file is, for messages.
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
        read_only: bool = False,
    ) -> None:
        self.path = path
        self._purpose = purpose
        self._lock = -1
        if read_only:
            self._open_read_only(application_id, schema)
            return
        with self.explained("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
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
        if is_new:
            with self.transaction():
                for statement in tables.split(";"):
                    execute(statement)
                execute(f"PRAGMA application_id = {application_id}")
                execute(f"PRAGMA user_version = {schema}")

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

        SQLite does so by itself only after a thousand pages, 4 MB: on a disk that is full, that is never.
        """
        with suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

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
    ):
        if any(word in error for word in words):
            return advice
    return "Check the disk."
