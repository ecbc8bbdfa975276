"""The fuzzer's target, run on what is cheap to find: valid messages, each with some damage."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import BUILT_IN

_SPEC = importlib.util.spec_from_file_location("decoding", Path(__file__).parent / "decoding.py")
assert _SPEC is not None
assert _SPEC.loader is not None
decoding = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(decoding)


def valid(pipeline: int, geometry: int, seed: int) -> bytes:
    """A message that the target accepts."""
    shape = decoding.GEOMETRIES[geometry]
    vector = np.random.default_rng(seed).standard_normal(shape.length).astype(np.float32)
    return bytes((pipeline, geometry)) + decoding.PIPELINES[pipeline].encode(vector, shape)


def test_every_built_in_codec_is_fuzzed() -> None:
    """A codec added to the table must be added to the target."""
    fuzzed = {stage.id for pipeline in decoding.PIPELINES for stage in pipeline.stages}

    assert set(BUILT_IN) == fuzzed


@pytest.mark.parametrize("pipeline", range(len(decoding.PIPELINES)), ids=lambda i: str(decoding.PIPELINES[i]))
@pytest.mark.parametrize("geometry", range(len(decoding.GEOMETRIES)))
def test_the_target_accepts_what_an_encoder_makes(pipeline: int, geometry: int) -> None:
    """Or it would fuzz nothing but the first check."""
    assert decoding.decode(valid(pipeline, geometry, seed=1))


@settings(max_examples=300, deadline=None)
@given(
    pipeline=st.integers(0, len(decoding.PIPELINES) - 1),
    geometry=st.integers(0, len(decoding.GEOMETRIES) - 1),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_damage_is_found_or_harmless(pipeline: int, geometry: int, seed: int, data: st.DataObject) -> None:
    """Bytes changed, cut out and put in: a sound vector or a WireError."""
    message = bytearray(valid(pipeline, geometry, seed))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(2, len(message)))
        match data.draw(st.integers(0, 2)):
            case 0:
                message[at:at] = data.draw(st.binary(min_size=1, max_size=3))
            case 1:
                del message[at : at + data.draw(st.integers(1, 3))]
            case 2 if at < len(message):
                message[at] = data.draw(st.integers(0, 255))
    decoding.decode(bytes(message))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_safe(data: bytes) -> None:
    """Whatever they choose."""
    decoding.decode(data)
