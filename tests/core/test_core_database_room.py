"""A disk with little room: what SQLite's own log takes of it is given back."""

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

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


def opened(path: Path, log_pages: int) -> Database:
    """A database with a log of its own size."""
    return Database(
        path,
        tables="CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)",
        application_id=1,
        schema=1,
        purpose="test file",
        log_pages=log_pages,
    )


@pytest.mark.parametrize("log_pages", [8, 32, 100])
def test_the_log_grows_to_so_many_pages_and_one_transaction(tmp_path: Path, log_pages: int) -> None:
    """Then it is worked into the file and used from its start; a small disk has no room for SQLite's own 4 MB."""
    database = opened(tmp_path / "file.db", log_pages)
    sizes = []
    for value in range(300):
        with database.transaction():
            database.connection.execute(
                "INSERT OR REPLACE INTO t VALUES (1, ?)", (bytes([value % 256]) * 4000,)
            )
        sizes.append((tmp_path / "file.db-wal").stat().st_size)
    database.close()

    assert log_pages * 4120 < max(sizes) < (log_pages + 8) * 4120


def test_what_is_deleted_is_not_written_once_more(tmp_path: Path) -> None:
    """Debian's SQLite would overwrite it with zeros, through the log: twice the room for nothing."""
    database = opened(tmp_path / "file.db", 1)
    with database.transaction():
        database.connection.execute("INSERT INTO t VALUES (1, zeroblob(1000000))")
    database._empty_log()
    with database.transaction():
        database.connection.execute("DELETE FROM t")
    size = (tmp_path / "file.db-wal").stat().st_size
    database.close()

    assert size < 100_000


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the system says that nothing is left."""
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=0, f_frsize=4096))


def test_a_transaction_needs_room_in_the_log_and_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for the pages that wait in the log. What it removes, and what is free in the file, need not be added."""
    database = opened(tmp_path / "file.db", 32)
    full_disk(monkeypatch)

    def needed(adds: int, replaces: int = 0) -> int:
        with pytest.raises(OSError, match=r"(\d+) bytes are needed") as caught:
            database.check_room(adds, replaces=replaces)
        return int(re.findall(r"\d+", str(caught.value))[1])

    least, small, large, replacing = needed(0), needed(10_000), needed(10**6), needed(10**6, 10**6)
    with database.transaction():
        database.connection.execute("INSERT INTO t VALUES (1, zeroblob(1000000))")
        database.connection.execute("DELETE FROM t")
    within = needed(10**6)
    database.close()

    assert 64 * 4120 < least < 100 * 4120
    assert 16_000 < small - least < 25_000
    assert 2_000_000 < large - least < 2_050_000
    assert 1_000_000 < replacing - least < 1_025_000
    assert 900_000 < within - least < 1_025_000


def test_the_room_that_the_log_has_taken_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that is full to the last byte takes what the log had room for before."""
    database = opened(tmp_path / "file.db", 32)
    for value in (bytes(10**6), b"short"):
        with database.transaction():
            database.connection.execute("INSERT OR REPLACE INTO t VALUES (1, ?)", (value,))
    full_disk(monkeypatch)
    database.check_room(100_000)
    with (
        pytest.raises(
            StoreError, match=r"No space left: \d{7} bytes are needed, \d{7} are there\. Free some space"
        ),
        database.explained("write"),
    ):
        database.check_room(10**6)
    database.close()


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
