"""A snapshot is the state, bit for bit, and nothing else is taken for one."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.fold_state import FoldState
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.state import pack_state, unpack_state

from fedmq.errors import StoreError
from fedmq.wire import unpack_update

NewEngine = Callable[..., Engine]


def unpack(data: bytes) -> Engine:
    """An engine of a snapshot, with an empty ledger."""
    return unpack_state(data, ledger=Ledger(), admission=AdmissionSettings(), max_update_bytes=1000)


@pytest.fixture
def engine(new_engine: NewEngine) -> Engine:
    """One with awkward numbers everywhere."""
    engine = new_engine(
        buffer_size=7,
        staleness="hinge(0.1, 3.3333333333333335)",
        learning_rate=1 / 3,
        momentum=0.9,
        weighting="examples",
    )
    state = engine.state
    for array in (state.vector, state.buffer, state.momentum):
        array[:] = np.resize(np.array([1e-45, -0.0, 0.1, 3.4e38, -1e-38, 1 / 3], np.float32), array.size)
    state.version, state.filled, state.weight = 2**40, 3, 1e308
    state.mean_staleness, state.contributors = 2 / 3, ["a", "b"]
    engine.position = 2**41
    engine.tally.folded, engine.tally.refused = 5, Counter(stale=3, norm=1)
    return engine


def test_a_snapshot_is_the_state_to_the_last_bit(engine: Engine) -> None:
    """Rule, layout, arrays, counters; unpacked and packed again it is the same bytes."""
    packed = pack_state(engine)
    other = unpack(packed)

    assert packed == pack_state(other)
    assert engine.rule == other.rule
    assert engine.layout == other.layout
    assert engine.state.vector.tobytes() == other.state.vector.tobytes()
    assert (engine.epoch, engine.position, engine.tally) == (other.epoch, other.position, other.tally)


def test_the_unpacked_state_can_be_written_to(engine: Engine) -> None:
    """Folding works in place."""
    state = unpack(pack_state(engine)).state

    assert state.vector.flags.writeable
    assert state.buffer.flags.writeable
    assert state.momentum.flags.writeable


def test_a_snapshot_of_another_schema_is_refused(engine: Engine) -> None:
    """With the numbers."""
    fields = msgpack.unpackb(pack_state(engine)) | {"schema": 5}
    with pytest.raises(StoreError, match="the snapshot has schema 5, this release reads schemas 1 to 4"):
        unpack(msgpack.packb(fields))


OLD_RULE = (
    "buffer_size", "staleness", "normalise_staleness", "by_examples", "learning_rate", "momentum", "max_staleness",
    "synchronous",
)  # fmt: skip
OLD_FIELDS = (
    "epoch", "position", "layout", "folded", "refused", "version", "filled", "weight", "mean_staleness", "contributors",
    "vector", "buffer", "momentum",
)  # fmt: skip


def test_a_snapshot_of_schema_1_goes_on_as_it_would_have(engine: Engine) -> None:
    """It lacks what its rules did not need."""
    fields = msgpack.unpackb(pack_state(engine))
    old = {name: fields[name] for name in OLD_FIELDS}
    old |= {"schema": 1, "rule": {name: fields["rule"][name] for name in OLD_RULE}}

    assert pack_state(engine) == pack_state(unpack(msgpack.packb(old)))


KEEPING: list[dict[str, object]] = [
    {"strategy": "ca2fl", "buffer_size": 3, "average": 0.9, "optimizer": "yogi", "clip_quantile": 0.3},
    {"strategy": "fedfa", "window": 3, "optimizer": "amsgrad"},
    {"strategy": "fedasync", "mixing": True, "max_staleness": 3, "normalise_staleness": True},
    {"buffer_size": 3, "compensation": "adaptive(0.1)", "delay_limit": 1},
    {"buffer_size": 5, "robust": "krum(1)", "clip_quantile": 0.9},
    {"buffer_size": 3, "rarity": 0.5},
]


@pytest.mark.parametrize("fold", KEEPING, ids=str)
def test_every_part_of_the_state_is_in_the_snapshot(
    new_engine: NewEngine, message: Callable[..., bytes], fold: dict[str, object]
) -> None:
    """What is unpacked has the same parts, bit for bit, and folds on to the same bits."""
    live = new_engine(**fold)
    messages = [
        message(
            "ab"[seq % 2],
            seq,
            base=0,
            delta=0.1 * seq,
            codec="int8" if seq % 3 else "topk(0.3) | ternary | rice",
        )
        for seq in range(1, 16)
    ]

    def feed(engine: Engine, data: list[bytes]) -> None:
        arrivals = [Arrival(client=unpack_update(one).id.client, message=one) for one in data]
        for arrival in arrivals:
            engine.commit(engine.offer([arrival]))

    feed(live, messages[:4])
    other = unpack_state(
        pack_state(live), ledger=live.ledger, admission=AdmissionSettings(), max_update_bytes=10**5
    )
    for part in dataclasses.fields(FoldState):
        one, two = getattr(live.state, part.name), getattr(other.state, part.name)
        if isinstance(one, np.ndarray):
            one, two = (one.dtype, one.tobytes()), (two.dtype, two.tobytes())
        if part.name in ("past", "moments"):
            one, two = str(one), str(two)
        assert one == two, part.name
    before = other.ledger
    assert list(live.state.cache) == list(other.state.cache)
    feed(other, messages[4:])
    other.ledger = before
    live.ledger = Ledger()
    feed(live, messages[4:])

    assert pack_state(live) == pack_state(other)


def test_what_is_no_snapshot_is_refused(engine: Engine) -> None:
    """Cut off, of another shape, or with a field that is missing or wrong."""
    fields = msgpack.unpackb(pack_state(engine))
    changes: list[dict[str, object]] = [
        {"vector": b"123"},
        {"vector": None},
        {"layout": [["w", [1], "int8", "trainable"]]},
        {"layout": 5},
        {"rule": {}},
        {"rule": fields["rule"] | {"staleness": "cubic(1)"}},
        {"refused": 5},
    ]
    damaged = [b"", b"\xc1", pack_state(engine)[:-5], msgpack.packb([1]), msgpack.packb({})]
    damaged += [msgpack.packb(fields | change) for change in changes]
    damaged += [msgpack.packb({k: v for k, v in fields.items() if k != name}) for name in fields]
    for data in damaged:
        with pytest.raises(StoreError, match=r"the snapshot cannot be read .* run fedmq verify"):
            unpack(data)
