"""Brokers, clients and the lines between them, for tests that break the lines.

What lives here: `Net` and its two kinds, in memory and over TCP; `Tap`, which keeps a transport's events and
waits for them. What must not: what is tested with them, and pytest.

Waiting is for a state, with a deadline, never for a time. The one exception is `Net.advance` over a real
broker, whose clock is its own.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from fedmq.testing.proxy import Proxy
from fedmq.transport.base import (
    Connected,
    Delivery,
    Event,
    PublishAccepted,
    PublishRefused,
    PublishToken,
    Transport,
    Will,
)
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.transport.mqtt import MqttSettings, MqttTransport

EventT = TypeVar("EventT")

MAXIMUM_PACKET_SIZE = 20_000  # what the broker of a net must announce
MAX_QUEUED = 100


class Net(Protocol):
    """A broker, its clients and the lines between them.

    Attributes:
        patience: seconds until an awaited event counts as missing.
        strict: the broker does what MQTT 5 says. mosquitto 2.0.11 hangs up on a client that was taken over
            without telling it why, and after an acknowledgement may send more than the window allows.
    """

    patience: float
    strict: bool

    def transport(
        self,
        client_id: str,
        *,
        clean_start: bool = False,
        receive_maximum: int = 64,
        will: Will | None = None,
    ) -> Transport:
        """A new transport, not started, with a session that outlives its connections."""

    def cut(self, client_id: str) -> None:
        """Break the client's connection without a goodbye; it may connect again."""

    def block(self, client_id: str) -> None:
        """Break it, and let it not connect until `unblock`."""

    def unblock(self, client_id: str) -> None:
        """Let it connect again."""

    def restart_empty(self) -> None:
        """Kill the broker and start another, which knows nothing."""

    def advance(self, seconds: float) -> None:
        """Let the broker's clock move."""

    def close(self) -> None:
        """Close all transports."""


class MemoryNet:
    """The net without a network."""

    patience = 0.3
    strict = True

    def __init__(self, *, duplicate_rate: float = 0.0) -> None:
        self.now = 0.0
        self.broker = MemoryBroker(
            clock=lambda: self.now, maximum_packet_size=MAXIMUM_PACKET_SIZE, duplicate_rate=duplicate_rate
        )
        self._transports: list[Transport] = []

    def transport(
        self,
        client_id: str,
        *,
        clean_start: bool = False,
        receive_maximum: int = 64,
        will: Will | None = None,
    ) -> Transport:
        """See `Net`."""
        transport = MemoryTransport(
            self.broker,
            client_id,
            clean_start=clean_start,
            receive_maximum=receive_maximum,
            max_queued=MAX_QUEUED,
            will=will,
        )
        self._transports.append(transport)
        return transport

    def cut(self, client_id: str) -> None:
        """See `Net`."""
        self.broker.disconnect(client_id)

    def block(self, client_id: str) -> None:
        """See `Net`."""
        self.broker.block(client_id)

    def unblock(self, client_id: str) -> None:
        """See `Net`."""
        self.broker.unblock(client_id)

    def restart_empty(self) -> None:
        """See `Net`."""
        self.broker.stop(forget=True)
        self.broker.start()

    def advance(self, seconds: float) -> None:
        """See `Net`."""
        self.now += seconds

    def close(self) -> None:
        """See `Net`."""
        for transport in self._transports:
            transport.close()


class Server(Protocol):
    """A broker behind a TCP port, with a maximum packet of `MAXIMUM_PACKET_SIZE` and no memory on disk."""

    @property
    def port(self) -> int:
        """Where it listens now."""

    def restart(self) -> None:
        """Kill it and start it again, empty, perhaps on another port."""


class TcpNet:
    """`MqttTransport`s to a real server, each client id through a `Proxy` of its own."""

    patience = 10.0

    def __init__(self, server: Server, *, protocol: str = "5", strict: bool = True) -> None:
        self.server = server
        self.strict = strict
        self.proxies: dict[str, Proxy] = {}
        self._protocol = protocol
        self._transports: list[Transport] = []

    def transport(
        self,
        client_id: str,
        *,
        clean_start: bool = False,
        receive_maximum: int = 64,
        will: Will | None = None,
    ) -> Transport:
        """See `Net`."""
        transport = MqttTransport(
            MqttSettings(
                host="127.0.0.1",
                port=self.proxy(client_id).port,
                client_id=client_id,
                protocol=self._protocol,
                clean_start=clean_start,
                session_expiry=3600,
                receive_maximum=receive_maximum,
                max_queued=MAX_QUEUED,
                reconnect_min=0.01,
                reconnect_max=0.05,
                will=will,
            )
        )
        self._transports.append(transport)
        return transport

    def proxy(self, client_id: str) -> Proxy:
        """The client's line to the broker."""
        if client_id not in self.proxies:
            self.proxies[client_id] = Proxy(self.server.port)
        return self.proxies[client_id]

    def cut(self, client_id: str) -> None:
        """See `Net`."""
        self.proxy(client_id).cut()

    def block(self, client_id: str) -> None:
        """See `Net`."""
        self.proxy(client_id).target = None
        self.proxy(client_id).cut()

    def unblock(self, client_id: str) -> None:
        """See `Net`."""
        self.proxy(client_id).target = self.server.port

    def restart_empty(self) -> None:
        """See `Net`."""
        self.server.restart()
        for proxy in self.proxies.values():
            proxy.target = self.server.port

    def advance(self, seconds: float) -> None:
        """See `Net`. The broker's clock is real, so this takes as long."""
        time.sleep(seconds)

    def close(self) -> None:
        """See `Net`."""
        for transport in self._transports:
            transport.close()
        for proxy in self.proxies.values():
            proxy.close()


class Tap:
    """A transport whose events are kept, to be asked for.

    Args:
        net: where the client lives.
        client_id: its name.
        acks: acknowledge what comes, as it comes.
        will: see `Net.transport`.
        receive_maximum: see `Net.transport`.
        clean_start: see `Net.transport`.
    """

    def __init__(
        self,
        net: Net,
        client_id: str,
        *,
        acks: bool = True,
        will: Will | None = None,
        receive_maximum: int = 64,
        clean_start: bool = False,
    ) -> None:
        self.net = net
        self.client_id = client_id
        self.transport = net.transport(
            client_id, clean_start=clean_start, receive_maximum=receive_maximum, will=will
        )
        self.events: list[Event] = []
        self._acks = acks
        self._barriers = 0
        self.transport.start()

    def pump(self, seconds: float = 0.0) -> None:
        """Take what is there, waiting so long for the first event."""
        event = self.transport.poll(timeout=seconds)
        while event is not None:
            self.events.append(event)
            if isinstance(event, Delivery) and (self._acks or event.topic.startswith("barrier/")):
                event.ack()
            event = self.transport.poll(timeout=0)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Take events until the condition holds."""
        wait(condition, self)

    def connected(self, times: int = 1) -> Connected:
        """Wait for so many connections since the start; the last of them."""
        self.wait(lambda: len(self.of(Connected)) >= times)
        return self.of(Connected)[times - 1]

    def of(self, kind: type[EventT]) -> list[EventT]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def deliveries(self) -> list[Delivery]:
        """The messages so far, without those of `settle`."""
        return [event for event in self.of(Delivery) if not event.topic.startswith("barrier/")]

    @property
    def payloads(self) -> list[bytes]:
        """What the messages so far said."""
        return [delivery.payload for delivery in self.deliveries]

    def outcome(self, token: PublishToken) -> PublishAccepted | PublishRefused:
        """Wait for what became of a publish."""

        def found() -> list[PublishAccepted | PublishRefused]:
            accepted = [event for event in self.of(PublishAccepted) if event.token == token]
            return [*accepted, *(event for event in self.of(PublishRefused) if event.token == token)]

        self.wait(lambda: bool(found()))
        return found()[0]

    def subscribe(self, *topic_filters: str) -> None:
        """Subscribe, and wait until the broker has done it."""
        for topic_filter in topic_filters:
            self.transport.subscribe(topic_filter)
        self.settle()

    def settle(self) -> None:
        """Wait until the broker has handled all that this client sent, and this client all that it got.

        A broker handles a connection's packets in order, so the echo of a publish to oneself comes after them.
        """
        self._barriers += 1
        topic, payload = f"barrier/{self.client_id}", str(self._barriers).encode()
        self.transport.subscribe(topic)
        self.transport.publish(topic, payload)
        self.wait(lambda: any(d.topic == topic and d.payload == payload for d in self.of(Delivery)))


def wait(condition: Callable[[], bool], *taps: Tap) -> None:
    """Take events from all taps in turn until the condition holds.

    Raises:
        AssertionError: it did not within the net's patience.
    """
    deadline = time.monotonic() + taps[0].net.patience
    while not condition():
        for tap in taps:
            tap.pump(0.01)
        if time.monotonic() > deadline:
            seen = "\n".join(f"{tap.client_id}: {tap.events[-20:]}" for tap in taps)
            raise AssertionError(f"what was awaited did not come; the last events were\n{seen}")
