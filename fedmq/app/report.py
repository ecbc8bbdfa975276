"""What a run came to: from its log of events to `report.json`, pictures, a page and a table for the terminal.

The events of `runlog` are summed up in a `Report`, and the report is shown. Nothing is measured here and no
number is invented: what the log does not hold is None. Drawing is in `plots`, the only importer of matplotlib.

Comparison with dense float32: a system that sends plain float32 moves one dense model down and one dense
update up for each update it makes. It is charged for each *distinct* update that reached the aggregator up
to the last evaluation, where fedmq's bytes are counted too: neither redeliveries nor what came later flatter us.
"""

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeAlias

from rich.filesize import decimal as human_bytes
from rich.markup import escape
from rich.table import Table

from .accounting import Accounting, account
from .fairness import worst_decile
from .runlog import LOG_NAME, Evaluation, Fold, Publish, Refusal, RunLog, read_log

Setting: TypeAlias = str | int | float | bool
Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

_CLIENTS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the log does not say about a run.

    Attributes:
        target: the accuracy to reach, 0 to 1.
        dense_model_bytes: the size of the model as plain float32.
        agents: how many took part.
        broker: which one, for people.
        settings: everything that was set, by name.
        seed: of the run.
        data: which data, for people.
        client_accuracy: of the final model for each client (see `fairness`), where that is known.
    """

    target: float
    dense_model_bytes: int
    agents: int
    broker: str
    settings: Mapping[str, Setting]
    seed: int
    data: str
    client_accuracy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """How old the folded updates were, in model versions: mean, maximum, and updates by staleness."""

    mean: float | None
    max: int | None
    histogram: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to; None is what was not measured or not reached.

    Attributes:
        accuracy: of the last evaluation, 0 to 1.
        best_accuracy: of the best evaluation.
        target: the accuracy to reach.
        seconds_to_target: time of the first evaluation that reached the target, since the run's start.
        updates_to_target: updates folded by then.
        uplink_bytes_to_target: bytes from all agents by then, everything inside TCP.
        downlink_bytes_to_target: bytes to all agents by then, likewise.
        dense_bytes_to_target: what dense float32 would have moved by then, both ways together.
        versions: the newest model version seen.
        updates_folded: in the whole run.
        updates_refused: by reason.
        uplink_bytes: from all agents, up to the last evaluation.
        downlink_bytes: to all agents, up to the last evaluation.
        dense_bytes: what dense float32 would have moved up to the last evaluation, both ways together.
        dense_model_bytes: the size of one dense model.
        accounting: where the bytes went, and to whom.
        staleness: of the folded updates.
        agents: how many took part.
        broker: which one.
        data: which data.
        settings: everything that was set.
        seed: of the run.
        seconds: time of the last event.
        worst_decile: mean accuracy of the final model for the worst tenth of the clients.
        client_accuracy: of the final model for each client, on test data weighted by the labels of its own data.
        notes: what a reader must know, in sentences.
    """

    accuracy: float | None
    best_accuracy: float | None
    target: float
    seconds_to_target: float | None
    updates_to_target: int | None
    uplink_bytes_to_target: int | None
    downlink_bytes_to_target: int | None
    dense_bytes_to_target: int | None
    versions: int
    updates_folded: int
    updates_refused: Mapping[str, int]
    uplink_bytes: int | None
    downlink_bytes: int | None
    dense_bytes: int | None
    dense_model_bytes: int
    accounting: Accounting
    staleness: Staleness
    agents: int
    broker: str
    data: str
    settings: Mapping[str, Setting]
    seed: int
    seconds: float
    worst_decile: float | None
    client_accuracy: Mapping[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """The report as strict JSON: the histogram's keys and settings that are not finite become text."""
        values: dict[str, Json] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["accounting"] = asdict(self.accounting)
        values["staleness"] = {
            "mean": self.staleness.mean,
            "max": self.staleness.max,
            "histogram": {str(age): count for age, count in self.staleness.histogram.items()},
        }
        values["settings"] = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.settings.items()
        }
        return values


def build_report(folder: Path, facts: RunFacts) -> Report:
    """Sum up the run whose `metrics.jsonl` lies in `folder`.

    Raises:
        DataError: the log is missing or malformed, see `read_log`.
    """
    log = read_log(folder)
    evaluations, folds = log.evaluations, log.folds
    last = evaluations[-1] if evaluations else None
    reached = next((event for event in evaluations if event.accuracy >= facts.target), None)
    arrivals = log.arrivals
    ages = Counter(fold.staleness for fold in folds)
    refusals = Counter(event.reason for event in log.events if isinstance(event, Refusal))
    versions = (event.version for event in log.events if isinstance(event, Evaluation | Fold | Publish))
    return Report(
        accuracy=last.accuracy if last else None,
        best_accuracy=max((event.accuracy for event in evaluations), default=None),
        target=facts.target,
        seconds_to_target=reached.t if reached else None,
        updates_to_target=reached.folded if reached else None,
        uplink_bytes_to_target=reached.uplink_bytes if reached else None,
        downlink_bytes_to_target=reached.downlink_bytes if reached else None,
        dense_bytes_to_target=_dense_bytes(arrivals, reached, facts.dense_model_bytes),
        versions=max(versions, default=0),
        updates_folded=len(folds),
        updates_refused=dict(refusals.most_common()),
        uplink_bytes=last.uplink_bytes if last else None,
        downlink_bytes=last.downlink_bytes if last else None,
        dense_bytes=_dense_bytes(arrivals, last, facts.dense_model_bytes),
        dense_model_bytes=facts.dense_model_bytes,
        accounting=account(log),
        staleness=Staleness(
            mean=sum(fold.staleness for fold in folds) / len(folds) if folds else None,
            max=max(ages, default=None),
            histogram=dict(sorted(ages.items())),
        ),
        agents=facts.agents,
        broker=facts.broker,
        data=facts.data,
        settings=dict(facts.settings),
        seed=facts.seed,
        seconds=log.seconds,
        worst_decile=worst_decile(list(facts.client_accuracy.values())),
        client_accuracy=dict(facts.client_accuracy),
        notes=_notes(log, reached, facts.target),
    )


def _dense_bytes(arrivals: Sequence[float], until: Evaluation | None, model_bytes: int) -> int | None:
    """What dense float32 would have moved both ways for the updates that arrived before an evaluation."""
    return None if until is None else 2 * model_bytes * bisect_right(arrivals, until.t)


def _notes(log: RunLog, reached: Evaluation | None, target: float) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    notes = []
    if not log.evaluations:
        notes.append("No evaluation was recorded: accuracy and bytes are unknown.")
    elif reached is None:
        notes.append(f"The target accuracy of {target:g} was not reached.")
    if not log.folds:
        notes.append("No update was folded.")
    if account(log).measured is False:
        notes.append(
            "Bytes of agents whose system does not count them are MQTT packets without pings and TLS."
        )
    if log.cut_off:
        notes.append(f"The last line of {LOG_NAME} was cut off while it was written; it is left out.")
    return tuple(notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the summary: a label, its value, and what puts the value into proportion."""

    label: str
    value: str
    remark: str = ""


def summary_lines(report: Report) -> list[Line]:
    """The report in the lines that the page and the terminal's table show."""
    target, ages = f"{report.target:g}", report.staleness
    refused = ", ".join(f"{count:,} {reason}" for reason, count in report.updates_refused.items())
    to_target = report.dense_bytes_to_target
    return [
        Line(
            label="final accuracy",
            value=_number(report.accuracy, "{:.4f}", missing="–"),
            remark=_number(report.best_accuracy, "best {:.4f}"),
        ),
        *_fairness_lines(report),
        Line(
            label=f"time to {target}",
            value=_number(report.seconds_to_target, "{:,.1f} s", missing="–"),
            remark=_number(report.updates_to_target, "{:,} updates folded"),
        ),
        _bytes_line(f"uplink to {target}", report.uplink_bytes_to_target, to_target),
        _bytes_line(f"downlink to {target}", report.downlink_bytes_to_target, to_target),
        _bytes_line("uplink in all", report.uplink_bytes, report.dense_bytes),
        _bytes_line("downlink in all", report.downlink_bytes, report.dense_bytes),
        Line(
            label="updates folded",
            value=f"{report.updates_folded:,}",
            remark=f"{report.versions:,} model versions",
        ),
        Line(label="updates refused", value=f"{sum(report.updates_refused.values()):,}", remark=refused),
        Line(
            label="staleness",
            value=_number(ages.mean, "{:.2f} on average", missing="–"),
            remark=_number(ages.max, "{} at most, in versions"),
        ),
        Line(
            label="duration",
            value=f"{report.seconds:,.1f} s",
            remark=f"{report.agents:,} agents, {report.broker}",
        ),
        Line(label="data", value=report.data, remark=f"seed {report.seed}"),
        *_accounting_lines(report.accounting),
    ]


def _fairness_lines(report: Report) -> list[Line]:
    """How the clients fare that fare worst, where that was measured."""
    if report.worst_decile is None:
        return []
    mean = sum(report.client_accuracy.values()) / len(report.client_accuracy)
    return [
        Line(
            label="worst decile",
            value=f"{report.worst_decile:.4f}",
            remark=f"of clients, by their own labels; all {mean:.4f}",
        )
    ]


def _accounting_lines(accounting: Accounting) -> list[Line]:
    """What an update cost, of what that consisted, and what each agent's connections carried."""
    lines = []
    sent = sum(moved.sent for moved in accounting.clients.values())
    received = sum(moved.received for moved in accounting.clients.values())
    if accounting.updates:
        for label, whole, parts in (
            ("up per update", sent, accounting.uplink),
            ("down per update", received, accounting.downlink),
        ):
            remark = ", ".join(f"{count / whole:.1%} {name}" for name, count in parts.items() if whole)
            lines.append(Line(label=label, value=f"{whole / accounting.updates:,.0f} bytes", remark=remark))
    for client, moved in list(accounting.clients.items())[:_CLIENTS_SHOWN]:
        value = f"up {human_bytes(moved.sent)}, down {human_bytes(moved.received)}"
        each = f", {moved.sent / moved.updates:,.0f} bytes up each" if moved.updates else ""
        lines.append(Line(label=client, value=value, remark=f"{moved.updates:,} folded{each}"))
    if (hidden := len(accounting.clients) - _CLIENTS_SHOWN) > 0:
        lines.append(Line(label=f"{hidden:,} agents more", value="see report.json"))
    return lines


def _number(value: float | None, form: str, *, missing: str = "") -> str:
    """Format a number that may be missing."""
    return missing if value is None else form.format(value)


def _bytes_line(label: str, moved: int | None, dense_both_ways: int | None) -> Line:
    """Bytes in one direction beside what dense float32 would have moved in that direction."""
    if moved is None or dense_both_ways is None:
        return Line(label=label, value="–")
    dense = dense_both_ways // 2
    if not moved or not dense:
        return Line(label=label, value=human_bytes(moved))
    remark = f"{compare(moved, dense)} than dense float32 ({human_bytes(dense)})"
    return Line(label=label, value=human_bytes(moved), remark=remark)


def compare(moved: int, dense: int) -> str:
    """Say how many times less (or more) was moved than dense float32 would; both in bytes, above 0."""
    ratio, word = (dense / moved, "less") if moved <= dense else (moved / dense, "more")
    return f"{ratio:,.0f}× {word}" if ratio >= 100 else f"{ratio:.1f}× {word}"


def summary_table(report: Report) -> Table:
    """The summary for a terminal; it fits 80 columns, and the notes stand below it."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title="What the run came to")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_column(style="dim")
    for line in summary_lines(report):
        table.add_row(escape(line.label), escape(line.value), escape(line.remark))
    if report.notes:
        table.caption = escape("\n".join(report.notes))
        table.caption_justify = "left"
    return table


def write_report(folder: Path, report: Report) -> tuple[Path, ...]:
    """Write `report.json` and, where matplotlib is installed, the pictures and `report.html`.

    Returns:
        What was written, `report.json` first.

    Raises:
        DataError: the log, which the pictures are drawn from, is missing or malformed.
    """
    log = read_log(folder)
    path = folder / "report.json"
    path.write_text(
        json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    if find_spec("matplotlib") is None:
        return (path,)
    from . import plots  # matplotlib is in the extra `demo` and takes a second to import

    return (path, *plots.write_pictures(folder, log, report))
