"""A disk with little room: what SQLite's own log takes of it is given back."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmq.database import Database
from fedmq.errors import StoreError

ROOM = 256 * 1024


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a write that would fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_fills_the_disk_is_emptied(tmp_path: Path) -> None:
    """One row is written again and again: whatever the log takes, at most one attempt in a row fails."""
    database = Database(
        tmp_path / "file.db",
        tables="CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)",
        application_id=1,
        schema=1,
        purpose="test file",
    )

    def write(value: int) -> None:
        with database.explained("write"), database.transaction():
            database.connection.execute("INSERT OR REPLACE INTO t VALUES (1, ?)", (bytes([value]) * 4000,))

    failures = 0
    with files_of_at_most(ROOM):
        for value in range(200):
            try:
                write(value)
            except StoreError:
                failures += 1
                write(value)  # must find room now
    (kept,) = database.connection.execute("SELECT b FROM t").fetchone()
    database.close()

    assert failures > 0
    assert kept == bytes([199]) * 4000


def test_a_disk_without_any_room_still_says_so(tmp_path: Path) -> None:
    """A row that does not fit is refused each time, and what was there before stays."""
    database = Database(
        tmp_path / "file.db",
        tables="CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)",
        application_id=1,
        schema=1,
        purpose="test file",
    )
    with database.transaction():
        database.connection.execute("INSERT INTO t VALUES (1, 'before')")

    with files_of_at_most(ROOM):
        for _ in range(3):
            with (
                pytest.raises(StoreError, match="cannot write"),
                database.explained("write"),
                database.transaction(),
            ):
                database.connection.execute("INSERT INTO t VALUES (2, ?)", (bytes(2 * ROOM),))
    rows = database.connection.execute("SELECT b FROM t").fetchall()
    database.close()

    assert rows == [("before",)]
