"""The campaign's broker: mosquitto or the embedded one, as a process that can be hurt."""

import os
import signal
from pathlib import Path
from typing import Final, Protocol

from fedmq.broker import Mosquitto
from fedmq.broker.mosquitto import free_port

from benchmarks.chaos_parties import Process

#: mosquitto with the configuration that fedmq ships, with its own defaults, and our own broker with its log on.
BROKERS: Final = ("mosquitto", "mosquitto-defaults", "embedded")


class Broker(Protocol):
    """A broker that can be hurt."""

    port: int

    def start(self) -> None:
        """Start it, with what it had saved."""

    def kill(self) -> None:
        """SIGKILL."""

    def terminate(self) -> None:
        """SIGTERM."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""

    def wipe(self) -> None:
        """Take what it has saved away, while it is down."""

    def close(self) -> None:
        """End it and remove everything."""


class MosquittoBroker:
    """mosquitto, with the configuration that fedmq ships or with its own defaults."""

    def __init__(self, config: str | None) -> None:
        self._config = config
        self._mosquitto = Mosquitto(config, port=free_port())
        self.port = self._mosquitto.port

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._mosquitto.start()

    def kill(self) -> None:
        """SIGKILL: what it has not saved is lost."""
        self._mosquitto.kill()

    def terminate(self) -> None:
        """SIGTERM: it saves and ends."""
        self._mosquitto.terminate()

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self._mosquitto.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._mosquitto.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Another one, in an empty folder, on the same port."""
        self._mosquitto.close()
        self._mosquitto = Mosquitto(self._config, port=self.port)

    def close(self) -> None:
        """End it and remove its folder."""
        self._mosquitto.close()


class EmbeddedBroker(Process):
    """`fedmq broker` with its log on."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._journal = folder / "broker.log"
        arguments = ["--port", str(self.port), "--log", str(self._journal)]
        command = ["-m", "fedmq.app", "--log-level", "warning", "broker", *arguments]
        super().__init__("broker", command, folder / "broker.out")

    def wipe(self) -> None:
        """Remove its log."""
        for path in self._journal.parent.glob("broker.log*"):
            path.unlink()

    def close(self) -> None:
        """End it."""
        self.kill()


def make_broker(name: str, folder: Path) -> Broker:
    """One of `BROKERS`, not started.

    Raises:
        MosquittoMissingError: it is to be mosquitto, and there is none.
    """
    if name == "embedded":
        return EmbeddedBroker(folder)
    return MosquittoBroker(None if name == "mosquitto" else "")
