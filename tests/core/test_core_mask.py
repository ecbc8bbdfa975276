"""Masks: both ends hold the same one, a codec sees what it keeps, and hostile ones are refused within bounds."""

import hashlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedmq import encoding, wire
from fedmq.codecs import Geometry, SparseVector, parse_pipeline
from fedmq.codecs.bits import encode_varint
from fedmq.codecs.positions import Rice
from fedmq.errors import WireError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.mask import EncodedMask, Mask, max_content_bytes
from fedmq.plan import Plan
from fedmq.types import ClientId, ModelUpdate, ModelVersion, UpdateId

LAYOUT = ParamLayout(
    (
        Segment(name="a.bias", shape=(5,)),
        Segment(name="a.weight", shape=(5, 8)),
        Segment(name="b.scale", shape=()),
        Segment(name="b.weight", shape=(3, 2, 4)),
        Segment(name="mean", shape=(3,), kind=SegmentKind.BUFFER),
        Segment(name="square", shape=(2, 2), kind=SegmentKind.BUFFER),
        Segment(name="own", shape=(9, 9), kind=SegmentKind.PRIVATE),
    )
)
T = LAYOUT.trainable_size
PLAN = Plan(epoch=1, layout=LAYOUT, trainer="mlp")
PIPELINES = [
    "float32",
    "int8",
    "int8 | range",
    "eden(2)",
    "lowrank(1) | float16",
    "topk(0.2) | ternary | rice",
    "topk(0.2) | ternary | rows",
    "topk(0.2) | int8 | bitmap | range",
    "topk_each(0.2) | float16 | u32",
    "threshold(0.5) | sign | rice",
    "budget(40) | ternary | rice",
    "randomk(0.2) | qsgd(4)",
]

patterns = npst.arrays(np.bool_, T).filter(lambda pruned: not pruned.all())
numbers = st.floats(-100, 100, width=32)
vectors = npst.arrays(np.float32, LAYOUT.size, elements=numbers)


def mask_of(*pruned: int) -> Mask:
    """Prunes some coordinates."""
    places = np.zeros(T, np.bool_)
    places[list(pruned)] = True
    return Mask.of(LAYOUT, places)


def content(listed: int, indices: list[int], count: int | None = None) -> bytes:
    """A mask's bytes, right or wrong."""
    positions = Rice().encode(np.array(indices, np.int32), Geometry.flat(10**6)) if indices else b""
    return bytes([listed]) + encode_varint(len(indices) if count is None else count) + positions


def read(data: bytes, digest: bytes = bytes(8)) -> Mask:
    """A mask from bytes."""
    return Mask.decode(LAYOUT, EncodedMask(digest=digest, content=data))


def test_what_may_be_pruned_is_a_trainable_tensor_of_two_dimensions_and_more() -> None:
    """No bias, no scale, no buffer whatever its shape, and nothing that never leaves the device."""
    names = [name for name, place in LAYOUT.slices.items() if place in LAYOUT.matrices]

    assert ["a.weight", "b.weight"] == names


@given(patterns)
def test_a_mask_survives_its_bytes(pruned: NDArray[np.bool_]) -> None:
    """The same coordinates, the same digest, the same bytes again, and no more of them than are stated."""
    mask = Mask.of(LAYOUT, pruned)
    found = Mask.decode(LAYOUT, mask.encoded)

    assert pruned.tolist() == found.pruned.tolist()
    assert mask.encoded == found.encoded
    assert len(mask.encoded.content) <= max_content_bytes(LAYOUT)
    assert np.flatnonzero(~pruned).tolist() == found.kept.tolist()
    assert np.count_nonzero(pruned) == found.count


def test_the_bytes_of_a_mask_are_for_ever() -> None:
    """Written by hand: the two pruned of 70 positions are fewer; the digest is over the bits of the kept ones."""
    mask = mask_of(8, 10)
    bits = "1" * 8 + "010" + "1" * 59 + "00"
    digest = hashlib.blake2b(int(bits, 2).to_bytes(9, "big"), digest_size=8).digest()

    # pruned ones, two of them, rice parameter 1; gaps 8 and 1: low bits 0 1, quotients 4 and 0 in unary
    assert bytes([1, 2, 1, 0b01_00001_1]) == mask.encoded.content
    assert digest == mask.digest


def test_two_masks_differ_in_their_digests() -> None:
    """By one coordinate."""
    assert mask_of(8).digest != mask_of(9).digest
    assert mask_of(8).digest == mask_of(8).digest


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "kind needs 1 bytes"),
        (b"\x01", "count needs 1 bytes"),
        (content(2, [1]), "kind 2"),
        (content(1, [1], count=T + 1), f"{T + 1} of {T} coordinates"),
        (content(1, [1, 2], count=5), "rice quotients are cut off"),
        (content(1, [3, T]), f"position {T} is outside"),
        (content(1, [3]) + b"\x00", "1 bytes follow its end"),
        (content(1, list(range(T))), "it keeps nothing"),
        (content(0, []), "it keeps nothing"),
        (content(1, [3]), "not 0000000000000000"),
        (bytes(max_content_bytes(LAYOUT) + 1), f"at most {max_content_bytes(LAYOUT)} are needed"),
    ],
)
def test_what_is_no_mask_is_refused(data: bytes, reason: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(WireError, match=reason):
        read(data)


@given(st.binary(max_size=20) | patterns.map(lambda pruned: Mask.of(LAYOUT, pruned).encoded.content))
@settings(max_examples=300)
def test_any_bytes_are_a_mask_or_refused(data: bytes) -> None:
    """Nothing but `WireError` is raised (law 7)."""
    with pytest.raises(WireError):
        read(data, b"no digest")


def test_a_mask_is_read_within_the_stated_memory() -> None:
    """The densest one there can be, at 64 bytes a coordinate."""
    layout = ParamLayout((Segment(name="w", shape=(300, 400)),))
    mask = Mask.of(layout, np.arange(120_000) % 2 == 0).encoded
    tracemalloc.start()
    try:
        Mask.decode(layout, mask)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak <= 64 * 120_000


def test_a_mask_says_how_many_coordinates_each_tensor_keeps() -> None:
    """A tensor that keeps none is not there, as if it had no coordinates."""
    gone = LAYOUT.slices["b.weight"]
    mask = mask_of(0, 1, 6, *range(gone.start, gone.stop))

    assert ((1, 3), (1, 39), (1, 1)) == mask.geometry.shapes
    assert mask.geometry.length == mask.kept.shape[0]


@given(patterns, vectors)
def test_what_is_pruned_is_zero_and_the_rest_is_as_it_was(
    pruned: NDArray[np.bool_], vector: NDArray[np.float32]
) -> None:
    """In a copy, in place, in a sparse vector and in a dense one; buffers are let be."""
    mask = Mask.of(LAYOUT, pruned)
    expected = np.where(np.append(pruned, np.zeros(LAYOUT.buffer_size, np.bool_)), np.float32(0), vector)
    applied = mask.applied(vector)
    head = vector[:T]
    some = np.flatnonzero(head > 0).astype(np.int32)
    parts = [
        SparseVector(length=T, indices=None, values=head),
        SparseVector(length=T, indices=some, values=head[some]),
    ]
    restricted = [mask.restrict(part).to_dense().tolist() for part in parts]

    assert expected.tolist() == applied.tolist()
    assert not applied.flags.writeable
    assert expected[:T].tolist() == restricted[0]
    assert np.where(expected[:T] > 0, expected[:T], 0).tolist() == restricted[1]
    mask.clear(vector)
    assert expected.tolist() == vector.tolist()


@pytest.mark.parametrize("text", PIPELINES)
@given(patterns, vectors)
@settings(max_examples=15)
def test_a_codec_sees_the_kept_coordinates_and_no_others(
    text: str, pruned: NDArray[np.bool_], vector: NDArray[np.float32]
) -> None:
    """What is decoded is what the codec makes of those, each where it belongs, and zero where it is pruned."""
    mask, pipeline = Mask.of(LAYOUT, pruned), parse_pipeline(text)
    vector[:T][pruned] = np.nan  # is not even looked at
    payload = encoding.encode(LAYOUT, pipeline, vector, mask)
    decoded = encoding.decode(LAYOUT, pipeline, payload, mask)
    body = payload[: len(payload) - 4 * LAYOUT.buffer_size]
    alone = pipeline.decode(body, mask.geometry).to_dense()

    assert decoded.trainable.indices is not None
    assert not pruned[decoded.trainable.indices].any()
    assert alone.tolist() == decoded.to_dense()[:T][~pruned].tolist()
    assert vector[T:].tolist() == decoded.buffers.tolist()


def test_positions_among_fewer_coordinates_are_shorter() -> None:
    """The same values, with and without the mask."""
    rng = np.random.default_rng(5)
    layout = ParamLayout((Segment(name="w", shape=(100, 100)),))
    mask = Mask.of(layout, rng.random(10_000) < 0.9)
    vector = np.where(mask.pruned, 0, rng.normal(size=10_000)).astype(np.float32)
    dense, masked = (
        parse_pipeline("topk(0.01) | ternary | rice"),
        parse_pipeline("topk(0.1) | ternary | rice"),
    )

    assert len(encoding.encode(layout, masked, vector, mask)) < 0.7 * len(
        encoding.encode(layout, dense, vector)
    )


def test_a_payload_under_a_mask_is_bounded_by_what_it_keeps() -> None:
    """More than that many values are refused before anything is decoded."""
    pipeline = parse_pipeline("float32")
    payload = encoding.encode(LAYOUT, pipeline, np.ones(LAYOUT.size, np.float32))

    with pytest.raises(WireError, match="are the most for 69 coordinates"):
        encoding.decode(LAYOUT, pipeline, payload, mask_of(7))


def test_plan_and_update_carry_their_masks() -> None:
    """There and back; without one they are the bytes that they always were."""
    mask = mask_of(7, 8)
    plan = replace(PLAN, mask=mask.encoded)
    update = ModelUpdate(
        id=UpdateId(client=ClientId("a"), epoch=1, seq=1),
        floor=1,
        model_epoch=1,
        base_version=ModelVersion(0),
        fingerprint=LAYOUT.fingerprint,
        num_examples=1,
        local_steps=1,
        codec="float32",
        payload=b"",
        mask=mask.digest,
    )

    assert plan == wire.unpack_plan(wire.pack_plan(plan))
    assert update == wire.unpack_update(wire.pack_update(update))
    assert b"" == wire.unpack_update(wire.pack_update(replace(update, mask=b""))).mask
    assert len(wire.pack_update(update)) == len(wire.pack_update(replace(update, mask=b""))) + 12


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (EncodedMask(digest=bytes(7), content=b""), "plan.m.h: 7 bytes, expected 8"),
        (
            EncodedMask(digest=bytes(8), content=bytes(max_content_bytes(LAYOUT) + 1)),
            f"plan.m.d: 17 bytes, at most {max_content_bytes(LAYOUT)} are needed",
        ),
    ],
)
def test_a_plan_with_what_can_be_no_mask_is_refused(mask: EncodedMask, reason: str) -> None:
    """Before anybody decodes it."""
    with pytest.raises(WireError, match=reason):
        wire.unpack_plan(wire.pack_plan(replace(PLAN, mask=mask)))


def test_a_plan_of_a_giant_costs_no_memory_until_its_mask_is_asked_for() -> None:
    """Two billion coordinates in a hundred bytes: a device that has no such model never makes room for them."""
    giant = ParamLayout((Segment(name="w", shape=(2**31 - 1,)),))
    message = wire.pack_plan(
        replace(PLAN, layout=giant, mask=EncodedMask(digest=bytes(8), content=b"\x01\x00"))
    )
    tracemalloc.start()
    try:
        assert wire.unpack_plan(message).mask is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 100_000


def test_only_another_mask_is_no_other_plan() -> None:
    """Everything else is."""
    pruned = replace(PLAN, mask=mask_of(7).encoded)

    assert pruned.has_only_another_mask(PLAN)
    assert PLAN.has_only_another_mask(pruned)
    assert not pruned.has_only_another_mask(None)
    assert not pruned.has_only_another_mask(replace(PLAN, codec="int8"))
