"""The folders that runs leave behind: one for each, named by its time, and `latest`, which points to the newest."""

from datetime import datetime
from pathlib import Path
from typing import Final

from fedmq.errors import LocalError

_LATEST: Final = "latest"
_ATTEMPTS: Final = 100


def new_run_folder(runs: Path) -> Path:
    """Make a folder for a run that begins now.

    Raises:
        LocalError: there is no name left for it, or the disk refuses.
    """
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    for attempt in range(_ATTEMPTS):
        folder = runs / (stamp if not attempt else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise LocalError(f"{folder} cannot be made ({error.strerror}): give another --runs") from error
        return folder
    raise LocalError(f"{runs} already holds a hundred runs of this second")


def point_latest(folder: Path) -> None:
    """Let `latest` beside a run's folder point to it."""
    temporary = folder.with_name(f".{_LATEST}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(folder.with_name(_LATEST))
