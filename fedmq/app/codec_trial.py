"""Trying pipelines on a vector: how many bits, how far off, how long. For `fedmq codecs`."""

import time
from collections import deque
from dataclasses import dataclass, field
from inspect import getdoc
from pathlib import Path
from typing import Final

import numpy as np

from fedmq import encoding, wire
from fedmq.aggregator.recovery import restore
from fedmq.aggregator.store import Store
from fedmq.codecs import BUILT_IN, Codec, FloatVector, Geometry, parse_pipeline, pipeline_from_wire
from fedmq.errors import SettingError, StoreError, WireError
from fedmq.modelfile import load_model

_SAMPLE_SHAPES: Final = ((128, 784), (128,), (10, 128), (10,))
_REPEATS: Final = 3

#: A pipeline to show each built-in codec in.
EXAMPLES: Final = {
    "lowrank": "lowrank(2) | float16",
    "topk": "topk(0.01) | ternary | rice",
    "topk_each": "topk_each(0.01) | ternary | rice",
    "threshold": "threshold(0.02) | ternary | rice",
    "budget": "budget(1000) | ternary | rice",
    "randomk": "randomk(0.05) | float16",
    "float32": "float32",
    "float16": "float16",
    "int8": "int8",
    "ternary": "topk(0.01) | ternary | rice",
    "sign": "sign",
    "qsgd": "qsgd(4)",
    "eden": "eden(1)",
    "deadzone": "deadzone(0.9) | range",
    "rice": "topk(0.01) | ternary | rice",
    "rows": "topk(0.01) | ternary | rows",
    "bitmap": "topk(0.25) | int8 | bitmap",
    "u32": "topk(0.01) | float32 | u32",
    "range": "topk(0.01) | ternary | rows | range",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A vector to try pipelines on.

    Attributes:
        name: what it is, for people.
        vector: float32, shape (geometry.length,).
        geometry: of what it consists.
    """

    name: str
    vector: FloatVector = field(repr=False)
    geometry: Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a pipeline made of a vector.

    Attributes:
        pipeline: its text.
        size: of the payload in bytes.
        bits: of the payload for each coordinate of the vector.
        error: energy of the difference, as a share of the vector's own; 0 for a vector of zeros.
        encode_ms: milliseconds to encode, the fastest of some.
        decode_ms: likewise.
    """

    pipeline: str
    size: int
    bits: float
    error: float
    encode_ms: float
    decode_ms: float


def try_pipeline(text: str, sample: Sample) -> Trial:
    """Encode and decode.

    Raises:
        CodecError: the text is no pipeline, or the vector is not finite.
    """
    pipeline = parse_pipeline(text)
    encode_ms, decode_ms = np.inf, np.inf
    payload, decoded = b"", sample.vector
    for _ in range(_REPEATS):
        began = time.perf_counter()
        payload = pipeline.encode(sample.vector, sample.geometry)
        middle = time.perf_counter()
        decoded = pipeline.decode(payload, sample.geometry).to_dense()
        ended = time.perf_counter()
        encode_ms, decode_ms = min(encode_ms, 1e3 * (middle - began)), min(decode_ms, 1e3 * (ended - middle))
    energy = float(np.square(sample.vector, dtype=np.float64).sum())
    wrong = float(np.square(sample.vector.astype(np.float64) - decoded).sum())
    return Trial(
        pipeline=str(pipeline),
        size=len(payload),
        bits=8 * len(payload) / max(sample.vector.shape[0], 1),
        error=wrong / energy if energy else 0.0,
        encode_ms=encode_ms,
        decode_ms=decode_ms,
    )


def example(codec: type[Codec]) -> str | None:
    """A pipeline that shows a codec; None for one of another package, whose arguments we do not know."""
    return EXAMPLES.get(codec.id) if BUILT_IN.get(codec.id) is codec else None


def summary(codec: type[Codec]) -> str:
    """The first line of what a codec says of itself."""
    return (getdoc(codec) or "").split("\n", 1)[0].rstrip(".")


def synthetic() -> Sample:
    """An update as they are: most coordinates hardly moved, and what moved is clustered by hidden unit."""
    rng = np.random.default_rng(0)
    geometry = Geometry.of(_SAMPLE_SHAPES)
    parts = []
    for rows, columns in geometry.shapes:
        scale = rng.lognormal(0.0, 1.0, (rows, 1)) * rng.lognormal(0.0, 1.0, (1, columns))
        parts.append((rng.laplace(0.0, 1e-3, (rows, columns)) * scale).ravel())
    vector = np.concatenate(parts).astype(np.float32)
    return Sample(
        name="a made-up update of an MLP 784-128-10, clustered by hidden unit",
        vector=vector,
        geometry=geometry,
    )


def load_sample(path: Path) -> Sample:
    """Read a vector to try pipelines on.

    Args:
        path: a model or a difference of two as `.safetensors`, a float32 vector as `.npy`, or an aggregator's store,
            of which the newest update in the journal is taken.

    Raises:
        FedmqError: it is none of these, or cannot be read.
    """
    if path.suffix == ".safetensors":
        layout, vector = load_model(path)
        head = vector[: layout.trainable_size]
        return Sample(name=str(path), vector=head, geometry=layout.geometry)
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SettingError("--on", str(path), f"the file cannot be read ({error})") from None
        if array.dtype != np.float32:
            raise SettingError("--on", str(path), f"an array of float32 is wanted, not of {array.dtype}")
        return Sample(name=str(path), vector=array.ravel(), geometry=Geometry.of([array.shape]))
    return _newest_update(path)


def _newest_update(path: Path) -> Sample:
    store = Store(path, read_only=True)
    try:
        engine = restore(store)
        # behind the oldest snapshot the journal has no messages any more
        oldest = min((snapshot.position for snapshot in store.snapshots()), default=0)
        folded = (record for record in store.records(oldest) if record.refusal is None)
        newest = next(iter(deque(folded, maxlen=1)), None)
    finally:
        store.close()
    if engine is None or newest is None:
        raise StoreError(f"{path}: the journal holds no update to try pipelines on")
    try:
        update = wire.unpack_update(newest.message)
        decoded = encoding.decode(engine.layout, pipeline_from_wire(update.codec), update.payload)
    except WireError as error:
        raise StoreError(f"{path}: the newest update cannot be decoded ({error}); run fedmq verify") from None
    return Sample(
        name=f"update {update.id.seq} of {update.id.client}, as decoded from {update.codec}",
        vector=decoded.trainable.to_dense(),
        geometry=engine.layout.geometry,
    )
