"""Reputation: who is not listened to, for how long, and that a recovered aggregator agrees."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.consensus import Consensus
from fedmq.aggregator.decision import Arrival, Record
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.recovery import recover
from fedmq.aggregator.reputation import (
    Reputation,
    ReputationSettings,
    Standing,
    pack_reputation,
    unpack_reputation,
)
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.state import pack_state, unpack_state
from fedmq.aggregator.stats import Counters
from fedmq.aggregator.store import ChunkChanges, Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.trust import Trust, TrustSettings, check_agreement
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.envelope import MAX_DETAIL
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout
from fedmq.modelfile import save_model
from fedmq.types import Refusal, Rejection

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
SUSPICIOUS = Refusal(reason=Rejection.SUSPICIOUS)
LIMITS = ReputationSettings(least=0.25, memory=0.9, versions=10, clients=100)


def new_reputation(limits: ReputationSettings = LIMITS) -> Reputation:
    """With two others who are remembered: somebody has to be free."""
    return Reputation(settings=limits, standings={"x": Standing(), "y": Standing()})


def refuse_until_locked_up(reputation: Reputation, client: str, version: int) -> int:
    """How many refusals it takes."""
    count = 0
    while reputation.refusal(client, version) is None:
        reputation.note(client, version, SUSPICIOUS)
        count += 1
        assert count < 100
    return count


def test_a_stranger_who_lies_is_locked_up_after_three_lies() -> None:
    """1/3, 1/3.9, 1/4.71: the third is below a quarter."""
    assert 3 == refuse_until_locked_up(new_reputation(), "a", 5)


def test_who_was_honest_for_long_has_more_credit() -> None:
    """But no more than the last ten or so are worth."""
    reputation = new_reputation()
    for _ in range(50):
        reputation.note("a", 5, None)

    assert 16 == refuse_until_locked_up(reputation, "a", 5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_who_is_refused_one_time_in_three_is_never_locked_up(seed: int) -> None:
    """As honest clients with unusual data may be; in any order that is not all at once."""
    rng = np.random.default_rng(seed)
    reputation = new_reputation()
    for _ in range(60):
        for refused in rng.permutation([True, False, False]):
            reputation.note("a", 5, SUSPICIOUS if refused else None)
            assert reputation.refusal("a", 5) is None


def test_a_quarantine_ends_and_the_next_is_twice_as_long() -> None:
    """After the first, one lie is enough; it doubles six times."""
    reputation = new_reputation()
    version = 0
    refuse_until_locked_up(reputation, "a", version)
    for length in (10, 20, 40, 80, 160, 320, 640, 640):
        assert reputation.refusal("a", version + length - 1) is not None
        assert reputation.refusal("a", version + length) is None
        assert [("a", version + length)] == list(reputation.quarantined(version))
        version += length
        assert 1 == refuse_until_locked_up(reputation, "a", version)


def test_a_quarantine_says_until_when_and_why() -> None:
    """To whom it concerns, in the receipt."""
    reputation = new_reputation()
    refuse_until_locked_up(reputation, "a", 7)
    refusal = reputation.refusal("a", 8)

    assert refusal is not None
    assert Rejection.QUARANTINED is refusal.reason
    assert "until version 17, this is 8" in refusal.detail
    assert reputation.refusal("b", 8) is None


def test_honest_work_ends_a_probation() -> None:
    """And then a quarantine is a first one again."""
    reputation = new_reputation()
    refuse_until_locked_up(reputation, "a", 0)
    for _ in range(5):
        reputation.note("a", 10, None)
    refuse_until_locked_up(reputation, "a", 10)

    assert [("a", 20)] == list(reputation.quarantined(10))


@pytest.mark.parametrize("reason", [Rejection.STALE, Rejection.QUARANTINED, Rejection.WRONG_EPOCH])
def test_only_what_an_update_held_is_held_against_its_client(reason: Rejection) -> None:
    """To be late is no lie, and to be in quarantine no second one."""
    reputation = new_reputation()
    for _ in range(50):
        reputation.note("a", 5, Refusal(reason=reason))

    assert ["x", "y"] == list(reputation.standings)


def test_it_is_off_by_default() -> None:
    """Nobody is judged, and nothing is remembered."""
    reputation = Reputation()
    for _ in range(50):
        reputation.note("a", 5, SUSPICIOUS)

    assert {} == reputation.standings


def test_no_more_clients_are_remembered_than_the_bound_says() -> None:
    """Those in quarantine stay as long as others can go, and whoever was silent for longest goes first."""
    limits = ReputationSettings(least=0.25, versions=10, clients=3)
    reputation = new_reputation(limits)
    refuse_until_locked_up(reputation, "liar", 5)
    for client in "abcab":
        reputation.note(client, 5, None)

    assert ["liar", "a", "b"] == list(reputation.standings)

    reputation.note("d", 20, None)

    assert ["a", "b", "d"] == list(reputation.standings)


def test_at_most_half_are_in_quarantine() -> None:
    """Otherwise nobody would be left to make the versions that a quarantine counts."""
    reputation = Reputation(settings=LIMITS)
    for _ in range(20):
        for client in "abcde":
            reputation.note(client, 5, SUSPICIOUS)

    assert ["a", "b"] == [client for client, _ in reputation.quarantined(5)]


@pytest.mark.parametrize(
    "guarded_by", [{"reputation": LIMITS}, {"trust": TrustSettings(rule="agreement")}], ids=str
)
def test_who_waits_for_everybody_needs_a_deadline(
    told: AggregatorSettings, guarded_by: dict[str, object]
) -> None:
    """A client that is refused never contributes to the version that waits for it."""
    unguarded = replace(told, trust=TrustSettings(), reputation=ReputationSettings())
    waiting = replace(unguarded, **guarded_by, fold=FoldSettings(strategy="fedavg", buffer_size=2))  # type: ignore[arg-type]
    store = Store(told.store.path)
    with pytest.raises(SettingError, match="fedavg waits for every client"):
        recover(waiting, store)
    recover(replace(waiting, fold=replace(waiting.fold, deadline=60.0)), store)
    store.close()


verdicts = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([None, SUSPICIOUS]), st.integers(0, 3)), max_size=60
)


@given(verdicts, st.integers(0, 60))
@settings(max_examples=50)
def test_a_snapshot_anywhere_leads_to_the_same_bits(
    history: list[tuple[str, Refusal | None, int]], cut: int
) -> None:
    """It is a pure function of what was decided."""
    live, other = new_reputation(), new_reputation()
    version = 0
    for index, (client, refusal, passed) in enumerate(history):
        if index == cut:
            other = unpack_reputation(msgpack.unpackb(msgpack.packb(pack_reputation(other))))
        version += passed
        for reputation in (live, other):
            reputation.note(client, version, refusal)

    assert msgpack.packb(pack_reputation(live)) == msgpack.packb(pack_reputation(other))


def feed(engine: Engine, message: Message, seqs: range, store: Store | None = None) -> list[Record]:
    """One honest client, three who agree with it in turn, and one who says the opposite of all."""
    pattern = np.linspace(-1, 1, 22, dtype=np.float32)
    records: list[Record] = []
    for seq in seqs:
        for client in "abcz":
            delta = (-pattern if client == "z" else pattern) * np.float32(1 + 0.1 * seq)
            codec = "topk(0.3) | ternary | rice" if client in "bz" else "float32"
            data = message(
                client, seq, base=engine.state.version, delta=delta, codec=codec, model_epoch=engine.epoch
            )
            decision = engine.offer([Arrival(client=client, message=data)])
            if store is not None:
                store.append(decision.records, decision.receipts, ChunkChanges(), 1.0)
            engine.commit(decision)
            records += decision.records
    return records


def guarded(engine: Engine) -> Engine:
    """With a check by agreement, from the fourth vote on."""
    trust = Trust("agreement", (-0.1, 0.9, 4.0))
    engine.gate = lambda delta, conditions: check_agreement(trust, delta, engine.consensus)
    return engine


def test_who_contradicts_everybody_ends_in_quarantine(new_engine: NewEngine, message: Message) -> None:
    """Folded while nothing is known, then suspicious, then quarantined unseen; nobody else ever is."""
    engine = guarded(new_engine(buffer_size=2))
    engine.consensus, engine.reputation = Consensus(memory=0.9), new_reputation()
    records = feed(engine, message, range(1, 10))
    fates = [str(record.refusal.reason) if record.refusal else "" for record in records]

    assert ["", *["suspicious"] * 5, *["quarantined"] * 3] == fates[3::4]
    assert not any(fate for index, fate in enumerate(fates) if index % 4 != 3)
    assert ["z"] == [client for client, _ in engine.reputation.quarantined(engine.state.version)]
    assert dict(engine.reputation.quarantined(engine.state.version)) == told_to_dashboards(engine)


def told_to_dashboards(engine: Engine) -> object:
    """Who is in quarantine, as `fedmq status` shows it."""
    return Counters().summary(engine, "fedbuff", 0.0)["quarantined"]


@pytest.mark.parametrize("cut", [0, 1, 4, 7, 12, 30])
def test_recovery_has_the_same_reputations_to_the_bit(
    new_engine: NewEngine, message: Message, cut: int
) -> None:
    """From a snapshot anywhere and the records behind it, without asking the gate again."""
    live = guarded(new_engine(buffer_size=2, clip_quantile=0.5))
    live.consensus, live.reputation = Consensus(memory=0.9), new_reputation()
    records = feed(live, message, range(1, 4))
    snapshot = pack_state(live)
    records = feed(live, message, range(4, 12))
    other = unpack_state(
        snapshot, ledger=live.ledger, admission=AdmissionSettings(), max_update_bytes=100_000
    )
    other.replay(records[:cut])
    other = unpack_state(
        pack_state(other), ledger=live.ledger, admission=AdmissionSettings(), max_update_bytes=100_000
    )
    other.replay(records[cut:])

    assert pack_state(live) == pack_state(other)
    assert live.reputation == other.reputation
    assert live.consensus.vector.tobytes() == other.consensus.vector.tobytes()


@pytest.fixture
def told(tmp_path: Path, layout: ParamLayout) -> AggregatorSettings:
    """An aggregator with agreement and quarantine."""
    model = tmp_path / "model.safetensors"
    save_model(model, layout, np.zeros(layout.size, np.float32))
    return AggregatorSettings(
        model=model,
        fold=FoldSettings(buffer_size=2),
        trust=TrustSettings(rule="agreement(-0.1, 0.9, 4)"),
        reputation=LIMITS,
        store=StoreSettings(path=tmp_path / "aggregator.db"),
    )


def test_a_killed_aggregator_remembers_who_lied(told: AggregatorSettings, message: Message) -> None:
    """From its store, without a snapshot since the beginning."""
    with_store = Store(told.store.path)
    engine = guarded(recover(told, with_store))
    feed(engine, message, range(1, 8), with_store)
    before = pack_state(engine)
    with_store.close()
    again = Store(told.store.path)
    recovered = recover(told, again)
    again.close()

    assert before == pack_state(recovered)
    assert ["z"] == [client for client, _ in recovered.reputation.quarantined(recovered.state.version)]


def test_changed_settings_take_effect_and_are_durable(told: AggregatorSettings, message: Message) -> None:
    """Off: everybody is free; what was decided before is not judged anew."""
    store = Store(told.store.path)
    engine = guarded(recover(told, store))
    feed(engine, message, range(1, 8), store)
    store.close()
    changed = AggregatorSettings(model=told.model, fold=told.fold, store=told.store)
    for _ in range(2):
        store = Store(told.store.path)
        recovered = recover(changed, store)
        store.close()

        assert ({}, 0.0) == (recovered.reputation.standings, recovered.consensus.memory)
        assert engine.state.vector.tobytes() == recovered.state.vector.tobytes()


def test_a_snapshot_of_schema_2_is_read(new_engine: NewEngine) -> None:
    """It was made before there was either."""
    engine = new_engine()
    fields = msgpack.unpackb(pack_state(engine))
    old = {name: value for name, value in fields.items() if name not in ("consensus", "reputation")}
    read = unpack_state(
        msgpack.packb(old | {"schema": 2}),
        ledger=Ledger(),
        admission=AdmissionSettings(),
        max_update_bytes=1000,
    )

    assert pack_state(engine) == pack_state(read)


def test_a_refusal_fits_a_receipt() -> None:
    """Its detail is as long as the wire allows."""
    reputation = new_reputation(ReputationSettings(least=0.25, versions=2**31))
    refuse_until_locked_up(reputation, "a" * 64, 2**40)
    refusal = reputation.refusal("a" * 64, 2**40)

    assert refusal is not None
    assert len(refusal.detail) <= MAX_DETAIL
