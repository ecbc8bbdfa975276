"""Every built-in codec keeps the promises of `fedmq.testing.codec_contract`, alone and in pipelines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.codecs import (
    BUILT_IN,
    Codec,
    EntropyCoder,
    Pipeline,
    PositionCoder,
    Quantizer,
    SeededSparsifier,
    Sparsifier,
    Transform,
    parse_pipeline,
)
from fedmq.codecs.positions import U32, Bitmap, Rice
from fedmq.codecs.quantize import Float16, Float32, Int8, Ternary
from fedmq.codecs.sparse import TopK
from fedmq.testing import codec_contract as contract

CODECS: list[Codec] = [
    TopK(fraction=0.01),
    TopK(fraction=1e-05),
    TopK(fraction=1.0),
    Float32(),
    Float16(),
    Int8(),
    Int8(block=7),
    Ternary(),
    Rice(),
    Bitmap(),
    U32(),
]

PIPELINES = [
    "float32",
    "float16",
    "int8",
    "int8(7)",
    *(
        f"topk(0.6) | {quantizer} | rice"
        for quantizer in ("float32", "float16", "int8", "int8(7)", "ternary")
    ),
    *(
        f"topk({fraction}) | ternary | {positions}"
        for fraction in (0.05, 1.0)
        for positions in ("rice", "bitmap", "u32")
    ),
    "topk(0.05) | float32 | bitmap",
    "topk(0.05) | int8(7) | u32",
]

every_pipeline = pytest.mark.parametrize("pipeline", [parse_pipeline(text) for text in PIPELINES], ids=str)


def _int8_bound(block: int) -> contract.ErrorBound:
    def bound(values: np.ndarray) -> np.ndarray:
        parts = [values[start : start + block] for start in range(0, len(values), block)]
        largest = [np.full(len(part), np.abs(part).max()) for part in parts]
        # Half a step; below the smallest scale that is sent, the value itself.
        steps = np.maximum(np.concatenate([np.zeros(0), *largest]) / 127, 2 * 127 * 2.0**-126)
        return 0.5 * steps * (1 + 2.0**-15)

    return bound


ERROR_BOUNDS: dict[Quantizer, contract.ErrorBound] = {
    Float32(): np.zeros_like,
    Float16(): lambda x: np.maximum(np.abs(x) * 2.0**-11 + 2.0**-25, np.abs(x) - 65504),
    Int8(): _int8_bound(1024),
    Int8(block=7): _int8_bound(7),
    Ternary(): lambda x: np.abs(np.abs(x) - np.float32(np.abs(x).mean())) if x.size else x,
}

any_finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
typical = st.floats(-1, 1, width=32)
vectors = hnp.arrays(np.float32, st.integers(0, 80), elements=any_finite | typical | st.just(0.0))


def _sample(length: int = 61) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(length).astype(np.float32)


def test_every_built_in_codec_is_under_contract() -> None:
    """A codec added to the table must be added here, alone and in a pipeline."""
    alone = {codec.id for codec in CODECS}
    piped = {stage.id for text in PIPELINES for stage in parse_pipeline(text).stages}

    assert set(BUILT_IN) == alone == piped
    assert {codec.id for codec in ERROR_BOUNDS} == {
        name for name, codec in BUILT_IN.items() if issubclass(codec, Quantizer)
    }


def test_every_shipped_codec_class_is_in_the_table_under_its_id() -> None:
    """No codec is written and then forgotten."""
    kinds = (Transform, Sparsifier, SeededSparsifier, Quantizer, PositionCoder, EntropyCoder)
    shipped = {
        codec.id: codec
        for kind in kinds
        for codec in kind.__subclasses__()
        if codec.__module__.startswith("fedmq.codecs.")
    }

    assert dict(BUILT_IN) == shipped


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_codec_is_a_value(codec: Codec) -> None:
    """Config, repr, equality and hash."""
    contract.check_codec(codec)


@every_pipeline
def test_a_pipeline_is_its_line_of_text(pipeline: Pipeline) -> None:
    """Canonical text round-trips."""
    contract.check_text(pipeline)


@every_pipeline
@settings(max_examples=40, deadline=None)
@given(vector=vectors)
def test_a_vector_comes_back_within_the_stated_error(pipeline: Pipeline, vector: np.ndarray) -> None:
    """Any finite vector: zeros, subnormals, the largest floats, and none at all."""
    contract.check_round_trip(pipeline, vector, ERROR_BOUNDS[pipeline.quantizer])


@every_pipeline
@settings(max_examples=40, deadline=None)
@given(vector=vectors)
def test_residual_mass_is_conserved(pipeline: Pipeline, vector: np.ndarray) -> None:
    """Law 8: what was not sent is in the residual."""
    contract.check_conservation(pipeline, vector)


@every_pipeline
@settings(max_examples=20, deadline=None)
@given(vector=vectors)
def test_equal_input_gives_equal_bytes_and_bits(pipeline: Pipeline, vector: np.ndarray) -> None:
    """Law 6: both ends decode the same bits."""
    contract.check_determinism(pipeline, vector)


@every_pipeline
@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=120), length=st.integers(0, 80))
def test_any_bytes_decode_or_are_refused(pipeline: Pipeline, payload: bytes, length: int) -> None:
    """Law 7, from nothing."""
    contract.check_any_bytes(pipeline, payload, length)


@every_pipeline
@settings(max_examples=60, deadline=None)
@given(data=st.data(), vector=vectors)
def test_damaged_payloads_decode_or_are_refused(
    pipeline: Pipeline, data: st.DataObject, vector: np.ndarray
) -> None:
    """Law 7, from valid payloads with some bytes replaced, which reach further into the decoder."""
    payload = bytearray(pipeline.encode(vector))
    if payload:
        positions = st.integers(0, len(payload) - 1)
        for position, byte in data.draw(st.dictionaries(positions, st.integers(0, 255), max_size=4)).items():
            payload[position] = byte
    length = data.draw(st.just(len(vector)) | st.integers(0, 100))

    contract.check_any_bytes(pipeline, bytes(payload), length)


@every_pipeline
def test_every_single_bit_flip_decodes_or_is_refused(pipeline: Pipeline) -> None:
    """Each bit of a valid payload in turn."""
    vector = _sample()
    for payload in contract.bit_flips(pipeline.encode(vector)):
        contract.check_any_bytes(pipeline, payload, len(vector))


@every_pipeline
def test_a_payload_of_any_other_length_is_refused(pipeline: Pipeline) -> None:
    """Cut at every byte, and with a byte behind it."""
    contract.check_exact_length(pipeline, _sample())


@every_pipeline
def test_decoding_allocates_within_its_bound(pipeline: Pipeline) -> None:
    """Honest payloads, and hostile ones that announce much or are all ones."""
    length = 20_000
    vector = _sample(length)
    honest = pipeline.encode(vector)
    room = pipeline.max_payload_bytes(length)
    announced = b"\xa0\x9c\x01" + b"\x00" * (room - 3)
    for payload in (honest, b"\xff" * room, announced, b"\xa0\x9c\x01\x00" + b"\xff" * (room - 4)):
        contract.check_bounded_memory(pipeline, payload, length)
