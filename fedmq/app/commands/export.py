"""`fedmq export`."""

from pathlib import Path

import click

from fedmq.aggregator.export import export_store


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--store",
    required=True,
    type=click.Path(path_type=Path),
    help="The aggregator's store.",
)
def export(out: Path, store: Path) -> None:
    """Write a store's newest model to OUT.

    As a safetensors file; the aggregator must not be running.
    """
    version = export_store(store, out)
    click.echo(f"{out}: version {version}")
