"""Children that cannot be forgotten."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedmq.app.supervisor import Child, stop_all


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        os.sched_yield()


def broker(log: Path, *, restart: bool = False) -> Child:
    """A child that runs until it is told to stop."""
    child = Child("broker", ["broker", "--port", "0"], log, restart=restart, capture=True)
    assert child.stdout.readline().startswith(b"ready on ")
    return child


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stopping_is_clean(tmp_path: Path) -> None:
    """SIGTERM is enough, and the status is 0."""
    child = broker(tmp_path / "log")
    stop_all([child])

    assert child.process.returncode == 0


def test_a_killed_child_is_started_again_when_it_should_live(tmp_path: Path) -> None:
    """As an init system would; the message names signal and new process."""
    child = broker(tmp_path / "log", restart=True)
    before = child.process.pid
    child.process.kill()
    child.process.wait()
    news = child.check()
    stop_all([child])

    assert news is not None
    assert "killed by signal 9" in news
    assert child.process.pid != before


def test_a_child_that_fails_is_not_started_again(tmp_path: Path) -> None:
    """An error is for a person; its last words are in the message."""
    child = Child("agent", ["agent"], tmp_path / "log", restart=True)
    child.process.wait()
    news = child.check()

    assert news is not None
    assert child.has_ended
    assert "FEDMQ_CLIENT" in news


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Nobody is left to stop them, and still none stays behind."""
    script = (
        "import sys, time; from pathlib import Path; from fedmq.app.supervisor import Child\n"
        "child = Child('broker', ['broker', '--port', '0'], Path(sys.argv[1]), capture=True)\n"
        "child.stdout.readline(); print(child.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
