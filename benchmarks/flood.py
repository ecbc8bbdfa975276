"""A publisher that costs little: updates made beforehand, sent over a raw socket with a window.

    python -m benchmarks.flood HOST PORT FEDERATION EPOCH SEED COUNT

Plays many clients over one connection, each with its own topic and numbers. Not a measure of an agent: what is measured
is the other side.
"""

import socket
import sys
from collections.abc import Iterator

import numpy as np
from fedmq.broker.decoder import Decoder
from fedmq.broker.packets import Connack, Connect, Puback, Publish, Version, encode

from benchmarks.idle import LAYOUT
from fedmq import encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.topics import Topics
from fedmq.types import ClientId, ModelUpdate, ModelVersion, UpdateId

CODEC = "topk(0.01) | ternary | rice"
_CLIENTS = 50
_PAYLOADS = 32
_WINDOW = 20  # what mosquitto allows without being asked
_MAX_PACKET = 1 << 20


def updates(model_epoch: int, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Client and envelope of `count` updates of version 0; the clients take turns."""
    rng = np.random.default_rng(seed)
    pipeline = parse_pipeline(CODEC)
    payloads = [
        encoding.encode(LAYOUT, pipeline, (rng.standard_normal(LAYOUT.size) * 1e-3).astype(np.float32))
        for _ in range(_PAYLOADS)
    ]
    for number in range(count):
        turn, client = divmod(number, _CLIENTS)
        name = ClientId(f"flood-{seed}-{client}")
        update = ModelUpdate(
            id=UpdateId(client=name, epoch=seed + 1, seq=turn + 1),
            floor=max(turn - 50, 1),
            model_epoch=model_epoch,
            base_version=ModelVersion(0),
            fingerprint=LAYOUT.fingerprint,
            num_examples=1000,
            local_steps=32,
            codec=CODEC,
            payload=payloads[number % _PAYLOADS],
        )
        yield name, wire.pack_update(update)


def run(host: str, port: int, federation: str, model_epoch: int, seed: int, count: int) -> None:
    """Send `count` updates as fast as the broker takes them; 3.1.1, where a PUBACK is four bytes."""
    topics = Topics(federation)
    packets = [
        encode(
            Publish(topic=topics.update("0", client), payload=message, qos=1, packet_id=number % _WINDOW + 1),
            Version.V311,
        )
        for number, (client, message) in enumerate(updates(model_epoch, seed, count))
    ]
    decoder = Decoder(_MAX_PACKET, Version.V311)
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hello = Connect(version=Version.V311, client_id=f"{federation}-flood-{seed}", keep_alive=0)
        connection.sendall(encode(hello, Version.V311))
        sent = acknowledged = 0
        is_accepted = False
        while acknowledged < count:
            if is_accepted and sent - acknowledged <= _WINDOW // 2 and sent < count:
                batch = packets[sent : acknowledged + _WINDOW]
                connection.sendall(b"".join(batch))
                sent += len(batch)
            for packet in decoder.feed(connection.recv(1 << 16)):
                is_accepted = is_accepted or isinstance(packet, Connack)
                acknowledged += isinstance(packet, Puback)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3], *(int(text) for text in sys.argv[4:7]))
