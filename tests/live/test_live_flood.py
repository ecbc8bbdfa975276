"""Bounded under load: a real aggregator process beside mosquitto, measured from outside while others misbehave.

The hostile speak MQTT 3.1.1 over bare sockets: no window slows them down, and nothing is sent again.
"""

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from fedmq.aggregator.pace import LEAST_BURST
from fedmq.broker.packets import Connect, Publish, Version, encode

from fedmq import encoding, wire
from fedmq.chunks import PIECE_BYTES, checksum
from fedmq.codecs import parse_pipeline
from fedmq.plan import Plan
from fedmq.topics import Topics
from fedmq.types import Chunk, ClientId, ModelUpdate, ModelVersion, UpdateId

TOPICS: Final = Topics("default")
MIB: Final = 1 << 20
SPOOL: Final = 4 * MIB
RATE: Final = 10
#: The parameter of whoever is hostile.
MALLORY: Final = 7
NAME: Final = f"device-{MALLORY}"

pytestmark = pytest.mark.mosquitto


class Bare:
    """A client that only publishes, as fast as the broker reads."""

    def __init__(self, port: int, client_id: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.sendall(encode(Connect(version=Version.V311, client_id=client_id), Version.V311))
        self._take(4)  # CONNACK
        self._sent = 0

    def send(self, topic: str, payloads: list[bytes]) -> None:
        """Publish with QoS 1."""
        for payload in payloads:
            self._sent += 1
            packet = Publish(topic=topic, payload=payload, qos=1, packet_id=self._sent % 65535 + 1)
            self._socket.sendall(encode(packet, Version.V311))

    def wait(self) -> None:
        """Until the broker has acknowledged everything."""
        self._take(4 * self._sent)
        self._sent = 0

    def flood(self, topic: str, payloads: list[bytes]) -> None:
        """Publish, and read the acknowledgements meanwhile."""
        sender = threading.Thread(target=self.send, args=(topic, payloads))
        sender.start()
        self._take(4 * len(payloads))
        sender.join()
        self._sent = 0

    def close(self) -> None:
        self._socket.close()

    def _take(self, size: int) -> None:
        while size:
            data = self._socket.recv(min(size, 1 << 16))
            assert data, "the broker hung up"
            size -= len(data)


@dataclass(slots=True)
class Forger:
    """Makes messages in the name of a client that knows the plan."""

    plan: Plan
    client: str
    number: int
    epoch: int = 4711
    seq: int = field(default=0)

    def update(self) -> bytes:
        """A valid one, of a few bytes, that adds 1 to the client's parameter."""
        self.seq += 1
        delta = np.zeros(self.plan.layout.size, np.float32)
        delta[self.number] = 1
        return wire.pack_update(
            ModelUpdate(
                id=UpdateId(client=ClientId(self.client), epoch=self.epoch, seq=self.seq),
                floor=self.seq,
                model_epoch=self.plan.epoch,
                base_version=ModelVersion(0),
                fingerprint=self.plan.layout.fingerprint,
                num_examples=1,
                local_steps=1,
                codec=self.plan.codec,
                payload=encoding.encode(self.plan.layout, parse_pipeline(self.plan.codec), delta),
            )
        )

    def chunk(self, data: bytes, *, size: int, index: int = 0, seq: int = 0) -> bytes:
        """A part of an update that never becomes whole."""
        chunk = Chunk(
            id=UpdateId(client=ClientId(self.client), epoch=self.epoch + 1, seq=seq or index + 1),
            index=index,
            count=60_000,
            size=size,
            digest=checksum(data),
            data=data,
        )
        return wire.pack_chunk(chunk)


def peak(pid: int) -> int:
    """The most that a process has held in memory, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def forger(federation) -> Forger:
    """Mallory's, who has read the plan like everybody."""
    return Forger(wire.unpack_plan(federation.retained(TOPICS.plan)), NAME, MALLORY)


def _stats(federation) -> dict:
    return json.loads(federation.retained(TOPICS.stats("aggregator")))


@pytest.fixture
def mallory(new_mosquitto) -> Iterator:
    """A mosquitto with our settings, and the hostile client on it."""
    broker = new_mosquitto()
    client = Bare(broker.port, "mallory")
    yield broker, client
    client.close()


def test_a_hostile_client_costs_little_and_the_others_are_served(mallory, new_federation) -> None:
    """Garbage, chunks without end, 1 GB announced, 10,000 valid updates: memory, log and quota stay within bounds."""
    broker, client = mallory
    federation = new_federation(broker.port)
    process = federation.spawn(
        *("--spool-bytes", str(SPOOL), "--admission-max-rate", str(RATE), "--stats-interval", "0.1")
    )
    for number in range(3):
        federation.join(number)
    federation.train(1)
    federation.until_settled()
    forge = forger(federation)
    before = peak(process.pid)
    began = time.monotonic()
    attack = [
        *[forge.chunk(b"x", size=1_000_000_000, index=index, seq=100 + index) for index in range(100)],
        *[forge.update() for _ in range(10_000)],
        *[bytes([seed % 256]) * 200 for seed in range(3000)],
        *[b"\x01\x03" + bytes(250_000) for _ in range(100)],
        *[forge.chunk(bytes(20_000), size=60 * MIB, index=index, seq=index % 4 + 1) for index in range(1000)],
    ]
    oversize = [bytes(3 * MIB) for _ in range(30)]  # mosquitto takes them; the aggregator does not
    topic = TOPICS.update("0", NAME)
    flood = threading.Thread(target=client.flood, args=(topic, [*attack, *oversize]))
    flood.start()
    federation.train(4)
    federation.until_settled()
    flood.join()
    federation.train(1)
    federation.until_settled()  # what mallory sent is all in front of this
    federation.until(lambda: _stats(federation)["version"] == len(federation.journal()) - 100, "statistics")
    seconds = time.monotonic() - began
    rows = Counter((entry.client, entry.reason) for entry in federation.journal())
    growth = peak(process.pid) - before
    lines = federation.log.read_text().splitlines()

    assert [6, 6, 6] == [rows[f"device-{number}", ""] for number in range(3)]
    received = sum(map(len, attack))
    assert received < _stats(federation)["received_bytes"] < received + 100_000
    assert 100 == rows[NAME, "too-large"]
    assert LEAST_BURST <= rows[NAME, ""] + 100 <= LEAST_BURST + RATE * seconds
    # The window, two batches long and full of the largest packets, in two copies each (the transport's and the
    # batch's), and the spool.
    assert growth < 2 * 2 * 64 * 257 * 1024 + 3 * SPOOL
    about_mallory = [line for line in lines if NAME in line]
    assert 1 <= len(about_mallory) <= 2 * (1 + seconds / 10)
    assert len(lines) < 40
    federation.finished[MALLORY] = rows[NAME, ""]
    federation.audit()


def test_a_flood_from_200_connections_is_folded_at_the_aggregators_own_pace(
    new_mosquitto, new_federation
) -> None:
    """One transaction for each update: arrivals are faster by far. The broker holds what the window does not."""
    broker = new_mosquitto()
    federation = new_federation(broker.port)
    process = federation.spawn("--store-batch-size", "1")
    federation.join(0, allowed=1)
    federation.until_settled()
    plan = wire.unpack_plan(federation.retained(TOPICS.plan))
    before = peak(process.pid)
    crowd = [(f"crowd-{i}", Bare(broker.port, f"crowd-{i}")) for i in range(200)]
    process.send_signal(signal.SIGSTOP)  # so that it is certain to be behind
    for name, client in crowd:
        forge = Forger(plan, name, MALLORY)
        client.send(TOPICS.update("0", name), [forge.update() for _ in range(8)])
    for _, client in crowd:
        client.wait()
        client.close()
    behind = len(federation.journal())
    process.send_signal(signal.SIGCONT)
    federation.train(3)
    federation.until(lambda: len(federation.journal()) == 1 + 200 * 8 + 3, "all are folded")
    federation.until_settled()
    rows = Counter(entry.client for entry in federation.journal() if not entry.reason)

    assert 1 == behind
    assert {"device-0": 4} | {name: 8 for name, _ in crowd} == rows
    assert peak(process.pid) - before < 24 * MIB


def test_chunks_that_never_end_do_not_shut_out_those_that_do(mallory, new_federation) -> None:
    """The spool is full of them; who holds most gives way to a device whose updates need chunks."""
    broker, client = mallory
    federation = new_federation(broker.port, size=10_000)
    process = federation.spawn(
        *("--spool-bytes", str(MIB), "--publish-chunk-bytes", "4096", "--task-codec", "float32")
    )
    federation.join(0, allowed=1)
    federation.until_settled()
    forge = forger(federation)
    before = peak(process.pid)
    full = MIB // (3_500 + PIECE_BYTES)  # to the last piece that fits, and nothing more
    pieces = [forge.chunk(bytes(3_500), size=60 * MIB, index=i, seq=i % 4 + 1) for i in range(2 * full)]
    client.flood(TOPICS.update("0", NAME), pieces[:full])
    federation.train(3)
    federation.until_settled()
    client.flood(TOPICS.update("0", NAME), pieces)
    federation.train(3)
    federation.until_settled()

    assert ["device-0"] * 7 == [entry.client for entry in federation.journal()]
    assert peak(process.pid) - before < 24 * MIB
    federation.audit()
