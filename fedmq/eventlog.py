"""A role's diary: one JSON object a line, for reports and debugging.

Not the journal: nothing is recovered from it, and it may be deleted at any time. A disk that does not take it costs
the events in question and nothing else. `time` is seconds of the wall clock since 1970, for people and plots;
nothing decides by it (law 10).
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import SettingError

log = logging.getLogger(__name__)


class EventLog:
    """Appends to a file, or does nothing when there is no file to append to.

    Args:
        path: the file; made when it is missing, with its folder.
        clock: wall time in seconds since 1970.

    Raises:
        SettingError: the file cannot be opened.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._failing = False
        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, one write a line: a reader that follows the file sees whole lines.
            self._file = path.open("ab", buffering=0) if path else None
        except OSError as error:
            raise SettingError("events", str(path), f"the file cannot be opened ({error})") from error

    def write(self, kind: str, **fields: str | int | float | bool | None) -> None:
        """Append one event."""
        if self._file is None:
            return
        line = json.dumps({"time": self._clock(), "kind": kind, **fields}) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            if not self._failing:
                log.error("events are lost, the diary cannot be written: %s", error)
            self._failing = True
        else:
            self._failing = False

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
