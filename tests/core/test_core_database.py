"""The SQLite file: one holder, nothing half-written, and every failure explained."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.database import Database
from fedmq.errors import StoreError

TABLES = "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL);\nCREATE TABLE other (x BLOB);\n"
ID = 0x12345678


def opened(path: Path, *, schema: int = 1, tables: str = TABLES, read_only: bool = False) -> Database:
    """A database of notes."""
    return Database(
        path, tables=tables, application_id=ID, schema=schema, purpose="notebook", read_only=read_only
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where it lies, in a folder that does not exist yet."""
    return tmp_path / "folder" / "notes.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    """An open one."""
    database = opened(path)
    yield database
    database.close()


def notes(database: Database) -> list[str]:
    """What is in it."""
    return [text for (text,) in database.connection.execute("SELECT text FROM note ORDER BY id")]


def write(database: Database, *texts: str | None) -> None:
    """Add notes in one transaction."""
    with database.explained("write"), database.transaction():
        for text in texts:
            database.connection.execute("INSERT INTO note (text) VALUES (?)", (text,))


def test_what_is_committed_is_there_after_reopening(path: Path) -> None:
    """And the file is made with its folder."""
    database = opened(path)
    write(database, "a", "b")
    database.close()
    database = opened(path)
    found = notes(database)
    database.close()

    assert ["a", "b"] == found


def test_a_new_database_s_name_is_flushed_with_all_folders_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushing a file does not flush its name: after a power cut the folder could be gone. Only new names need it."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    path = tmp_path / "a" / "b" / "notes.db"
    opened(path).close()
    new = sorted(flushed)
    flushed.clear()
    opened(path).close()

    assert sorted(folder.stat().st_ino for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")) == new
    assert [] == flushed


def test_a_file_system_that_flushes_no_folders_is_good_enough(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse; there is nothing to be done about it."""

    def refuse(handle: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    opened(path).close()

    assert path.exists()


def test_every_commit_is_flushed_to_the_disk(database: Database) -> None:
    """WAL with synchronous FULL (2), on which "acknowledged after durable" rests."""
    assert ("wal",) == database.connection.execute("PRAGMA journal_mode").fetchone()
    assert (2,) == database.connection.execute("PRAGMA synchronous").fetchone()


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    """Whether SQLite or the caller raised, and the next one works."""

    def fail_halfway() -> None:
        with database.transaction():
            database.connection.execute("INSERT INTO note (text) VALUES ('half')")
            raise ZeroDivisionError

    write(database, "before")
    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    with pytest.raises(StoreError, match="cannot write: NOT NULL constraint failed"):
        write(database, "half", None)
    write(database, "after")

    assert ["before", "after"] == notes(database)


def test_a_second_holder_is_refused_until_the_first_leaves(path: Path) -> None:
    """In the same process."""
    first = opened(path)
    with pytest.raises(
        StoreError, match=f"{path} is in use by another process: stop it first, or use another"
    ):
        opened(path)
    first.close()
    first.close()
    opened(path).close()


HOLDER = """
import sys
from pathlib import Path
from fedmq.database import Database
database = Database(Path(sys.argv[1]), tables=sys.argv[2], application_id=int(sys.argv[3]), schema=1, purpose="p")
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_refused_until_the_holder_is_killed(path: Path) -> None:
    """The lock dies with its holder, however it dies."""
    command = [sys.executable, "-c", HOLDER, str(path), TABLES, str(ID)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert "held\n" == holder.stdout.readline()
        with pytest.raises(StoreError, match="is in use by another process"):
            opened(path)
        holder.kill()
        holder.wait()
        opened(path).close()


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    """With an id of its own, or with tables and none."""
    path.parent.mkdir()
    for script in ("PRAGMA application_id = 99", "CREATE TABLE mine (x)"):
        path.unlink(missing_ok=True)
        foreign = sqlite3.connect(path)
        foreign.executescript(script)
        foreign.close()
        before = path.read_bytes()
        with pytest.raises(StoreError, match=f"{path} is no notebook of fedmq: give another path"):
            opened(path)

        assert before == path.read_bytes()


def test_a_database_of_another_schema_is_refused(path: Path) -> None:
    """An older release must not misread what a newer one wrote, nor the reverse."""
    opened(path).close()
    with pytest.raises(StoreError, match="is a notebook with schema 1, this release reads schema 2"):
        opened(path, schema=2)


@pytest.mark.parametrize(
    "content",
    [b"This is not a database, but longer than a header of one." * 50, b"SQLite format 3\0" + b"\xff" * 9000],
)
def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes) -> None:
    """With what to do."""
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(
        StoreError, match=r"cannot open: .*The file is damaged: keep a copy, restore a backup"
    ):
        opened(path)

    assert content == path.read_bytes()


def test_a_damaged_page_is_reported_when_it_is_read(path: Path) -> None:
    """The header is good, a page behind it is not."""
    database = opened(path)
    write(database, *(f"{i} " + "x" * 1000 for i in range(50)))
    database.close()
    data = bytearray(path.read_bytes())
    data[-20_000:] = b"\xff" * 20_000
    path.write_bytes(data)
    database = opened(path)
    with (
        pytest.raises(StoreError, match=r"cannot read: .*malformed.*restore a backup"),
        database.explained("read"),
    ):
        notes(database)
    database.close()


def test_a_full_disk_is_explained_and_leaves_nothing_half(database: Database) -> None:
    """SQLite reports the same error for its own limit as for a disk that is full."""
    write(database, "before")
    (pages,) = database.connection.execute("PRAGMA page_count").fetchone()
    database.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(
        StoreError, match=r"cannot write: database or disk is full\. Free some space; nothing that"
    ):
        write(database, *("x" * 4000 for _ in range(10)))
    after_failure = notes(database)
    database.connection.execute(f"PRAGMA max_page_count = {pages + 100}")
    write(database, "after")

    assert ["before"] == after_failure
    assert ["before", "after"] == notes(database)


def test_tables_that_cannot_be_made_leave_no_half_database(path: Path) -> None:
    """They are made in one transaction; what is left is an empty file, which is taken for a new one."""
    with pytest.raises(StoreError, match=r"cannot open: .*syntax error"):
        opened(path, tables=TABLES + "CREATE oops")
    database = opened(path)
    write(database, "a")

    assert ["a"] == notes(database)
    database.close()


def test_a_reader_needs_no_lock_and_changes_nothing(database: Database, path: Path) -> None:
    """It sees what is committed while the holder goes on writing."""
    write(database, "a")
    reader = opened(path, read_only=True)
    first = notes(reader)
    write(database, "b")
    second = notes(reader)
    with pytest.raises(StoreError, match=r"readonly database\. Check that this user may write"):
        write(reader, "c")
    reader.close()

    assert [["a"], ["a", "b"]] == [first, second]
    assert ["a", "b"] == notes(database)


def test_a_reader_makes_no_database(path: Path) -> None:
    """What is missing is missing, and what is not ours stays untouched."""
    with pytest.raises(StoreError, match=f"{path}: there is no such notebook"):
        opened(path, read_only=True)
    path.parent.mkdir()
    path.write_bytes(b"This is not a database, but longer than a header of one." * 50)
    with pytest.raises(StoreError, match="cannot open: file is not a database"):
        opened(path, read_only=True)

    assert [path] == list(path.parent.iterdir())


def test_a_path_that_cannot_be_opened_is_explained_and_not_held(tmp_path: Path) -> None:
    """A folder where the file should be, a file where the folder should be."""
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder.db", tmp_path / "file" / "notes.db"):
        with pytest.raises(StoreError, match=f"^{path}: cannot open: ") as caught:
            opened(path)

        assert "in use" not in str(caught.value)
    (tmp_path / "folder.db").rmdir()
    opened(tmp_path / "folder.db").close()


@pytest.mark.skipif(
    not Path("/sys").is_dir(), reason="needs a folder in which not even root may create files"
)
def test_a_folder_that_may_not_be_written_is_explained() -> None:
    """Sysfs refuses new files to everybody."""
    with pytest.raises(StoreError, match=r"^/sys/notes\.db: cannot open: .* Check that this user may write"):
        opened(Path("/sys/notes.db"))


def test_a_database_that_may_not_be_written_is_explained(database: Database) -> None:
    """Asked of SQLite, since file permissions do not bind every user that may run this."""
    write(database, "before")
    database.connection.execute("PRAGMA query_only = 1")
    with pytest.raises(
        StoreError, match=r"readonly database\. Check that this user may write the file and its folder"
    ):
        write(database, "more")

    assert ["before"] == notes(database)


def test_an_error_of_the_disk_asks_whether_it_is_full(database: Database) -> None:
    """SQLite says "disk I/O error" of a full disk, too, when it has no room for the log's index."""
    with (
        pytest.raises(
            StoreError, match=r"cannot write: disk I/O error\. Is the disk full, or failing\? Nothing"
        ),
        database.explained("write"),
    ):
        raise sqlite3.OperationalError("disk I/O error")
