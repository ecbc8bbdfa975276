"""Every built-in codec keeps the promises of `fedmq.testing.codec_contract`, alone and in pipelines."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.codecs import (
    BUILT_IN,
    Codec,
    EntropyCoder,
    Geometry,
    Pipeline,
    PositionCoder,
    Quantizer,
    SeededSparsifier,
    Sparsifier,
    Transform,
    parse_pipeline,
)
from fedmq.codecs.adaptive import Budget, Threshold
from fedmq.codecs.deadzone import Deadzone
from fedmq.codecs.entropy import Range
from fedmq.codecs.lowrank import LowRank
from fedmq.codecs.positions import U32, Bitmap, Rice
from fedmq.codecs.quantize import Float16, Float32, Int8
from fedmq.codecs.randomk import RandomK
from fedmq.codecs.rotate import Eden
from fedmq.codecs.rows import Rows
from fedmq.codecs.sign import Sign, Ternary
from fedmq.codecs.sparse import TopK, TopKEach
from fedmq.codecs.stochastic import QSGD
from fedmq.testing import codec_contract as contract

CODECS: list[Codec] = [
    LowRank(rank=3),
    TopK(fraction=0.01),
    TopK(fraction=1e-05),
    TopK(fraction=1e-05, least=7),
    TopK(fraction=1.0),
    TopKEach(fraction=0.1),
    Threshold(value=0.5),
    Threshold(value=1e-44, share=1.0),
    Budget(size=100),
    Budget(size=32, bits=8.5),
    RandomK(fraction=0.3),
    Float32(),
    Float16(),
    Int8(),
    Int8(block=7),
    Ternary(),
    Ternary(block=5),
    Sign(),
    Sign(block=3),
    *(QSGD(bits=bits) for bits in (2, 4, 8)),
    QSGD(bits=4, block=5),
    *(Eden(bits=bits) for bits in (1, 2, 3, 4)),
    Eden(bits=2, unbiased=1),
    Deadzone(energy=0.95),
    Deadzone(energy=0.5, zone=0.5),
    Rice(),
    Bitmap(),
    U32(),
    Rows(),
    Range(),
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
    "topk(0.6) | ternary(5) | rice",
    "topk_each(0.3) | float32 | u32",
    "threshold(0.5, 0.4) | int8 | bitmap",
    "budget(40) | ternary | rice",
    *("sign", "sign(3)", "topk(0.6) | sign(3) | rice"),
    *("qsgd(2)", "qsgd(4, 5)", "qsgd(8)", "topk(0.6) | qsgd(4) | rice"),
    *("eden(1)", "eden(2, 1)", "eden(3)", "eden(4)", "topk(0.6) | eden(2) | rice"),
    *(f"randomk(0.3) | {quantizer}" for quantizer in ("float32", "ternary", "qsgd(4)", "eden(2)")),
    *(f"lowrank(1) | {quantizer}" for quantizer in ("float32", "int8(7)", "eden(3)")),
    "lowrank(2) | float16",
    "randomk(1.0) | float32",
    *("deadzone(0.95)", "deadzone(0.5, 0.5) | range", "topk(0.6) | deadzone(0.95) | rice"),
    *("topk(0.05) | float32 | rows", "topk(0.6) | ternary | rows", "topk(1.0) | sign | rows"),
    *(f"{q} | range" for q in ("float32", "float16", "int8", "sign(3)", "eden(3)", "deadzone(0.95)")),
    *("topk(0.6) | ternary | rows | range", "topk(0.6) | int8(7) | rice | range"),
    *("randomk(0.3) | qsgd(4) | range", "lowrank(1) | int8(7) | range"),
]

every_pipeline = pytest.mark.parametrize("pipeline", [parse_pipeline(text) for text in PIPELINES], ids=str)


def _of_each(values: np.ndarray, block: int, function: Callable[[np.ndarray], float]) -> np.ndarray:
    """What a function makes of each block, for each value."""
    parts = [values[start : start + block] for start in range(0, len(values), block)]
    return np.concatenate([np.zeros(0), *(np.full(len(part), function(part)) for part in parts)])


def _step_bound(share: float, steps: int, block: int) -> contract.ErrorBound:
    """A share of a step; below the smallest scale that is sent, the value itself."""

    def bound(values: np.ndarray) -> np.ndarray:
        scales = _of_each(values, block, lambda part: np.abs(part).max() / steps)
        return share * np.maximum(scales, steps / share * 2.0**-126) * (1 + 2.0**-15)

    return bound


def _magnitude_bound(block: int) -> contract.ErrorBound:
    """The distance to the block's mean."""
    return lambda x: np.abs(np.abs(x) - _of_each(x, block, lambda part: np.float32(np.abs(part).mean())))


def _norm_bound(factor: float) -> contract.ErrorBound:
    """Some multiple of the whole vector's norm, and what is too small to be sent."""
    return lambda x: np.full(x.shape, factor * np.linalg.norm(x) + 2.0**-24)


ERROR_BOUNDS: dict[Quantizer, contract.ErrorBound] = {
    Float32(): np.zeros_like,
    Float16(): lambda x: np.maximum(np.abs(x) * 2.0**-11 + 2.0**-25, np.abs(x) - 65504),
    Int8(): _step_bound(0.5, 127, 1024),
    Int8(block=7): _step_bound(0.5, 127, 7),
    Ternary(): _magnitude_bound(1024),
    Ternary(block=5): _magnitude_bound(5),
    Sign(): _magnitude_bound(1024),
    Sign(block=3): _magnitude_bound(3),
    QSGD(bits=2): _step_bound(1, 1, 512),
    QSGD(bits=4): _step_bound(1, 7, 512),
    QSGD(bits=4, block=5): _step_bound(1, 7, 5),
    QSGD(bits=8): _step_bound(1, 127, 512),
    # What is sent is a projection, so the error is no longer than the vector; the unbiased one is stretched.
    **{Eden(bits=bits): _norm_bound(1.0001) for bits in (1, 2, 3, 4)},
    Eden(bits=2, unbiased=1): _norm_bound(9),
    # All errors together are no longer than this, so none is.
    **{
        Deadzone(energy=energy, zone=zone): _norm_bound((1 - energy) ** 0.5)
        for energy, zone in ((0.95, 0), (0.5, 0.5))
    },
}


def _bound(pipeline: Pipeline) -> contract.ErrorBound:
    """Of the values that are sent; of a transform's matrices, something that cannot be missed by accident."""
    return _norm_bound(40) if pipeline.transform else ERROR_BOUNDS[pipeline.quantizer]


Case: TypeAlias = tuple[Geometry, np.ndarray]

any_finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
typical = st.floats(-1, 1, width=32)
matrices = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=4).map(tuple).map(Geometry)
geometries = st.integers(0, 80).map(Geometry.flat) | matrices


@st.composite
def shaped_vectors(draw: st.DrawFn) -> tuple[Geometry, np.ndarray]:
    """Any finite vector, and what it consists of."""
    geometry = draw(geometries)
    values = draw(st.sampled_from([any_finite, typical, any_finite | typical | st.just(0.0)]))
    return geometry, draw(hnp.arrays(np.float32, geometry.length, elements=values))


shaped = shaped_vectors()


SAMPLE = Geometry(((5, 8), (1, 5), (4, 4)))


def _sample(geometry: Geometry = SAMPLE) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(geometry.length).astype(np.float32)


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
    classes = [codec for kind in kinds for codec in kind.__subclasses__()]
    classes += [codec for shared in classes for codec in shared.__subclasses__()]
    shipped = {
        codec.id: codec
        for codec in classes
        if codec.__module__.startswith("fedmq.codecs.") and hasattr(codec, "id")
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
@settings(max_examples=20, deadline=None)
@given(case=shaped)
def test_a_vector_comes_back_within_the_stated_error(pipeline: Pipeline, case: Case) -> None:
    """Any finite vector: zeros, subnormals, the largest floats, and none at all."""
    geometry, vector = case
    contract.check_round_trip(pipeline, vector, _bound(pipeline), geometry)


@every_pipeline
@settings(max_examples=20, deadline=None)
@given(case=shaped)
def test_residual_mass_is_conserved(pipeline: Pipeline, case: Case) -> None:
    """Law 8: what was not sent is in the residual."""
    geometry, vector = case
    contract.check_conservation(pipeline, vector, geometry)


@every_pipeline
@settings(max_examples=10, deadline=None)
@given(case=shaped)
def test_equal_input_gives_equal_bytes_and_bits(pipeline: Pipeline, case: Case) -> None:
    """Law 6: both ends decode the same bits."""
    geometry, vector = case
    contract.check_determinism(pipeline, vector, geometry)


@every_pipeline
@settings(max_examples=25, deadline=None)
@given(payload=st.binary(max_size=120), geometry=geometries)
def test_any_bytes_decode_or_are_refused(pipeline: Pipeline, payload: bytes, geometry: Geometry) -> None:
    """Law 7, from nothing."""
    contract.check_any_bytes(pipeline, payload, geometry)


@every_pipeline
@settings(max_examples=25, deadline=None)
@given(data=st.data(), case=shaped)
def test_damaged_payloads_decode_or_are_refused(pipeline: Pipeline, data: st.DataObject, case: Case) -> None:
    """Law 7, from valid payloads with some bytes replaced, which reach further into the decoder."""
    geometry, vector = case
    payload = bytearray(pipeline.encode(vector, geometry))
    if payload:
        positions = st.integers(0, len(payload) - 1)
        for position, byte in data.draw(st.dictionaries(positions, st.integers(0, 255), max_size=4)).items():
            payload[position] = byte

    contract.check_any_bytes(pipeline, bytes(payload), data.draw(st.just(geometry) | geometries))


@every_pipeline
def test_every_single_bit_flip_decodes_or_is_refused(pipeline: Pipeline) -> None:
    """Each bit of a valid payload in turn."""
    for payload in contract.bit_flips(pipeline.encode(_sample(), SAMPLE)):
        contract.check_any_bytes(pipeline, payload, SAMPLE)


@every_pipeline
def test_a_payload_of_any_other_length_is_refused(pipeline: Pipeline) -> None:
    """Cut at every byte, and with a byte behind it."""
    contract.check_exact_length(pipeline, _sample(), SAMPLE)


@every_pipeline
def test_decoding_allocates_within_its_bound(pipeline: Pipeline) -> None:
    """Honest payloads, and hostile ones that announce much or are all ones; of matrices and of one long row."""
    for geometry in (Geometry(((100, 190), (1, 100), (30, 30))), Geometry.flat(20_000)):
        honest = pipeline.encode(_sample(geometry), geometry)
        room = pipeline.max_payload_bytes(geometry)
        announced = b"\xa0\x9c\x01" + b"\x00" * (room - 3)
        for payload in (honest, b"\xff" * room, announced, b"\xa0\x9c\x01\x00" + b"\xff" * (room - 4)):
            contract.check_bounded_memory(pipeline, payload, geometry)
