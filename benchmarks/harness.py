"""What the benchmarks share: their command line, their JSON, their table."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

import psutil
from rich.console import Console
from rich.table import Table

Row: TypeAlias = Mapping[str, str | int | float | None]

_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("fedmq", "numpy", "msgpack", "paho-mqtt", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line said.

    Attributes:
        quick: end within 90 seconds.
        seed: of everything that is drawn.
        out: the JSON file.
    """

    quick: bool
    seed: int
    out: Path


def parse_options(name: str, description: str) -> Options:
    """Read the command line that all benchmarks share."""
    return read_options(make_parser(name, description).parse_args())


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of what all benchmarks share; a benchmark may add its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="end within 90 seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_RESULTS / f"{name}.json")
    return parser


def read_options(arguments: argparse.Namespace) -> Options:
    """What the command line said of what all benchmarks share."""
    return Options(quick=arguments.quick, seed=arguments.seed, out=arguments.out)


def write_result(name: str, options: Options, rows: Sequence[Row], **facts: object) -> None:
    """Write rows and everything needed to read them later."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": name,
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "seed": options.seed,
        "quick": options.quick,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": _versions(),
        **facts,
        "rows": list(rows),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console().print(f"written to {options.out}")


def describe_machine() -> dict[str, str | int | float]:
    """Processor, memory and system, without names."""
    return {
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_at_end": round(os.getloadavg()[0], 2),
    }


def print_table(title: str, rows: Sequence[Row], headings: Mapping[str, str]) -> None:
    """Print rows as a table; numbers get as many digits as say something.

    Args:
        title: above it.
        rows: what `write_result` writes; columns without a heading are not shown.
        headings: short names of the columns, in order.
    """
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")
    for column, heading in headings.items():
        numeric = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in headings))
    Console().print(table)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    return statistics.median(values), min(values), max(values)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
