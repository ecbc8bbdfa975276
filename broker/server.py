"""The asyncio shell: sockets around a `BrokerCore`.

Here live the connections and the turn: what arrives in one turn of the event loop is handled as it comes, then
the core commits once, then every connection that has something to send is written to once. Nothing here
decides what MQTT means.

Memory stays bounded per connection: a packet under way is at most `max_packet`; what waits in the socket's
buffer stops deliveries at `write_buffer` and stops reading at twice that, where only acknowledgements can have
filled it. Before a CONNECT has been accepted, much less is allowed.
"""

import asyncio
import contextlib
import logging
import socket
import time
from typing import Final

from .channel import Channel
from .core import BrokerCore
from .decoder import Decoder
from .errors import ProtocolError
from .wire import Payload

_log = logging.getLogger(__name__)
_CONNECT_BYTES: Final = (
    512 << 10
)  # the longest CONNECT that makes sense: a will, a name and a password of 64 KiB
_JOIN_BYTES: Final = 64 << 10  # smaller pieces are joined into one send, larger ones are not copied
_DRAIN_SECONDS: Final = 1.0
_LINGER_SECONDS: Final = 10.0  # for a client that does not read its own farewell
_STRANGERS: Final = 64  # connections beyond max_clients, so that a client can be told that there are too many


class Clock:
    """Seconds since 1970 that never go back while the process lives."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """The time now."""
        return self._offset + time.monotonic()


class _Connection(asyncio.Protocol):
    """One client's socket."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._core = server.core
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder(min(_CONNECT_BYTES, self._core.settings.max_packet))
        self._reading = True
        self.channel: Channel | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"a stream transport is needed, not {type(transport).__name__}")
        self._transport = transport
        if len(self._core.channels) >= self._core.settings.max_clients + _STRANGERS:
            transport.abort()
            return
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # Small packets must not wait for the acknowledgement of others: 40 ms per hop otherwise.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=self._core.settings.write_buffer)
        self.channel = self._core.open(self._server.clock())
        self._server.connections[self.channel] = self

    def data_received(self, data: bytes) -> None:
        channel, core = self.channel, self._core
        if channel is None or channel.closing:
            return
        now = self._server.clock()
        channel.last_seen = now
        core.counters.bytes_received += len(data)
        try:
            for packet in self._decoder.feed(data):
                core.receive(channel, packet, now)
                if channel.version is not None:
                    self._decoder.max_packet = core.settings.max_packet
        except ProtocolError as error:
            _log.info("connection ended: %s", error)
            core.failed(channel, error, now)
        self._server.schedule()

    def connection_lost(self, exc: Exception | None) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            self._server.forget(channel)

    def pause_writing(self) -> None:
        if self.channel is not None:
            self.channel.writable = False

    def resume_writing(self) -> None:
        if self.channel is None or self._transport is None:
            return
        now = self._server.clock()
        self.channel.writable = True
        self.channel.last_seen = now  # it reads; that we did not read from it must not count against it
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self._core.writable(self.channel, now)
        self._server.schedule()

    def flush(self) -> None:
        """Writes what the core has for this client."""
        channel, transport = self.channel, self._transport
        if channel is None or transport is None:
            return
        small: list[Payload] = []
        self._core.counters.bytes_sent += channel.out_bytes
        for piece in channel.take():
            if len(piece) < _JOIN_BYTES:
                small.append(piece)
                continue
            if small:
                transport.write(b"".join(small))
                small.clear()
            transport.write(piece)
        if small:
            transport.write(b"".join(small))
        if channel.closing:
            transport.close()
        elif self._reading and transport.get_write_buffer_size() > 2 * self._core.settings.write_buffer:
            self._reading = False
            transport.pause_reading()

    def abort(self) -> None:
        """Resets the connection; what is not sent yet is lost."""
        if self._transport is not None:
            self._transport.abort()


class Server:
    """A listening broker. Everything runs in one event loop.

    Args:
        core: the broker.
        clock: the time.
    """

    def __init__(self, core: BrokerCore, clock: Clock) -> None:
        self.core = core
        self.clock = clock
        self.connections: dict[Channel, _Connection] = {}
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Server | None = None
        self._emptied: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def listen(self, host: str, port: int) -> int:
        """Starts listening and returns the port, which the system picks for 0.

        Raises:
            OSError: the address is taken or not ours.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = await self._loop.create_server(lambda: _Connection(self), host, port)
        self._tick()
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    def forget(self, channel: Channel) -> None:
        """A connection is gone."""
        if self.connections.pop(channel, None) is not None:
            self.core.lost(channel, self.clock())
            self.schedule()
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def schedule(self) -> None:
        """Has the turn end after what has already arrived."""
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._scheduled = False
        if self._loop is None:
            return
        core = self.core
        now = self.clock()
        core.commit(now)
        # Flushing may make room for more deliveries, until a window or a socket is full.
        while dirty := core.take_dirty():
            for channel in dirty:
                connection = self.connections.get(channel)
                if connection is not None:
                    connection.flush()
                    core.writable(channel, now)
            core.commit(now)  # under which identifiers deliveries go out is recorded before they do
        self._arm()

    def _arm(self) -> None:
        """Sets the one timer to whatever the core has due next."""
        if self._loop is None or self._listener is None:
            return
        when = self._loop.time() + max(0.0, self.core.next_due() - self.clock())
        if self._timer is not None:
            if not self._timer.cancelled() and self._timer.when() <= when + 0.001:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.clock()
        self.core.tick(now)
        self._end_turn()
        for channel, connection in list(self.connections.items()):
            if channel.closing and now - channel.last_seen > _LINGER_SECONDS:
                connection.abort()

    async def close(self) -> None:
        """Stops in good order: clients are told, wills are published, buffers are given `_DRAIN_SECONDS` to drain."""
        self.core.shut_down(self.clock())
        self._end_turn()
        await self._stop_listening()
        if self.connections:
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), _DRAIN_SECONDS)
        self.abort_connections()

    async def kill(self) -> None:
        """Stops as a dead process would: no goodbye, no wills, nothing flushed."""
        self._loop = None  # no turn ends any more, so nothing that is pending is committed or sent
        self.abort_connections()
        await self._stop_listening()

    async def _stop_listening(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.close()
            await asyncio.sleep(0)

    def abort_connections(self) -> None:
        """Resets every connection that is left."""
        connections = list(self.connections.values())
        self.connections.clear()
        for connection in connections:
            connection.abort()
