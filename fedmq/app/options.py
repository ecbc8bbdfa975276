"""Commands made from a settings dataclass, so that file, environment and flags cannot drift apart."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from fedmq.settings import Leaf, leaves, load

S = TypeVar("S")

#: What stands for the dot of a path in a parameter's name, which must be an identifier.
_DOT: Final = "__"
_METAVARS: Final = {int: "INTEGER", float: "NUMBER", tuple: "NAME=VALUE,…", Path: "PATH"}


class SettingsCommand(click.Command):
    """Lists its options under the tables of the TOML file that they belong to."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each table."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                table, _, _ = (parameter.name or "").rpartition(_DOT)
                sections.setdefault(f"[{table}]" if table else "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def with_settings(cls: type[S]) -> Callable[[Callable[[S], None]], click.Command]:
    """Make a command that takes `--config FILE` and one flag for each setting, and calls the function with them.

    Args:
        cls: the settings dataclass.
    """

    def decorate(function: Callable[[S], None]) -> click.Command:
        def run(config: Path | None, **options: object) -> None:
            flags = {name.replace(_DOT, "."): value for name, value in options.items()}
            function(load(cls, file=config, environment=os.environ, flags=flags))

        config = click.Option(
            ["config", "--config"], type=click.Path(path_type=Path), help="TOML file with these settings."
        )
        return SettingsCommand(
            name=function.__name__,
            help=function.__doc__,
            callback=run,
            params=[config, *map(_option, leaves(cls))],
            epilog="Each is also a key of the TOML file, and an environment variable: --broker-host is host in "
            "the table [broker], and FEDMQ_BROKER_HOST. Flags win over the environment, the environment over "
            "the file.",
        )

    return decorate


def _option(leaf: Leaf) -> click.Option:
    default = f"  [default: {leaf.default}]"
    if leaf.default is dataclasses.MISSING:
        default = "  [required]"
    elif leaf.default in (None, "", ()):
        default = ""
    flag = f"{leaf.flag}/--no-{leaf.flag[2:]}" if leaf.kind is bool else leaf.flag
    # Values stay text: the settings check them.
    return click.Option(
        [leaf.path.replace(".", _DOT), flag],
        help=f"{leaf.help}{default}",
        default=None,
        type=bool if leaf.kind is bool else str,
        metavar=None if leaf.kind is bool else _METAVARS.get(leaf.kind, "TEXT"),
    )
