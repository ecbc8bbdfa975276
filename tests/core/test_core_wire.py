"""Every kind of message survives its bytes, and the readers keep their bounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq import wire
from fedmq.envelope import MAX_DETAIL, MAX_INTEGER, MAX_VALUES, Kind, kind_of, pack, unpack
from fedmq.errors import WireError
from fedmq.layout import DTYPES, MAX_DIMENSIONS, MAX_SEGMENTS, ParamLayout, Segment, SegmentKind
from fedmq.plan import MAX_TRAINER_SETTINGS, Plan
from fedmq.types import (
    Chunk,
    ClientId,
    CumulativeDelta,
    Frame,
    ModelHead,
    ModelUpdate,
    ModelVersion,
    ObjectRef,
    Presence,
    PresenceState,
    Receipt,
    Refusal,
    Rejection,
    UpdateId,
)

names = st.text("abcXYZ019_-", min_size=1, max_size=64)
clients = names.map(ClientId)
integers = st.integers(0, MAX_INTEGER)
positive = st.integers(1, MAX_INTEGER)
codecs = st.text(max_size=wire.MAX_CODEC)
finite = st.floats(allow_nan=False)


def digests(size: int) -> st.SearchStrategy[bytes]:
    """Bytes of one length."""
    return st.binary(min_size=size, max_size=size)


update_ids = st.builds(UpdateId, client=clients, epoch=positive, seq=positive)
refusals = st.builds(Refusal, reason=st.sampled_from(Rejection), detail=st.text(max_size=MAX_DETAIL))
objects = st.builds(
    ObjectRef,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    size=positive,
    chunks=st.integers(1, wire.MAX_CHUNKS),
)


@st.composite
def updates(draw: st.DrawFn) -> ModelUpdate:
    """Updates whose floor is at most their seq."""
    update_id = draw(update_ids)
    metrics = st.dictionaries(st.text(max_size=64), finite, max_size=wire.MAX_METRICS)
    return ModelUpdate(
        id=update_id,
        floor=draw(st.integers(1, update_id.seq)),
        model_epoch=draw(positive),
        base_version=ModelVersion(draw(integers)),
        fingerprint=draw(digests(8)),
        num_examples=draw(integers),
        local_steps=draw(integers),
        codec=draw(codecs),
        payload=draw(st.binary(max_size=300)),
        metrics=tuple(draw(metrics).items()),
    )


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Chunks whose index is below their count."""
    count = draw(st.integers(1, wire.MAX_CHUNKS))
    return Chunk(
        id=draw(update_ids),
        index=draw(st.integers(0, count - 1)),
        count=count,
        size=draw(positive),
        digest=draw(digests(8)),
        data=draw(st.binary(max_size=300)),
    )


receipts = st.builds(
    Receipt,
    client=clients,
    epoch=integers,
    high_water=integers,
    beyond=st.lists(positive, max_size=20).map(tuple),
    refused=st.lists(st.tuples(positive, refusals), max_size=20).map(tuple),
    notice=st.none() | refusals,
)
heads = st.builds(
    ModelHead,
    epoch=positive,
    version=integers.map(ModelVersion),
    fingerprint=digests(8),
    frames=st.lists(
        st.builds(Frame, codec=codecs | st.just("int8"), content=objects), min_size=1, max_size=5
    ).map(tuple),
    delta=st.none() | st.builds(CumulativeDelta, codec=codecs, content=objects | st.binary(max_size=300)),
    digest=digests(16),
)
presences = st.builds(
    Presence,
    state=st.sampled_from(PresenceState),
    boot=positive,
    epoch=positive,
    software=st.text(max_size=64),
)
segments = st.builds(
    Segment,
    name=st.text(min_size=1, max_size=200),
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    dtype=st.sampled_from(sorted(DTYPES)),
    kind=st.sampled_from(SegmentKind),
)
weight = Segment(name="weight", shape=(3, 2))
layouts = st.lists(segments, max_size=6, unique_by=lambda segment: segment.name).map(
    lambda others: ParamLayout((weight, *(other for other in others if other.name != weight.name)))
)
scalars = st.text(max_size=40) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite
plans = st.builds(
    Plan,
    epoch=positive,
    layout=layouts,
    trainer=st.text(max_size=200),
    trainer_settings=st.dictionaries(st.text(max_size=64), scalars, max_size=6).map(
        lambda found: tuple(found.items())
    ),
    local_epochs=st.integers(1, 10_000),
    codec=codecs,
    chunk_bytes=positive,
    max_update_bytes=positive,
    max_staleness=integers,
    wait_for_new_version=st.booleans(),
    resend_seconds=st.floats(1e-3, 1e9),
)


@given(updates())
def test_an_update_survives_its_bytes(update: ModelUpdate) -> None:
    """Field by field, the payload included."""
    assert update == wire.unpack_update(wire.pack_update(update))


@given(chunks())
def test_a_chunk_survives_its_bytes(chunk: Chunk) -> None:
    """Field by field."""
    assert chunk == wire.unpack_chunk(wire.pack_chunk(chunk))


@given(receipts)
def test_a_receipt_survives_its_bytes(receipt: Receipt) -> None:
    """With and without lists and notice."""
    assert receipt == wire.unpack_receipt(wire.pack_receipt(receipt))


@given(heads)
def test_a_head_survives_its_bytes(head: ModelHead) -> None:
    """With one frame and several, with no delta, one inline and one elsewhere."""
    assert head == wire.unpack_head(wire.pack_head(head))


def test_a_head_with_as_many_frames_as_there_may_be_is_small() -> None:
    """A codec that the frame before has, too, is not said again; and the bound on values is not in the way."""
    frames = [
        Frame(codec=codec, content=ObjectRef(id=f"{number:032x}", size=2**31, chunks=wire.MAX_CHUNKS))
        for number, codec in enumerate(["int8"] + ["topk(0.03) | ternary | rice"] * (wire.MAX_FRAMES - 1))
    ]
    head = ModelHead(
        epoch=MAX_INTEGER,
        version=ModelVersion(MAX_INTEGER),
        fingerprint=bytes(8),
        frames=tuple(frames),
        delta=CumulativeDelta(codec="topk(0.02) | ternary | rice", content=b""),
        digest=bytes(16),
    )
    packed = wire.pack_head(head)

    assert head == wire.unpack_head(packed)
    assert len(packed) < 200 + 36 * wire.MAX_FRAMES


@given(presences, st.sampled_from([Kind.CLIENT, Kind.AGGREGATOR]))
def test_a_birth_survives_its_bytes(presence: Presence, kind: Kind) -> None:
    """A client's and an aggregator's."""
    assert presence == wire.unpack_presence(kind, wire.pack_presence(kind, presence))


@given(plans)
def test_a_plan_survives_its_bytes(plan: Plan) -> None:
    """With its layout and whatever the trainer is told."""
    read = wire.unpack_plan(wire.pack_plan(plan))

    assert plan == read
    assert [type(value) for _, value in plan.trainer_settings] == [
        type(value) for _, value in read.trainer_settings
    ]


def test_a_full_receipt_and_the_largest_plan_stay_within_the_bound_on_values() -> None:
    """What fedmq may send must be readable: both lists full, and a layout of the most tensors and sides."""
    refusal = Refusal(reason=Rejection.ALREADY_CONTRIBUTED, detail="x" * MAX_DETAIL)
    seqs = range(MAX_INTEGER - wire.MAX_RECEIPT_ENTRIES, MAX_INTEGER)
    receipt = Receipt(
        client=ClientId("c" * 64),
        epoch=MAX_INTEGER,
        high_water=MAX_INTEGER,
        beyond=tuple(seqs),
        refused=tuple((seq, refusal) for seq in seqs),
        notice=refusal,
    )
    shape = (2,) * MAX_DIMENSIONS
    plan = Plan(
        epoch=1,
        layout=ParamLayout(tuple(Segment(name=f"{i:05}", shape=shape) for i in range(MAX_SEGMENTS))),
        trainer="t",
        trainer_settings=tuple((str(i), i) for i in range(MAX_TRAINER_SETTINGS)),
    )

    assert receipt == wire.unpack_receipt(wire.pack_receipt(receipt))
    assert plan == wire.unpack_plan(wire.pack_plan(plan))


def test_a_detail_that_is_too_long_is_cut_when_packed() -> None:
    """A refusal may quote anything; the receipt must stay readable."""
    refusal = Refusal(reason=Rejection.BAD_PAYLOAD, detail="x" * 1000)
    receipt = Receipt(client=ClientId("a"), epoch=1, refused=((1, refusal),))
    read = wire.unpack_receipt(wire.pack_receipt(receipt))

    assert replace(refusal, detail="x" * MAX_DETAIL) == read.refusal(1)


def test_an_unknown_field_is_passed_over() -> None:
    """A later release may add fields."""
    body: dict[str, object] = {"t": "online", "b": 1, "e": 2, "w": "fedmq 9", "new": [1, {"a": b"b"}]}
    expected = Presence(state=PresenceState.ONLINE, boot=1, epoch=2, software="fedmq 9")

    assert expected == wire.unpack_presence(Kind.CLIENT, pack(Kind.CLIENT, body))


UPDATE: dict[str, object] = {
    "c": "a1", "e": 7, "s": 3, "f": 2, "m": 9, "b": 4, "l": b"12345678", "n": 100, "k": 10,
    "q": "float32", "p": b"",
}  # fmt: skip
CHUNK: dict[str, object] = {"c": "a1", "e": 7, "s": 3, "i": 0, "o": 2, "z": 10, "h": b"12345678", "d": b"1"}
RECEIPT: dict[str, object] = {"c": "a1", "e": 7, "w": 3}
OBJECT: dict[str, object] = {"i": bytes(16), "z": 10, "o": 1}
KEYFRAME: dict[str, object] = OBJECT | {"q": "float16"}
HEAD: dict[str, object] = {
    "e": 7, "v": 3, "l": b"12345678", "h": b"1234567812345678", "k": [KEYFRAME],
}  # fmt: skip
BIRTH: dict[str, object] = {"t": "online", "b": 1, "e": 1, "w": ""}
PLAN: dict[str, object] = {
    "e": 7, "l": [["w", [2], "float32", "trainable"]], "t": "mlp", "x": {}, "k": 1, "q": "float32", "o": 1,
    "z": 1, "a": 1, "w": False, "r": 1.0,
}  # fmt: skip

WRONG = [
    (Kind.UPDATE, UPDATE, "c", "a/b", "update.c: 'a/b' is not a name"),
    (Kind.UPDATE, UPDATE, "c", "", "is not a name"),
    (Kind.UPDATE, UPDATE, "c", 5, "update.c: expected str, found int"),
    (Kind.UPDATE, UPDATE, "e", 0, r"update.e: 0 is not in \[1, "),
    (Kind.UPDATE, UPDATE, "s", 2**63, "is not in"),
    (Kind.UPDATE, UPDATE, "s", True, "expected int, found bool"),
    (Kind.UPDATE, UPDATE, "f", 4, r"update.f: 4 is not in \[1, 3\]"),
    (Kind.UPDATE, UPDATE, "l", b"1", "update.l: 1 bytes, expected 8"),
    (Kind.UPDATE, UPDATE, "n", -1, "is not in"),
    (Kind.UPDATE, UPDATE, "q", "x" * 257, "257 characters, at most 256"),
    (Kind.UPDATE, UPDATE, "p", "text", "expected bytes, found str"),
    (Kind.UPDATE, UPDATE, "p", None, "expected bytes, found NoneType"),
    (Kind.UPDATE, UPDATE, "x", {"loss": 1}, "'loss' is not a float"),
    (Kind.UPDATE, UPDATE, "x", {str(i): 0.5 for i in range(17)}, "17 entries, at most 16"),
    (Kind.UPDATE, UPDATE, "x", {"a" * 65: 0.5}, "a key is not a text of at most 64"),
    (Kind.UPDATE, UPDATE, "x", {b"a": 0.5}, "a key is not a text"),
    (Kind.CHUNK, CHUNK, "i", 2, r"2 is not in \[0, 1\]"),
    (Kind.CHUNK, CHUNK, "o", wire.MAX_CHUNKS + 1, "is not in"),
    (Kind.CHUNK, CHUNK, "z", 0, "is not in"),
    (Kind.RECEIPT, RECEIPT, "b", [1] * 257, "257 entries, at most 256"),
    (Kind.RECEIPT, RECEIPT, "b", [True], "an entry is not a sequence number"),
    (Kind.RECEIPT, RECEIPT, "b", [0], "an entry is not a sequence number"),
    (Kind.RECEIPT, RECEIPT, "r", [[True, "stale", ""]], r"an entry is not \[seq, reason, detail\]"),
    (Kind.RECEIPT, RECEIPT, "r", [[1, "stale"]], r"a refusal is not \[reason, detail\]"),
    (Kind.RECEIPT, RECEIPT, "r", [[1, "stale", "x" * 201]], r"a refusal is not \[reason, detail\]"),
    (Kind.RECEIPT, RECEIPT, "n", ["stale", "", ""], "3 entries, at most 2"),
    (Kind.MODEL, HEAD, "k", KEYFRAME, "model.k: expected list, found dict"),
    (Kind.MODEL, HEAD, "k", [], "model.k: a head has at least one frame"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME] * 65, "model.k: 65 entries, at most 64 are allowed"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME, b""], "model.k: the body is not a map"),
    (Kind.MODEL, HEAD, "k", [OBJECT], "model.k.q: expected str, found NoneType"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME | {"q": "x" * 257}], "257 characters, at most 256"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME, OBJECT | {"q": 5}], "model.k.q: expected str, found int"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME | {"i": "0" * 32}], "model.k.i: expected bytes, found str"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME | {"i": bytes(15)}], "model.k.i: 15 bytes, expected 16"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME | {"z": 0}], "model.k.z: 0 is not in"),
    (Kind.MODEL, HEAD, "k", [KEYFRAME | {"o": 0}], "model.k.o: 0 is not in"),
    (Kind.MODEL, HEAD, "d", {"q": "float32", "o": 5}, "model.d.o: the body is not a map"),
    (Kind.CLIENT, BIRTH, "t", "dancing", "'dancing' is none of online, asleep, offline"),
    (Kind.AGGREGATOR, BIRTH, "w", "x" * 65, "65 characters, at most 64"),
    (Kind.PLAN, PLAN, "l", [], "0 trainable parameters"),
    (Kind.PLAN, PLAN, "l", ["w"], r"a tensor is not \[name"),
    (Kind.PLAN, PLAN, "l", [["w", [2.0], "float32", "trainable"]], "side that is not a whole number"),
    (Kind.PLAN, PLAN, "l", [["w", [2], "int64", "trainable"]], "has dtype int64: allowed are"),
    (Kind.PLAN, PLAN, "l", [["w", [2], "float32", "secret"]], "has kind 'secret': one of trainable"),
    (Kind.PLAN, PLAN, "l", [["w", [2**31], "float32", "trainable"]], "1 to 2147483647 are allowed"),
    (Kind.PLAN, PLAN, "l", [["w", [2**63] * 8, "float32", "trainable"]], "1 to 2147483647 are allowed"),
    (Kind.PLAN, PLAN, "l", [["w", [2], "float32", "trainable"]] * 2, "tensor names repeat: w"),
    (Kind.PLAN, PLAN, "x", {"a": [1]}, "'a' is not a text, number or truth value"),
    (Kind.PLAN, PLAN, "k", 0, "is not in"),
    (Kind.PLAN, PLAN, "w", 1, "expected bool, found int"),
    (Kind.PLAN, PLAN, "r", 1, "expected float, found int"),
    (Kind.PLAN, PLAN, "r", float("nan"), "not a number of seconds above 0"),
    (Kind.PLAN, PLAN, "r", float("inf"), "not a number of seconds above 0"),
    (Kind.PLAN, PLAN, "r", 0.0, "not a number of seconds above 0"),
]


@pytest.mark.parametrize(("kind", "body", "key", "value", "message"), WRONG)
def test_a_wrong_field_is_named(
    kind: Kind, body: dict[str, object], key: str, value: object, message: str
) -> None:
    """The error says which field of which message, and what is wrong with it."""
    assert wire.READERS[kind](pack(kind, body)) is not None
    with pytest.raises(WireError, match=message):
        wire.READERS[kind](pack(kind, body | {key: value}))


@pytest.mark.parametrize("kind", wire.READERS)
def test_there_is_a_reader_for_each_kind(kind: Kind) -> None:
    """And it refuses the other kinds, by name."""
    other = pack(Kind.CHUNK if kind is not Kind.CHUNK else Kind.PLAN, {})
    with pytest.raises(WireError, match=f"expected a {kind.name.lower()}"):
        wire.READERS[kind](other)

    assert set(wire.READERS) == set(Kind)


def test_the_envelope_is_checked_before_the_body() -> None:
    """Length, schema, kind and CRC, in this order."""
    good = pack(Kind.CLIENT, BIRTH)
    for data, message in (
        (b"", "0 bytes, at least 6 are needed"),
        (good[:5], "5 bytes, at least 6 are needed"),
        (b"\x02" + good[1:], "schema 2, this release reads schema 1"),
        (good[:1] + b"\x63" + good[2:], "unknown kind 99"),
        (good[:-1] + b"!", "the CRC does not match"),
        (good[:1] + bytes([Kind.AGGREGATOR]) + good[2:], "the CRC does not match"),
    ):
        with pytest.raises(WireError, match=message):
            unpack(kind_of(data), data)


def test_a_message_with_too_many_values_is_refused_before_it_is_read() -> None:
    """The bound counts lists, maps and keys alike, and admits what is just within it."""
    within = pack(Kind.CLIENT, BIRTH | {"new": [None] * (MAX_VALUES - 11)})
    beyond = pack(Kind.CLIENT, BIRTH | {"new": [None] * (MAX_VALUES - 10)})

    assert wire.READERS[Kind.CLIENT](within) == wire.READERS[Kind.CLIENT](pack(Kind.CLIENT, BIRTH))
    with pytest.raises(WireError, match="client: announces more than 2048 values"):
        wire.READERS[Kind.CLIENT](beyond)


@given(st.recursive(scalars | st.binary(max_size=300), lambda x: st.lists(x) | st.dictionaries(names, x)))
@settings(max_examples=50)
def test_the_count_of_values_is_exact(value: object) -> None:
    """Whatever msgpack packs: one fewer is refused, the count itself is read."""
    body = {"v": value, "f": np.pi}
    count = _count(body)

    assert unpack(Kind.PLAN, pack(Kind.PLAN, body), count).number("f") == np.pi
    with pytest.raises(WireError, match=f"announces more than {count - 1} values"):
        unpack(Kind.PLAN, pack(Kind.PLAN, body), count - 1)


def _count(value: object) -> int:
    match value:
        case dict():
            return 1 + len(value) + sum(map(_count, value.values()))
        case list():
            return 1 + sum(map(_count, value))
        case _:
            return 1


def test_a_reason_of_a_later_release_is_kept_as_text() -> None:
    """A receipt that names it must still settle what it settles."""
    receipt = wire.unpack_receipt(pack(Kind.RECEIPT, {**RECEIPT, "r": [[1, "tired", "since noon"]]}))

    assert ((1, Refusal(reason=Rejection.UNKNOWN, detail="tired: since noon")),) == receipt.refused
