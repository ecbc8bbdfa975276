"""The proxy that tests and campaigns hurt networks with: each way to hurt does what it says."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Literal

import pytest

from fedmq.testing.proxy import Proxy

SECONDS = 10.0


class Line:
    """A client and a server, joined by a proxy."""

    def __init__(self, stack: ExitStack) -> None:
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.proxy = stack.enter_context(Proxy(self.listener.getsockname()[1]))
        self._stack = stack
        self.client, self.server = self.connect()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A new connection's two ends, which have heard of each other."""
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.proxy.port), SECONDS))
        server = self._stack.enter_context(self.listener.accept()[0])
        server.settimeout(SECONDS)
        assert exchange(client, server) == b"hello"
        return client, server


@pytest.fixture
def line() -> Iterator[Line]:
    """One, joined."""
    with ExitStack() as stack:
        yield Line(stack)


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection ends with a reset; waits for its end."""
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def has_heard_something(sock: socket.socket) -> bool:
    """Whether there is anything to read now, the end of the connection included."""
    return bool(select.select([sock], [], [], 0)[0])


def exchange(source: socket.socket, sink: socket.socket) -> bytes:
    """Send something and take it at the other end."""
    source.sendall(b"hello")
    return sink.recv(100)


@pytest.mark.parametrize("kept", ["client", "server"])
def test_a_half_open_connection_is_reset_on_one_side_only(
    line: Line, kept: Literal["client", "server"]
) -> None:
    """The side that is kept hears nothing, may even write; a new connection works meanwhile."""
    ends = {"client": line.client, "server": line.server}
    believing = ends.pop(kept)
    (other,) = ends.values()
    line.proxy.abandon(kept)

    assert is_reset(other)
    believing.sendall(b"are you there")
    assert not has_heard_something(believing)
    assert exchange(*line.connect()) == b"hello"
    assert not has_heard_something(believing)

    line.proxy.bury()

    assert is_reset(believing)


def test_a_cut_resets_both_sides(line: Line) -> None:
    """As a lost link looks in the end."""
    line.proxy.cut()

    assert is_reset(line.client)
    assert is_reset(line.server)
    assert exchange(*line.connect()) == b"hello"


def test_a_throttled_line_is_slow_and_then_fast_again(line: Line) -> None:
    """No byte is lost by it."""
    line.proxy.bytes_per_second = 10_000
    began = time.monotonic()
    line.client.sendall(bytes(3000))
    taken = 0
    while taken < 3000:
        taken += len(line.server.recv(3000))
    took = time.monotonic() - began
    line.proxy.bytes_per_second = None

    assert took > 0.2
    assert exchange(line.client, line.server) == b"hello"
    assert line.proxy.bytes_up >= 3000


def test_a_frozen_line_delivers_late(line: Line) -> None:
    """What was sent into it comes out when it thaws."""
    line.proxy.freeze()
    line.client.sendall(b"hello")

    assert not select.select([line.server], [], [], 0.1)[0]

    line.proxy.thaw()

    assert line.server.recv(100) == b"hello"


def test_a_partition_refuses_new_connections_until_it_ends(line: Line) -> None:
    """Nobody is connected, nobody gets through, and then somebody does."""
    server = line.proxy.target
    line.proxy.target = None
    line.proxy.cut()
    with socket.create_connection(("127.0.0.1", line.proxy.port), SECONDS) as refused:
        said = refused.recv(1)
    line.proxy.target = server

    assert said == b""
    assert exchange(*line.connect()) == b"hello"
