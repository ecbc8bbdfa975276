"""Reading `metrics.jsonl`: what is a log, what is a torn log, and what is neither."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.app.runlog import (
    AgentState,
    AggregatorState,
    ClientTraffic,
    Evaluation,
    Fold,
    Publish,
    Refusal,
    read_log,
)
from fedmq.errors import DataError

EVALUATION = {
    "t": 3,
    "kind": "evaluation",
    "version": 2,
    "accuracy": 0.5,
    "loss": 1.25,
    "folded": 10,
    "uplink_bytes": 1000,
    "downlink_bytes": 2000,
}


def log_of(folder: Path, *lines: object, tail: str = "") -> Path:
    """Write a log with one line per value."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, "utf-8")
    return folder


def test_each_kind_of_line_becomes_its_event(tmp_path: Path) -> None:
    """Events come in the order of time; unknown fields are ignored; a whole number may stand for a time."""
    log = read_log(
        log_of(
            tmp_path,
            EVALUATION,
            {"t": 0.5, "kind": "agent", "client": "a", "state": "training", "battery": 0.4},
            {"t": 1.5, "kind": "refusal", "client": "a", "seq": 1, "reason": "stale"},
            {
                "t": 2.5,
                "kind": "fold",
                "client": "a",
                "seq": 2,
                "base_version": 0,
                "version": 2,
                "staleness": 1,
                "bytes": 9,
            },
            {"t": 2.75, "kind": "publish", "version": 2, "frame_bytes": 0, "delta_bytes": 7},
            {"t": 0.25, "kind": "aggregator", "state": "up"},
            {"t": 4, "kind": "fold", "client": "a", "seq": 3, "base_version": 2, "version": 2, "staleness": 0,
             "bytes": 9, "payload": 5},
            {"t": 5, "kind": "traffic", "client": "a", "sent": 30, "received": 40, "payload_sent": 12,
             "measured": True},
            {"t": 6, "kind": "traffic", "client": "a", "sent": 31, "received": 40, "measured": None},
        )
    )  # fmt: skip

    expected = (
        AggregatorState(t=0.25, state="up"),
        AgentState(t=0.5, client="a", state="training"),
        Refusal(t=1.5, client="a", seq=1, reason="stale"),
        Fold(t=2.5, client="a", seq=2, base_version=0, version=2, staleness=1, bytes=9),
        Publish(t=2.75, version=2, frame_bytes=0, delta_bytes=7),
        Evaluation(
            t=3.0, version=2, accuracy=0.5, loss=1.25, folded=10, uplink_bytes=1000, downlink_bytes=2000
        ),
        Fold(t=4.0, client="a", seq=3, base_version=2, version=2, staleness=0, bytes=9, payload=5),
        ClientTraffic(t=5.0, client="a", sent=30, received=40, payload_sent=12, measured=True),
        ClientTraffic(t=6.0, client="a", sent=31, received=40),
    )
    assert expected == log.events
    assert not log.cut_off


@given(cut=st.integers(1, len(json.dumps(EVALUATION)) - 1))
def test_a_last_line_cut_anywhere_is_left_out(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A writer killed in the middle of a line costs that line and nothing else."""
    folder = log_of(tmp_path_factory.mktemp("run"), EVALUATION, tail=json.dumps(EVALUATION)[:cut])

    log = read_log(folder)

    assert len(log.events) == 1
    assert log.cut_off


def test_zeros_after_a_power_cut_are_left_out(tmp_path: Path) -> None:
    """Some file systems extend a file before its data is there."""
    log = read_log(log_of(tmp_path, EVALUATION, tail="\0" * 300))

    assert len(log.events) == 1


def test_a_line_cut_inside_a_character_is_left_out(tmp_path: Path) -> None:
    """Half a UTF-8 sequence at the end is a torn line too."""
    folder = log_of(tmp_path, EVALUATION)
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"t": 4, "kind": "agent", "client": "caf\xc3')

    assert read_log(folder).cut_off


def test_a_malformed_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    """Only the last line can be torn; anything else is damage that somebody must hear of."""
    folder = log_of(tmp_path, EVALUATION)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"t": 4, "ki\n\n' + json.dumps(EVALUATION) + "\n")

    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2, is not JSON"):
        read_log(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1, 2], "is not a JSON object"),
        ({"t": 1.0}, "has kind None instead of one of evaluation, fold"),
        ({"t": 1.0, "kind": "evalution"}, "has kind 'evalution' instead of"),
        ({"t": 1.0, "kind": ["fold"]}, r"has kind \['fold'\] instead of"),
        ({**EVALUATION, "accuracy": "0.5"}, "has accuracy = '0.5' where a number must stand"),
        ({**EVALUATION, "accuracy": 1.5}, "accuracy = 1.5, which is above 1"),
        ({**EVALUATION, "accuracy": float("nan")}, "accuracy = nan, which is not a number from 0 up"),
        ({**EVALUATION, "t": -1.0}, "t = -1.0, which is not a number from 0 up"),
        ({**EVALUATION, "t": float("inf")}, "t = inf, which is not a number from 0 up"),
        ({**EVALUATION, "t": 10**400}, "too large"),
        ({**EVALUATION, "folded": 1.0}, "has folded = 1.0 where an integer must stand"),
        ({**EVALUATION, "folded": True}, "has folded = True where an integer must stand"),
        ({**EVALUATION, "uplink_bytes": -1}, "uplink_bytes = -1, which is not a number from 0 up"),
        ({key: value for key, value in EVALUATION.items() if key != "loss"}, "has loss = None"),
        (
            {"t": 1.0, "kind": "agent", "client": 3, "state": "training"},
            "has client = 3 where a text must stand",
        ),
        (
            {"t": 1.0, "kind": "agent", "client": "a", "state": "dozing"},
            "agent state 'dozing' instead of one of",
        ),
        (
            {"t": 1.0, "kind": "aggregator", "state": "away"},
            "aggregator state 'away' instead of one of up, down",
        ),
        (
            {"t": 1.0, "kind": "traffic", "client": "a", "sent": 1, "received": 1, "measured": 1},
            "has measured = 1 where true or false must stand",
        ),
        (
            {"t": 1.0, "kind": "traffic", "client": "a", "sent": 1, "received": 1, "topic_sent": 1.5},
            "has topic_sent = 1.5 where an integer must stand",
        ),
    ],
)
def test_a_line_with_a_wrong_field_is_an_error_even_at_the_end(
    tmp_path: Path, line: object, message: str
) -> None:
    """Whole JSON with wrong content was not torn: the message names the line, the field and its value."""
    with pytest.raises(DataError, match=f"line 2, .*{message}"):
        read_log(log_of(tmp_path, EVALUATION, line))


def test_a_run_that_diverges_is_still_a_log(tmp_path: Path) -> None:
    """The loss alone may be infinite or not a number."""
    lines = [{**EVALUATION, "loss": float("inf")}, {**EVALUATION, "loss": float("nan")}]

    assert len(read_log(log_of(tmp_path, *lines)).evaluations) == 2


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    """The message asks whether the folder is right."""
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read .*is this the folder of a run"):
        read_log(tmp_path / "nowhere")


def test_an_update_arrives_once_however_often_it_is_sent(tmp_path: Path) -> None:
    """Redeliveries and refusals of the same update count as its first arrival."""
    fold = {
        "kind": "fold",
        "client": "a",
        "seq": 1,
        "base_version": 0,
        "version": 1,
        "staleness": 0,
        "bytes": 9,
    }
    log = read_log(
        log_of(
            tmp_path,
            {"t": 1.0, **fold},
            {"t": 2.0, "kind": "refusal", "client": "a", "seq": 1, "reason": "already-contributed"},
            {"t": 3.0, "kind": "refusal", "client": "b", "seq": 1, "reason": "stale"},
            {"t": 4.0, **fold, "seq": 2},
        )
    )

    assert log.arrivals == [1.0, 3.0, 4.0]
