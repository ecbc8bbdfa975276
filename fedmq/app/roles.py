"""Start one role in this process: build it from its settings, stop it on a signal, say what went wrong."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.store import Store
from fedmq.broker import BrokerSettings, serve
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.evaluator import Evaluator
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings
from fedmq.transport.mqtt import MqttTransport

#: Set by a parent that holds the other end of our standard input: when it dies, so do we.
FOLLOW_PARENT: Final = "FEDMQ_FOLLOW_PARENT"


class Role(Protocol):
    """What the aggregator, the agent and the evaluator have in common."""

    def run(self) -> None:
        """Work until `stop`."""

    def stop(self) -> None:
        """May be called from any thread."""


def make_aggregator(settings: AggregatorSettings) -> Service:
    """An aggregator over MQTT.

    Raises:
        FedmqError: see `Store` and `Service`.
    """
    broker = settings.broker
    store = Store(settings.store.path)
    try:
        return Service(
            settings,
            store,
            lambda client_id, will, expiry: MqttTransport(
                broker.mqtt(
                    client_id=client_id,
                    will=will,
                    session_expiry=expiry,
                    receive_maximum=min(2 * settings.store.batch_size, 65_535),
                    max_queued=4096,
                )
            ),
        )
    except BaseException:
        store.close()
        raise


def make_agent(settings: AgentSettings) -> Agent:
    """An edge agent over MQTT.

    Raises:
        FedmqError: see `Outbox` and `Agent`.
    """
    outbox = Outbox(
        settings.outbox.folder / "outbox.db",
        max_updates=settings.outbox.max_updates,
        max_bytes=settings.outbox.max_bytes,
    )
    try:
        return Agent(
            settings,
            outbox,
            lambda client_id, will: MqttTransport(settings.broker.mqtt(client_id=client_id, will=will)),
        )
    except BaseException:
        outbox.close()
        raise


def make_evaluator(settings: EvaluatorSettings) -> Evaluator:
    """An evaluator over MQTT."""
    return Evaluator(settings, lambda client_id: MqttTransport(settings.broker.mqtt(client_id=client_id)))


def run_role(role: Role) -> None:
    """Run a role in the foreground until SIGTERM, SIGINT, or the parent's death."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: role.stop())
    _follow_parent(role.stop)
    role.run()


def run_broker(host: str, port: int, settings: BrokerSettings, log_path: Path | None) -> None:
    """Run the embedded broker in the foreground until SIGTERM, SIGINT, or the parent's death.

    Raises:
        BrokerError: the address is taken, or the log is damaged.
    """

    def ready(address: str, bound: int) -> None:
        # The ready line: whoever started us with port 0 reads the port from it.
        sys.stdout.write(f"ready on {address}:{bound}\n")
        sys.stdout.flush()

    _follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    asyncio.run(serve(host, port, settings=settings, log_path=log_path, on_ready=ready))


def set_up_logging(level: str) -> None:
    """Log to standard error: time, level, message."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"
    )


def _follow_parent(stop: Callable[[], None]) -> None:
    if FOLLOW_PARENT not in os.environ:
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
