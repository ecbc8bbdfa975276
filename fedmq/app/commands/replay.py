"""`fedmq replay`."""

import sys
from pathlib import Path

import click

from fedmq.aggregator.audit import replay as replay_store
from fedmq.aggregator.store import Store
from fedmq.modelfile import save_model


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--version", type=click.IntRange(0), help="Which version; the newest when not given.")
@click.option("--out", type=click.Path(path_type=Path), help="safetensors file to write it to.")
def replay(store: Path, version: int | None, out: Path | None) -> None:
    """Build a version of the model again from the journal.

    Says whether the same replay leads to the next kept snapshot bit for bit; ends with status 1 when it does not. The
    aggregator may be running.
    """
    opened = Store(store, read_only=True)
    try:
        built = replay_store(opened, version)
    finally:
        opened.close()
    number = built.engine.state.version
    click.echo(f"version {number}, {built.records} records folded again, digest {built.digest.hex()}")
    if out is not None:
        save_model(out, built.engine.layout, built.vector, {"fedmq.version": str(number)})
        click.echo(f"written to {out}")
    if built.is_identical is None:
        click.echo("no later snapshot to compare with")
    elif built.is_identical:
        click.echo(f"bit-identical: the replay leads to the snapshot of version {built.anchor}")
    else:
        click.echo(
            f"NOT identical: the replay leads to other bits than the snapshot of version {built.anchor}"
        )
        sys.exit(1)
