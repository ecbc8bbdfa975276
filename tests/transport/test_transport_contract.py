"""Every transport against the one contract."""

from collections.abc import Iterator

import pytest

from fedmq.testing.net import MemoryNet, Net, Server, TcpNet
from fedmq.testing.transport_contract import TransportContract


class TestMemory(TransportContract):
    @pytest.fixture
    def net(self) -> Iterator[Net]:
        """In memory."""
        net = MemoryNet()
        yield net
        net.close()


@pytest.mark.mosquitto
class TestMosquitto(TransportContract):
    @pytest.fixture
    def net(self, mosquitto: Server) -> Iterator[Net]:
        """Over TCP, to mosquitto."""
        net = TcpNet(mosquitto, strict=False)
        yield net
        net.close()


class TestEmbedded(TransportContract):
    @pytest.fixture
    def net(self, embedded: Server) -> Iterator[Net]:
        """Over TCP, to the embedded broker."""
        net = TcpNet(embedded)
        yield net
        net.close()
