"""The brokers that the transport's tests talk to."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.testing.transport_contract import MAXIMUM_PACKET_SIZE


class MosquittoServer:
    """A mosquitto without a disk, killed and replaced by `restart`."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self._folder = folder
        self._extra = extra
        self._launch()

    def _launch(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        configuration = self._folder / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\nset_tcp_nodelay true\nlog_type all\n"
            f"max_packet_size {MAXIMUM_PACKET_SIZE}\nmax_queued_messages 10000\n"
            + (self._extra or "allow_anonymous true\n")
        )
        self._process = subprocess.Popen(
            ["mosquitto", "-c", str(configuration)], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "running" in line:
                break
        else:
            raise RuntimeError(f"mosquitto did not start with {configuration}")

    def restart(self) -> None:
        """Kill it and start another."""
        self.stop()
        self._launch()

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[MosquittoServer]:
    """A fresh mosquitto."""
    if shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") is None:
        if "CI" in os.environ:
            pytest.fail("mosquitto is not installed")
        pytest.skip("mosquitto is not installed")
    server = MosquittoServer(tmp_path)
    yield server
    server.stop()
