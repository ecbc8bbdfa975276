"""The diary: one line an event, and never a reason to stop."""

import json
import logging
from pathlib import Path

import pytest

from fedmq.errors import SettingError
from fedmq.eventlog import EventLog


def test_events_are_appended_line_by_line(tmp_path: Path) -> None:
    """Whole lines are there at once, and a second life of the process adds to the first."""
    path = tmp_path / "new" / "events.jsonl"
    seen = []
    clock = iter((1.5, 2.5))
    for _ in range(2):
        with EventLog(path, clock=clock.__next__) as log:
            log.write("fold", client="ä", seq=3, loss=0.5, first=True, nothing=None)
            seen.append(path.read_text(encoding="utf-8").count("\n"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fields = {"kind": "fold", "client": "ä", "seq": 3, "loss": 0.5, "first": True, "nothing": None}

    assert [1, 2] == seen
    assert [{"time": 1.5, **fields}, {"time": 2.5, **fields}] == lines


def test_without_a_file_nothing_happens() -> None:
    """The caller need not ask."""
    with EventLog(None) as log:
        log.write("fold", seq=1)


def test_a_closed_diary_takes_no_more(tmp_path: Path) -> None:
    """Closing twice is no error."""
    log = EventLog(tmp_path / "events.jsonl")
    log.close()
    log.close()
    log.write("late")

    assert "" == (tmp_path / "events.jsonl").read_text()


def test_a_full_disk_costs_events_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The process goes on, and is told of it once."""
    with caplog.at_level(logging.ERROR), EventLog(Path("/dev/full")) as log:
        for seq in range(3):
            log.write("fold", seq=seq)

    assert 1 == caplog.text.count("the diary cannot be written")
    assert "No space left" in caplog.text


def test_a_file_that_cannot_be_opened_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    """Found when the process starts, with the name of the setting."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "events.jsonl"):
        with pytest.raises(
            SettingError, match=f"setting events = '{path}' cannot be used: the file cannot be"
        ):
            EventLog(path)
