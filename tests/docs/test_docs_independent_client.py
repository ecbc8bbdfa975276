"""The independent client in a real federation: what follows `docs/protocol.md` and nothing else takes part."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import independent_client as independent
import independent_codecs as codecs
import independent_streams as streams
import numpy as np
import pytest
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings

from fedmq import encoding, wire
from fedmq.codecs import Geometry, parse_pipeline
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.modelfile import save_model
from fedmq.transport.base import Connected, Delivery, Transport, Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import Rejection

LAYOUT = ParamLayout(
    (
        Segment(name="weight", shape=(40, 25)),
        Segment(name="bias", shape=(10,)),
        Segment(name="mean", shape=(6,), kind=SegmentKind.BUFFER),
    )
)
RATE = 1.0


@pytest.mark.parametrize("module", [independent, codecs, streams])
def test_the_independent_client_imports_nothing_of_fedmq(module: ModuleType) -> None:
    """The standard library and msgpack, or it proves nothing."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {*sys.stdlib_module_names, "msgpack", "independent_codecs", "independent_streams"}

    assert set() == {name.partition(".")[0] for name in imported} - allowed


PIPELINES = (
    "float32",
    "float16",
    "int8(7)",
    "sign(6)",
    "qsgd(2)",
    "qsgd(4, 9)",
    "qsgd(8, 9)",
    "eden(1)",
    "eden(2, 1)",
    "eden(3)",
    "eden(4)",
    "lowrank(1) | float32",
    "lowrank(3) | int8(16)",
    *(
        f"topk({share}) | {values} | {positions}"
        for share in (0.01, 0.3, 1.0)
        for values in ("float32", "float16", "int8(16)", "ternary")
        for positions in ("rice", "bitmap", "u32")
    ),
    "topk(0.3) | ternary(8) | rice",
    "topk(0.001, 40) | ternary(8) | rice",
    "topk_each(0.2) | float32 | rice",
    "threshold(0.001) | int8(16) | rice",
    "threshold(1e-09, 0.3) | float16 | bitmap",
    "budget(60) | float32 | rice",
    "budget(40, 8.5) | int8(16) | rice",
    *(f"randomk(0.15) | {values}" for values in ("float32", "int8(16)", "qsgd(4)", "eden(2)")),
    *("deadzone(0.9)", "topk(0.3) | deadzone(0.99, 0.5) | bitmap"),
    *(f"topk({share}) | int8(16) | rows" for share in (0.01, 0.1, 0.5, 0.9, 1.0)),
    *(
        f"{values} | range"
        for values in ("float32", "float16", "int8(16)", "sign(6)", "qsgd(4, 9)", "eden(3)")
    ),
    *(f"deadzone({energy}) | range" for energy in (0.5, 0.95, 0.9999)),
    *(f"topk(0.3) | {values} | rows | range" for values in ("float16", "int8(16)", "ternary", "eden(1)")),
    *("randomk(0.15) | qsgd(8, 9) | range", "lowrank(1) | int8(16) | range"),
)
# Those whose bytes depend on float64 sums, whose last bits are the summer's; and what only decodes.
SUMMING = ("ternary", "sign", "eden", "lowrank", "deadzone", "rows", "range")
GEOMETRIES = [
    *(Geometry.flat(length) for length in (1, 2, 7, 8, 9, 100, 1000)),
    Geometry.of([(8, 12), (8,), (3, 5, 2), ()]),
]


@pytest.mark.parametrize("text", PIPELINES)
def test_the_independent_codecs_make_and_read_the_same_bytes(text: str) -> None:
    """Bit for bit, over lengths and magnitudes that reach every corner of the page's rules."""
    pipeline, own = parse_pipeline(text), codecs.parse(text)
    for seed, geometry in enumerate(GEOMETRIES):
        rng, length, shapes = np.random.default_rng(seed), geometry.length, list(geometry.shapes)
        vector = (rng.standard_normal(length) * 10.0 ** rng.integers(-12, 4, length)).astype(np.float32)
        vector[rng.random(length) < 0.2] = 0
        payload = pipeline.encode(vector, geometry)

        if not any(name in text for name in SUMMING):
            assert payload == codecs.encode_codec(own, vector.tolist(), shapes)
        decoded = pipeline.decode(payload, geometry).to_dense()
        values = codecs.decode_codec(own, payload, shapes)
        again = np.array([values.get(index, 0.0) for index in range(length)], np.float32)
        assert decoded.tobytes() == again.tobytes()
        if pipeline.transform is None:
            pipeline.decode(codecs.encode_codec(own, vector.tolist(), shapes), geometry)


@pytest.mark.parametrize(
    ("text", "columns", "bytes_of_form"),
    [
        ("topk(0.06) | float32 | rows", 1000, b"\xff"),  # a tree, behind the count
        (
            "topk(0.06) | ternary | rice | range",
            30,
            b"\x0f",
        ),  # learnt signs, behind count, positions and magnitude
        ("deadzone(0.999) | range", 400, b"\x01"),  # offsets of rows and columns, behind the step
        ("float16 | range", 1100, b"\x77"),  # 128 lanes, since signs are not alike
    ],
)
def test_the_independent_streams_read_what_only_structure_makes(
    text: str, columns: int, bytes_of_form: bytes
) -> None:
    """Rows that differ in size and, when they are short, in sign, and columns that differ in size."""
    rng = np.random.default_rng(4)
    geometry = Geometry(((30, columns), (1, 30), (columns, 2)))
    sizes = np.exp(2 * rng.standard_normal((30, 1)) + rng.standard_normal(columns))
    signs = rng.choice([-1, 1], (30, 1 if columns < 1000 else columns))
    weight = signs * np.abs(rng.standard_normal((30, columns))) * sizes
    vector = np.concatenate((weight.ravel(), rng.standard_normal(30 + 2 * columns))).astype(np.float32)
    payload = parse_pipeline(text).encode(vector, geometry)
    values = codecs.decode_codec(codecs.parse(text), payload, list(geometry.shapes))
    again = np.array([values.get(index, 0.0) for index in range(geometry.length)], np.float32)

    assert bytes_of_form in payload
    assert parse_pipeline(text).decode(payload, geometry).to_dense().tobytes() == again.tobytes()


class Federation:
    """An aggregator and the independent client at one broker in memory; each update makes a version."""

    def __init__(self, folder: Path, codec: str) -> None:
        self.now = 0.0
        self._broker = MemoryBroker(clock=lambda: self.now)
        vector = np.random.default_rng(1).standard_normal(LAYOUT.size).astype(np.float32)
        save_model(folder / "model.safetensors", LAYOUT, vector)
        settings = AggregatorSettings(
            model=folder / "model.safetensors",
            store=StoreSettings(path=folder / "aggregator.db", batch_delay=0.0),
            task=TaskSettings(trainer="independent", codec=codec),
            fold=FoldSettings(strategy="fedasync", staleness="constant", learning_rate=RATE),
            publish=PublishSettings(
                keyframe_codec="float16",
                frame_codec="topk(0.5) | int8(64) | rice",
                delta_codec="topk(0.3) | float16 | bitmap",
                frame_versions=2,
                chunk_bytes=1024,
                min_interval=0.0,
            ),
        )
        self.fetched: list[str] = []
        self._transports: list[Transport] = []
        self.service = Service(settings, Store(settings.store.path), self._connect, clock=lambda: self.now)
        # A stack that grows, although with one client that is new a keyframe would cost less.
        self.service._publisher._stacking.place = (  # type: ignore[method-assign]
            lambda _version, frames, _size, _most: len(frames)
        )
        self.client = independent.Client(
            federation="default",
            name="ada",
            epoch=7,
            boot=8,
            publish=lambda topic, payload, retain: self._wire.publish(topic, payload, retain=retain),
            subscribe=lambda topic: self._wire.subscribe(topic),
            unsubscribe=lambda topic: self._wire.unsubscribe(topic),
        )
        will = Will(topic=self.client.topic("client", "ada"), payload=self.client.presence("offline"))
        self._wire = MemoryTransport(
            self._broker, "default-client-ada", clean_start=True, session_expiry=0.0, will=will
        )
        for transport in (*self._transports, self._wire):
            transport.start()

    def _connect(self, client_id: str, will: Will, expiry: int) -> Transport:
        transport = MemoryTransport(self._broker, client_id, will=will, session_expiry=expiry)
        self._transports.append(transport)
        return transport

    def run_until(self, reached: Callable[[], bool]) -> None:
        """Let everybody take turns, a second at a time, until something is so."""
        for _ in range(100):
            if reached():
                return
            self.now += 1.0
            self.service.turn()
            while (event := self._wire.poll(0)) is not None:
                match event:
                    case Connected():
                        self.client.connected()
                    case Delivery():
                        self.fetched += [event.topic] * ("/object/" in event.topic)
                        self.client.receive(event.topic, event.payload)
                        event.ack()
                    case _:
                        pass
        raise AssertionError("it did not happen within 100 turns")

    def pull(self) -> np.ndarray:
        """What the client decodes of the newest model."""
        version = self.service.engine.state.version
        self.client.pull()
        self.run_until(
            lambda: (
                self.client.head is not None
                and self.client.head["v"] == version
                and self.client.base is not None
            )
        )
        return np.array(self.client.base, np.float32)

    def train(self, seed: int) -> int:
        """An update in the client's outbox."""
        assert self.client.base is not None
        steps = 0.01 * np.random.default_rng(seed).standard_normal(LAYOUT.size)
        local = np.array(self.client.base, np.float32) + steps.astype(np.float32)
        return self.client.finish_training(local.tolist(), examples=32, steps=4)


CODECS = (
    "topk(0.01) | ternary | rice",
    "topk(0.1) | int8(64) | bitmap",
    "topk(0.2) | float16 | u32",
    "float32",  # several chunks
)


@pytest.mark.parametrize("codec", CODECS)
def test_the_independent_client_trains_the_model(tmp_path: Path, codec: str) -> None:
    """Keyframe in chunks, update, receipt, cumulative delta, frames; the fold is the update's own bits."""
    federation = Federation(tmp_path, codec)
    engine, client = federation.service.engine, federation.client
    federation.run_until(lambda: client.online and client.plan is not None)
    base = federation.pull()
    np.testing.assert_allclose(engine.state.vector, base, rtol=1e-3, atol=1e-6)

    heads = []
    for version in (1, 2, 3, 4):
        before = engine.state.vector.copy()
        seq = federation.train(seed=version)
        message = client.outbox[seq]
        client.send(seq)
        federation.run_until(lambda: not client.outbox)

        assert version == engine.tally.folded == engine.state.version
        payload = wire.unpack_update(message).payload
        encoding.decode(LAYOUT, parse_pipeline(codec), payload).add_to(before)
        assert before.tobytes() == engine.state.vector.tobytes()

        decoded = federation.pull()
        assert client.head is not None
        heads.append((len(client.head["k"]), client.head.get("d") is not None))
        error = np.abs(engine.state.vector - decoded).max()
        assert error < np.abs(engine.state.vector - base).max()
    federation.service.stop()
    federation.service.run()

    assert [(1, True), (2, False), (2, True), (3, False)] == heads
    assert len(set(federation.fetched)) == len(federation.fetched)


def test_what_was_refused_returns_to_the_independent_client_s_residual(tmp_path: Path) -> None:
    """An update of another model epoch is settled, and nothing of it is lost."""
    federation = Federation(tmp_path, CODECS[0])
    client = federation.client
    federation.run_until(lambda: client.online and client.plan is not None)
    federation.pull()
    seq = federation.train(seed=1)
    sent = independent.unseal(independent.UPDATE, client.outbox[seq])
    lost = sum(map(abs, client.residual))
    client.outbox[seq] = independent.seal(independent.UPDATE, sent | {"m": sent["m"] ^ 1})
    client.send(seq)
    federation.run_until(lambda: not client.outbox)

    assert {seq: Rejection.WRONG_EPOCH} == client.refused
    assert sum(map(abs, client.residual)) > lost
    assert federation.service.engine.tally.folded == 0
    federation.service.stop()
    federation.service.run()
