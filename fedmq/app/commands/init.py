"""`fedmq init`."""

from pathlib import Path

import click

from fedmq.edge_agent.trainer import find_factory
from fedmq.errors import SettingError
from fedmq.modelfile import save_model
from fedmq.settings import Table, parse_table


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--trainer",
    default="mlp",
    show_default=True,
    help="mlp, torch-mlp, another installed trainer, or package.module:function.",
)
@click.option("--settings", default="", metavar="NAME=VALUE,…", help="What the plan will tell the trainer.")
@click.option("--local", default="", metavar="NAME=VALUE,…", help="What a device would tell it.")
def init(out: Path, trainer: str, settings: str, local: str) -> None:
    """Write a first model to OUT.

    It is the trainer's freshly initialised one, for an aggregator to start from.
    """
    made = find_factory(trainer)(dict(_read("--settings", settings)), **dict(_read("--local", local)))
    save_model(out, made.layout, made.initial())
    click.echo(f"{out}: {made.layout.size} parameters in {len(made.layout.shared)} tensors")


def _read(flag: str, text: str) -> Table:
    try:
        return parse_table(text)
    except ValueError:
        raise SettingError(flag, text, "name=value pairs, separated by commas, are allowed") from None
