"""Pruning: which weights go and when, that they stay at zero, and that live and recovered prune alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator import judgement, pruning, strategy
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.decision import Arrival, Record
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.export import export_store
from fedmq.aggregator.ledger import Key, Ledger
from fedmq.aggregator.pruning import KEPT_MASKS, PruneSettings, Pruning, make_pruning, parse_pruning
from fedmq.aggregator.recovery import recover
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.state import pack_state, unpack_state
from fedmq.aggregator.store import ChunkChanges, Store
from fedmq.aggregator.strategy import FoldSettings, make_rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq import encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.errors import SettingError, StoreError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.mask import Mask
from fedmq.modelfile import load_model, save_model
from fedmq.topics import Topics
from fedmq.transport.base import Delivery, Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import ClientId, ModelUpdate, ModelVersion, ParamVector, Receipt, Rejection, UpdateId

LAYOUT = ParamLayout(
    (
        Segment(name="a.bias", shape=(4,)),
        Segment(name="a.weight", shape=(4, 5)),
        Segment(name="b.weight", shape=(5, 4)),
        Segment(name="mean", shape=(2,), kind=SegmentKind.BUFFER),
    )
)
MATRICES = np.concatenate([np.arange(place.start, place.stop) for place in LAYOUT.matrices])
T, PRUNABLE = LAYOUT.trainable_size, 40
EPOCH, OUTBOX = 1001, 7
#: A step at each version from 1 to 8, to three quarters.
STEEP = Pruning("cubic", (0.75, 0.0, 8.0, 1.0))
INITIAL = np.random.default_rng(4).normal(size=LAYOUT.size).astype(np.float32)


def new_engine(schedule: Pruning | None = STEEP, vector: ParamVector = INITIAL, **fold: object) -> Engine:
    """An engine that prunes, by default one update a version; arguments are those of `FoldSettings`."""
    options = {"strategy": "fedasync", "staleness": "constant", "learning_rate": 1.0} | fold
    rule = replace(make_rule(FoldSettings(**options)), pruning=schedule)  # type: ignore[arg-type]
    return Engine(
        epoch=EPOCH,
        layout=LAYOUT,
        rule=rule,
        state=strategy.init(rule, vector),
        ledger=Ledger(),
        admission=AdmissionSettings(),
        max_update_bytes=100_000,
    )


def message(
    seq: int,
    delta: float | NDArray[np.floating] = 0.25,
    *,
    client: str = "a",
    mask: Mask | None = None,
    base: int = 0,
    codec: str = "float32",
    epoch: int = EPOCH,
) -> bytes:
    """An update under a mask."""
    vector = np.broadcast_to(np.asarray(delta, np.float32), LAYOUT.size).copy()
    return wire.pack_update(
        ModelUpdate(
            id=UpdateId(client=ClientId(client), epoch=OUTBOX, seq=seq),
            floor=max(1, seq - 200),
            model_epoch=epoch,
            base_version=ModelVersion(base),
            fingerprint=LAYOUT.fingerprint,
            num_examples=10,
            local_steps=1,
            codec=codec,
            payload=encoding.encode(LAYOUT, parse_pipeline(codec), vector, mask),
            mask=mask.digest if mask is not None else b"",
        )
    )


def fold(engine: Engine, *messages: bytes) -> tuple[Record, ...]:
    """All in one batch."""
    arrivals = [Arrival(client=wire.unpack_update(data).id.client, message=data) for data in messages]
    decision = engine.offer(arrivals)
    engine.commit(decision)
    return decision.records


def pruned(engine: Engine) -> set[int]:
    """The coordinates that the mask prunes."""
    return set(np.flatnonzero(engine.mask.pruned).tolist()) if engine.mask is not None else set()


# When.


def test_the_share_follows_the_paper_s_equation() -> None:
    """Equation 1 at the points that are easily done by hand; between two steps the former holds."""
    schedule = Pruning("cubic", (0.8, 10.0, 50.0, 10.0))
    shares = [schedule.share(version) for version in (0, 9, 10, 19, 20, 29, 30, 40, 50, 51, 10**9)]
    quarter, half, most = 0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3)

    assert [0, 0, 0, 0, quarter, quarter, half, most, 0.8, 0.8, 0.8] == shares


@given(st.floats(0.01, 0.99), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50), st.integers(0, 120))
def test_the_share_never_falls_and_ends_where_it_is_asked_to(
    sparsity: float, begin: int, length: int, every: int, version: int
) -> None:
    """Also where `every` does not divide the way."""
    schedule = Pruning("cubic", (sparsity, float(begin), float(begin + length), float(min(every, length))))

    assert 0 <= schedule.share(version) <= schedule.share(version + 1) <= sparsity
    assert sparsity == schedule.share(begin + length)
    assert 0 == schedule.share(begin)


def test_settings_become_a_schedule_and_a_schedule_its_text() -> None:
    """Nothing is pruned by default; a snapshot keeps every digit."""
    schedule = make_pruning(PruneSettings(sparsity=0.1 + 0.2, begin=3, end=9, every=2))

    assert make_pruning(PruneSettings()) is None
    assert schedule == parse_pruning(str(schedule)) == Pruning("cubic", (0.1 + 0.2, 3.0, 9.0, 2.0))
    assert parse_pruning("none") is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sparsity": 1.0}, r"prune.sparsity = 1.0 .* below 1 is allowed"),
        ({"begin": 20, "end": 20}, r"prune.end = 20 .* behind prune.begin, which is 20"),
        ({"begin": 20, "end": 29, "every": 10}, r"prune.every = 10 .* at most the 9 versions"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, float], reason: str) -> None:
    """With what to change."""
    with pytest.raises(SettingError, match=reason):
        make_pruning(PruneSettings(**{"sparsity": 0.5} | given))  # type: ignore[arg-type]


# What.


def test_the_smallest_of_all_matrices_go_and_nothing_else() -> None:
    """Not the smallest of each; no bias and no buffer, however small."""
    vector = np.zeros(LAYOUT.size, np.float32)
    vector[MATRICES] = np.linspace(1, 2, PRUNABLE, dtype=np.float32)
    vector[MATRICES[::7]] *= -1
    engine = new_engine(Pruning("cubic", (0.5, 0.0, 1.0, 1.0)), vector)
    fold(engine, message(1, 0))

    assert set(MATRICES[:20].tolist()) == pruned(engine)
    assert 20 == np.count_nonzero(engine.state.vector)


def test_equal_magnitudes_go_by_their_index() -> None:
    """So that any machine chooses the same; zeros are the smallest."""
    vector = np.ones(LAYOUT.size, np.float32)
    vector[MATRICES[[30, 31]]] = -0.5, 0
    engine = new_engine(Pruning("cubic", (0.1, 0.0, 1.0, 1.0)), vector)
    fold(engine, message(1, 0))

    assert set(MATRICES[[0, 1, 30, 31]].tolist()) == pruned(engine)


@given(st.lists(st.floats(-3, 3, width=32), min_size=10, max_size=10))
@settings(max_examples=20)
def test_what_was_pruned_stays_pruned_and_at_zero(scales: list[float]) -> None:
    """Whatever is folded: each mask holds the one before, and each is as large as the schedule says."""
    engine = new_engine(strategy="fedbuff", buffer_size=1, momentum=0.9, average=0.5)
    delta = np.random.default_rng(1).normal(size=LAYOUT.size)
    before: set[int] = set()
    for seq, scale in enumerate(scales, 1):
        fold(engine, message(seq, scale * delta, base=seq - 1))

        assert before <= pruned(engine)
        assert int(STEEP.share(seq) * PRUNABLE) == len(pruned(engine))
        before = pruned(engine)
        for vector in (engine.state.vector, engine.state.average, engine.state.momentum, engine.model.vector):
            assert not vector[sorted(before)].any()
    assert 30 == len(before)


# Under which mask an update is.


def test_a_late_update_is_folded_on_what_is_still_kept() -> None:
    """Under the mask before, and under none: what it says of weights that were pruned since is dropped."""
    engine = new_engine()
    fold(engine, message(1, 0))
    old = engine.mask
    fold(engine, message(2, 0, mask=old))
    now, before = engine.mask, engine.state.vector.copy()
    assert old is not None
    assert now is not None
    frozen = np.zeros(T, np.bool_)
    frozen[:] = now.pruned
    engine.rule = replace(engine.rule, pruning=None)
    records = fold(engine, message(3, 0.25, mask=old), message(4, 0.25))
    expected = before + np.float32(0.5)
    expected[:T][frozen] = 0

    assert [None, None] == [record.refusal for record in records]
    assert old.count < now.count
    np.testing.assert_allclose(expected, engine.state.vector, rtol=1e-6)
    assert not engine.state.vector[:T][frozen].any()


def test_a_mask_that_nobody_knows_is_refused() -> None:
    """By its digest; nothing is decoded."""
    engine = new_engine()
    fold(engine, message(1, 0))
    other = Mask.of(LAYOUT, np.arange(T) == 5)
    (record,) = fold(engine, message(2, 0.5, mask=other))

    assert record.refusal is not None
    assert Rejection.UNKNOWN_MASK is record.refusal.reason
    assert other.digest.hex() in record.refusal.detail


def test_a_payload_that_is_longer_than_its_mask_allows_is_refused() -> None:
    """Every coordinate of the model, in the name of a mask that keeps fewer."""
    engine = new_engine()
    fold(engine, message(1, 0))
    assert engine.mask is not None
    whole = wire.unpack_update(message(2, 0.5))
    (record,) = fold(engine, wire.pack_update(replace(whole, mask=engine.mask.digest)))

    assert record.refusal is not None
    assert Rejection.BAD_PAYLOAD is record.refusal.reason


def test_masks_of_the_past_are_admitted_until_so_many_have_followed() -> None:
    """Then the update is refused, and its client takes its content back."""
    engine = new_engine(Pruning("cubic", (0.9, 0.0, 30.0, 1.0)))
    masks: list[Mask] = []
    for seq in range(1, 31):
        fold(engine, message(seq, 0))
        if engine.mask is not None and engine.mask not in masks:
            masks.append(engine.mask)
    records = [fold(engine, message(100 + age, 0, mask=mask))[0] for age, mask in enumerate(reversed(masks))]
    refusals = [record.refusal.reason if record.refusal else None for record in records]

    assert len(masks) > KEPT_MASKS + 3
    assert masks[-KEPT_MASKS - 1 :] == engine.state.masks
    assert [None] * (KEPT_MASKS + 1) == refusals[: KEPT_MASKS + 1]
    assert {Rejection.UNKNOWN_MASK} == set(refusals[KEPT_MASKS + 1 :])


def test_a_batch_is_judged_by_the_masks_that_are_left_when_it_is_folded() -> None:
    """Its first updates may prune so often that the mask of its last is forgotten by then."""
    engine = new_engine(Pruning("cubic", (0.9, 0.0, 30.0, 1.0)))
    fold(engine, message(1, 0))
    first = engine.mask
    batch = [message(seq, 0) for seq in range(2, KEPT_MASKS + 2)]
    records = fold(engine, *batch, message(50, 0, mask=first), message(51, 0, mask=first))

    assert [True, False] == [record.refusal is None for record in records[-2:]]


def test_an_update_that_is_kept_is_decoded_under_its_own_mask() -> None:
    """However many masks have followed: CA2FL takes a client's last update out of its sum when the next one comes."""
    steps = KEPT_MASKS + 4
    schedule = Pruning("cubic", (0.9, 0.0, float(steps), 1.0))
    engine = new_engine(schedule, strategy="ca2fl", memory=1, buffer_size=1)
    fold(engine, message(1, 0.5))
    fold(engine, message(2, 0.5, mask=engine.mask))
    for seq in range(1, steps):
        fold(engine, message(seq, 0.125, client="b", mask=engine.mask))
    assert len(engine.state.masks) == KEPT_MASKS + 2
    fold(engine, message(3, 0.25, mask=engine.mask))
    kept = np.flatnonzero(engine.state.vector)
    total = engine.state.total

    assert 0 == engine.tally.refused.total()
    assert [0.375] * kept.size == total[kept].tolist()
    assert not total[sorted(pruned(engine))].any()


# Law 2.

RULES: list[dict[str, object]] = [
    {"strategy": "fedbuff", "buffer_size": 2, "momentum": 0.9, "average": 0.9},
    {"strategy": "fedbuff", "buffer_size": 2, "optimizer": "adam"},
    {"strategy": "fadas", "buffer_size": 1, "compensation": "adaptive(0.3)", "max_staleness": 3},
    {"strategy": "fedasync", "mixing": True, "max_staleness": 3},
    {"strategy": "ca2fl", "buffer_size": 2, "max_staleness": 4, "optimizer": "yogi"},
    {"strategy": "fedfa", "window": 3},
    {"strategy": "fedbuff", "buffer_size": 3, "robust": "median", "clip_quantile": 0.9},
    {"strategy": "fedbuff", "buffer_size": 3, "robust": "geometric"},
]
updates = st.tuples(
    st.sampled_from("abc"), st.integers(0, 12), st.floats(-2, 2, width=32),
    st.sampled_from(["float32", "int8", "topk(0.3) | ternary | rice", "randomk(0.3) | float16"]),
)  # fmt: skip


class Disk:
    """What survives a crash: a snapshot, the journal, the ledger. Everything passes through its bytes."""

    def __init__(self, engine: Engine) -> None:
        self.snapshot = pack_state(engine)
        self.journal: list[Record] = []
        self.receipts: dict[Key, Receipt] = {}

    def recover(self) -> Engine:
        """A new process."""
        engine = unpack_state(
            self.snapshot,
            ledger=Ledger(self.receipts.values()),
            admission=AdmissionSettings(),
            max_update_bytes=100_000,
        )
        engine.replay(self.journal[engine.position :])
        return engine


@pytest.mark.parametrize(("kept_masks", "decoded_bytes"), [(1, 0), (8, 2**20)])
@pytest.mark.parametrize("rule", RULES, ids=str)
@given(st.lists(st.lists(updates, max_size=12), min_size=1, max_size=5), st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_recovery_equals_live_with_a_mask_in_motion(
    monkeypatch: pytest.MonkeyPatch,
    rule: dict[str, object],
    kept_masks: int,
    decoded_bytes: int,
    batches: list[list[tuple[str, int, float, str]]],
    data: st.DataObject,
) -> None:
    """Updates under any mask that there was, several steps within a batch, snapshots and restarts anywhere (law 2).

    And wherever it stops, nothing is left of a weight that is pruned.
    """
    monkeypatch.setattr(pruning, "KEPT_MASKS", kept_masks)
    monkeypatch.setattr(judgement, "_MAX_DECODED", decoded_bytes)
    live = new_engine(Pruning("cubic", (0.9, 0.0, 14.0, 1.0)), **rule)
    disk = Disk(live)
    delta = np.random.default_rng(2).normal(size=LAYOUT.size)
    seen: list[Mask | None] = [None]
    seqs = dict.fromkeys("abc", 0)
    for batch in batches:
        arrivals = []
        for client, age, scale, codec in batch:
            seqs[client] += 1
            mask = seen[max(-len(seen), -1 - age)]
            body = message(
                seqs[client], scale * delta, client=client, mask=mask, codec=codec, base=live.state.version
            )
            arrivals.append(Arrival(client=client, message=body))
        decision = live.offer(arrivals)
        disk.journal += [replace(record, delta=None) for record in decision.records]
        disk.receipts.update(decision.receipts)
        live.commit(decision)
        if live.mask is not None and live.mask is not seen[-1]:
            seen.append(live.mask)

        assert pack_state(live) == pack_state(disk.recover())
        gone, state = sorted(pruned(live)), live.state
        for vector in (state.vector, state.buffer, state.average, state.moments.first, state.moments.second,
                       state.moments.peak, state.squares, state.total, state.mean, *state.past):  # fmt: skip
            assert not (vector.size and vector[gone].any())
        if data.draw(st.booleans(), label="snapshot"):
            disk.snapshot = pack_state(live)
        if data.draw(st.booleans(), label="restart"):
            live = disk.recover()


def test_a_snapshot_whose_mask_is_damaged_is_of_no_use() -> None:
    """Under a right hash, for one from a defective release."""
    engine = new_engine()
    fold(engine, message(1, 0))
    assert engine.mask is not None
    content = engine.mask.encoded.content
    damaged = pack_state(engine).replace(content, content[:-1] + b"\xff")

    with pytest.raises(StoreError, match="the snapshot cannot be read"):
        unpack_state(damaged, ledger=Ledger(), admission=AdmissionSettings(), max_update_bytes=1)


def test_a_journal_whose_mask_is_gone_is_a_store_error() -> None:
    """It could not be folded to the same bits."""
    engine = new_engine()
    fold(engine, message(1, 0))
    (record,) = fold(engine, message(2, 0, mask=engine.mask))
    fresh = new_engine()
    fresh.position, fresh.state.version = record.position - 1, record.version

    with pytest.raises(StoreError, match="cannot be decoded any more"):
        fresh.replay([replace(record, delta=None)])


# In a store.


@pytest.fixture
def options(tmp_path: Path) -> AggregatorSettings:
    """A store that is not there yet."""
    model = tmp_path / "model.safetensors"
    save_model(model, LAYOUT, INITIAL)
    return AggregatorSettings(
        model=model,
        fold=FoldSettings(buffer_size=1),
        prune=PruneSettings(sparsity=0.75, begin=0, end=8, every=1),
        store=StoreSettings(path=tmp_path / "aggregator.db", batch_delay=0.0),
    )


def live_on(options: AggregatorSettings, *deltas: float) -> Engine:
    """One life of an aggregator without its network, which folds some updates and dies."""
    store = Store(options.store.path)
    try:
        engine = recover(options, store)
        for delta in deltas:
            seq = engine.position + 1
            data = message(seq, delta, base=engine.state.version, epoch=engine.epoch, mask=engine.mask)
            decision = engine.offer([Arrival(client="a", message=data)])
            store.append(decision.records, decision.receipts, ChunkChanges(), 1.0)
            engine.commit(decision)
        return engine
    finally:
        store.close()


def test_a_store_goes_on_with_its_mask(options: AggregatorSettings) -> None:
    """Recovered from the journal, bit for bit."""
    first = live_on(options, 0.1, 0.2, 0.3)
    second = live_on(options)

    assert pack_state(first) == pack_state(second)
    assert 3 == len(second.state.masks)


def test_a_changed_schedule_holds_from_the_restart_on(options: AggregatorSettings) -> None:
    """A higher share is pruned at once; no pruning any more leaves what there is, and so does a lower share."""
    first = live_on(options, 0.1, 0.2, 0.3)
    more = live_on(replace(options, prune=PruneSettings(sparsity=0.9, begin=0, end=2, every=1)))
    off = live_on(replace(options, prune=PruneSettings()), 0.1, 0.1)
    less = live_on(replace(options, prune=PruneSettings(sparsity=0.1, begin=0, end=2, every=1)), 0.1)

    assert pruned(first) < pruned(more) == pruned(off) == pruned(less)
    assert 36 == len(pruned(more))
    assert not less.state.vector[sorted(pruned(more))].any()


def test_a_model_without_matrices_cannot_be_pruned(options: AggregatorSettings) -> None:
    """The operator is told, and nothing is begun."""
    assert options.model is not None
    save_model(options.model, ParamLayout((Segment(name="w", shape=(40,)),)), np.zeros(40, np.float32))

    with pytest.raises(SettingError, match=r"prune.sparsity = 0.75 .* no trainable tensor of two"):
        live_on(options)


def test_the_exported_model_is_really_sparse(options: AggregatorSettings) -> None:
    """Exact zeros; the file without them is loaded to the same bits, and is smaller."""
    engine = live_on(options, *[0.1] * 8)
    folder = options.store.path.parent
    dense = export_store(options.store.path, folder / "dense.safetensors")
    sparse = export_store(options.store.path, folder / "sparse.safetensors", sparse=True)
    layout, vector = load_model(folder / "sparse.safetensors")

    assert dense == sparse
    assert (8, 0.75) == (sparse.version, sparse.sparsity)
    assert [dense.dense_bytes, dense.sparse_bytes] == [
        (folder / f"{name}.safetensors").stat().st_size for name in ("dense", "sparse")
    ]
    assert LAYOUT.fingerprint == layout.fingerprint
    assert engine.state.vector.tobytes() == vector.tobytes()
    assert vector.tobytes() == load_model(folder / "dense.safetensors")[1].tobytes()
    assert 30 == np.count_nonzero(vector[MATRICES] == 0)


# In the shell.


@pytest.fixture
def service(options: AggregatorSettings) -> Iterator[tuple[Service, MemoryBroker]]:
    """An aggregator in memory that has greeted."""
    broker = MemoryBroker(clock=lambda: 0.0)

    def connect(client_id: str, will: Will, session_expiry: int) -> MemoryTransport:
        return MemoryTransport(broker, client_id, will=will, session_expiry=session_expiry)

    made = Service(
        replace(options, publish=replace(options.publish, min_interval=0.0), stats_interval=1e6),
        Store(options.store.path),
        connect,
        clock=lambda: 0.0,
    )
    made._transport.start()
    for _ in range(4):
        made.turn()
    yield made, broker
    made._transport.close()
    made._store.close()


def test_the_plan_is_published_again_with_each_new_mask(service: tuple[Service, MemoryBroker]) -> None:
    """Once, before the model that it belongs to; not with versions that prune nothing."""
    made, broker = service
    topics = Topics("default")
    edge = MemoryTransport(broker, "edge", max_queued=1000)
    edge.start()
    for topic in (topics.plan, topics.model):
        edge.subscribe(topic)
    for seq in range(1, 12):
        data = message(seq, 0.1, base=seq - 1, epoch=made.engine.epoch)
        edge.publish(topics.update("0", "a"), data)
        for _ in range(4):
            made.turn()
    heard: list[tuple[str, bytes]] = []
    while (event := edge.poll(0)) is not None:
        if isinstance(event, Delivery):
            event.ack()
            heard.append((event.topic, event.payload))
    plans = [wire.unpack_plan(payload).mask for topic, payload in heard if topic == topics.plan]
    order = [topic.rsplit("/", 1)[1] for topic, _ in heard]

    # 9, 17, 22, 26, 28, 29, 29 and 30 of 40: the seventh version prunes nothing, and none behind the eighth
    assert ["plan", "model"] * 7 + ["model"] + ["plan", "model"] + ["model"] * 3 == order
    assert plans[0] is None
    assert 8 == len(set(plans))
    assert made.engine.mask is not None
    assert made.engine.mask.encoded == plans[-1]
    assert not made._plan_lost
