"""`fedmq shards`."""

from pathlib import Path

import click

from fedmq.app.partition import SPLITS
from fedmq.app.shards import write_shards


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--clients", default=2, show_default=True, type=click.IntRange(1), help="How many shares.")
@click.option("--data", default="auto", show_default=True, help="As for demo.")
@click.option(
    "--split",
    default="auto",
    show_default=True,
    type=click.Choice(SPLITS),
    help="By a draw of labels, by two shards of sorted labels each, or by the users of the data.",
)
@click.option("--alpha", default=0.3, show_default=True, help="Dirichlet concentration of the labels.")
@click.option("--per-client", type=click.IntRange(1), help="Training examples of each share, by Dirichlet.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the partition.")
def shards(
    folder: Path, clients: int, data: str, split: str, alpha: float, per_client: int | None, seed: int
) -> None:
    """Split a data set into shares in FOLDER.

    One file for each agent, and one with the test examples.
    """
    for line in write_shards(
        folder, data, split=split, clients=clients, alpha=alpha, per_client=per_client, seed=seed
    ):
        click.echo(line)
