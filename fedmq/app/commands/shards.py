"""`fedmq shards`."""

from pathlib import Path
from typing import Annotated

import typer

from fedmq.app.shards import write_shards


def shards(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    *,
    clients: Annotated[int, typer.Option(help="How many shares.", min=1)] = 2,
    data: Annotated[str, typer.Option(help="As for demo.")] = "auto",
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration.")] = 0.3,
    per_client: Annotated[int | None, typer.Option(help="Training images of each share.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the partition.", min=0)] = 0,
) -> None:
    """Split a data set into one file for each agent and one with the test images."""
    for line in write_shards(folder, data, clients=clients, alpha=alpha, per_client=per_client, seed=seed):
        typer.echo(line)
