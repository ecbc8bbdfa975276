"""The append log: what the broker has promised to keep, on disk before the promise is made.

Here live the file, its frames, and compaction. What the records mean is in `records`.

Theory of operation. The file begins with `MAGIC` and eight random bytes, the salt. One commit writes one frame:

    mark (4 bytes) | size of the body (u32) | durable (u64) | CRC-32 of salt, size, durable, body (u32) | body

The mark is the salt's first half: no publisher can put into a payload what looks like a frame of this file,
neither to have it replayed nor to make the search below slow.

`durable` is the offset up to which the file was known to be on the disk when the frame was written. That is
what tells a torn tail from damage: where a frame is bad and no later whole frame says that the bytes at that
place had been durable, nobody was ever promised them, and the file is cut off there. Where one does, bytes
have changed that were promised, and opening fails with `LogDamagedError`.

All that arrives in one turn of the event loop shares one frame and one `fdatasync`. Records that need no
promise (an acknowledgement that is lost is only a redelivery) are written without it, so that they survive
the process but perhaps not the machine.

A commit that fails is cut off again, and the log is `behind`: it no longer has all of the state, so it takes
nothing until a compaction has written the whole state anew. A failed `fdatasync` is treated alike, because
what the kernel then holds of the file is unknown. Compaction writes a sibling file, syncs it, renames it over
the log and syncs the folder: a crash leaves the old log or the new one.
"""

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from .errors import LogDamagedError, LogUnavailableError
from .records import Record, decode_records

MAGIC: Final = b"fedmq broker log 1\n"
_FRAME: Final = struct.Struct(">4sIQI")
_CHECKED: Final = struct.Struct(">IQ")
_SALT_SIZE: Final = 8
_START: Final = len(MAGIC) + _SALT_SIZE
_CHUNK: Final = 1 << 20  # bytes of records per frame when the whole state is written


class _Framing:
    """Makes and finds the frames of one file, whose salt it knows."""

    def __init__(self, salt: bytes) -> None:
        self.start = MAGIC + salt
        self._mark = salt[: len(salt) // 2]
        self._crc = zlib.crc32(salt)

    def frame(self, body: bytes, durable: int) -> bytes:
        checked = _CHECKED.pack(len(body), durable)
        return (
            _FRAME.pack(self._mark, len(body), durable, zlib.crc32(body, zlib.crc32(checked, self._crc)))
            + body
        )

    def at(self, data: memoryview, offset: int) -> tuple[int, memoryview] | None:
        """The frame at an offset as (durable, body), or None where there is no whole one."""
        if offset + _FRAME.size > len(data):
            return None
        mark, size, durable, crc = _FRAME.unpack_from(data, offset)
        body = data[offset + _FRAME.size : offset + _FRAME.size + size]
        if mark != self._mark or len(body) != size:
            return None
        if zlib.crc32(body, zlib.crc32(_CHECKED.pack(size, durable), self._crc)) != crc:
            return None
        return durable, body

    def promised(self, data: bytes, offset: int) -> bool:
        """Whether a whole frame after `offset` says that the bytes at `offset` had been durable."""
        view = memoryview(data)
        place = data.find(self._mark, offset + 1)
        while place >= 0:
            frame = self.at(view, place)
            if frame is not None and frame[0] > offset:
                return True
            place = data.find(self._mark, place + 1)
        return False


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AppendLog:
    """One log file, open for appending and locked against a second broker.

    Args:
        path: the file; made if it is missing, its folder too.
        max_bytes: the size that no commit exceeds.

    Attributes:
        size: the file's size in bytes after the last commit.
        behind: a commit has failed since the last compaction.

    Raises:
        LogDamagedError: the file is no log, or bytes that were durable have changed.
        LogUnavailableError: another process has the log open, or it cannot be made.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.behind = False
        self._records: list[bytes] = []
        self._sync = False
        self._lock = -1
        self._file = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The log is replaced by compaction, so the lock needs a file of its own that stays.
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._sibling.unlink(missing_ok=True)
            self._data = path.read_bytes()
            self.size = self._durable = self._recover()
        except BlockingIOError:
            self.close()
            raise LogUnavailableError(path, "another broker has it open") from None
        except OSError as error:
            self.close()
            raise LogUnavailableError(path, f"it cannot be opened: {error}") from error
        except LogDamagedError:
            self.close()
            raise

    @property
    def _sibling(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _recover(self) -> int:
        """Cuts a torn tail off and returns the size that is left."""
        data = self._data
        if len(data) < _START:
            if data[: len(MAGIC)] != MAGIC[: len(data)]:
                raise LogDamagedError(self.path, 0, "it does not begin as a log of this broker")
            self._framing = _Framing(os.urandom(_SALT_SIZE))
            os.ftruncate(self._file, 0)
            _write_all(self._file, self._framing.start)
            os.fsync(self._file)
            _sync_folder(self.path.parent)
            self._data = self._framing.start
            return _START
        if not data.startswith(MAGIC):
            raise LogDamagedError(self.path, 0, "it does not begin as a log of this broker")
        self._framing = _Framing(data[len(MAGIC) : _START])
        view = memoryview(data)
        offset = _START
        while offset < len(data):
            frame = self._framing.at(view, offset)
            if frame is None:
                if self._framing.promised(data, offset):
                    raise LogDamagedError(self.path, offset, "the frame there is bad, later ones are whole")
                os.ftruncate(self._file, offset)
                self._data = data[:offset]
                break
            offset += _FRAME.size + len(frame[1])
        os.fsync(self._file)
        os.lseek(self._file, offset, os.SEEK_SET)
        return offset

    def records(self) -> Iterator[Record]:
        """The records that the file held when it was opened; to be read once, before the first commit.

        Raises:
            LogDamagedError: a frame is whole and holds something else.
        """
        data, self._data = self._data, b""
        view = memoryview(data)
        offset = _START
        while (frame := self._framing.at(view, offset)) is not None:
            try:
                yield from decode_records(frame[1])
            except ValueError as error:
                raise LogDamagedError(self.path, offset, str(error)) from error
            offset += _FRAME.size + len(frame[1])

    def append(self, record: Record, *, sync: bool = False) -> None:
        """Adds a record to the next commit; `sync` has that commit wait for the disk."""
        if not self.behind:
            self._records.append(record.encode())
            self._sync |= sync

    def commit(self) -> None:
        """Writes what was appended as one frame, and waits for the disk if a record asked for it.

        Raises:
            LogUnavailableError: nothing of it is in the log, which is now `behind`.
        """
        if not self._records:
            return
        frame = self._framing.frame(b"".join(self._records), self._durable)
        sync, self._sync = self._sync, False
        self._records.clear()
        try:
            if self.size + len(frame) > self.max_bytes:
                raise OSError(f"it would exceed max_log_bytes, {self.max_bytes}")
            _write_all(self._file, frame)
            if sync:
                os.fdatasync(self._file)
        except OSError as error:
            self.behind = True
            # Best effort: a frame that stays was refused, and its sender offers it again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size)
                os.lseek(self._file, self.size, os.SEEK_SET)
            raise LogUnavailableError(self.path, str(error)) from error
        self.size += len(frame)
        if sync:
            self._durable = self.size

    def compact(self, records: Iterable[Record]) -> None:
        """Replaces the log by `records`, which have to make up the whole state, and catches up.

        Raises:
            LogUnavailableError: the old log is still in place.
        """
        framing = _Framing(os.urandom(_SALT_SIZE))
        descriptor = -1
        try:
            descriptor = os.open(self._sibling, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            size = self._write_snapshot(descriptor, framing, records)
            self._sibling.rename(self.path)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                self._sibling.unlink(missing_ok=True)
            raise LogUnavailableError(self.path, f"compaction failed: {error}") from error
        os.close(self._file)
        self._file, self._framing, self.size, self._durable = descriptor, framing, size, size
        self._records.clear()
        self._sync = False
        try:
            _sync_folder(self.path.parent)
        except OSError as error:
            self.behind = True  # whether the folder names the new file after a power loss is unknown
            raise LogUnavailableError(self.path, f"compaction failed: {error}") from error
        self.behind = False

    def _write_snapshot(self, descriptor: int, framing: _Framing, records: Iterable[Record]) -> int:
        _write_all(descriptor, framing.start)
        size = _START
        for body in _bodies(records):
            # The rename makes the whole file durable at once, so each frame vouches for those before it.
            frame = framing.frame(body, size)
            size += len(frame)
            if size > self.max_bytes:
                raise OSError(f"it would exceed max_log_bytes, {self.max_bytes}")
            _write_all(descriptor, frame)
        os.fsync(descriptor)
        return size

    def close(self) -> None:
        """Closes the file; what was appended and not committed is lost."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1


def _bodies(records: Iterable[Record]) -> Iterator[bytes]:
    """Groups encoded records into bodies of about `_CHUNK` bytes."""
    group: list[bytes] = []
    size = 0
    for record in records:
        group.append(record.encode())
        size += len(group[-1])
        if size >= _CHUNK:
            yield b"".join(group)
            group, size = [], 0
    if group:
        yield b"".join(group)
