"""From a trainer's result to the outbox, and back when the update is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.trainer import TrainerError, TrainResult
from fedmq.edge_agent.update import put_update, take_back

from fedmq import encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.errors import CodecError, StoreError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.plan import Plan
from fedmq.types import ClientId, GlobalModel, ModelVersion, ParamVector, Refusal, Rejection

LAYOUT = ParamLayout(
    (Segment(name="weight", shape=(50,)), Segment(name="mean", shape=(2,), kind=SegmentKind.BUFFER))
)
PLAN = Plan(epoch=1, layout=LAYOUT, trainer="mlp", codec="topk(0.1) | ternary | rice")
RNG = np.random.default_rng(3)
BASE = GlobalModel(
    epoch=8, version=ModelVersion(4), layout=LAYOUT, vector=RNG.normal(size=52).astype(np.float32)
)
DELTA = RNG.normal(size=52).astype(np.float32)
CLIENT = ClientId("device")
STALE = Refusal(reason=Rejection.STALE, detail="101 versions old")


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An empty one."""
    outbox = Outbox(tmp_path / "outbox.db")
    yield outbox
    outbox.close()


def result(delta: ParamVector = DELTA) -> TrainResult:
    """What a trainer brings back."""
    return TrainResult(vector=BASE.vector + delta, num_examples=20, local_steps=5, metrics={"loss": 0.5})


def residual(outbox: Outbox, layout: ParamLayout = LAYOUT) -> ParamVector:
    """What stays behind."""
    found = outbox.residual(layout.fingerprint)
    assert found is not None
    return found


def test_an_envelope_says_all_that_the_aggregator_judges_by(outbox: Outbox) -> None:
    """Each field of it; staleness is carried, not guessed (law 5)."""
    put_update(outbox, CLIENT, PLAN, BASE, result())
    seq = put_update(outbox, CLIENT, PLAN, BASE, result())
    update = wire.unpack_update(outbox.get(seq).message)

    assert (2, 1) == (update.id.seq, update.floor)
    assert (CLIENT, outbox.epoch) == (update.id.client, update.id.epoch)
    assert (8, 4) == (update.model_epoch, update.base_version)
    assert LAYOUT.fingerprint == update.fingerprint
    assert (20, 5) == (update.num_examples, update.local_steps)
    assert PLAN.codec == update.codec
    assert (("loss", 0.5),) == update.metrics


def test_numpy_s_numbers_are_numbers(outbox: Outbox) -> None:
    """Trainers count with them; msgpack would not take them."""
    counted = TrainResult(vector=BASE.vector + DELTA, num_examples=np.int64(20), local_steps=np.int32(5))  # type: ignore[arg-type]
    update = wire.unpack_update(outbox.get(put_update(outbox, CLIENT, PLAN, BASE, counted)).message)

    assert (20, 5) == (update.num_examples, update.local_steps)


def test_the_residual_of_one_update_goes_into_the_next(outbox: Outbox) -> None:
    """Two updates and what they leave behind are together two deltas."""
    total = np.zeros(50)
    for _ in range(2):
        seq = put_update(outbox, CLIENT, PLAN, BASE, result())
        update = wire.unpack_update(outbox.get(seq).message)
        total += encoding.decode(LAYOUT, parse_pipeline(update.codec), update.payload).trainable.to_dense()

    np.testing.assert_allclose(2 * DELTA[:50], total + residual(outbox), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 51])
def test_what_diverged_is_refused_and_leaves_no_trace(outbox: Outbox, value: float, at: int) -> None:
    """In a parameter or a buffer."""
    delta = DELTA.copy()
    delta[at] = value

    with pytest.raises(CodecError, match="learning rate"):
        put_update(outbox, CLIENT, PLAN, BASE, result(delta))
    assert 0 == len(outbox)
    assert outbox.residual(LAYOUT.fingerprint) is None


def test_a_difference_that_overflows_is_refused_alike(outbox: Outbox) -> None:
    """Two finite vectors whose difference is none."""
    far = replace(BASE, vector=np.full(52, -3e38, np.float32))

    with pytest.raises(CodecError, match="learning rate"):
        put_update(outbox, CLIENT, PLAN, far, result(np.full(52, 3e38, np.float32)))


def test_an_update_beyond_the_plan_s_bound_is_refused(outbox: Outbox) -> None:
    """By its size in bytes, and with the codec that makes it so large."""
    with pytest.raises(CodecError, match=r"codec float32 makes an update of \d+ bytes, the plan allows 100"):
        put_update(outbox, CLIENT, replace(PLAN, codec="float32", max_update_bytes=100), BASE, result())
    assert 0 == len(outbox)


def test_a_vector_of_another_length_is_the_trainer_s_error(outbox: Outbox) -> None:
    """With both lengths."""
    wrong = TrainResult(vector=np.zeros(51, np.float32), num_examples=1, local_steps=1)

    with pytest.raises(TrainerError, match=r"shape \(51,\), the model has \(52,\)"):
        put_update(outbox, CLIENT, PLAN, BASE, wrong)


def test_a_refused_update_returns_to_the_residual(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    """Everything that was learned is there again."""
    seq = put_update(outbox, CLIENT, PLAN, BASE, result())
    take_back(outbox, seq, STALE, LAYOUT)

    assert [] == outbox.pending()
    np.testing.assert_allclose(DELTA[:50], residual(outbox), atol=1e-6)
    assert "update 1 was refused, its content returns to the residual: stale: 101 versions old" in caplog.text


@pytest.mark.parametrize("reason", [Rejection.NORM, Rejection.NOT_FINITE])
def test_what_diverged_does_not_return(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, reason: Rejection
) -> None:
    """A residual beyond all bounds would have every later update refused, for ever."""
    seq = put_update(outbox, CLIENT, PLAN, BASE, result(DELTA * 1e9))
    take_back(outbox, seq, Refusal(reason=reason), LAYOUT)

    assert [] == outbox.pending()
    assert not residual(outbox).any()
    assert "it and the residual are dropped" in caplog.text
    put_update(outbox, CLIENT, PLAN, BASE, result())
    assert np.abs(residual(outbox)).max() < 10


def test_an_update_of_another_model_is_dropped(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    """And the log says so: its content fits nowhere any more."""
    seq = put_update(outbox, CLIENT, PLAN, BASE, result())
    before = residual(outbox)
    take_back(outbox, seq, STALE, ParamLayout((Segment(name="weight", shape=(7,)),)))

    assert [] == outbox.pending()
    assert "it is of another model" in caplog.text
    np.testing.assert_array_equal(before, residual(outbox))


def test_an_update_whose_residual_is_of_another_model_is_dropped(outbox: Outbox) -> None:
    """The device has worked on something else since."""
    other = ParamLayout((Segment(name="weight", shape=(7,)),))
    model = GlobalModel(epoch=8, version=ModelVersion(1), layout=other, vector=np.zeros(7, np.float32))
    seq = put_update(outbox, CLIENT, PLAN, BASE, result())
    trained = TrainResult(vector=np.ones(7, np.float32), num_examples=1, local_steps=1)
    put_update(outbox, CLIENT, replace(PLAN, layout=other), model, trained)
    take_back(outbox, seq, STALE, LAYOUT)

    assert [2] == outbox.pending()
    assert outbox.residual(LAYOUT.fingerprint) is None
    assert (7,) == residual(outbox, other).shape


@pytest.mark.parametrize("damage", ["envelope", "payload", "codec"])
def test_an_update_that_cannot_be_decoded_is_dropped(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A bit flipped on the disk, or a codec's package was removed: it must not stay for ever."""
    put_update(outbox, CLIENT, PLAN, BASE, result())
    update = wire.unpack_update(outbox.get(1).message)
    message = {
        "envelope": b"\xff" * 60,
        "payload": wire.pack_update(replace(update, payload=b"\xff" * 60)),
        "codec": wire.pack_update(replace(update, codec="removed")),
    }[damage]
    seq = outbox.put(message, residual=residual(outbox), fingerprint=LAYOUT.fingerprint, created=0.0)
    before = residual(outbox)
    take_back(outbox, seq, STALE, LAYOUT)

    assert [1] == outbox.pending()
    assert "it cannot be decoded" in caplog.text
    np.testing.assert_array_equal(before, residual(outbox))


def test_a_disk_that_refuses_leaves_the_update_where_it_is(outbox: Outbox) -> None:
    """The receipt will be tried again."""
    seq = put_update(outbox, CLIENT, PLAN, BASE, result())
    before = residual(outbox)
    outbox._db.execute("PRAGMA query_only = ON")

    with pytest.raises(StoreError):
        take_back(outbox, seq, STALE, LAYOUT)
    assert [seq] == outbox.pending()
    np.testing.assert_array_equal(before, residual(outbox))
