"""`fedmq broker`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedmq.app.foreground import follow_parent
from fedmq.broker import BrokerError, BrokerSettings, serve
from fedmq.errors import LocalError


def broker(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 1883,
    log: Annotated[
        Path | None, typer.Option(help="Append log: what is acknowledged survives a crash of the broker.")
    ] = None,
    username: Annotated[str | None, typer.Option(help="The one user that may connect.")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="FEDMQ_BROKER_PASSWORD", help="Its password.")
    ] = None,
) -> None:
    """Run the embedded MQTT broker: for tests, demos and a single box. In production use mosquitto."""
    if (username is None) != (password is None):
        raise typer.BadParameter("give --username and --password together")
    users = {username: password} if username is not None and password is not None else None
    follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        asyncio.run(serve(host, port, settings=BrokerSettings(users=users), log_path=log, on_ready=_announce))
    except (BrokerError, OSError) as error:
        raise LocalError(f"the broker on {host}:{port} cannot serve: {error}") from error


def _announce(address: str, port: int) -> None:
    """The ready line: whoever started us with port 0 reads the port from it."""
    sys.stdout.write(f"ready on {address}:{port}\n")
    sys.stdout.flush()
