"""Command-line options made from a settings dataclass, so that file, environment and flags cannot drift apart."""

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fedmq.settings import Leaf, leaves, load

S = TypeVar("S")


def with_settings(cls: type[S]) -> Callable[[Callable[[S], None]], Callable[..., None]]:
    """Make a command that takes `--config FILE` and one flag for each setting, and calls the function with them.

    Args:
        cls: the settings dataclass.
    """
    known = {leaf.path.replace(".", "__"): leaf for leaf in leaves(cls)}

    def decorate(function: Callable[[S], None]) -> Callable[..., None]:
        def command(config: Path | None = None, **flags: object) -> None:
            values = {known[name].path: value for name, value in flags.items()}
            function(load(cls, file=config, environment=os.environ, flags=values))

        parameters = [
            _parameter("config", Path, typer.Option("--config", help="TOML file with these settings"))
        ]
        for name, leaf in known.items():
            kind = bool if leaf.kind is bool else str
            parameters.append(_parameter(name, kind, _option(leaf)))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        return command

    return decorate


def _parameter(name: str, kind: type, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _option(leaf: Leaf) -> Any:
    default = "" if leaf.default in (None, "", ()) else f" [default: {leaf.default}]"
    if leaf.default is dataclasses.MISSING:
        default = " [required]"
    flag = f"{leaf.flag}/--no-{leaf.flag[2:]}" if leaf.kind is bool else leaf.flag
    table, _, _ = leaf.path.rpartition(".")
    return typer.Option(
        flag,
        help=f"{leaf.help}{default}".replace("[", "\\["),
        metavar={bool: None, int: "INTEGER", float: "NUMBER", tuple: "NAME=VALUE,…"}.get(leaf.kind, "TEXT"),
        rich_help_panel=f"\\[{table}]" if table else "Options",
        show_default=False,
    )
