"""A TCP proxy that counts bytes and breaks connections.

What lives here: `Proxy`, for tests and benchmarks that need a network they can hurt. What must not: anything
that knows MQTT.
"""

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds


class Proxy:
    """Listens on a free local port and forwards to a server.

    Args:
        port: of the server on this machine; may be changed by assigning `target`.

    Attributes:
        port: where to connect.
        target: port of the server for connections from now on; None refuses them.
        bytes_up: forwarded from clients to the server.
        bytes_down: forwarded from the server to clients.
        connections: accepted so far.
    """

    def __init__(self, port: int | None) -> None:
        self.target = port
        self.bytes_up = 0
        self.bytes_down = 0
        self.connections = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._pumps: list[threading.Thread] = []
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
        with self._lock:
            pairs, self._pairs = self._pairs, []
        self._flowing.set()
        for pair in pairs:
            for sock in pair:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                # Wakes the thread that reads from it; the reset goes out when that closes it.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)

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
        self.cut()
        for pump in self._pumps:
            pump.join()

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
            with self._lock:
                self._pairs.append((client, server))
            open_ends = [2]
            for arguments in ((client, server, True, open_ends), (server, client, False, open_ends)):
                pump = threading.Thread(target=self._pump, args=arguments, name="proxy pump", daemon=True)
                self._pumps.append(pump)
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool, open_ends: list[int]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
                if up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with self._lock:
            open_ends[0] -= 1
            last = not open_ends[0]
        if last:
            source.close()
            sink.close()
