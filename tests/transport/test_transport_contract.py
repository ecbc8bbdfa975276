"""Every transport against the one contract."""

from collections.abc import Iterator

import pytest

from fedmq.testing.transport_contract import MemoryNet, Net, Server, TcpNet, TransportContract


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
        net = TcpNet(mosquitto, tells_takeover=False)
        yield net
        net.close()
