"""The sum over a client's connections, measured or added up from packets."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fedmq.transport import tcp_info
from fedmq.transport.base import Traffic
from fedmq.transport.meter import Meter
from fedmq.transport.tcp_info import Carried

Connect = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes TCP connections, both ends of them."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def connect() -> tuple[socket.socket, socket.socket]:
            near = stack.enter_context(socket.create_connection(server.getsockname()))
            return near, stack.enter_context(server.accept()[0])

        yield connect


def counts(meter: Meter) -> tuple[int, int, bool]:
    """Bytes sent and received, and whether they were measured."""
    traffic = meter.traffic
    return traffic.bytes_sent, traffic.bytes_received, traffic.measured


def test_measured_connections_are_summed_whatever_their_packets_were(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open one counts as it stands, the closed ones as they were; packets between them count nothing."""
    now = {"carried": Carried(sent=0, received=0)}
    monkeypatch.setattr(tcp_info, "carried", lambda sock, ended=False: now["carried"])
    meter = Meter()
    seen = [counts(meter)]
    for sent, received in ((100, 10), (200, 20)):
        sock, _ = connect()
        meter.opened(sock)
        meter.sent(7)
        now["carried"] = Carried(sent=sent, received=received)
        seen.append(counts(meter))
        meter.closed(sock)
        meter.received(3)
        seen.append(counts(meter))

    assert seen == [
        (0, 0, True),
        (100, 10, True),
        (100, 10, True),
        (300, 30, True),
        (300, 30, True),
    ]
    assert (meter.traffic.packets_sent, meter.traffic.packets_received) == (2, 2)


def test_where_the_system_does_not_count_the_packets_do(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last word that is taken after the connection was closed, too."""
    monkeypatch.setattr(tcp_info, "carried", lambda sock, ended=False: None)
    meter = Meter()
    sock, _ = connect()
    meter.opened(sock)
    meter.sent(100)
    meter.received(30)
    meter.closed(sock)
    meter.received(4)

    assert counts(meter) == (100, 34, False)


def test_one_connection_that_nobody_measured_is_told(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packets are added to the others' bytes; a connection that is no socket is such a one."""
    monkeypatch.setattr(tcp_info, "carried", lambda sock, ended=False: Carried(sent=1000, received=500))
    meter = Meter()
    meter.opened(object())
    meter.sent(100)
    meter.received(30)
    sock, _ = connect()
    meter.opened(sock)

    assert counts(meter) == (1100, 530, False)


def test_the_parts_are_those_of_the_packets(connect: Connect) -> None:
    """Payloads and topics, each way."""
    meter = Meter()
    sock, _ = connect()
    meter.opened(sock)
    meter.sent(50, payload=30, topic=10)
    meter.sent(4)
    meter.received(70, payload=60, topic=5)
    traffic = meter.traffic

    assert (traffic.payload_sent, traffic.topic_sent) == (30, 10)
    assert (traffic.payload_received, traffic.topic_received) == (60, 5)


def test_a_connection_can_be_closed_through_another_handle(connect: Connect) -> None:
    """What comes after the first handle was closed counts still."""
    meter = Meter()
    near, far = connect()
    meter.opened(near)
    near.sendall(b"bye")
    assert far.recv(10) == b"bye"
    handle = near.dup()
    with handle:
        meter.follow(handle)
        meter.closed(near)
        near.close()
        far.sendall(b"last")
        far.close()
        assert handle.recv(10) == b"last"
        meter.closed(handle, ended=handle.recv(1) == b"")

    assert counts(meter) == (3, 4, True)


def test_a_connection_is_closed_once(connect: Connect) -> None:
    """A second word about it changes nothing, and so does one about a stranger."""
    meter = Meter()
    near, far = connect()
    stranger, _ = connect()
    meter.opened(near)
    near.sendall(b"x")
    assert far.recv(10) == b"x"
    for sock in (stranger, None, near, near):
        meter.closed(sock)

    assert counts(meter) == (1, 0, True)


def test_a_handshake_that_failed_counts(connect: Connect) -> None:
    """Its bytes were sent like any other."""
    meter = Meter()
    near, far = connect()
    near.sendall(b"hello")
    far.sendall(b"no")
    assert (far.recv(10), near.recv(10)) == (b"hello", b"no")
    meter.failed(near)

    assert meter.traffic == Traffic(bytes_sent=5, bytes_received=2, measured=True)
