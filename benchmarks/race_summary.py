"""The race's tables: medians over seeds, ratios to Flower, and the page in Markdown."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.harness import Row
from benchmarks.race_run import Point

_COMPARED: Final = "Flower"
_MEASURES: Final = (
    "updates",
    "seconds",
    "uplink_bytes",
    "downlink_bytes",
    "server_cpu_ms_per_update",
    "broker_cpu_ms_per_update",
    "server_rss_mb",
    "client_rss_mb",
)
_HEADINGS: Final = {
    "workload": "workload",
    "system": "system",
    "runs": "reached",
    "updates": "updates",
    "seconds": "seconds",
    "uplink_mb": "MB up",
    "downlink_mb": "MB down",
    "server_cpu_ms_per_update": "server ms/u",
    "broker_cpu_ms_per_update": "broker ms/u",
    "server_rss_mb": "server MB",
    "client_rss_mb": "client MB",
    "seconds_ratio": "× time",
    "uplink_ratio": "× up",
    "downlink_ratio": "× down",
}
CURVE_COLUMNS: Final = (
    "system", "workload", "seed", "updates", "seconds", "accuracy", "uplink_bytes", "downlink_bytes",
)  # fmt: skip


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Medians over seeds, for each workload and system; of the runs that reached the target where there are any.

    Ratios are Flower's median divided by the system's, on the same workload, where both reached the target.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["workload"]), str(row["system"])), []).append(row)
    lines = {key: _line(*key, group) for key, group in sorted(groups.items(), key=lambda item: item[0][0])}
    return [_compare(line, lines.get((workload, _COMPARED))) for (workload, _), line in lines.items()]


def _line(workload: str, system: str, group: Sequence[Row]) -> dict[str, str | int | float | None]:
    reached = [row for row in group if row["reached"]]
    line: dict[str, str | int | float | None] = {
        "workload": workload,
        "system": system,
        "runs": f"{len(reached)} of {len(group)}",
        "reached": len(reached),
    }
    for name in _MEASURES:
        values = [float(value) for row in reached or group if (value := row.get(name)) is not None]
        line[name] = statistics.median(values) if values else None
    for way in ("uplink", "downlink"):
        total = line[f"{way}_bytes"]
        line[f"{way}_mb"] = None if total is None else float(total) / 1e6
    return line


def _compare(line: Row, other: Row | None) -> Row:
    if other is None or not (line["reached"] and other["reached"]):
        return line
    pairs = {"seconds_ratio": "seconds", "uplink_ratio": "uplink_bytes", "downlink_ratio": "downlink_bytes"}
    ratios = {ratio: float(other[name] or 0) / float(line[name] or 1) for ratio, name in pairs.items()}
    return {**line, **ratios}


def sentence(row: Row) -> str:
    """One run in words."""
    run = f"{row['workload']}, seed {row['seed']}, {row['system']}:"
    if row.get("updates") is None:
        return f"{run} nothing was measured. {row['note']}"
    end = "reached" if row["reached"] else f"NOT reached, accuracy {row['accuracy']}"
    megabytes = [_cell(float(row[name] or 0) / 1e6) for name in ("uplink_bytes", "downlink_bytes")]
    return (
        f"{run} {end} after {row['updates']} updates, {_cell(row['seconds'])} s, {megabytes[0]} MB up, "
        f"{megabytes[1]} MB down; server {_cell(row['server_cpu_ms_per_update'])} ms for each update, "
        f"{_cell(row['server_rss_mb'])} MB; client {_cell(row['client_rss_mb'])} MB"
    )


def write_page(
    path: Path, title: str, lines: Sequence[Row], rows: Sequence[Row], facts: Mapping[str, object]
) -> None:
    """Write the table for readers, with everything that they need to judge it."""
    parts = [
        f"# {title}",
        "",
        f"Medians over seeds, of the runs that reached the target. × is {_COMPARED}'s figure divided by the system's.",
        "",
        *_markdown(lines, _HEADINGS),
        "",
    ]
    notes = dict.fromkeys((str(row["system"]), str(row["note"])) for row in rows)
    parts += [f"- **{system}**: {note}" for system, note in notes]
    parts += ["", *(f"- {name.replace('_', ' ')}: {_words(value)}" for name, value in facts.items())]
    if foreign := [float(cores) for row in rows if (cores := row.get("foreign_cores")) is not None]:
        parts.append(
            f"- cores busy with something else: {_cell(statistics.median(foreign))} in the median run, "
            f"{_cell(max(foreign))} at most"
        )
    parts.append("")
    path.write_text("\n".join(parts), encoding="utf-8")


def _markdown(rows: Sequence[Row], headings: Mapping[str, str]) -> list[str]:
    head = [f"| {' | '.join(headings.values())} |", f"|{'---|' * len(headings)}"]
    return [*head, *(f"| {' | '.join(_cell(row.get(name)) for name in headings)} |" for row in rows)]


def _words(value: object) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    nested = any(isinstance(part, Mapping) for part in value.values())
    words = (f"{name}{':' if nested else ''} {_words(part)}" for name, part in value.items())
    return ("; " if nested else ", ").join(words)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def curve_rows(row: Row, curve: Sequence[Point]) -> list[Row]:
    """A run's curve as rows of the CSV file."""
    run = {name: row[name] for name in ("system", "workload", "seed")}
    return [
        {
            **run,
            "updates": point.updates,
            "seconds": round(point.seconds, 3),
            "accuracy": point.accuracy,
            "uplink_bytes": point.traffic.up,
            "downlink_bytes": point.traffic.down,
        }
        for point in curve
    ]


def write_curves(path: Path, rows: Sequence[Row]) -> None:
    """Write all curves."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_curves(path: Path) -> list[Row]:
    """Read them back."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: value if name in ("system", "workload") else float(value) for name, value in line.items()}
            for line in csv.DictReader(file)
        ]
