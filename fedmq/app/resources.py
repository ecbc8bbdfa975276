"""What a simulation takes of the machine: one processor core, open files, a folder in memory."""

import os
import resource
import tempfile
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fedmq.errors import LocalError

#: A folder in memory, where the system has one: what need not survive us need not reach a disk.
_MEMORY_FOLDER: Final = Path("/dev/shm")


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it numpy multiplies matrices in one thread, as far as it can be told to.

    A local step's matrices are so small that several threads spend most of their time waiting for one another: six
    times the processor time on two cores. It can be told where threadpoolctl is installed (it comes with the extra
    `demo`); elsewhere the environment's OPENBLAS_NUM_THREADS=1 does the same.
    """
    if find_spec("threadpoolctl") is None:
        return nullcontext()
    limits: AbstractContextManager[object] = import_module("threadpoolctl").threadpool_limits(
        limits=1, user_api="blas"
    )
    return limits


def scratch_folder() -> AbstractContextManager[str]:
    """A folder that is gone afterwards; in memory where that is possible, so that no fsync waits for a disk."""
    in_memory = _MEMORY_FOLDER if os.access(_MEMORY_FOLDER, os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="fedmq-", dir=in_memory)


def allow_open_files(count: int) -> None:
    """Let this process have so many files open.

    Raises:
        LocalError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        raise LocalError(f"{count} open files are needed, the system allows {hard}: raise `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and count > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
