"""The promises of every codec, as checks that a test calls.

For fedmq's own codecs and for those of other packages alike: build pipelines that use yours, and call each
check with vectors and bytes of your choosing, from a table or from hypothesis. A broken promise is an
`AssertionError` that says which. Nothing here needs a test framework.
"""

import copy
import json
import tracemalloc
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs import (
    Codec,
    FloatVector,
    Geometry,
    Pipeline,
    SeededSparsifier,
    SparseVector,
    codec_from_config,
    find_codec,
    parse_pipeline,
)
from fedmq.errors import WireError

ErrorBound: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From the values a quantiser was given, shape (k,), to the most each may be off by, shape (k,)."""

BYTES_PER_COORDINATE = 64
"""What a decode may allocate for each coordinate of the vector, whatever the payload says."""

_FIXED_ALLOWANCE = 64 * 1024  # interpreter objects, error messages, numpy's small buffers


def check_codec(codec: Codec) -> None:
    """A codec is a value: found by id, equal and hashed by config, rebuilt from config and from its repr."""
    assert find_codec(codec.id) is type(codec), f"{codec.id} is not found by its id"
    config = codec.get_config()
    through_json = codec_from_config(json.loads(json.dumps(config)))
    assert through_json == codec, f"{config} came back as {through_json!r}"
    assert hash(through_json) == hash(codec), f"{codec!r} equals its copy but has another hash"
    evaluated = eval(repr(codec), {type(codec).__name__: type(codec)})  # our own repr, never a peer's
    assert evaluated == codec, f"{codec!r} evaluates to {evaluated!r}"


def check_text(pipeline: Pipeline) -> None:
    """A pipeline's text is canonical: it parses to the same pipeline, which has the same text."""
    parsed = parse_pipeline(str(pipeline))
    assert parsed == pipeline, f"'{pipeline}' parses to {parsed!r}"
    assert str(parsed) == str(pipeline), f"'{pipeline}' parses to '{parsed}'"


def check_round_trip(
    pipeline: Pipeline, vector: FloatVector, error_bound: ErrorBound, geometry: Geometry | None = None
) -> SparseVector:
    """Decoding gives a sound vector within the stated error, in a payload within the stated size.

    Returns:
        The decoded vector, for checks of the caller's own.
    """
    geometry = geometry or Geometry.flat(vector.shape[0])
    original = vector.copy()
    payload = pipeline.encode(vector, geometry)
    assert vector.tobytes() == original.tobytes(), "encode changed its input"
    assert len(payload) <= pipeline.max_payload_bytes(geometry), (
        "the payload is larger than max_payload_bytes"
    )
    decoded = pipeline.decode(payload, geometry)
    _check_sound(pipeline, decoded, geometry)
    kept = (vector if decoded.indices is None else vector[decoded.indices]).astype(np.float64)
    error = np.abs(decoded.values - kept)
    bound = error_bound(kept)
    worst = int(np.argmax(error - bound)) if error.size else 0
    assert (error <= bound).all(), f"{kept[worst]} decodes to {decoded.values[worst]}, off by {error[worst]}"
    return decoded


def check_determinism(pipeline: Pipeline, vector: FloatVector, geometry: Geometry | None = None) -> None:
    """Equal input gives equal bytes, equal bytes give equal bits, and the result outlives the payload."""
    geometry = geometry or Geometry.flat(vector.shape[0])
    payload = pipeline.encode(vector, geometry)
    assert pipeline.encode(vector.copy(), geometry) == payload, "encoding twice gives different bytes"
    first = pipeline.decode(payload, geometry)
    buffer = bytearray(payload)
    second = copy.copy(pipeline).decode(memoryview(buffer), geometry)
    buffer[:] = bytes(len(buffer))
    _check_same(first, second)


def check_conservation(pipeline: Pipeline, vector: FloatVector, geometry: Geometry | None = None) -> None:
    """What was not sent stays in the residual, exactly as `fedmq.codecs.pipeline` states (law 8)."""
    geometry = geometry or Geometry.flat(vector.shape[0])
    decoded = pipeline.decode(pipeline.encode(vector, geometry), geometry)
    sent = decoded.to_dense()
    residual = vector - sent
    assert np.isfinite(residual).all(), "the residual is not finite"
    kept = np.ones(vector.shape, bool)
    if decoded.indices is not None:
        kept[:] = False
        kept[decoded.indices] = True
    assert residual[~kept].tobytes() == vector[~kept].tobytes(), "a coordinate that was not sent changed"
    # In float64, where the comparisons below cannot overflow.
    x, d = vector[kept].astype(np.float64), sent[kept].astype(np.float64)
    rounding = np.abs(residual[kept] - (x - d))
    assert (rounding <= np.abs(x - d) * 2.0**-24).all(), "the residual is more than one rounding off"
    near = (x * d > 0) & (np.abs(d) >= np.abs(x) / 2) & (np.abs(d) <= np.abs(x) * 2)
    assert (rounding[near] == 0).all(), "the residual is rounded where it can be exact"


def check_any_bytes(pipeline: Pipeline, payload: bytes, geometry: Geometry | int) -> SparseVector | None:
    """Any bytes decode to a sound vector or raise `WireError` (law 7).

    Returns:
        The vector, or None when the bytes were refused.
    """
    try:
        decoded = pipeline.decode(payload, geometry)
    except WireError:
        return None
    _check_sound(pipeline, decoded, Geometry.flat(geometry) if isinstance(geometry, int) else geometry)
    return decoded


def check_exact_length(pipeline: Pipeline, vector: FloatVector, geometry: Geometry | None = None) -> None:
    """A payload cut anywhere is refused, and so is one with a byte behind it."""
    geometry = geometry or Geometry.flat(vector.shape[0])
    payload = pipeline.encode(vector, geometry)
    damaged = [payload[:size] for size in range(len(payload))]
    damaged += [payload + bytes([extra]) for extra in (0, 1, 0x80, 0xFF)]
    for candidate in damaged:
        accepted = check_any_bytes(pipeline, candidate, geometry)
        assert accepted is None, f"accepted {len(candidate)} bytes of a payload of {len(payload)}"


def bit_flips(payload: bytes) -> Iterator[bytes]:
    """Yield every payload that differs in one bit."""
    for position in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[position // 8] ^= 0x80 >> position % 8
        yield bytes(flipped)


def check_bounded_memory(pipeline: Pipeline, payload: bytes, geometry: Geometry | int) -> None:
    """Decoding any bytes allocates at most `BYTES_PER_COORDINATE` per coordinate, and a small constant."""
    length = geometry if isinstance(geometry, int) else geometry.length
    allowed = BYTES_PER_COORDINATE * length + _FIXED_ALLOWANCE
    tracemalloc.start()
    try:
        check_any_bytes(pipeline, payload, geometry)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= allowed, f"{len(payload)} bytes for {length} coordinates allocated {peak}, above {allowed}"


def _check_sound(pipeline: Pipeline, decoded: SparseVector, geometry: Geometry) -> None:
    length = geometry.length
    assert decoded.length == length, f"decoded {decoded.length} coordinates instead of {length}"
    assert decoded.values.dtype == np.float32, f"values are {decoded.values.dtype}"
    assert decoded.is_finite(), "a decoded value is not finite"
    if pipeline.sparsifier is None or decoded.indices is None:
        assert pipeline.sparsifier is None, "a sparse pipeline decoded to a dense vector"
        assert decoded.indices is None, "a dense pipeline decoded to a sparse vector"
        assert decoded.values.shape == (length,), f"values have shape {decoded.values.shape}"
        return
    indices = decoded.indices
    assert indices.dtype == np.int32, f"indices are {indices.dtype}"
    assert decoded.values.shape == indices.shape, "there are more values than indices, or fewer"
    if isinstance(pipeline.sparsifier, SeededSparsifier):
        assert indices.shape[0] == pipeline.sparsifier.count(geometry), "not as many coordinates as count"
    else:
        assert indices.shape[0] <= pipeline.sparsifier.max_count(geometry), "more coordinates than max_count"
    assert (np.diff(indices) > 0).all(), "indices do not increase"
    assert not indices.size or (indices[0] >= 0 and indices[-1] < length), "an index is out of range"


def _check_same(first: SparseVector, second: SparseVector) -> None:
    assert first.values.tobytes() == second.values.tobytes(), "one payload decodes to different values"
    if first.indices is None or second.indices is None:
        assert first.indices is second.indices, "one payload decodes both dense and sparse"
    else:
        assert first.indices.tobytes() == second.indices.tobytes(), "one payload decodes to other positions"
