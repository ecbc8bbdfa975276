"""Pruning on the device: pruned weights are neither trained nor sent nor owed, and a new mask costs no training."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.evaluator import Evaluator
from fedmq.edge_agent.feedback import encode_with_feedback, give_back
from fedmq.edge_agent.localdata import LocalData
from fedmq.edge_agent.numpy_trainer import MlpTrainer
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.session import RECEIPT_WAIT
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings, OutboxSettings
from fedmq.edge_agent.trainer import Task, TrainResult
from fedmq.edge_agent.update import put_update, take_back
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fedmq import encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.encoding import DecodedVector
from fedmq.envelope import Kind
from fedmq.errors import StoreError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.mask import EncodedMask, Mask
from fedmq.plan import Plan
from fedmq.topics import Topics
from fedmq.transport.base import Delivery, Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import (
    ClientId,
    Frame,
    GlobalModel,
    ModelHead,
    ModelUpdate,
    ModelVersion,
    ObjectRef,
    ParamVector,
    Presence,
    PresenceState,
    Receipt,
    Refusal,
    Rejection,
)

LAYOUT = ParamLayout(
    (
        Segment(name="weight", shape=(6, 5)),
        Segment(name="bias", shape=(6,)),
        Segment(name="mean", shape=(3,), kind=SegmentKind.BUFFER),
    )
)
T = LAYOUT.trainable_size
RNG = np.random.default_rng(8)
PLAN = Plan(
    epoch=1,
    layout=LAYOUT,
    trainer="stubborn",
    codec="topk(0.3) | float32 | rice",
    wait_for_new_version=True,
)
TOPICS = Topics("default")
CLIENT = ClientId("device")
STALE = Refusal(reason=Rejection.STALE, detail="too old")


def mask_of(share: float, layout: ParamLayout = LAYOUT) -> Mask:
    """Prunes the first part of each matrix; a larger one holds the smaller ones."""
    pruned = np.zeros(layout.trainable_size, np.bool_)
    for place in layout.matrices:
        pruned[place.start : place.start + round(share * (place.stop - place.start))] = True
    return Mask.of(layout, pruned)


HALF, MOST = mask_of(0.5), mask_of(0.8)


def decode(update: ModelUpdate, mask: Mask | None) -> DecodedVector:
    """What the aggregator makes of an update, which names just that mask."""
    assert update.mask == (mask.digest if mask is not None else b"")
    return encoding.decode(LAYOUT, parse_pipeline(update.codec), update.payload, mask)


# The trainers.


def never() -> bool:
    """Nobody wants to stop."""
    return False


def test_the_numpy_trainer_keeps_what_is_pruned_at_zero_at_every_step() -> None:
    """Three steps come to what three single steps come to with the mask applied between them."""
    data = LocalData(images=RNG.random((40, 6)).astype(np.float32), labels=RNG.integers(0, 3, 40))
    made = MlpTrainer(data, data, features=6, hidden=5, classes=3, seed=1)
    mask = mask_of(0.5, made.layout)
    task = Task(local_epochs=1, settings={"learning_rate": 0.5, "batch_size": 40}, seed=0, mask=mask)
    base = mask.applied(made.initial())
    stepped, once = base, made.train(base, replace(task, local_epochs=3), never).vector
    for _ in range(3):
        stepped = mask.applied(made.train(stepped, replace(task, mask=None), never).vector)
    unmasked = made.train(base, replace(task, local_epochs=3, mask=None), never).vector

    assert not once[: mask.pruned.size][mask.pruned].any()
    np.testing.assert_allclose(stepped, once, atol=1e-6)
    assert np.abs(mask.applied(unmasked) - once).max() > 1e-3


@pytest.mark.torch
def test_the_torch_trainer_keeps_what_is_pruned_at_zero_at_every_step() -> None:
    """Whatever the optimiser: this one remembers, and would go on without a gradient."""
    pytest.importorskip("torch")  # it is an extra
    import torch
    from fedmq.edge_agent.torch_trainer import TorchTrainer

    seen: list[ParamVector] = []

    class Heavy:
        """Momentum: a pruned weight would go on without a gradient. It notes what it finds."""

        def __init__(self, parameters: Iterable[torch.nn.Parameter], settings: Mapping[str, object]) -> None:
            self._moving = [(parameter, torch.zeros_like(parameter)) for parameter in parameters]

        def zero_grad(self) -> None:
            seen.append(made._read())
            for parameter, _ in self._moving:
                parameter.grad = None

        def step(self) -> None:
            for parameter, momentum in self._moving:
                momentum.mul_(0.9).add_(parameter.grad)
                parameter.data.sub_(momentum, alpha=0.1)

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    batches = [(torch.rand(8, 6), torch.randint(0, 3, (8,))) for _ in range(5)]
    made = TorchTrainer(model, torch.nn.CrossEntropyLoss(), batches, optimizer=Heavy)
    mask = mask_of(0.5, made.layout)
    task = Task(local_epochs=1, settings={}, seed=0, mask=mask)
    result = made.train(mask.applied(made.initial()), task, never)
    head = mask.pruned.size

    assert 5 == len(seen)
    assert all(not vector[:head][mask.pruned].any() for vector in (*seen, result.vector))
    assert (result.vector[:head][~mask.pruned] != seen[0][:head][~mask.pruned]).any()


# The residual (law 8).

numbers = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("text", ["float32", "int8", "topk(0.2) | ternary | rice", "randomk(0.3) | float16"])
@given(
    npst.arrays(np.float32, LAYOUT.size, elements=numbers),
    st.none() | npst.arrays(np.float32, T, elements=numbers),
    npst.arrays(np.bool_, T).filter(lambda pruned: not pruned.all()),
    st.sampled_from([0.0, 5.0]),
)
@settings(max_examples=20)
def test_of_what_is_kept_nothing_is_lost_and_of_what_is_pruned_nothing_stays(
    text: str,
    delta: ParamVector,
    residual: ParamVector | None,
    pruned: NDArray[np.bool_],
    clip_norm: float,
) -> None:
    """Sent + residual' = delta + residual where it is kept; zero where not. What is refused comes back."""
    mask, pipeline = Mask.of(LAYOUT, pruned), parse_pipeline(text)
    encoded = encode_with_feedback(LAYOUT, pipeline, delta, residual, clip_norm, mask)
    sent = encoding.decode(LAYOUT, pipeline, encoded.payload, mask).to_dense()[:T].astype(np.float64)
    expected = np.where(pruned, 0, delta[:T]).astype(np.float64)
    if clip_norm:
        expected *= min(1.0, clip_norm / max(np.linalg.norm(expected), 1e-300))
    if residual is not None:
        expected += np.where(pruned, 0, residual)
    returned = give_back(LAYOUT, pipeline, encoded.payload, encoded.residual, mask)
    tolerance = 1e-6 * (np.abs(sent) + np.abs(expected) + np.abs(encoded.residual)) + 1e-6

    assert (np.abs(sent + encoded.residual - expected) <= tolerance).all()
    assert (np.abs(returned - expected) <= 2 * tolerance).all()
    assert not encoded.residual[pruned].any()
    assert not sent[pruned].any()


def test_a_pruned_coordinate_that_diverged_harms_nobody() -> None:
    """It is not sent, so it need not be finite; the trainer of a user may do with it what it likes."""
    delta = np.ones(LAYOUT.size, np.float32)
    delta[:T][HALF.pruned] = np.nan
    encoded = encode_with_feedback(LAYOUT, parse_pipeline("float32"), delta, None, 0.0, HALF)

    assert np.isfinite(encoded.residual).all()


# The outbox.


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An empty one."""
    outbox = Outbox(tmp_path / "outbox.db")
    yield outbox
    outbox.close()


BASE = GlobalModel(
    epoch=1,
    version=ModelVersion(4),
    layout=LAYOUT,
    vector=MOST.applied(RNG.normal(size=LAYOUT.size).astype(np.float32)),
)
DELTA = RNG.normal(size=LAYOUT.size).astype(np.float32)
RESULT = TrainResult(vector=BASE.vector + DELTA, num_examples=20, local_steps=5)


def put(outbox: Outbox, mask: Mask | None) -> int:
    """An update under a mask."""
    return put_update(outbox, CLIENT, PLAN, BASE, RESULT, mask)


def test_a_mask_is_kept_as_long_as_an_update_under_it(tmp_path: Path) -> None:
    """Once, however many there are, over restarts; and gone with the first update after the last of them."""
    outbox = Outbox(tmp_path / "outbox.db")
    for mask in (None, HALF, HALF, MOST):
        put(outbox, mask)
    outbox.close()
    outbox = Outbox(tmp_path / "outbox.db")
    there = [[outbox.mask(mask.digest) is not None for mask in (HALF, MOST)]]
    for seqs in ((2,), (1, 3), (4, 5, 6)):
        for seq in seqs:
            outbox.forget(seq)
        put(outbox, MOST if 4 not in seqs else None)
        there.append([outbox.mask(mask.digest) is not None for mask in (HALF, MOST)])
    stored = [row[0] for row in outbox._db.execute("SELECT key FROM state WHERE key LIKE '%mask%'")]
    outbox.close()

    assert [[True, True], [True, True], [False, True], [False, False]] == there
    assert [] == stored


def test_a_refused_update_under_an_older_mask_comes_back(outbox: Outbox) -> None:
    """The plan has another by now; what is pruned by then goes with the next update."""
    seq = put(outbox, HALF)
    put(outbox, MOST)
    take_back(outbox, seq, STALE, LAYOUT)
    residual = outbox.residual(LAYOUT.fingerprint)
    sent = decode(wire.unpack_update(outbox.get(2).message), MOST).to_dense()[:T]
    assert residual is not None
    newly = MOST.pruned & ~HALF.pruned
    first = wire.unpack_update(outbox.get(put(outbox, MOST)).message)

    kept = ~MOST.pruned
    np.testing.assert_allclose(2 * DELTA[:T][kept], (sent + residual)[kept], atol=1e-5)
    assert residual[newly].any()
    last = outbox.residual(LAYOUT.fingerprint)
    assert last is not None
    assert not last[MOST.pruned].any()
    assert not decode(first, MOST).to_dense()[:T][MOST.pruned].any()


def test_an_update_whose_mask_is_gone_is_dropped_with_a_word(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that somebody has worked on: it must not stay for ever."""
    seq = put(outbox, HALF)
    before = outbox.residual(LAYOUT.fingerprint)
    outbox._db.execute("DELETE FROM state WHERE key LIKE 'mask %'")
    take_back(outbox, seq, STALE, LAYOUT)

    assert [] == outbox.pending()
    assert "cannot be decoded" in caplog.text
    assert HALF.digest.hex() in caplog.text
    np.testing.assert_array_equal(before, outbox.residual(LAYOUT.fingerprint))


def test_a_disk_without_room_for_the_mask_keeps_neither(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction: an update whose mask is not there could never be taken back."""
    large = EncodedMask(digest=HALF.digest, content=bytes(2**20))
    disk = SimpleNamespace(f_bavail=2**19, f_frsize=1)
    monkeypatch.setattr("os.statvfs", lambda path: disk)
    arguments = {"residual": np.zeros(T, np.float32), "fingerprint": LAYOUT.fingerprint, "created": 0.0}
    outbox.put(b"fits", **arguments)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="No space left"):
        outbox.put(b"fits", mask=large, **arguments)  # type: ignore[arg-type]

    assert [1] == outbox.pending()
    assert outbox.mask(HALF.digest) is None


# The agent.


class Stubborn:
    """A trainer that has never heard of masks; it notes what it is given, and is its own factory."""

    layout = LAYOUT

    def __init__(self) -> None:
        self.bases: list[ParamVector] = []
        self.masks: list[Mask | None] = []
        self.made = 0

    def __call__(self, settings: Mapping[str, object], **own: object) -> "Stubborn":
        self.made += 1
        return self

    def initial(self) -> ParamVector:
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        self.bases.append(base)
        self.masks.append(task.mask)
        return TrainResult(vector=base + DELTA, num_examples=20, local_steps=1)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        self.bases.append(vector)
        return {"loss": 0.0}


class Stage:
    """A broker with a plan, a model and an aggregator of paper, and a device with a trainer that ends when told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 0.0
        self.broker = MemoryBroker(clock=lambda: self.now)
        self.trainer = Stubborn()
        self.work: list[Callable[[], None]] = []
        self.vector = RNG.normal(size=LAYOUT.size).astype(np.float32)
        self.ears = MemoryTransport(self.broker, "aggregator")
        self.ears.start()
        self.ears.subscribe(TOPICS.updates("0"))
        self.heard: list[ModelUpdate] = []
        online = Presence(state=PresenceState.ONLINE, boot=1, epoch=1)
        self.retain(TOPICS.aggregator("0"), wire.pack_presence(Kind.AGGREGATOR, online))
        self.join()

    def join(self) -> None:
        """A life of the device."""
        self.outbox = Outbox(self.folder / "outbox.db")
        settings = AgentSettings(client=CLIENT, outbox=OutboxSettings(folder=self.folder))
        self.agent = Agent(
            settings, self.outbox, self.connect, self.trainer, lambda: self.now, spawn=self.work_later
        )
        self.agent.transport.start()

    def connect(self, client_id: str, will: Will | None = None) -> MemoryTransport:
        return MemoryTransport(self.broker, client_id, will=will, clean_start=True, session_expiry=0)

    def work_later(self, work: Callable[[], None]) -> Callable[[], None]:
        self.work.append(work)
        return lambda: None

    def retain(self, topic: str, payload: bytes) -> None:
        self.broker.publish(topic, payload, retain=True, expiry=None)

    def plan(self, mask: Mask | None, **changes: object) -> None:
        """Publish the plan with a mask."""
        encoded = mask.encoded if mask is not None else None
        self.retain(TOPICS.plan, wire.pack_plan(replace(PLAN, mask=encoded, **changes)))  # type: ignore[arg-type]
        self.settle()

    def model(self, version: int) -> None:
        """Publish the model as a version."""
        content = encoding.encode(LAYOUT, parse_pipeline("float32"), self.vector)
        ref = ObjectRef(id=encoding.object_id(content), size=len(content), chunks=1)
        head = ModelHead(
            epoch=1,
            version=ModelVersion(version),
            fingerprint=LAYOUT.fingerprint,
            frames=(Frame(codec="float32", content=ref),),
            delta=None,
            digest=encoding.digest(self.vector),
        )
        self.retain(TOPICS.object(ref.id, 0), content)
        self.retain(TOPICS.model, wire.pack_head(head))
        self.settle()

    def settle(self) -> None:
        """Let the device do what there is to do, but for the training; no receipt comes."""
        for _ in range(20):
            self.agent.turn()
        self.now += RECEIPT_WAIT
        for _ in range(20):
            self.agent.turn()
        while (event := self.ears.poll(0)) is not None:
            if isinstance(event, Delivery):
                event.ack()
                self.heard.append(wire.unpack_update(event.payload))

    def finish(self) -> ModelUpdate:
        """The training ends; the update that comes of it."""
        before = len(self.heard)
        self.work.pop(0)()
        self.settle()
        assert before + 1 == len(self.heard)
        return self.heard[-1]

    def leave(self) -> None:
        """The device goes."""
        self.broker.disconnect(f"default-client-{CLIENT}")
        self.agent.transport.close()
        self.outbox.close()
        self.agent._events.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Without plan and model yet."""
    made = Stage(tmp_path)
    yield made
    made.leave()
    made.ears.close()


def test_a_trainer_begins_without_what_is_pruned_and_cannot_bring_it_back(stage: Stage) -> None:
    """The base has zeros although the model has none, and the update holds nothing there, nor does the residual."""
    stage.plan(HALF)
    stage.model(1)
    decoded = decode(stage.finish(), HALF)
    (base,), (mask,) = stage.trainer.bases, stage.trainer.masks
    residual = stage.outbox.residual(LAYOUT.fingerprint)

    assert mask is not None
    assert HALF.digest == mask.digest
    assert HALF.applied(stage.vector).tolist() == base.tolist()
    assert not base.flags.writeable
    assert round(0.3 * (T - HALF.count)) == np.count_nonzero(decoded.trainable.values)
    assert residual is not None
    assert not (decoded.to_dense()[:T] + residual)[HALF.pruned].any()
    np.testing.assert_allclose(
        DELTA[:T][~HALF.pruned], (decoded.to_dense()[:T] + residual)[~HALF.pruned], atol=1e-6
    )


def test_training_that_was_begun_under_another_mask_is_not_thrown_away(stage: Stage) -> None:
    """It goes out under the new one, and the trainer is not made anew for it."""
    stage.plan(HALF)
    stage.model(1)
    stage.plan(MOST)
    update = stage.finish()
    stage.model(2)
    stage.finish()

    assert not decode(update, MOST).to_dense()[:T][MOST.pruned].any()
    assert 1 == stage.trainer.made
    assert [HALF.digest, MOST.digest] == [mask.digest for mask in stage.trainer.masks if mask is not None]
    assert MOST.applied(stage.vector).tolist() == stage.trainer.bases[1].tolist()


def test_a_mask_that_comes_while_the_device_waits_for_a_version_holds_from_then_on(stage: Stage) -> None:
    """From no mask to one."""
    stage.plan(None)
    stage.model(1)
    first = stage.finish()
    stage.plan(HALF)
    stage.model(2)
    second = stage.finish()

    assert b"" == first.mask
    assert not decode(second, HALF).to_dense()[:T][HALF.pruned].any()


def test_a_mask_that_is_none_is_ignored_and_work_goes_on(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """In a plan that differs in nothing else; the one before holds on."""
    stage.plan(HALF)
    stage.model(1)
    hostile = EncodedMask(digest=bytes(8), content=b"\x00\xff\xff\xff\xff\x0f")
    stage.retain(TOPICS.plan, wire.pack_plan(replace(PLAN, mask=hostile)))
    stage.settle()
    update = stage.finish()

    assert HALF.digest == update.mask
    assert "ignored a message on fedmq/v1/default/plan: mask: " in caplog.text


def test_another_plan_whose_mask_is_none_is_refused_as_a_whole(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The device says so, and works again with the next one."""
    caplog.set_level(logging.ERROR)
    hostile = EncodedMask(digest=bytes(8), content=b"\x02\x00")
    stage.retain(TOPICS.plan, wire.pack_plan(replace(PLAN, mask=hostile)))
    stage.model(1)
    assert [] == stage.work
    assert "this device cannot satisfy the plan: mask: " in caplog.text
    stage.plan(HALF)

    assert HALF.digest == stage.finish().mask


@pytest.mark.parametrize("restart", [False, True])
def test_an_update_that_is_refused_for_its_mask_returns_to_the_residual(stage: Stage, restart: bool) -> None:
    """Also when the device has been away since, and knows of the old mask from its disk only."""
    stage.plan(HALF)
    stage.model(1)
    stage.finish()
    if restart:
        stage.leave()
        stage.join()
    stage.plan(MOST)
    refusal = Refusal(reason=Rejection.UNKNOWN_MASK, detail=HALF.digest.hex())
    receipt = Receipt(client=CLIENT, epoch=stage.outbox.epoch, high_water=1, refused=((1, refusal),))
    stage.retain(TOPICS.receipt(CLIENT), wire.pack_receipt(receipt))
    stage.settle()
    residual = stage.outbox.residual(LAYOUT.fingerprint)

    assert [] == stage.outbox.pending()
    assert residual is not None
    np.testing.assert_allclose(np.where(HALF.pruned, 0, DELTA[:T]), residual, atol=1e-6)


def test_an_evaluator_measures_the_pruned_model(stage: Stage) -> None:
    """With the plan's mask over it, and over a plan's change of nothing else."""
    meter = Stubborn()
    evaluator = Evaluator(EvaluatorSettings(min_interval=0.0), stage.connect, meter, lambda: 0.0)
    evaluator.transport.start()
    for version, mask in enumerate((None, HALF, MOST), 1):
        stage.plan(mask)
        stage.model(version)
        for _ in range(20):
            evaluator.turn()
    evaluator.transport.close()
    expected = [stage.vector, HALF.applied(stage.vector), MOST.applied(stage.vector)]

    assert 1 == meter.made
    assert [vector.tolist() for vector in expected] == [base.tolist() for base in meter.bases]
