"""A client that follows `docs/protocol.md`: the standard library and msgpack, nothing of fedmq.

It proves that the page leaves nothing out. A vector is a list of floats, rounded to float32 after each operation as the
page allows; a decoded payload is a map from position to value. The numbers in comments are the page's sections; the
codecs of section 6 are in `independent_codecs`.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
from independent_codecs import Shapes, Values, Vector, decode_codec, encode_codec, f32, need, parse

PLAN, MODEL, UPDATE, CHUNK, RECEIPT, CLIENT, AGGREGATOR = 1, 2, 3, 4, 5, 7, 8


# 3. The envelope


def seal(kind: int, body: dict[str, object]) -> bytes:
    """Schema, kind, CRC, body."""
    packed: bytes = msgpack.packb(body)
    head = bytes((1, kind))
    return head + struct.pack(">I", zlib.crc32(head + packed)) + packed


def unseal(kind: int, data: bytes) -> dict[str, Any]:
    """The body of an envelope that must be of this kind."""
    need(len(data) >= 6 and data[0] == 1 and data[1] == kind, "schema or kind")
    need(struct.unpack(">I", data[2:6])[0] == zlib.crc32(data[:2] + data[6:]), "CRC")
    body = msgpack.unpackb(data[6:])
    need(isinstance(body, dict), "not a map")
    found: dict[str, Any] = body
    return found


# 5. The parameter vector


@dataclass(frozen=True)
class Layout:
    """What a plan's rows come to: matrices and scalars that are trainable, scalars in all, the fingerprint."""

    shapes: Shapes
    trainable: int
    size: int
    fingerprint: bytes


def read_layout(rows: list[list[Any]]) -> Layout:
    """Order the rows, count, hash."""
    kinds = {
        kind: sorted(row for row in rows if row[3] == kind) for kind in ("trainable", "buffer", "private")
    }
    sizes = {kind: sum(math.prod(row[1]) for row in found) for kind, found in kinds.items()}
    packed = msgpack.packb(kinds["trainable"] + kinds["buffer"])
    sides = [row[1] for row in kinds["trainable"] if math.prod(row[1])]
    return Layout(
        shapes=[(s[0], math.prod(s[1:])) if len(s) > 1 else (1, math.prod(s)) for s in sides],
        trainable=sizes["trainable"],
        size=sizes["trainable"] + sizes["buffer"],
        fingerprint=hashlib.blake2b(packed, digest_size=8).digest(),
    )


# 6. Payloads


def decode(layout: Layout, codec: str, payload: bytes) -> Values:
    """A whole payload; buffers, too, by their position."""
    buffers = layout.size - layout.trainable
    cut = len(payload) - 4 * buffers
    need(cut >= 0, "no room for the buffers")
    values = decode_codec(parse(codec), payload[:cut], layout.shapes)
    tail = struct.unpack(f"<{buffers}f", payload[cut:])
    return values | {layout.trainable + index: value for index, value in enumerate(tail)}


def encode(layout: Layout, codec: str, vector: Vector) -> bytes:
    """A whole payload."""
    tail = vector[layout.trainable :]
    head = encode_codec(parse(codec), vector[: layout.trainable], layout.shapes)
    return head + struct.pack(f"<{len(tail)}f", *tail)


# 7. The model


def digest(vector: Vector) -> bytes:
    """Equal bits, equal digest."""
    return hashlib.blake2b(struct.pack(f"<{len(vector)}f", *vector), digest_size=16).digest()


def assemble(layout: Layout, head: dict[str, Any], objects: dict[str, bytes]) -> Vector:
    """The model of a head whose objects are at hand, by the hexadecimal form of their ids."""
    vector: Vector = []
    codec = None
    for frame in head["k"]:
        codec = frame.get("q") or codec
        need(codec is not None, "the first frame's pipeline")
        values = decode(layout, str(codec), objects[frame["i"].hex()])
        if not vector:
            vector = [values.get(index, 0.0) for index in range(layout.size)]
        else:
            add(vector, values)
    if head.get("d") is not None:
        place = head["d"]["o"]
        payload = place if isinstance(place, bytes) else objects[place["i"].hex()]
        add(vector, decode(layout, head["d"]["q"], payload))
    need(digest(vector) == head["h"], "digest")
    return vector


def add(vector: Vector, values: Values) -> None:
    """In place, one float32 addition for each value."""
    for index, value in values.items():
        vector[index] = f32(vector[index] + value)


def _references(head: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that a head names."""
    delta = (head.get("d") or {}).get("o")
    return [*head["k"], *([delta] if isinstance(delta, dict) else [])]


# 8. and 14. The client


@dataclass(kw_only=True)
class Client:
    """A client that trains when it is told to. Its outbox lives as long as the object.

    Attributes:
        federation: which one.
        name: the client's.
        epoch: of the outbox, drawn at random by whoever makes the client.
        boot: likewise.
        publish: sends topic, payload, and whether it is retained.
        subscribe: asks for a topic.
        unsubscribe: asks for it no more.
    """

    federation: str
    name: str
    epoch: int
    boot: int
    publish: Callable[[str, bytes, bool], object]
    subscribe: Callable[[str], None]
    unsubscribe: Callable[[str], None]
    shard: str = "0"
    online: bool = False
    plan: dict[str, Any] | None = None
    layout: Layout | None = None
    head: dict[str, Any] | None = None
    base: Vector | None = None
    refused: dict[int, str] = field(default_factory=dict)
    outbox: dict[int, bytes] = field(default_factory=dict)
    residual: Vector = field(default_factory=list)
    next_seq: int = 1
    _objects: dict[str, bytes] = field(default_factory=dict)
    _pieces: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def topic(self, *levels: object) -> str:
        """A topic of the federation."""
        return "/".join(("fedmq/v1", self.federation, *map(str, levels)))

    def presence(self, state: str) -> bytes:
        """What the client says of itself; `offline` is also the will, on `client/<name>`, retained."""
        return seal(CLIENT, {"t": state, "b": self.boot, "e": self.epoch, "w": "independent 1"})

    def connected(self) -> None:
        """To be called when the broker has accepted the connection."""
        for topic in (
            self.topic("plan"),
            self.topic("receipt", self.name),
            self.topic("aggregator", self.shard),
        ):
            self.subscribe(topic)
        self.publish(self.topic("client", self.name), self.presence("online"), True)

    def pull(self) -> None:
        """Ask for the newest model; `base` is it, once it is complete."""
        self.base = None
        self.subscribe(self.topic("model"))

    def receive(self, topic: str, payload: bytes) -> None:
        """Take a message."""
        if not payload:
            return
        if topic == self.topic("plan"):
            self.plan = unseal(PLAN, payload)
            self.layout = read_layout(self.plan["l"])
            self.residual = self.residual or [0.0] * self.layout.trainable
        elif topic == self.topic("receipt", self.name):
            self._take_receipt(unseal(RECEIPT, payload))
        elif topic == self.topic("aggregator", self.shard):
            self.online = unseal(AGGREGATOR, payload)["t"] == "online"
        elif topic == self.topic("model"):
            self._take_head(unseal(MODEL, payload))
        else:
            _, _, _, _, object_id, index = topic.split("/")
            self._pieces.setdefault(object_id, {})[int(index)] = payload
            self.unsubscribe(topic)
            self._finish()

    def _take_head(self, head: dict[str, Any]) -> None:
        if self.layout is None or head["l"] != self.layout.fingerprint:
            return
        seen = self.head
        if seen is not None and head["e"] == seen["e"] and head["v"] < seen["v"]:
            return
        self.head = head
        known = {ref["i"].hex() for ref in _references(head)}
        self._objects = {key: content for key, content in self._objects.items() if key in known}
        for ref in self._missing():
            for index in range(ref["o"]):
                self.subscribe(self.topic("object", ref["i"].hex()[:8], index))
        self._finish()

    def _missing(self) -> list[dict[str, Any]]:
        assert self.head is not None
        return [ref for ref in _references(self.head) if ref["i"].hex() not in self._objects]

    def _finish(self) -> None:
        if self.head is None or self.layout is None:
            return
        for ref in self._missing():
            name = ref["i"].hex()
            pieces = self._pieces.get(name[:8], {})
            if len(pieces) < ref["o"]:
                return
            content = b"".join(pieces[index] for index in range(ref["o"]))
            need(len(content) == ref["z"], "size of the object")
            need(hashlib.sha256(content).digest()[:16] == ref["i"], "id of the object")
            self._objects[name] = content
            del self._pieces[name[:8]]
        self.base = assemble(self.layout, self.head, self._objects)
        self.unsubscribe(self.topic("model"))

    def finish_training(self, local: Vector, *, examples: int, steps: int) -> int:
        """Make an update of a model that was trained from `base`, and keep it; returns its number."""
        assert self.plan is not None
        assert self.layout is not None
        assert self.head is not None
        assert self.base is not None
        trainable = self.layout.trainable
        wanted = [f32(mine - base) for mine, base in zip(local, self.base, strict=True)]
        for index, rest in enumerate(self.residual):
            wanted[index] = f32(wanted[index] + rest)
        payload = encode(self.layout, self.plan["q"], wanted)
        sent = decode(self.layout, self.plan["q"], payload)
        self.residual = [f32(wanted[index] - sent.get(index, 0.0)) for index in range(trainable)]
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        body: dict[str, object] = {
            "c": self.name,
            "e": self.epoch,
            "s": seq,
            "f": min(self.outbox, default=seq),
            "m": self.head["e"],
            "b": self.head["v"],
            "l": self.layout.fingerprint,
            "n": examples,
            "k": steps,
            "q": self.plan["q"],
            "p": payload,
        }
        self.outbox[seq] = seal(UPDATE, body)
        return seq

    def send(self, seq: int) -> None:
        """Publish an update, in chunks if it is too large; again and again until its receipt."""
        assert self.plan is not None
        message, largest = self.outbox[seq], self.plan["o"]
        topic = self.topic("update", self.shard, self.name)
        if len(message) <= largest:
            self.publish(topic, message, False)
            return
        room = largest - 256
        pieces = [message[start : start + room] for start in range(0, len(message), room)]
        name: dict[str, object] = {"c": self.name, "e": self.epoch, "s": seq}
        whole = {
            "o": len(pieces),
            "z": len(message),
            "h": hashlib.blake2b(message, digest_size=8).digest(),
        }
        for index, piece in enumerate(pieces):
            self.publish(topic, seal(CHUNK, name | whole | {"i": index, "d": piece}), False)

    def _take_receipt(self, receipt: dict[str, Any]) -> None:
        if receipt["e"] != self.epoch or self.layout is None:
            return
        refused = {seq: reason for seq, reason, _ in receipt.get("r") or ()}
        for seq in sorted(self.outbox):
            if seq > receipt["w"] and seq not in (receipt.get("b") or ()):
                continue
            update = unseal(UPDATE, self.outbox.pop(seq))
            if seq in refused:
                self.refused[seq] = refused[seq]
                for index, value in decode(self.layout, update["q"], update["p"]).items():
                    if index < self.layout.trainable:
                        self.residual[index] = f32(self.residual[index] + value)
