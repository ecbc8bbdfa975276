"""Law 8: what is sent and what stays behind are together what was learned."""

import numpy as np
import pytest
from fedmq.edge_agent.feedback import encode_with_feedback, give_back
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedmq import encoding
from fedmq.codecs import parse_pipeline
from fedmq.errors import CodecError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.types import ParamVector

TRAINABLE, BUFFER = 37, 3
LAYOUT = ParamLayout(
    (
        Segment(name="weight", shape=(TRAINABLE,)),
        Segment(name="statistics", shape=(BUFFER,), kind=SegmentKind.BUFFER),
    )
)
PIPELINES = [
    "float32",
    "float16",
    "int8",
    "topk(0.1) | ternary | rice",
    "topk(0.1) | int8 | bitmap",
    "topk(0.3) | float32 | u32",
]
#: Rounding of one float32 operation, relative to its largest operand.
ULP = 2.0**-23

numbers = st.floats(-100, 100, width=32)
vectors = npst.arrays(np.float32, LAYOUT.size, elements=numbers)
residuals = st.none() | npst.arrays(np.float32, TRAINABLE, elements=numbers)


def sent(pipeline: str, payload: bytes) -> ParamVector:
    """What every receiver knows."""
    return encoding.decode(LAYOUT, parse_pipeline(pipeline), payload).to_dense()


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=40)
@given(delta=vectors, residual=residuals)
def test_nothing_is_lost_and_nothing_is_doubled(
    pipeline: str, delta: ParamVector, residual: ParamVector | None
) -> None:
    """Sent + residual' = delta + residual, to a rounding of float32."""
    encoded = encode_with_feedback(LAYOUT, parse_pipeline(pipeline), delta, residual)
    there = sent(pipeline, encoded.payload)[:TRAINABLE].astype(np.float64)
    before = delta[:TRAINABLE].astype(np.float64)
    if residual is not None:
        before += residual

    largest = np.abs(there) + np.abs(before) + np.abs(encoded.residual)
    assert encoded.residual.shape == (TRAINABLE,)
    assert (np.abs(there + encoded.residual - before) <= 2 * ULP * largest).all()


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=20)
@given(delta=vectors, residual=residuals)
def test_what_is_refused_comes_back(pipeline: str, delta: ParamVector, residual: ParamVector | None) -> None:
    """Encoding and giving back leaves the residual at delta + residual."""
    parsed = parse_pipeline(pipeline)
    encoded = encode_with_feedback(LAYOUT, parsed, delta, residual)
    returned = give_back(LAYOUT, parsed, encoded.payload, encoded.residual)

    expected = delta[:TRAINABLE].astype(np.float64) + (0 if residual is None else residual)
    largest = np.abs(sent(pipeline, encoded.payload)[:TRAINABLE]) + np.abs(expected)
    assert (np.abs(returned - expected) <= 4 * ULP * largest).all()


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=20)
@given(delta=vectors, residual=residuals)
def test_buffers_travel_whole_and_leave_nothing(
    pipeline: str, delta: ParamVector, residual: ParamVector | None
) -> None:
    """Bit for bit, whatever the codec does to the rest."""
    encoded = encode_with_feedback(LAYOUT, parse_pipeline(pipeline), delta, residual)

    np.testing.assert_array_equal(delta[TRAINABLE:], sent(pipeline, encoded.payload)[TRAINABLE:])


@pytest.mark.parametrize("pipeline", PIPELINES[3:])
def test_what_is_small_arrives_in_the_end(pipeline: str) -> None:
    """A coordinate that top-k never chooses at first grows in the residual until it is sent."""
    rng = np.random.default_rng(1)
    parsed, residual = parse_pipeline(pipeline), np.zeros(TRAINABLE, np.float32)
    total, arrived = np.zeros(TRAINABLE), np.zeros(TRAINABLE)
    for _ in range(400):
        delta = np.zeros(LAYOUT.size, np.float32)
        delta[:TRAINABLE] = rng.normal(np.linspace(0.05, 1.0, TRAINABLE), 0.01)
        encoded = encode_with_feedback(LAYOUT, parsed, delta, residual)
        residual = encoded.residual
        total += delta[:TRAINABLE]
        arrived += sent(pipeline, encoded.payload)[:TRAINABLE]

    assert (arrived[:5] > 0).all()
    np.testing.assert_allclose(total, arrived + residual, rtol=1e-3)
    assert np.abs(residual).max() < 0.1 * total.max()


@given(delta=vectors, residual=residuals)
def test_the_inputs_are_left_alone(delta: ParamVector, residual: ParamVector | None) -> None:
    """They are the caller's."""
    before = delta.copy(), None if residual is None else residual.copy()
    encode_with_feedback(LAYOUT, parse_pipeline("topk(0.1) | ternary | rice"), delta, residual)

    np.testing.assert_array_equal(before[0], delta)
    if residual is not None and before[1] is not None:
        np.testing.assert_array_equal(before[1], residual)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, TRAINABLE])
def test_a_delta_that_is_not_finite_is_refused(value: float, at: int) -> None:
    """In a parameter or in a buffer, and says what to look at."""
    delta = np.zeros(LAYOUT.size, np.float32)
    delta[at] = value

    with pytest.raises(CodecError, match="learning rate"):
        encode_with_feedback(LAYOUT, parse_pipeline("float32"), delta, None)


@given(delta=vectors, residual=residuals, clip_norm=st.floats(0.01, 500))
def test_a_long_delta_is_shortened_before_the_residual_is_added(
    delta: ParamVector, residual: ParamVector | None, clip_norm: float
) -> None:
    """What earlier updates owe is never clipped: the sum is the clipped delta plus all of the residual."""
    encoded = encode_with_feedback(LAYOUT, parse_pipeline("float32"), delta, residual, clip_norm)
    trainable = delta[:TRAINABLE].astype(np.float64)
    expected = trainable * min(1.0, clip_norm / max(np.linalg.norm(trainable), 1e-300))
    if residual is not None:
        expected += residual

    np.testing.assert_allclose(expected, sent("float32", encoded.payload)[:TRAINABLE], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(delta[TRAINABLE:], sent("float32", encoded.payload)[TRAINABLE:])
