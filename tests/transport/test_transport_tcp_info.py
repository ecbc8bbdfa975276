"""The kernel's count of a connection, where it is easy to be wrong by one."""

import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from fedmq.transport import tcp_info
from fedmq.transport.tcp_info import Carried, carried, was_ended_before_reset

ESTABLISHED, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 5, 6, 7, 8, 9, 11
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")


def info(state: int, *, sent: int, repeated: int, received: int, size: int = 280) -> bytes:
    """A struct tcp_info with these fields, and noise in all others."""
    data = bytearray(b"\xa5" * 280)
    data[0] = state
    for place, value in ((128, received), (200, sent), (208, repeated)):
        struct.pack_into("=Q", data, place, value)
    return bytes(data[:size])


@pytest.mark.parametrize(
    ("state", "ended", "received"),
    [
        (ESTABLISHED, False, 50),
        (ESTABLISHED, True, 50),
        (FIN_WAIT2, True, 50),
        (CLOSE_WAIT, False, 49),
        (LAST_ACK, False, 49),
        (CLOSING, False, 49),
        (TIME_WAIT, False, 49),
        (CLOSE, False, 50),
        (CLOSE, True, 49),
    ],
)
def test_the_peers_end_is_no_byte(state: int, ended: bool, received: int) -> None:
    """The state tells whether it has come; where it does not, the caller does."""
    data = info(state, sent=120, repeated=20, received=50)

    assert tcp_info.parse(data, ended=ended) == Carried(sent=100, received=received)


@pytest.mark.parametrize("size", [0, 104, 192, 215])
def test_an_older_kernels_shorter_answer_is_no_count(size: int) -> None:
    """Before Linux 4.19 there was no tcpi_bytes_sent."""
    assert tcp_info.parse(info(ESTABLISHED, sent=1, repeated=0, received=1, size=size)) is None


def test_an_empty_answer_is_no_count() -> None:
    """Some sandboxes fill in nothing."""
    assert tcp_info.parse(bytes(280)) is None


def test_other_systems_and_other_sockets_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed socket and a UNIX one are no TCP connections; FreeBSD's TCP_INFO is another struct."""
    left, right = socket.socketpair()
    with left, right:
        assert carried(left) is None
    assert carried(left) is None
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert carried(server) is None


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
    ):
        near.settimeout(5.0)
        far.settimeout(5.0)
        yield near, far


def exchange(near: socket.socket, far: socket.socket, up: int, down: int) -> None:
    """Carry so many bytes each way."""
    for source, sink, size in ((near, far, up), (far, near, down)):
        source.sendall(bytes(size))
        while size:
            size -= len(sink.recv(size))


@linux
def test_a_new_connection_has_carried_nothing_that_counts(ends: tuple[socket.socket, socket.socket]) -> None:
    """SYN and its acknowledgement are no bytes."""
    assert carried(ends[0]) is None
    exchange(*ends, 1, 0)
    assert carried(ends[0]) == Carried(sent=1, received=0)


@linux
def test_each_byte_counts_once_each_way(ends: tuple[socket.socket, socket.socket]) -> None:
    """Also unread ones, and many."""
    exchange(*ends, 150_000, 70_000)
    ends[1].sendall(b"unread")

    assert carried(ends[0]) == Carried(sent=150_000, received=70_006)
    assert carried(ends[1]) == Carried(sent=70_006, received=150_000)


@linux
def test_a_clean_end_on_either_side_adds_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    """Neither the first FIN nor the second, nor that the state becomes CLOSE."""
    near, far = ends
    exchange(near, far, 10, 20)
    far.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
    assert carried(near) == Carried(sent=10, received=20)

    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    assert carried(near, ended=True) == Carried(sent=10, received=20)
    assert carried(far, ended=True) == Carried(sent=20, received=10)


@linux
@pytest.mark.parametrize("goodbye", [False, True])
def test_a_reset_tells_whether_a_goodbye_came_before_it(
    ends: tuple[socket.socket, socket.socket], goodbye: bool
) -> None:
    """The error that the reset leaves in the socket is another one."""
    near, far = ends
    exchange(near, far, 10, 20)
    if goodbye:
        far.shutdown(socket.SHUT_WR)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    far.close()
    ended = was_ended_before_reset(near)

    assert ended == goodbye
    assert carried(near, ended=ended) == Carried(sent=10, received=20)
