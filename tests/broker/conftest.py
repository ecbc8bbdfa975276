"""A client on the wire for the broker's tests, and the brokers it speaks to."""

import os
import socket
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from fedmq.broker import EmbeddedBroker, Mosquitto, MosquittoMissingError, packets
from fedmq.broker.decoder import Decoder

PATIENCE = 10.0  # seconds until a packet that does not come fails the test


class WireClient:
    """A blocking client that shows every packet and acknowledges nothing by itself."""

    def __init__(
        self, host: str, port: int, version: packets.Version, client_id: str, **connect: object
    ) -> None:
        self.version = version
        self._decoder = Decoder(1 << 28, version)
        self._packets: Iterator[packets.Packet] = iter(())
        self._ids = count(1)
        self._socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.connack: packets.Packet | None = None
        self.send(packets.Connect(version=version, client_id=client_id, **connect))
        self.connack = self.receive()

    def send(self, packet: packets.Packet) -> None:
        self.send_bytes(packets.encode(packet, self.version))

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> packets.Packet | None:
        """The next packet; None when the broker has closed the connection."""
        while True:
            packet = next(self._packets, None)
            if packet is not None:
                return packet
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._packets = self._decoder.feed(data)

    def receive_until(self, kind: type) -> tuple[list[packets.Packet], packets.Packet]:
        """What comes before the first packet of a kind, and that packet."""
        before: list[packets.Packet] = []
        while not isinstance(packet := self.receive(), kind):
            assert packet is not None, f"closed before a {kind.__name__}; came: {before}"
            before.append(packet)
        return before, packet

    def ping(self) -> list[packets.Packet]:
        """Everything that the broker sends before it answers a PINGREQ."""
        self.send(packets.Pingreq())
        return self.receive_until(packets.Pingresp)[0]

    def publish(self, topic: str, payload: bytes = b"", **fields: object) -> int:
        """Publishes with QoS 1 and returns the reason of the PUBACK; deliveries in between are lost."""
        self.send(packets.Publish(topic=topic, payload=payload, qos=1, packet_id=next(self._ids), **fields))
        return self.receive_until(packets.Puback)[1].reason

    def subscribe(self, topic_filter: str, **options: object) -> tuple[int, ...]:
        """Subscribes, by default with QoS 1, and returns the reasons."""
        subscription = packets.Subscription(filter=topic_filter, **{"qos": 1, **options})
        self.send(packets.Subscribe(packet_id=next(self._ids), subscriptions=(subscription,)))
        return self.receive_until(packets.Suback)[1].reasons

    def unsubscribe(self, topic_filter: str) -> None:
        self.send(packets.Unsubscribe(packet_id=next(self._ids), filters=(topic_filter,)))
        self.receive_until(packets.Unsuback)

    def deliveries(self, number: int, *, acknowledge: bool = True) -> list[packets.Publish]:
        """The next publishes, which must be the next packets."""
        found: list[packets.Publish] = []
        for _ in range(number):
            packet = self.receive()
            assert isinstance(packet, packets.Publish), packet
            found.append(packet)
            if acknowledge and packet.packet_id is not None:
                self.send(packets.Puback(packet_id=packet.packet_id))
        return found

    def acknowledge(self, packet_id: int) -> None:
        self.send(packets.Puback(packet_id=packet_id))

    def disconnect(self, **fields: object) -> None:
        """Says goodbye and waits until the broker has closed the connection."""
        self.send(packets.Disconnect(**fields))
        while self.receive() is not None:
            pass
        self._socket.close()

    def vanish(self) -> None:
        """Cuts the connection without a goodbye."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()


Dial = Callable[..., WireClient]


@pytest.fixture(scope="session")
def real_mosquitto() -> Iterator[Mosquitto]:
    """One mosquitto with its own defaults for all tests that only need some broker."""
    try:
        broker = Mosquitto("max_packet_size 65536\nsys_interval 1\n")
    except MosquittoMissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture
def wire_clients() -> Iterator[list[WireClient]]:
    """Every client that a test opened; their sockets are closed afterwards."""
    clients: list[WireClient] = []
    yield clients
    for client in clients:
        client._socket.close()


@pytest.fixture
def dial(wire_clients: list[WireClient]) -> Dial:
    """Connects a client to a broker: `dial(broker, "name", version=…, clean_start=…)`."""

    def connect(
        broker: EmbeddedBroker | Mosquitto,
        client_id: str,
        *,
        version: packets.Version = packets.Version.V5,
        **fields: object,
    ) -> WireClient:
        client = WireClient(broker.host, broker.port, version, client_id, **fields)
        wire_clients.append(client)
        assert isinstance(client.connack, packets.Connack)
        return client

    return connect
