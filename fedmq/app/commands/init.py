"""`fedmq init`."""

from pathlib import Path
from typing import Annotated

import typer

from fedmq.edge_agent.trainer import find_factory
from fedmq.modelfile import save_model
from fedmq.settings import parse_table


def init(
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    *,
    trainer: Annotated[
        str, typer.Option(help="mlp, torch-mlp, another installed trainer, or package.module:function.")
    ] = "mlp",
    settings: Annotated[
        str, typer.Option(metavar="NAME=VALUE,…", help="What the plan will tell the trainer.")
    ] = "",
    local: Annotated[str, typer.Option(metavar="NAME=VALUE,…", help="What a device would tell it.")] = "",
) -> None:
    """Write a trainer's freshly initialised model, for an aggregator to start from."""
    made = find_factory(trainer)(dict(parse_table(settings)), **dict(parse_table(local)))
    layout = made.layout
    save_model(out, layout, made.initial())
    typer.echo(f"{out}: {layout.size} parameters in {len(layout.shared)} tensors")
