"""A role's diary: one JSON object a line, for reports and debugging.

Not the journal: nothing is recovered from it, and it may be deleted at any time. `time` is seconds of the wall
clock since 1970, for people and plots; nothing decides by it (law 10).
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self


class EventLog:
    """Appends to a file, or does nothing when there is no file to append to."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Line-buffered: a reader that follows the file sees whole lines.
        self._file = path.open("a", encoding="utf-8", buffering=1) if path else None

    def write(self, kind: str, **fields: str | int | float | bool | None) -> None:
        """Append one event."""
        if self._file is not None:
            self._file.write(json.dumps({"time": self._clock(), "kind": kind, **fields}) + "\n")

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
