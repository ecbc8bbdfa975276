"""The command line: which commands there are. Each is a module of its own, imported when it is run.

So a small device that runs `fedmq agent` loads neither the aggregator nor the demo.
"""

import logging
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

from fedmq import __version__
from fedmq.errors import FedmqError

_INTERRUPTED: Final = 130

#: Command and module, in the order in which `fedmq --help` lists them.
COMMANDS: Final[Mapping[str, str]] = {
    name: f"fedmq.app.commands.{name}"
    for name in (
        *("demo", "simulate", "aggregator", "agent", "evaluator", "broker", "init", "shards"),
        *("status", "export", "journal", "verify", "replay", "codecs"),
    )
}


class _Commands(click.Group):
    """Looks commands up in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name)
        return command


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="fedmq", message="%(prog)s %(version)s")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    help="How much to say on standard error.",
)
def fedmq(log_level: str) -> None:
    """Federated learning over a message queue."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )


def main() -> None:
    """The console script: errors that are ours to explain end in one line and status 2."""
    # A trainer of the user's own lies in the folder where the command is given; last, so that it hides nothing.
    sys.path.append("")
    # A device trains on one core beside its other work; numpy's own threads cost several times the processor time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        fedmq(standalone_mode=False)
    except FedmqError as error:
        sys.stderr.write(f"fedmq: {error}\n")
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)
