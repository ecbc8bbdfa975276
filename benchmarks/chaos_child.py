"""The entry of the campaign's processes: fedmq's own command line, with a clock that can be stepped from outside.

    python -m benchmarks.chaos_child CLOCK SABOTAGE COMMAND …

CLOCK is a file of one little-endian float64, seconds by which `time.time` is shifted; it is mapped, so that a write
to it steps the clock of this process and of no other. `time.monotonic` goes on as ever, as on a real machine whose
wall clock is set. SABOTAGE is one of `chaos_sabotage`, or "none".
"""

import mmap
import struct
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def shifted_clock(path: Path) -> Callable[[], float]:
    """The wall clock, shifted by what the file says at the moment."""
    with path.open("rb") as file:
        shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    real = time.time
    return lambda: real() + float(struct.unpack_from("<d", shift)[0])


def run(clock: str, sabotage: str, *command: str) -> None:
    """Be the process that the arguments ask for."""
    time.time = shifted_clock(Path(clock))
    # Only now: some of fedmq takes hold of `time.time` when it is imported.
    if sabotage != "none":
        import_module("benchmarks.chaos_sabotage").sabotage(sabotage)
    sys.argv = ["fedmq", *command]
    import_module("fedmq.app.cli").main()


if __name__ == "__main__":
    run(*sys.argv[1:])
