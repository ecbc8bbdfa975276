"""A client that follows `docs/protocol.md`: the standard library and msgpack, nothing of fedmq.

It proves that the page leaves nothing out. A vector is a list of floats, rounded to float32 after each operation as the
page allows; a decoded payload is a map from position to value. The numbers in comments are the page's sections.

Longer than 350 lines, so that it is one file that can be carried away.
"""

import hashlib
import itertools
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

PLAN, MODEL, UPDATE, CHUNK, RECEIPT, CLIENT, AGGREGATOR = 1, 2, 3, 4, 5, 7, 8
SMALLEST_NORMAL: float = 2.0**-126
LARGEST_SCALE: float = struct.unpack(">f", bytes.fromhex("7c010203"))[0]
LARGEST_HALF = 65504.0

Vector = list[float]
Values = dict[int, float]


class InvalidError(Exception):
    """What came is not what the page allows."""


def need(condition: bool, what: str) -> None:
    """Refuse unless."""
    if not condition:
        raise InvalidError(what)


def f32(number: float) -> float:
    """Round to float32 (6, Arithmetic)."""
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


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
    """What a plan's rows come to: scalars that are trainable, scalars in all, and the fingerprint."""

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
    return Layout(
        trainable=sizes["trainable"],
        size=sizes["trainable"] + sizes["buffer"],
        fingerprint=hashlib.blake2b(packed, digest_size=8).digest(),
    )


# 6. Payloads and codecs


@dataclass(frozen=True)
class Pipeline:
    """A parsed text: names and arguments; sparsifier and positions are empty for a dense one."""

    quantiser: str
    block: int = 1024
    fraction: float = 1.0
    positions: str = ""


def parse(text: str) -> Pipeline:
    """Read a pipeline's text."""
    stages = []
    for piece in text.split("|"):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?:\(\s*([^()\s]*)\s*\))?", piece.strip())
        need(match is not None, f"codec {piece}")
        assert match is not None
        stages.append((match[1], match[2]))
    quantiser, block = stages[len(stages) // 2]
    need(quantiser in ("float32", "float16", "int8", "ternary"), quantiser)
    if len(stages) == 1:
        need(quantiser != "ternary", "ternary needs positions")
        return Pipeline(quantiser=quantiser, block=int(block or 1024))
    need(len(stages) == 3 and stages[0][0] == "topk", "shape of the pipeline")
    need(stages[2][0] in ("rice", "bitmap", "u32"), stages[2][0])
    return Pipeline(
        quantiser=quantiser,
        block=int(block or 1024),
        fraction=float(stages[0][1] or "nan"),
        positions=stages[2][0],
    )


def most(pipeline: Pipeline, length: int) -> int:
    """How many coordinates a payload holds at most."""
    return max(1, round(pipeline.fraction * length))


class Cursor:
    """Reads bytes and bits, and refuses to read what is not there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """So many bytes."""
        need(0 <= size <= len(self.data) - self.at, "cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def floats(self, count: int, code: str = "f") -> Vector:
        """So many little-endian floats, all finite."""
        found = list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        need(all(map(math.isfinite, found)), "not finite")
        return found

    def bits(self, count: int) -> str:
        """So many bits as a text of 0 and 1, and the padding behind them."""
        text = to_bits(self.take(-(-count // 8)))
        need("1" not in text[count:], "padding")
        return text[:count]

    def varint(self) -> int:
        """Unsigned LEB128."""
        number, shift = 0, 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                need(shift == 7 or byte > 0, "padded number")
                return number
            need(shift < 35, "number too long")


def to_bits(data: bytes) -> str:
    """Bytes as a text of 0 and 1, most significant first."""
    return "".join(f"{byte:08b}" for byte in data)


def to_bytes(bits: str) -> bytes:
    """A text of 0 and 1 as bytes, padded with zeros."""
    return bytes(int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8))


def decode_codec(pipeline: Pipeline, data: bytes, length: int) -> Values:
    """Decode the trainable part: position to value; the positions that are not there are zero."""
    cursor = Cursor(data)
    positions = list(range(length))
    if pipeline.positions:
        count = cursor.varint()
        need(count <= most(pipeline, length), "too many coordinates")
        positions = _decode_positions(pipeline.positions, cursor, count, length) if count else []
        need(all(a < b for a, b in itertools.pairwise(positions)), "order of positions")
        need(not positions or positions[-1] < length, "position beyond the end")
    values = _decode_values(pipeline, cursor, len(positions))
    need(cursor.at == len(data), "bytes are left over")
    return dict(zip(positions, values, strict=True))


def _decode_positions(coder: str, cursor: Cursor, count: int, length: int) -> list[int]:
    if coder == "u32":
        return list(struct.unpack(f"<{count}I", cursor.take(4 * count)))
    if coder == "bitmap":
        found = [index for index, bit in enumerate(cursor.bits(length)) if bit == "1"]
        need(len(found) == count, "set bits")
        return found
    (width,) = cursor.take(1)
    need(width < length.bit_length(), "rice parameter")
    text = to_bits(cursor.data[cursor.at :])
    low, end, gaps = text[: width * count], width * count, []
    for index in range(count):
        one = text.find("1", end)
        need(one >= 0, "quotients are cut off")
        remainder = low[index::count]
        gaps.append((one - end << width) + (int(remainder, 2) if remainder else 0))
        end = one + 1
    cursor.bits(end)
    positions, last = [], -1
    for gap in gaps:
        last += gap + 1
        positions.append(last)
    return positions


def _decode_values(pipeline: Pipeline, cursor: Cursor, count: int) -> Vector:
    match pipeline.quantiser:
        case "float32":
            return cursor.floats(count)
        case "float16":
            return cursor.floats(count, "e")
        case "int8":
            scales = cursor.floats(-(-count // pipeline.block))
            need(all(s == 0 or SMALLEST_NORMAL <= s <= LARGEST_SCALE for s in scales), "scale")
            codes = struct.unpack(f"<{count}b", cursor.take(count))
            need(-128 not in codes, "code -128")
            return [f32(code * scales[index // pipeline.block]) for index, code in enumerate(codes)]
        case _:
            if not count:
                return []
            (magnitude,) = cursor.floats(1)
            need(math.copysign(1.0, magnitude) > 0, "magnitude")
            return [-magnitude if bit == "1" else magnitude for bit in cursor.bits(count)]


def encode_codec(pipeline: Pipeline, vector: Vector) -> bytes:
    """Encode the trainable part as fedmq does."""
    if not pipeline.positions:
        return _encode_values(pipeline, vector)
    ranked = sorted(range(len(vector)), key=lambda index: (-abs(vector[index]), index))
    kept = sorted(index for index in ranked[: most(pipeline, len(vector))] if vector[index])
    count, number = b"", len(kept)
    while number > 0x7F:
        count, number = count + bytes([number & 0x7F | 0x80]), number >> 7
    count += bytes([number])
    if not kept:
        return count
    values = _encode_values(pipeline, [vector[index] for index in kept])
    return count + _encode_positions(pipeline.positions, kept, len(vector)) + values


def _encode_positions(coder: str, kept: list[int], length: int) -> bytes:
    if coder == "u32":
        return struct.pack(f"<{len(kept)}I", *kept)
    if coder == "bitmap":
        chosen = set(kept)
        return to_bytes("".join("1" if index in chosen else "0" for index in range(length)))
    gaps = [after - before - 1 for before, after in zip([-1, *kept], kept, strict=False)]
    cost = {b: sum(b + 1 + (gap >> b) for gap in gaps) for b in range(length.bit_length())}
    width = min(cost, key=lambda b: (cost[b], b))
    planes = [str(gap >> place & 1) for place in reversed(range(width)) for gap in gaps]
    quotients = ["0" * (gap >> width) + "1" for gap in gaps]
    return bytes([width]) + to_bytes("".join(planes + quotients))


def _encode_values(pipeline: Pipeline, values: Vector) -> bytes:
    count = len(values)
    match pipeline.quantiser:
        case "float32":
            return struct.pack(f"<{count}f", *values)
        case "float16":
            return struct.pack(f"<{count}e", *(max(-LARGEST_HALF, min(LARGEST_HALF, v)) for v in values))
        case "int8":
            scales, codes = [], []
            for start in range(0, count, pipeline.block):
                block = values[start : start + pipeline.block]
                scale = min(f32(max(map(abs, block)) / 127), LARGEST_SCALE)
                scale = 0.0 if scale < SMALLEST_NORMAL else scale
                scales.append(scale)
                codes += [round(f32(value / scale)) if scale else 0 for value in block]
            return struct.pack(f"<{len(scales)}f{count}b", *scales, *codes)
        case _:
            magnitude = math.fsum(map(abs, values)) / count
            return struct.pack("<f", magnitude) + to_bytes("".join("1" if v < 0 else "0" for v in values))


def decode(layout: Layout, codec: str, payload: bytes) -> Values:
    """A whole payload; buffers, too, by their position."""
    buffers = layout.size - layout.trainable
    cut = len(payload) - 4 * buffers
    need(cut >= 0, "no room for the buffers")
    values = decode_codec(parse(codec), payload[:cut], layout.trainable)
    tail = struct.unpack(f"<{buffers}f", payload[cut:])
    return values | {layout.trainable + index: value for index, value in enumerate(tail)}


def encode(layout: Layout, codec: str, vector: Vector) -> bytes:
    """A whole payload."""
    tail = vector[layout.trainable :]
    return encode_codec(parse(codec), vector[: layout.trainable]) + struct.pack(f"<{len(tail)}f", *tail)


# 7. The model


def digest(vector: Vector) -> bytes:
    """Equal bits, equal digest."""
    return hashlib.blake2b(struct.pack(f"<{len(vector)}f", *vector), digest_size=16).digest()


def assemble(layout: Layout, head: dict[str, Any], objects: dict[str, bytes]) -> Vector:
    """The model of a head whose objects are at hand."""
    keyframe = decode(layout, head["k"]["q"], objects[head["k"]["o"]["i"]])
    vector = [keyframe.get(index, 0.0) for index in range(layout.size)]
    if head.get("d") is not None:
        place = head["d"]["o"]
        payload = place if isinstance(place, bytes) else objects[place["i"]]
        for index, value in decode(layout, head["d"]["q"], payload).items():
            vector[index] = f32(vector[index] + value)
    need(digest(vector) == head["h"], "digest")
    return vector


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
        for ref in self._missing():
            for index in range(ref["o"]):
                self.subscribe(self.topic("object", ref["i"], index))
        self._finish()

    def _missing(self) -> list[dict[str, Any]]:
        assert self.head is not None
        places = [part["o"] for part in (self.head["k"], self.head.get("d")) if part is not None]
        return [place for place in places if isinstance(place, dict) and place["i"] not in self._objects]

    def _finish(self) -> None:
        if self.head is None or self.layout is None:
            return
        for ref in self._missing():
            pieces = self._pieces.get(ref["i"], {})
            if len(pieces) < ref["o"]:
                return
            content = b"".join(pieces[index] for index in range(ref["o"]))
            need(len(content) == ref["z"], "size of the object")
            need(hashlib.sha256(content).hexdigest()[:32] == ref["i"], "id of the object")
            self._objects[ref["i"]] = content
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
