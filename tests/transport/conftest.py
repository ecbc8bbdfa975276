"""The brokers that the transport's tests talk to."""

import os
from collections.abc import Callable, Iterator

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
def mosquitto_with() -> Iterator[Callable[[str], Killable]]:
    """Makes mosquittos, given some lines of configuration."""
    made: list[Mosquitto] = []

    def make(lines: str) -> Killable:
        common = f"set_tcp_nodelay true\nmax_packet_size {MAXIMUM_PACKET_SIZE}\nmax_queued_messages 10000\n"
        try:
            made.append(Mosquitto(common + lines))
        except MosquittoMissingError as error:
            if "CI" in os.environ:
                raise
            pytest.skip(str(error))
        return Killable(made[-1])

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def mosquitto(mosquitto_with: Callable[[str], Killable]) -> Killable:
    """A fresh mosquitto, open to all."""
    return mosquitto_with("")


@pytest.fixture
def embedded() -> Iterator[Killable]:
    """A fresh embedded broker, open to all."""
    with_limit = BrokerSettings(max_packet=MAXIMUM_PACKET_SIZE, sys_interval=0)
    broker = EmbeddedBroker(settings=with_limit)
    yield Killable(broker)
    broker.stop()
