"""The brokers that the transport's tests talk to."""

import os
from collections.abc import Iterator

import pytest
from fedmq.broker import BrokerSettings, EmbeddedBroker, Mosquitto, MosquittoMissingError

from fedmq.testing.net import MAXIMUM_PACKET_SIZE


class Killable:
    """A broker without a disk, as `fedmq.testing.net.Server`."""

    def __init__(self, broker: EmbeddedBroker | Mosquitto) -> None:
        self._broker = broker.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._broker.port

    def restart(self) -> None:
        """Kill it and start it empty."""
        self._broker.kill()
        self._broker.start()


@pytest.fixture
def mosquitto() -> Iterator[Killable]:
    """A fresh mosquitto, open to all."""
    configuration = f"set_tcp_nodelay true\nmax_packet_size {MAXIMUM_PACKET_SIZE}\nmax_queued_messages 10000"
    try:
        broker = Mosquitto(configuration)
    except MosquittoMissingError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
    yield Killable(broker)
    broker.close()


@pytest.fixture
def embedded() -> Iterator[Killable]:
    """A fresh embedded broker, open to all."""
    broker = EmbeddedBroker(settings=BrokerSettings(max_packet=MAXIMUM_PACKET_SIZE, sys_interval=0))
    yield Killable(broker)
    broker.stop()
