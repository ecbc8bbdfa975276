"""What one update costs beside its codec payload: every byte of an agent's connection, by what it is.

One agent and an aggregator, for real, over a broker; a proxy on the agent's line keeps all bytes, which are then taken
apart. The trainer takes no time and reports a loss, as the built-in ones do. Each broker is asked with MQTT 5 and with
3.1.1. The goal: at most 180 bytes a cycle upwards, everything but the payload counted.
"""

import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.broker import EmbeddedBroker, Mosquitto, MosquittoMissingError
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings
from fedmq.edge_agent.trainer import Task, TrainResult

from benchmarks.harness import Options, Row, parse_options, print_table, write_result
from benchmarks.idle import LAYOUT, IdleTrainer
from fedmq import wire
from fedmq.connection import ConnectionSettings
from fedmq.modelfile import save_model
from fedmq.testing.proxy import Proxy
from fedmq.transport.mqtt import MqttTransport
from fedmq.types import ParamVector

CLIENT: Final = "agent-03"
_SECONDS: Final = 120.0
_PAYLOAD: Final = "update: codec payload"
_PACKETS: Final = {
    1: "CONNECT",
    2: "CONNACK",
    4: "PUBACK",
    8: "SUBSCRIBE",
    9: "SUBACK",
    10: "UNSUBSCRIBE",
    11: "UNSUBACK",
    12: "PINGREQ",
    13: "PINGRESP",
    14: "DISCONNECT",
}
_HEADINGS: Final = {"kind": "what", "up": "up B/update", "down": "down B/update"}


class LossyTrainer(IdleTrainer):
    """Reports a loss."""

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """No training."""
        result = super().train(base, task, should_stop)
        return replace(result, num_examples=1000, local_steps=32, metrics={"loss": 0.5})


class RecordingProxy(Proxy):
    """Keeps what it forwards."""

    def __init__(self, port: int) -> None:
        self.up, self.down = bytearray(), bytearray()
        super().__init__(port)

    def _forward(self, data: bytes, sink: socket.socket, up: bool) -> bytes:
        left = super()._forward(data, sink, up)
        (self.up if up else self.down).extend(data[: len(data) - len(left)])
        return left


def packets(stream: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The packets of a stream: first byte, what follows the length, size of the whole."""
    at = 0
    while at < len(stream):
        start, first = at, stream[at]
        length = shift = 0
        while True:
            at += 1
            length |= (stream[at] & 127) << shift
            shift += 7
            if stream[at] < 128:
                break
        at += 1 + length
        yield first, stream[at - length : at], at - start


def divide(stream: bytes, protocol: str) -> Counter[str]:
    """Bytes by what they are."""
    kinds: Counter[str] = Counter()
    for first, body, size in packets(stream):
        if first >> 4 != 3:
            kinds[_PACKETS[first >> 4]] += size
            continue
        topic = body[2 : 2 + int.from_bytes(body[:2], "big")]
        at = 2 + len(topic) + 2  # every publish has QoS 1
        if protocol == "5":
            at += 1 + body[at]  # properties, shorter than 128 bytes
        message = body[at:]
        # An alias stands for the one topic that is published to again and again.
        name = topic.split(b"/")[3].decode() if topic else "update"
        payload = len(wire.unpack_update(message).payload) if name == "update" else 0
        kinds[_PAYLOAD] += payload
        kinds[f"{name}: envelope"] += len(message) - payload
        kinds[f"{name}: topic"] += len(topic)
        kinds[f"{name}: PUBLISH header"] += size - len(message) - len(topic)
    return +kinds


def measure(port: int, protocol: str, updates: int, folder: Path) -> tuple[RecordingProxy, int]:
    """Let an agent make so many updates, each with its receipt.

    Returns:
        Everything that passed its line, and how many updates it made in the end.
    """
    save_model(folder / "initial.safetensors", LAYOUT, np.zeros(LAYOUT.size, np.float32))
    direct = ConnectionSettings(port=port, protocol=protocol)
    service = Service(
        AggregatorSettings(
            model=folder / "initial.safetensors", store=StoreSettings(path=folder / "aggregator.db")
        ),
        Store(folder / "aggregator.db"),
        lambda name, will, expiry: MqttTransport(
            direct.mqtt(client_id=name, will=will, session_expiry=expiry)
        ),
    )
    outbox = Outbox(folder / "agent" / "outbox.db")
    with RecordingProxy(port) as proxy:
        line = replace(direct, port=proxy.port)
        agent = Agent(
            AgentSettings(client=CLIENT, outbox=OutboxSettings(folder=folder / "agent")),
            outbox,
            lambda name, will: MqttTransport(line.mqtt(client_id=name, will=will)),
            lambda settings, **own: LossyTrainer(0),
        )
        threads = [threading.Thread(target=role.run) for role in (service, agent)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _SECONDS
        while outbox.next_seq - 1 - len(outbox) < updates and time.monotonic() < deadline:
            time.sleep(0.01)
        agent.stop()
        threads[1].join()
        service.stop()
        threads[0].join()
    made = outbox.next_seq - 1
    if made < updates:
        raise RuntimeError(f"only {made} updates in {_SECONDS:.0f} s")
    return proxy, made


def rows_of(system: str, protocol: str, proxy: RecordingProxy, made: int) -> list[Row]:
    """One row for each kind of bytes, then the sums."""
    up, down = divide(bytes(proxy.up), protocol), divide(bytes(proxy.down), protocol)
    if (up.total(), down.total()) != (proxy.bytes_up, proxy.bytes_down):
        raise RuntimeError("what was taken apart is not what passed")
    shown = {
        kind: (up[kind], down[kind]) for kind in sorted(up | down, key=lambda kind: -up[kind] - down[kind])
    }
    shown["everything"] = up.total(), down.total()
    shown["everything but the codec payload"] = up.total() - up[_PAYLOAD], down.total()
    return [
        {
            "system": system,
            "protocol": protocol,
            "updates": made,
            "kind": kind,
            "up": sent / made,
            "down": received / made,
        }
        for kind, (sent, received) in shown.items()
    ]


def run(options: Options) -> list[Row]:
    """Measure each broker with each protocol."""
    updates = 100 if options.quick else 400
    rows: list[Row] = []
    brokers: tuple[Callable[[], Mosquitto | EmbeddedBroker], ...] = (Mosquitto, EmbeddedBroker)
    for protocol in ("5", "3.1.1"):
        for make in brokers:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-overhead-")))
                try:
                    broker = stack.enter_context(make())
                except MosquittoMissingError:
                    continue
                proxy, made = measure(broker.port, protocol, updates, folder)
            system = type(broker).__name__
            found = rows_of(system, protocol, proxy, made)
            title = f"{system}, MQTT {protocol}, {made} updates (kinds from 1 byte on)"
            shown = [row for row in found if max(float(row["up"] or 0), float(row["down"] or 0)) >= 1]
            print_table(title, shown, _HEADINGS)
            rows += found
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse_options("overhead", (__doc__ or "").splitlines()[0])
    write_result("overhead", options, run(options), goal_up_bytes=180)


if __name__ == "__main__":
    main()
