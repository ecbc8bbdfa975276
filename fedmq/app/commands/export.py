"""`fedmq export`."""

from pathlib import Path
from typing import Annotated

import typer

from fedmq.aggregator.export import export_store


def export(
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    *,
    store: Annotated[Path, typer.Option(help="The aggregator's store; the aggregator must not be running.")],
) -> None:
    """Write the newest model of an aggregator's store as a safetensors file."""
    version = export_store(store, out)
    typer.echo(f"{out}: version {version}")
