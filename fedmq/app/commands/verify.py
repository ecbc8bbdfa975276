"""`fedmq verify`."""

import sys
from pathlib import Path

import click

from fedmq.aggregator.audit import verify as verify_store
from fedmq.aggregator.store import Store


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
def verify(store: Path) -> None:
    """Check an aggregator's store for damage.

    Hashes, gaps, duplicates, the ledger, and that the journal leads from each snapshot to the next, bit for bit. The
    aggregator may be running. Ends with status 1 when something is wrong.
    """
    opened = Store(store, read_only=True)
    try:
        findings = verify_store(opened)
    finally:
        opened.close()
    click.echo(
        f"{findings.records} records of {findings.clients} clients, {findings.folded} folded; "
        f"{findings.snapshots} snapshots, {findings.replayed} of them reached again from the one before"
    )
    for line in findings.damage:
        click.echo(f"DAMAGE: {line}")
    click.echo("damaged" if findings.damage else "intact")
    if findings.damage:
        sys.exit(1)
