"""`fedmq broker`."""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from fedmq.app.foreground import follow_parent
from fedmq.app.options import with_settings
from fedmq.broker import BrokerError, BrokerSettings, serve
from fedmq.errors import LocalError, SettingError
from fedmq.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSettings:
    """What the embedded broker can be told here."""

    host: str = setting("127.0.0.1", help="address to listen on")
    port: int = setting(1883, help="port; 0 picks a free one", low=0, high=65535)
    log: Path | None = setting(None, help="append log: what is acknowledged survives a crash of the broker")
    username: str | None = setting(None, help="the one user that may connect; anybody when not given")
    password: str | None = setting(None, help="its password; better given in the environment", secret=True)


@with_settings(EmbeddedSettings)
def broker(settings: EmbeddedSettings) -> None:
    """Run the embedded MQTT broker.

    For tests, demos and a single box; in production use mosquitto.
    """
    host, port = settings.host, settings.port
    if (settings.username is None) != (settings.password is None):
        raise SettingError("username", settings.username, "it and password are given together, or neither")
    users = {settings.username: settings.password} if settings.username and settings.password else None
    follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    bounds = BrokerSettings(users=users)
    try:
        asyncio.run(serve(host, port, settings=bounds, log_path=settings.log, on_ready=_announce))
    except (BrokerError, OSError) as error:
        raise LocalError(f"the broker on {host}:{port} cannot serve: {error}") from error


def _announce(address: str, port: int) -> None:
    """The ready line: whoever started us with port 0 reads the port from it."""
    sys.stdout.write(f"ready on {address}:{port}\n")
    sys.stdout.flush()
