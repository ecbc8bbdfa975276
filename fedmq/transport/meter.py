"""Counts what one client's connections carry.

What lives here: `Meter`, which a transport over sockets tells of its connections and packets. What must not: encoding
and decoding.

The bytes are the kernel's count (`tcp_info`), read when somebody asks and once more when a connection closes, so they
cost a system call a question and nothing a packet. Where the kernel does not count, they are the sizes of the
packets that were handed over and taken: without pings, without TLS, and in full although a part of the last one may
never have left. How they divide into payloads, topics and the rest always comes from the packets.
"""

import socket
import threading
from dataclasses import replace

from fedmq.transport import tcp_info
from fedmq.transport.base import Traffic


class Meter:
    """The sum over all connections of one client.

    One thread tells it of them, any thread may ask.
    """

    def __init__(self) -> None:
        # Who asks must not find a connection twice, or not at all. Packets are counted without it: they may be late.
        self._lock = threading.Lock()
        # Its bytes are those of former connections, and of packets whose connection nobody measures.
        self._total = Traffic(measured=True)
        self._sock: socket.socket | None = None
        self._packets_sent = self._packets_received = 0  # bytes of packets on the connection of `_sock`
        self._by_packets = False  # without a `_sock`, whether packets still count: nobody has measured them

    @property
    def traffic(self) -> Traffic:
        """Everything so far. Any thread may ask."""
        with self._lock:
            traffic = replace(self._total)
            if self._sock is not None:
                self._add(traffic, tcp_info.carried(self._sock))
        return traffic

    def opened(self, sock: object) -> None:
        """A connection came up; `sock` need not be a socket, but then nobody measures it."""
        with self._lock:
            self._sock = sock if isinstance(sock, socket.socket) else None
            self._packets_sent = self._packets_received = 0
            self._by_packets = self._sock is None
            self._total.measured &= not self._by_packets

    def follow(self, handle: socket.socket) -> None:
        """The connection will be closed through another handle."""
        with self._lock:
            self._sock = handle if self._sock is not None else None

    def closed(self, sock: object, *, ended: bool = False) -> None:
        """The connection comes to its end; `sock` is still open.

        Args:
            sock: what `opened` or `follow` was told last; anything else changes nothing.
            ended: the peer's end of the stream was read.
        """
        with self._lock:
            if not isinstance(sock, socket.socket) or sock is not self._sock:
                return
            reading = tcp_info.carried(sock, ended=ended or tcp_info.was_ended_before_reset(sock))
            self._add(self._total, reading)
            self._by_packets = reading is None
            self._sock = None

    def failed(self, sock: socket.socket) -> None:
        """A connection ended before it came up: in the TLS handshake. It is still open."""
        self.opened(sock)
        self.closed(sock)

    def sent(self, size: int, *, payload: int = 0, topic: int = 0) -> None:
        """A packet was handed over.

        Args:
            size: its bytes.
            payload: how many of them are a publish's payload.
            topic: and its topic.
        """
        self._total.packets_sent += 1
        self._total.payload_sent += payload
        self._total.topic_sent += topic
        if self._sock is not None:
            self._packets_sent += size
        elif self._by_packets:
            self._total.bytes_sent += size

    def received(self, size: int, *, payload: int = 0, topic: int = 0) -> None:
        """A packet was taken; see `sent`."""
        self._total.packets_received += 1
        self._total.payload_received += payload
        self._total.topic_received += topic
        if self._sock is not None:
            self._packets_received += size
        elif self._by_packets:
            self._total.bytes_received += size

    def _add(self, traffic: Traffic, reading: tcp_info.Carried | None) -> None:
        """Add the connection's bytes."""
        if reading is None:
            traffic.measured = False
            reading = tcp_info.Carried(sent=self._packets_sent, received=self._packets_received)
        traffic.bytes_sent += reading.sent
        traffic.bytes_received += reading.received
