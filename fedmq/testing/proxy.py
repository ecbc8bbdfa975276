"""A TCP proxy that counts bytes and breaks connections.

What lives here: `Proxy`, for tests and benchmarks that need a network they can hurt. What must not: anything
that knows MQTT.
"""

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds
_BLOCK: Final = 65536
#: A throttled direction forwards what it may in so many seconds at once, then waits as long.
_THROTTLE_SECONDS: Final = 0.05


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.broken = threading.Event()
        self._kept: socket.socket | None = None  # the end that is to hear nothing of the break
        self._lock = threading.Lock()
        self._open_ends = 2

    def cut(self) -> None:
        """Reset both ends."""
        self.broken.set()
        for sock in (self.client, self.server):
            _reset(sock)

    def abandon(self, kept: socket.socket) -> None:
        """Reset one end; the other one stays open, and nobody reads it or writes to it any more."""
        self._kept = kept
        self.broken.set()
        _reset(self.server if kept is self.client else self.client)
        # Wakes its pump. Towards the peer, SHUT_RD says nothing.
        with suppress(OSError):
            kept.shutdown(socket.SHUT_RD)

    def end(self, sink: socket.socket) -> bool:
        """One direction came to its end; says whether both have.

        The last one to end closes what is not kept.
        """
        if not self.broken.is_set():  # a reset must not come after a goodbye
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._open_ends -= 1
            last = not self._open_ends
        if last:
            for sock in (self.client, self.server):
                if sock is not self._kept:
                    sock.close()
        return last


class Proxy:
    """Listens on a free local port and forwards to a server.

    Args:
        port: of the server on this machine; may be changed by assigning `target`.

    Attributes:
        port: where to connect.
        target: port of the server for connections from now on; None refuses them.
        bytes_per_second: how fast each direction of each connection may go; None for no limit.
        bytes_up: forwarded from clients to the server.
        bytes_down: forwarded from the server to clients.
        connections: accepted so far.
    """

    def __init__(self, port: int | None) -> None:
        self.target = port
        self.bytes_per_second: float | None = None
        self.bytes_up = 0
        self.bytes_down = 0
        self.connections = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._half_open: list[socket.socket] = []
        self._pumps: set[threading.Thread] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Break every connection with a reset to both sides, as a lost link looks in the end."""
        links = self._take_links()
        self._flowing.set()
        for link in links:
            link.cut()

    def abandon(self, kept: Literal["client", "server"]) -> None:
        """Leave every connection half open: one side gets a reset, the other one hears nothing of it.

        Args:
            kept: the side that goes on believing. "server": the client may connect again while the server still
                holds its former connection. "client": only its own pings can tell it.
        """
        for link in self._take_links():
            sock = link.client if kept == "client" else link.server
            with self._lock:
                self._half_open.append(sock)
            link.abandon(sock)

    def bury(self) -> None:
        """Reset the sides that `abandon` kept."""
        with self._lock:
            half_open, self._half_open = self._half_open, []
        for sock in half_open:
            _reset(sock)
            sock.close()

    def freeze(self) -> None:
        """Forward nothing more, while connections seem to live."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward again."""
        self._flowing.set()

    def close(self) -> None:
        """Break all connections and stop listening."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.bytes_per_second = None
        self.cut()
        with self._lock:
            pumps = list(self._pumps)
        for pump in pumps:
            pump.join()
        self.bury()

    def _take_links(self) -> set[_Link]:
        with self._lock:
            links, self._links = self._links, set()
        return links

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            target = self.target
            try:
                if target is None:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", target))
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            pumps = [
                threading.Thread(target=self._pump, args=(link, up), name="proxy pump", daemon=True)
                for up in (True, False)
            ]
            with self._lock:
                self._links.add(link)
                self._pumps.update(pumps)
            for pump in pumps:
                pump.start()

    def _pump(self, link: _Link, up: bool) -> None:
        source, sink = (link.client, link.server) if up else (link.server, link.client)
        with suppress(OSError):
            while not link.broken.is_set() and (data := source.recv(_BLOCK)):
                while data:
                    self._flowing.wait()
                    if link.broken.is_set():
                        break
                    data = self._forward(data, sink, up)
        if link.end(sink):
            with self._lock:
                self._links.discard(link)
        with self._lock:
            self._pumps.discard(threading.current_thread())

    def _forward(self, data: bytes, sink: socket.socket, up: bool) -> bytes:
        """Forward as much as may go now; returns the rest."""
        rate = self.bytes_per_second
        piece = data if rate is None else data[: max(1, int(rate * _THROTTLE_SECONDS))]
        sink.sendall(piece)
        if up:
            self.bytes_up += len(piece)
        else:
            self.bytes_down += len(piece)
        if rate is not None:
            time.sleep(_THROTTLE_SECONDS)
        return data[len(piece) :]


def _reset(sock: socket.socket) -> None:
    """Let a socket end with a reset, and wake the thread that reads from it; closing it sends the reset."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
