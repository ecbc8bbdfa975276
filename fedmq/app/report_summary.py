"""A report in a few lines, each with what puts its number into proportion; and as a table for a terminal."""

from dataclasses import dataclass
from typing import Final

from rich.filesize import decimal as human_bytes
from rich.markup import escape
from rich.table import Table

from .accounting import Accounting
from .report import Report

_CLIENTS_SHOWN: Final = 20


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
