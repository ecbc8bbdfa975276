"""`fedmq journal`."""

import csv
import dataclasses
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmq.aggregator.store import JournalEntry, Store

_FIELDS = [field.name for field in dataclasses.fields(JournalEntry)]


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--client", help="Only this client's.")
@click.option("--refused", is_flag=True, help="Only what was refused.")
@click.option("--last", type=click.IntRange(1), help="Only the last so many.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
def journal(store: Path, client: str | None, refused: bool, last: int | None, form: str) -> None:
    """List who contributed what, and what became of it.

    When, how stale, folded or refused and why. JSON is one object a line. The aggregator may be running.
    """
    opened = Store(store, read_only=True)
    try:
        entries: Iterable[JournalEntry] = (
            entry
            for entry in opened.journal()
            if (client is None or entry.client == client) and (entry.reason or not refused)
        )
        if last is not None:
            entries = list(entries)[-last:]
        {"table": _table, "json": _json, "csv": _csv}[form](entries)
    finally:
        opened.close()


def _table(entries: Iterable[JournalEntry]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("record", "received", "client", "seq", "base", "staleness", "bytes", "verdict"):
        right = name not in ("received", "client", "verdict")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "verdict")
    for entry in entries:
        received = datetime.fromtimestamp(entry.received, UTC).astimezone()
        table.add_row(
            str(entry.position),
            received.strftime("%m-%d %H:%M:%S"),
            Text(entry.client),
            str(entry.seq),
            str(entry.base_version),
            str(entry.version - entry.base_version),
            "–" if entry.message_bytes is None else str(entry.message_bytes),
            Text(f"{entry.reason}: {entry.detail}" if entry.reason else "folded"),
        )
    Console().print(table)


def _json(entries: Iterable[JournalEntry]) -> None:
    for entry in entries:
        click.echo(json.dumps(dataclasses.asdict(entry)))


def _csv(entries: Iterable[JournalEntry]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows(dataclasses.astuple(entry) for entry in entries)
