"""The report's numbers: worked out by hand from small logs, then written and read back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedmq.app import report as report_module
from fedmq.app.accounting import ClientBytes
from fedmq.app.report import RunFacts, build_report, write_report
from fedmq.app.report_summary import compare, summary_lines, summary_table

FACTS = RunFacts(
    target=0.75,
    dense_model_bytes=4000,
    agents=2,
    broker="mosquitto",
    settings={"buffer_size": 1, "max_age": float("inf"), "name": "<script>[bold]", "shuffle": True},
    seed=7,
    data="fashion-mnist",
)


def fold(t: float, client: str, seq: int, staleness: int) -> dict[str, object]:
    """One folded update."""
    return {
        "t": t,
        "kind": "fold",
        "client": client,
        "seq": seq,
        "base_version": 0,
        "version": seq,
        "staleness": staleness,
        "bytes": 10,
    }


def refusal(t: float, client: str, seq: int, reason: str) -> dict[str, object]:
    """One refused update."""
    return {"t": t, "kind": "refusal", "client": client, "seq": seq, "reason": reason}


def evaluation(t: float, accuracy: float, folded: int, up: int, down: int) -> dict[str, object]:
    """One evaluation."""
    return {
        "t": t,
        "kind": "evaluation",
        "version": folded,
        "accuracy": accuracy,
        "loss": 1.0,
        "folded": folded,
        "uplink_bytes": up,
        "downlink_bytes": down,
    }


RUN = (
    evaluation(0.0, 0.1, 0, 0, 500),
    fold(1.0, "a", 1, 0),
    refusal(1.5, "b", 1, "stale"),
    refusal(1.6, "b", 1, "stale"),
    fold(2.0, "a", 2, 3),
    evaluation(2.5, 0.76, 2, 40, 900),
    fold(3.0, "b", 2, 0),
    refusal(3.5, "b", 3, "norm"),
    evaluation(4.0, 0.80, 3, 80, 1500),
    evaluation(4.5, 0.74, 3, 100, 1600),
    fold(5.0, "a", 3, 1),
    {"t": 6.5, "kind": "publish", "version": 9, "frame_bytes": 0, "delta_bytes": 5},
)


def run_folder(folder: Path, *lines: dict[str, object]) -> Path:
    """A run's folder with these lines in its log."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


def test_every_number_of_the_report_is_that_of_the_log(tmp_path: Path) -> None:
    """Five distinct updates arrived by the last evaluation, three by the first that reached the target."""
    actual = build_report(run_folder(tmp_path, *RUN), FACTS).to_json()

    expected = {
        "accuracy": 0.74,
        "best_accuracy": 0.80,
        "target": 0.75,
        "seconds_to_target": 2.5,
        "updates_to_target": 2,
        "uplink_bytes_to_target": 40,
        "downlink_bytes_to_target": 900,
        "dense_bytes_to_target": 2 * 3 * 4000,
        "versions": 9,
        "updates_folded": 4,
        "updates_refused": {"stale": 2, "norm": 1},
        "uplink_bytes": 100,
        "downlink_bytes": 1600,
        "dense_bytes": 2 * 5 * 4000,
        "dense_model_bytes": 4000,
        "accounting": {"clients": {}, "updates": 0, "uplink": {}, "downlink": {}, "measured": None},
        "staleness": {"mean": 1.0, "max": 3, "histogram": {"0": 2, "1": 1, "3": 1}},
        "agents": 2,
        "broker": "mosquitto",
        "data": "fashion-mnist",
        "settings": {"buffer_size": 1, "max_age": "inf", "name": "<script>[bold]", "shuffle": True},
        "seed": 7,
        "seconds": 6.5,
        "worst_decile": None,
        "client_accuracy": {},
        "notes": (),
    }
    assert expected == actual


def test_the_target_counts_when_it_is_met_exactly(tmp_path: Path) -> None:
    """At least the target is enough."""
    report = build_report(run_folder(tmp_path, evaluation(1.0, 0.75, 4, 10, 10)), FACTS)

    assert report.seconds_to_target == 1.0


def test_a_target_that_was_not_reached_is_null_and_said(tmp_path: Path) -> None:
    """Nothing is extrapolated."""
    report = build_report(run_folder(tmp_path, evaluation(1.0, 0.7499, 4, 10, 10)), FACTS)

    assert report.seconds_to_target is None
    assert report.dense_bytes_to_target is None
    assert "The target accuracy of 0.75 was not reached." in report.notes


@pytest.mark.parametrize("lines", [(), (fold(1.0, "a", 1, 2),)])
def test_a_run_without_an_evaluation_has_a_report_that_says_so(
    tmp_path: Path, lines: tuple[dict[str, object], ...]
) -> None:
    """Accuracy and bytes are unknown, not zero; the pictures and the page are made all the same."""
    report = build_report(run_folder(tmp_path, *lines), FACTS)
    written = write_report(tmp_path, report)

    assert (report.accuracy, report.uplink_bytes, report.dense_bytes) == (None, None, None)
    assert len(lines) == report.updates_folded
    assert "No evaluation was recorded: accuracy and bytes are unknown." in report.notes
    assert all(path.stat().st_size > 0 for path in written)
    assert "No evaluation was recorded" in (tmp_path / "report.html").read_text("utf-8")


def test_a_cut_off_line_is_noted(tmp_path: Path) -> None:
    """A reader learns that the log was torn."""
    run_folder(tmp_path, *RUN)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"t": 7.0, "kin')

    report = build_report(tmp_path, FACTS)

    assert report.notes == (
        "The last line of metrics.jsonl was cut off while it was written; it is left out.",
    )


def test_the_written_report_is_strict_json(tmp_path: Path) -> None:
    """Read back it is the report; infinite settings are text, because JSON has no infinity."""
    report = build_report(run_folder(tmp_path, *RUN), FACTS)
    write_report(tmp_path, report)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    actual = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert report.to_json() | {"notes": []} == actual


def test_the_table_fits_80_columns_and_compares_with_dense_float32(tmp_path: Path) -> None:
    """Bytes are in human units with the ratio in each direction; markup in names is not obeyed."""
    facts = RunFacts(
        target=0.75,
        dense_model_bytes=407_080,
        agents=2,
        broker="[red]x",
        settings={},
        seed=0,
        data="fashion-mnist",
    )
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(summary_table(build_report(run_folder(tmp_path, *RUN), facts)))
    text = capture.get()

    rows = {line[:17].strip(): " ".join(line[17:].split()) for line in text.splitlines()}
    assert max(map(len, text.splitlines())) <= 80
    assert rows["downlink to 0.75"] == "900 bytes 1,357× less than dense float32 (1.2 MB)"
    assert rows["uplink in all"] == "100 bytes 20,354× less than dense float32 (2.0 MB)"
    assert rows["updates refused"] == "3 2 stale, 1 norm"
    assert "[red]x" in rows["duration"]


def traffic(t: float, client: str, sent: int, received: int, **parts: object) -> dict[str, object]:
    """What an agent's connections carried."""
    return {"t": t, "kind": "traffic", "client": client, "sent": sent, "received": received, **parts}


PARTS = {"payload_sent": 60, "payload_received": 500, "topic_sent": 30, "topic_received": 40}


def test_the_accounting_divides_all_bytes_by_what_they_were(tmp_path: Path) -> None:
    """Two agents; an update that was folded after an agent's last entry is not in its bytes yet."""
    folds = [
        fold(1.0, "a", 1, 0) | {"payload": 7},
        fold(2.0, "b", 1, 0) | {"payload": 6},
        fold(3.0, "b", 2, 0) | {"payload": 5},
        fold(9.0, "a", 2, 0) | {"payload": 7},
    ]
    run = run_folder(
        tmp_path,
        *folds,
        traffic(8.0, "a", 100, 900, measured=True, **PARTS),
        traffic(10.0, "b", 150, 700, measured=True, **PARTS),
    )
    accounting = build_report(run, FACTS).accounting

    assert accounting.clients == {
        "a": ClientBytes(sent=100, received=900, updates=1),
        "b": ClientBytes(sent=150, received=700, updates=2),
    }
    assert (accounting.updates, accounting.measured) == (3, True)
    assert accounting.uplink == {
        "payload": 18,
        "envelope": 12,
        "other messages": 90,
        "topics": 60,
        "MQTT": 70,
    }
    assert accounting.downlink == {"messages": 1000, "topics": 80, "MQTT": 520}


def test_what_the_log_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    """Without an agent's parts there is no division, without payloads a coarser one."""
    whole = traffic(9.0, "a", 100, 900)
    divided = traffic(9.0, "a", 100, 900, measured=False, **PARTS)
    coarse = build_report(run_folder(tmp_path, fold(1.0, "a", 1, 0), divided), FACTS)
    nothing = build_report(
        run_folder(tmp_path, fold(1.0, "a", 1, 0), divided, whole | {"client": "b"}), FACTS
    )

    assert coarse.accounting.uplink == {"updates": 10, "other messages": 50, "topics": 30, "MQTT": 10}
    assert coarse.accounting.measured is False
    assert any("without pings and TLS" in note for note in coarse.notes)
    assert (nothing.accounting.uplink, nothing.accounting.downlink) == ({}, {})
    assert nothing.accounting.measured is None
    assert nothing.accounting.clients["b"] == ClientBytes(sent=100, received=900, updates=0)


def test_the_summary_says_what_an_update_costs_and_names_the_agents(tmp_path: Path) -> None:
    """Twenty of them, and how many there are beside."""
    lines = [fold(1.0, f"agent-{number:02d}", 1, 0) | {"payload": 8} for number in range(23)]
    lines += [traffic(2.0, f"agent-{number:02d}", 100, 600, **PARTS) for number in range(23)]
    report = build_report(run_folder(tmp_path, *lines), FACTS)
    shown = {line.label: (line.value, line.remark) for line in summary_lines(report)}

    assert shown["up per update"] == (
        "100 bytes",
        "8.0% payload, 2.0% envelope, 50.0% other messages, 30.0% topics, 10.0% MQTT",
    )
    assert shown["down per update"] == ("600 bytes", "83.3% messages, 6.7% topics, 10.0% MQTT")
    assert shown["agent-19"] == ("up 100 bytes, down 600 bytes", "1 folded, 100 bytes up each")
    assert "agent-20" not in shown
    assert shown["3 agents more"] == ("see report.json", "")


@pytest.mark.parametrize(
    ("moved", "dense", "expected"),
    [(1, 250, "250× less"), (10, 25, "2.5× less"), (5, 5, "1.0× less"), (30, 20, "1.5× more")],
)
def test_a_comparison_says_less_or_more(moved: int, dense: int, expected: str) -> None:
    """It does not hide a run that moved more than dense float32."""
    assert expected == compare(moved, dense)


def test_without_matplotlib_there_is_still_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures are an extra."""
    monkeypatch.setattr(report_module, "find_spec", lambda _: None)

    written = write_report(tmp_path, build_report(run_folder(tmp_path, *RUN), FACTS))

    assert (tmp_path / "report.json",) == written
    assert not (tmp_path / "report.html").exists()


def test_neither_the_report_nor_the_data_imports_matplotlib_or_torch() -> None:
    """A device or a server without the extra can import all but the pictures."""
    code = (
        "import sys, fedmq.app.datasets, fedmq.app.partition, fedmq.app.report;"
        "sys.exit(bool({'matplotlib', 'torch', 'mlxtend'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
