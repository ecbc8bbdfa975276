"""The port through which the broker's decisions become durable; `log.AppendLog` is the one that is.

Here lives only what the decisions ask of it, so that they can be made without a file.
"""

from collections.abc import Iterable
from typing import Protocol

from .records import Record


class Journal(Protocol):
    """What the broker asks of a log."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def behind(self) -> bool:
        """Whether a commit has failed since the last compaction."""

    def append(self, record: Record, *, sync: bool = False) -> None:
        """Adds a record to the next commit; `sync` has that commit wait for the disk."""

    def commit(self) -> None:
        """Writes the appended records, or raises `LogUnavailableError`."""

    def compact(self, records: Iterable[Record]) -> None:
        """Replaces all records by these, or raises `LogUnavailableError`."""
