"""The recorder merges diaries, whatever state the processes leave them in."""

import json
from pathlib import Path

import pytest

from fedmq.app.recorder import Recorder
from fedmq.app.runlog import ClientTraffic, read_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder."""
    (tmp_path / "events").mkdir()
    return tmp_path


def note(folder: Path, name: str, time: float, kind: str, **fields: object) -> None:
    """Append one line to a diary."""
    with (folder / "events" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"time": time, "kind": kind, **fields}) + "\n")


def state(folder: Path, client: str, time: float, state: str, sent: int = 0, received: int = 0) -> None:
    """An agent's change of state."""
    note(folder, client, time, "state", client=client, state=state, sent=sent, received=received)


def test_entries_of_several_diaries_are_merged_in_the_order_of_time(folder: Path) -> None:
    """And the result is a log that the report reads."""
    state(folder, "a", 101.0, "training")
    note(folder, "aggregator", 100.5, "aggregator", state="up", version=0)
    recorder = Recorder(folder, 100.0)
    recorder.close()

    assert [(type(event).__name__, event.t) for event in read_log(folder).events] == [
        ("AggregatorState", 0.5),
        ("AgentState", 1.0),
        ("ClientTraffic", 1.0),
    ]


def test_a_line_that_is_half_written_is_taken_when_it_is_whole(folder: Path) -> None:
    """A reader may come while a process writes."""
    path = folder / "events" / "aggregator.jsonl"
    path.write_text('{"time": 100.5, "kind": "aggr')
    recorder = Recorder(folder, 100.0)
    first = recorder.poll()
    with path.open("a") as file:
        file.write('egator", "state": "up", "version": 0}\n')
    second = recorder.poll()
    recorder.close()

    assert (first, second) == (False, True)


def test_the_torn_line_of_a_killed_process_is_passed_over(folder: Path) -> None:
    """Its successor appends behind the torn end."""
    path = folder / "events" / "a.jsonl"
    path.write_text('{"time": 100.5, "kin')
    state(folder, "a", 101.0, "training")
    state(folder, "a", 102.0, "uploading")
    recorder = Recorder(folder, 100.0)
    recorder.close()

    assert recorder.view.agents["a"].state == "uploading"


def test_byte_counters_go_on_when_a_process_starts_anew(folder: Path) -> None:
    """A restarted agent counts from zero; the run's total does not."""
    state(folder, "a", 101.0, "training", sent=1000, received=5000)
    state(folder, "a", 102.0, "idle", sent=10, received=20)
    state(folder, "a", 103.0, "training", sent=300, received=70)
    recorder = Recorder(folder, 100.0)
    recorder.close()

    assert (recorder.view.uplink_bytes, recorder.view.downlink_bytes) == (1300, 5070)


def test_the_log_ends_with_what_each_agents_connections_carried(folder: Path) -> None:
    """Over all its lives, with its parts where the agent told them, as of its last entry."""
    parts = {"payload_sent": 60, "payload_received": 50, "topic_sent": 20, "topic_received": 10}
    for second in (101.0, 103.0):
        state(folder, "a", second, "training")
        note(folder, "a", second + 1, "traffic", client="a", sent=100, received=70, measured=True, **parts)
    state(folder, "b", 102.5, "training", sent=5, received=6)
    recorder = Recorder(folder, 100.0)
    recorder.close()

    assert read_log(folder).traffic == {
        "a": ClientTraffic(
            t=4.0,
            client="a",
            sent=200,
            received=140,
            payload_sent=120,
            payload_received=100,
            topic_sent=40,
            topic_received=20,
            measured=True,
        ),
        "b": ClientTraffic(t=2.5, client="b", sent=5, received=6),
    }


def test_a_life_that_was_not_measured_is_remembered(folder: Path) -> None:
    """The sum is then no measurement either."""
    for second, measured in ((101.0, False), (102.0, True)):
        note(folder, "a", second, "traffic", client="a", sent=0, received=0, measured=measured)
    recorder = Recorder(folder, 100.0)
    recorder.close()

    assert read_log(folder).traffic["a"].measured is False


def test_an_evaluation_carries_what_was_folded_and_sent_so_far(folder: Path) -> None:
    """Accuracy over updates and over bytes comes from these."""
    state(folder, "a", 101.0, "training", sent=1000, received=5000)
    note(
        folder,
        "aggregator",
        102.0,
        "fold",
        client="a",
        seq=1,
        base_version=0,
        version=0,
        staleness=0,
        bytes=900,
    )
    note(folder, "evaluator", 103.0, "evaluation", version=1, accuracy=0.5, loss=1.0, examples=10.0)
    recorder = Recorder(folder, 100.0)
    recorder.close()
    (evaluation,) = read_log(folder).evaluations

    assert (evaluation.folded, evaluation.uplink_bytes, evaluation.downlink_bytes) == (1, 1000, 5000)


def test_the_run_ends_with_the_evaluation_that_reaches_the_target(folder: Path) -> None:
    """Even when what came after it lies in the diaries already."""
    for second, accuracy in enumerate((0.4, 0.8, 0.3)):
        note(
            folder,
            "evaluator",
            101.0 + second,
            "evaluation",
            version=second,
            accuracy=accuracy,
            loss=1.0,
            examples=9.0,
        )
    recorder = Recorder(folder, 100.0, target=0.75)
    recorder.close()

    assert recorder.has_ended
    assert [evaluation.accuracy for evaluation in read_log(folder).evaluations] == [0.4, 0.8]
