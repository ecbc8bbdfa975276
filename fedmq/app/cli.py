"""The command line: which commands there are. Each is a module of its own, imported when it is run.

So a small device that runs `fedmq agent` loads neither the aggregator nor the demo.
"""

import logging
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from fedmq import __version__
from fedmq.errors import FedmqError

_INTERRUPTED: Final = 130

#: Command and module, in the order in which `fedmq --help` lists them.
COMMANDS: Final[Mapping[str, str]] = {
    name: f"fedmq.app.commands.{name}"
    for name in ("demo", "aggregator", "agent", "evaluator", "broker", "init", "shards", "status", "export")
}


class _Commands(TyperGroup):
    """Looks commands up in the table above."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        single.command(name=cmd_name)(getattr(import_module(module), cmd_name))
        return typer.main.get_command(single)


app = typer.Typer(
    name="fedmq",
    cls=_Commands,
    help="Federated learning over a message queue.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedmq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"{log_level!r}: debug, info, warning or error is allowed")
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )


def main() -> Any:
    """The console script: errors that are ours to explain end in one line and status 2."""
    sys.path.insert(0, "")  # a trainer of the user's own lies in the folder where the command is given
    try:
        return app()
    except FedmqError as error:
        sys.stderr.write(f"fedmq: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
