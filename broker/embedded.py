"""A broker in this process: `EmbeddedBroker` in a thread of its own, `serve` in the foreground.

Here lives the life of a broker: opening its log, starting, stopping, being killed and coming back. The sockets
are in `server`, the decisions in `core`.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from .core import BrokerCore
from .counters import Counters
from .errors import LogDamagedError
from .faults import FaultPlan
from .log import AppendLog
from .records import replay
from .server import Clock, Server
from .settings import BrokerSettings
from .state import BrokerState


def _open(
    settings: BrokerSettings,
    log_path: Path | None,
    clock: Clock,
    faults: FaultPlan | None = None,
    kept: BrokerState | None = None,
) -> tuple[BrokerCore, AppendLog | None]:
    """A core with what its log restores, or without a log with what was kept in memory."""
    if log_path is None:
        return BrokerCore(settings, clock(), state=kept, faults=faults), None
    log = AppendLog(log_path, max_bytes=settings.max_log_bytes)
    try:
        try:
            state = replay(log.records(), clock())
        except ValueError as error:
            raise LogDamagedError(log_path, 0, str(error)) from error
    except LogDamagedError:
        log.close()
        raise
    return BrokerCore(settings, clock(), state=state, journal=log, faults=faults), log


class EmbeddedBroker:
    """An MQTT broker in a thread of this process, for tests, demos and single machines.

    It is stopped until `start`, or until it is entered as a context manager. All methods may be called from
    any thread but its own.

    Args:
        host: the address to listen on.
        port: the port, 0 to have the system pick one; it stays the same across restarts.
        settings: the bounds.
        log_path: the append log; None to keep everything in memory only.
        faults: what to do to publishes on purpose.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        settings: BrokerSettings | None = None,
        log_path: Path | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.settings = settings or BrokerSettings()
        self._log_path = log_path
        self._faults = faults
        self._clock = Clock()
        self._kept: BrokerState | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._server: Server | None = None
        self._killed = False
        self._life: Future[None] = Future()

    @property
    def counters(self) -> Counters:
        """A copy of what has been counted since the start; zeros while stopped."""
        server = self._server
        return Counters() if server is None else replace(server.core.counters)

    @property
    def running(self) -> bool:
        """Whether it is listening."""
        return self._thread is not None

    def start(self) -> Self:
        """Starts the broker and returns when it listens.

        Raises:
            OSError: the address is taken or not ours.
            LogDamagedError: the log holds bytes that were durable once and have changed.
            LogUnavailableError: the log cannot be opened.
            RuntimeError: it is running already.
        """
        if self._thread is not None:
            raise RuntimeError("the embedded broker is running already")
        ready = threading.Event()
        self._life, self._killed = Future(), False
        # A daemon: a broker that nobody stops must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(ready,), name="fedmq-broker", daemon=True)
        thread.start()
        ready.wait()
        if self._life.done():
            thread.join()
            self._life.result()
        self._thread = thread
        return self

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._live(ready))
        except Exception as error:  # noqa: BLE001 -- `start` or `stop` raises it in the caller's thread
            self._life.set_exception(error)
        else:
            self._life.set_result(None)
        finally:
            ready.set()

    async def _live(self, ready: threading.Event) -> None:
        kept, self._kept = self._kept, None
        core, log = _open(self.settings, self._log_path, self._clock, self._faults, kept)
        try:
            server = Server(core, self._clock)
            self.port = await server.listen(self.host, self.port)
            self._server, self._loop, self._ending = server, asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await self._ending.wait()
            if self._killed:
                await server.kill()
            else:
                await server.close()
        finally:
            if log is not None:
                log.close()

    def stop(self) -> None:
        """Stops in good order: clients are told, wills are published, the log is complete. Twice is once."""
        self._end(killed=False)

    def kill(self) -> None:
        """Stops as if the process had died: connections are reset, no wills, nothing that was not durable.

        A later `start` finds what the log holds, and without a log nothing.
        """
        self._end(killed=True)

    def restart(self, *, keep_state: bool = True) -> None:
        """Stops and starts on the same port.

        Args:
            keep_state: whether sessions, queues and retained messages are there afterwards: read back from the
                log where there is one, carried over in memory otherwise. Without it the log is emptied.
        """
        server = self._server
        self.stop()
        if keep_state:
            self._kept = server.core.state if server is not None and self._log_path is None else None
        elif self._log_path is not None:
            self._log_path.unlink(missing_ok=True)
        self.start()

    def disconnect(self, client_id: str) -> bool:
        """Cuts one client's connection as a bad network would; False when it is not connected."""
        loop, server = self._loop, self._server
        if loop is None or server is None:
            raise RuntimeError("the embedded broker is not running")

        async def cut() -> bool:
            found = server.core.disconnect(client_id, self._clock())
            server.schedule()
            return found

        return asyncio.run_coroutine_threadsafe(cut(), loop).result()

    def _end(self, *, killed: bool) -> None:
        thread, loop, ending = self._thread, self._loop, self._ending
        if thread is None or loop is None or ending is None:
            return
        self._killed = killed
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        self._thread = self._loop = self._ending = self._server = None
        self._life.result()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


async def serve(
    host: str = "127.0.0.1",
    port: int = 1883,
    *,
    settings: BrokerSettings | None = None,
    log_path: Path | None = None,
    on_ready: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """Runs a broker in the current event loop until SIGTERM, SIGINT or cancellation, then stops in good order.

    Args:
        host: the address to listen on.
        port: the port, 0 to have the system pick one.
        settings: the bounds.
        log_path: the append log; None to keep everything in memory only.
        on_ready: called with the address and the port as soon as clients can connect.

    Raises:
        OSError: the address is taken or not ours.
        LogDamagedError: the log holds bytes that were durable once and have changed.
        LogUnavailableError: the log cannot be opened.
    """
    clock = Clock()
    core, log = _open(settings or BrokerSettings(), log_path, clock)
    server = Server(core, clock)
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    try:
        bound = await server.listen(host, port)
        with contextlib.ExitStack() as stack:
            for number in signals:
                loop.add_signal_handler(number, ending.set)
                stack.callback(loop.remove_signal_handler, number)
            on_ready(host, bound)
            try:
                await ending.wait()
            finally:
                await server.close()
    finally:
        if log is not None:
            log.close()
