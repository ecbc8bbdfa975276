"""The engine decides without changing anything, and folds what was decided."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings, Conditions
from fedmq.aggregator.decision import Arrival, Decision
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.reputation import Standing
from fedmq.aggregator.spool import Spool
from fedmq.aggregator.state import pack_state
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq import wire
from fedmq.chunks import checksum
from fedmq.encoding import DecodedVector
from fedmq.errors import StoreError, WireError
from fedmq.types import Chunk, ClientId, Receipt, Refusal, Rejection, UpdateId

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
R = Rejection


def run(engine: Engine, *messages: bytes, client: str = "a") -> Decision:
    """Offer a batch that came on one client's topic, and commit it."""
    decision = engine.offer([Arrival(client=client, message=message) for message in messages])
    engine.commit(decision)
    return decision


def everything(engine: Engine) -> tuple[bytes, set[bytes]]:
    """State and ledger to the last bit."""
    return pack_state(engine), {wire.pack_receipt(receipt) for receipt in engine.ledger}


def test_an_update_is_folded_once_the_decision_is_committed(new_engine: NewEngine, message: Message) -> None:
    """Offering alone changes nothing."""
    engine = new_engine(buffer_size=1)
    before = everything(engine)
    decision = engine.offer([Arrival(client="a", message=message(delta=0.25))])
    unchanged = everything(engine)
    engine.commit(decision)

    assert before == unchanged
    assert [0.25] * engine.layout.size == engine.state.vector.tolist()
    assert (1, 1, 1) == (engine.state.version, engine.position, engine.tally.folded)
    assert Receipt(client=ClientId("a"), epoch=7, high_water=1) == engine.ledger.get(ClientId("a"), 7)


def test_a_record_says_what_was_folded_into_what(new_engine: NewEngine, message: Message) -> None:
    """Positions go up without gaps; staleness is the version now less the base in the message (law 5)."""
    engine = new_engine(buffer_size=1)
    messages = [message(seq=seq, base=base) for seq, base in ((1, 0), (2, 0), (3, 1), (4, 0))]
    decision = run(engine, *messages[:3])
    decision_2 = run(engine, messages[3])
    records = (*decision.records, *decision_2.records)

    assert [1, 2, 3, 4] == [record.position for record in records]
    assert [0, 1, 2, 3] == [record.version for record in records]
    assert [0, 1, 1, 3] == [record.staleness for record in records]
    assert messages == [record.message for record in records]


def test_a_batch_is_judged_against_the_state_as_it_would_be(new_engine: NewEngine, message: Message) -> None:
    """An update trained from a version that an earlier one of the same batch completes is not of the future."""
    engine = new_engine(buffer_size=2, max_staleness=0)
    decision = run(
        engine,
        message(seq=1),
        message(seq=2),
        message(seq=3, base=1),
        message(seq=4, base=0),
        message(seq=5, base=2),
    )

    assert [None, None, None, R.STALE, R.FUTURE_VERSION] == [
        record.refusal and record.refusal.reason for record in decision.records
    ]
    assert (1, 1) == (engine.state.version, engine.state.filled)


def test_a_duplicate_changes_nothing_and_gets_the_same_receipt(
    new_engine: NewEngine, message: Message
) -> None:
    """In the same batch or later, folded or refused."""
    engine = new_engine(buffer_size=1)
    good, bad = message(seq=1), message(seq=2, examples=0)
    first = run(engine, good, bad, good, bad)
    before = everything(engine)
    answer = wire.pack_receipt(engine.ledger.get(ClientId("a"), 7))
    second = run(engine, bad, good)

    assert (2, 2) == (first.duplicates, second.duplicates)
    assert 2 == len(first.records)
    assert ((), {}) == (second.records, dict(second.receipts))
    assert {(ClientId("a"), 7)} == first.answers == second.answers
    assert before == everything(engine)
    assert answer == wire.pack_receipt(engine.ledger.get(ClientId("a"), 7))


def test_a_duplicate_that_would_be_refused_by_now_is_still_only_a_duplicate(
    new_engine: NewEngine, message: Message
) -> None:
    """It was folded when it was fresh; its second arrival is not judged again."""
    engine = new_engine(buffer_size=1, max_staleness=0)
    run(engine, message(seq=1))
    run(engine, message(seq=2, base=1))
    decision = run(engine, message(seq=1))

    assert 1 == decision.duplicates
    assert () == engine.ledger.get(ClientId("a"), 7).refused


def test_in_a_synchronous_version_each_client_counts_once(new_engine: NewEngine, message: Message) -> None:
    """Also within one batch; in the next version it may contribute again."""
    engine = new_engine(strategy="fedavg", buffer_size=2)
    first = run(engine, message(seq=1), message(seq=2))
    run(engine, message("b", 1), client="b")
    second = run(engine, message(seq=3, base=1))

    assert [None, R.ALREADY_CONTRIBUTED] == [r.refusal and r.refusal.reason for r in first.records]
    assert [None] == [record.refusal for record in second.records]
    assert (1, 1) == (engine.state.version, engine.state.filled)


def test_a_version_that_is_complete_within_a_batch_lets_its_contributors_in_again(
    new_engine: NewEngine, message: Message
) -> None:
    """The batch is judged as if its updates had come one by one."""
    engine = new_engine(strategy="fedavg", buffer_size=2)
    batch = [("a", 1, 0), ("b", 1, 0), ("a", 2, 1), ("a", 3, 1), ("b", 2, 1)]
    decision = engine.offer(
        [Arrival(client=client, message=message(client, seq, base=base)) for client, seq, base in batch]
    )
    engine.commit(decision)

    assert [None, None, None, R.ALREADY_CONTRIBUTED, None] == [
        record.refusal and record.refusal.reason for record in decision.records
    ]
    assert 2 == engine.state.version


def chunk(
    data: bytes, *, client: str = "a", seq: int = 1, index: int = 0, count: int = 1, size: int = 0
) -> bytes:
    """A chunk with the digest of `data`."""
    update_id = UpdateId(client=ClientId(client), epoch=7, seq=seq)
    return wire.pack_chunk(
        Chunk(
            id=update_id, index=index, count=count, size=size or len(data), digest=checksum(data), data=data
        )
    )


@pytest.mark.parametrize("reason", [reason for reason in Rejection if reason is not Rejection.UNKNOWN])
def test_every_rejection_can_be_reached_from_the_wire(
    new_engine: NewEngine, message: Message, reason: Rejection
) -> None:
    """What is numbered is settled by its number, what cannot be read is answered with a notice."""
    synchronous = {"strategy": "fedavg", "buffer_size": 3, "max_staleness": 2}
    nan = np.full(22, np.nan, np.float32).tobytes()
    poisoned = np.zeros(20, np.float32).tobytes() + nan[:8]
    cases: dict[Rejection, tuple[list[bytes], str]] = {
        R.UNREADABLE: ([b"nonsense"], "schema 110, this release reads schema 1"),
        R.FOREIGN_CLIENT: ([message("b", 2)], "the message names b, it came on the topic of a"),
        R.TOO_LARGE: ([message(seq=2, payload=bytes(5000))], "bytes, at most 2000 are allowed"),
        R.WRONG_EPOCH: ([message(seq=2, model_epoch=1)], "trained in model epoch 1, this is e90c"),
        R.WRONG_LAYOUT: ([message(seq=2, fingerprint=bytes(8))], "layout 0000000000000000, the model's is"),
        R.UNKNOWN_MASK: (
            [wire.pack_update(replace(wire.unpack_update(message(seq=2, base=3)), mask=bytes(8)))],
            "mask 0000000000000000: pruning",
        ),
        R.FUTURE_VERSION: ([message(seq=2, base=9)], "trained from version 9, the model is at 3"),
        R.STALE: ([message(seq=2, base=0)], "3 versions old, at most 2 are allowed"),
        R.SAMPLE_COUNT: ([message(seq=2, base=3, examples=99)], "99 examples, 1 to 50 are allowed"),
        R.BAD_PAYLOAD: ([message(seq=2, base=3, payload=b"12345678")], "codec payload: "),
        R.NOT_FINITE: (
            [message(seq=2, base=3, payload=poisoned)],
            "the delta holds an infinite value or NaN",
        ),
        R.NORM: ([message(seq=2, base=3, delta=9)], "the delta's norm is 42.2137, at most 10 is allowed"),
        R.ALREADY_CONTRIBUTED: (
            [message(seq=1, base=3), message(seq=2, base=3)],
            "to version 3: each client",
        ),
        R.SUSPICIOUS: ([message(seq=2, base=3)], "not to the gate's liking"),
        R.QUARANTINED: ([message(seq=2, base=3, payload=b"")], "until version 4, this is 3"),
        R.SEQUENCE: ([message(seq=300, floor=2, base=3)], "seq 300 is too far beyond 0, floor 2"),
        R.QUOTA: (
            [chunk(b"x", seq=seq, count=2, size=2) for seq in range(1, 6)],
            "4 updates are unfinished already",
        ),
    }
    messages, detail = cases[reason]
    admission = AdmissionSettings(max_examples=50, max_norm=10)
    engine = new_engine(admission=admission, max_update_bytes=2000, **synchronous)
    engine.state.version = 3
    if reason is R.QUARANTINED:
        engine.reputation.standings["a"] = Standing(until=4, terms=1)
    if reason is R.SUSPICIOUS:
        engine.gate = lambda delta, conditions: Refusal(
            reason=R.SUSPICIOUS, detail="not to the gate's liking"
        )
    spool = Spool(is_settled=engine.is_settled, max_update_bytes=2000, max_bytes=10_000)
    arrivals = [arrival for each in messages if (arrival := spool.take("a", each, 0.0))]
    decision = engine.offer(arrivals)
    engine.commit(decision)
    dropped = [refusal for _, refusal in decision.dropped]
    receipt = engine.ledger.get(ClientId("a"), 7)
    refusal = dropped[0] if dropped else receipt.refusal(2)

    assert refusal is not None
    assert reason is refusal.reason
    assert detail in refusal.detail
    assert (reason in (R.UNREADABLE, R.FOREIGN_CLIENT, R.SEQUENCE, R.QUOTA)) == bool(dropped)
    assert bool(dropped) != receipt.is_settled(2)
    assert int(not dropped) == engine.tally.refused[reason]


def test_a_chunk_of_what_is_too_large_settles_it_at_any_number(new_engine: NewEngine) -> None:
    """A chunk carries no floor: its refusal settles itself and nothing that the client may still have."""
    engine = new_engine()
    client = ClientId("a")
    stale = Refusal(reason=R.STALE, detail="old")
    known = Receipt(client=client, epoch=7, high_water=1000, refused=((999, stale), (500, stale)))
    engine.ledger.install({(client, 7): known})
    too_large = Refusal(reason=R.TOO_LARGE, detail="")
    arrival = Arrival(
        client="a", message=b"", id=UpdateId(client=client, epoch=7, seq=1003), refusal=too_large
    )
    engine.commit(engine.offer([arrival]))
    receipt = engine.ledger.get(client, 7)

    assert (1000, (1003,)) == (receipt.high_water, receipt.beyond)
    assert (stale, too_large) == (receipt.refusal(999), receipt.refusal(1003))


def test_a_chunk_of_what_is_too_large_and_far_beyond_settles_nothing(new_engine: NewEngine) -> None:
    """What lies between may still be on its way: it is dropped with a notice."""
    engine = new_engine()
    arrival = Arrival(
        client="a",
        message=b"",
        id=UpdateId(client=ClientId("a"), epoch=7, seq=300),
        refusal=Refusal(reason=R.TOO_LARGE, detail=""),
    )
    decision = engine.offer([arrival])

    assert ((), {}) == (decision.records, dict(decision.receipts))
    assert [R.SEQUENCE] == [refusal.reason for _, refusal in decision.dropped]


def test_a_hostile_client_can_not_make_the_pipeline_cache_grow(
    new_engine: NewEngine, message: Message
) -> None:
    """Each text is parsed; only some are remembered."""
    engine = new_engine()
    for seq in range(1, 200):
        codec = f"topk({0.5 + seq / 1000}) | float32 | u32"
        run(engine, message(seq=seq, codec=codec, payload=b""))

    assert len(engine._pipelines) <= 64


def test_records_that_do_not_continue_the_state_are_not_replayed(
    new_engine: NewEngine, message: Message
) -> None:
    """A journal with a gap, or one that was folded with another rule."""
    engine = new_engine(buffer_size=1)
    decision = run(engine, message(seq=1), message(seq=2, base=1))
    for records, place in (
        (decision.records[1:], "record 2"),
        ([replace(decision.records[0], version=5)], "record 1"),
    ):
        with pytest.raises(StoreError, match=f"journal {place} .* does not continue the state at record 0"):
            new_engine(buffer_size=1).replay(records)


def test_a_journalled_message_that_no_longer_decodes_is_a_damaged_store(
    new_engine: NewEngine, message: Message
) -> None:
    """Damaged bytes, or a codec that was installed once and is gone."""
    record = run(new_engine(), message()).records[0]
    good = message()
    for damaged in (good[:-1], message(codec="float32", payload=b"short")):
        with pytest.raises(StoreError, match="the message of journal record 1 cannot be decoded any more"):
            new_engine().replay([replace(record, message=damaged, delta=None)])
    gone = wire.unpack_update(good)
    with pytest.raises(StoreError, match="there is no codec 'zstd'"):
        new_engine().replay(
            [replace(record, message=wire.pack_update(replace(gone, codec="zstd")), delta=None)]
        )


def test_a_codec_that_is_not_installed_is_a_bad_payload(new_engine: NewEngine, message: Message) -> None:
    """The receipt says which are known."""
    engine = new_engine()
    update = wire.unpack_update(message())
    run(engine, wire.pack_update(replace(update, codec="zstd")))
    refusal = engine.ledger.get(ClientId("a"), 7).refusal(1)

    assert refusal is not None
    assert R.BAD_PAYLOAD is refusal.reason
    assert "there is no codec 'zstd'; known are " in refusal.detail
    with pytest.raises(WireError):
        engine.pipeline("zstd")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, int, float, int]]:
    """Updates of three clients in order, some of them refused: client, seq, base, delta, examples."""
    numbers = dict.fromkeys("abc", 0)
    history = []
    for client in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=12)):
        numbers[client] += 1
        base = draw(st.integers(0, 3))
        history.append(
            (client, numbers[client], base, draw(st.floats(-1, 1, width=32)), draw(st.integers(0, 9)))
        )
    return history


@given(
    histories(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fedbuff", "fedasync", "fedavg", "ca2fl", "fedfa"]),
)
@settings(max_examples=60)
def test_redeliveries_change_nothing_in_any_interleaving(
    new_engine: NewEngine,
    message: Message,
    history: Sequence[tuple[str, int, int, float, int]],
    seed: int,
    name: str,
) -> None:
    """The state is that of each update's first arrival, in their order, however they were batched (law 3)."""
    random = Random(seed)
    size = None if name in ("fedasync", "fedfa") else 2
    arrivals = [
        Arrival(
            client=client, message=message(client, seq, floor=1, base=base, delta=delta, examples=examples)
        )
        for client, seq, base, delta, examples in history
    ]
    random.shuffle(arrivals)
    plain = new_engine(strategy=name, buffer_size=size, max_staleness=2)
    for arrival in arrivals:
        plain.commit(plain.offer([arrival]))
    noisy = new_engine(strategy=name, buffer_size=size, max_staleness=2)
    batch: list[Arrival] = []
    for place, arrival in enumerate(arrivals):
        batch += [arrival, *random.choices(arrivals[: place + 1], k=random.randrange(3))]
        if random.random() < 0.4 or arrival is arrivals[-1]:
            decision = noisy.offer(batch)
            noisy.commit(decision)
            assert len(decision.records) + decision.duplicates == len(batch)
            batch = []

    assert everything(plain) == everything(noisy)


def test_what_a_batch_does_not_carry_decoded_is_decoded_again(
    new_engine: NewEngine, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of updates that are large in memory stays within a bound, and comes to the same bits."""
    messages = [message(seq=seq, floor=1, delta=0.1 * seq) for seq in range(1, 6)]
    plain = new_engine(buffer_size=2)
    run(plain, *messages)
    bounded = new_engine(buffer_size=2)
    monkeypatch.setattr("fedmq.aggregator.judgement._MAX_DECODED", 2 * 4 * bounded.layout.size)
    decision = run(bounded, *messages)

    assert [True, True, False, False, False] == [record.delta is not None for record in decision.records]
    assert everything(plain) == everything(bounded)


def test_a_gate_refuses_what_contradicts_data_that_can_be_trusted(
    new_engine: NewEngine, message: Message
) -> None:
    """AFLGuard: accept when the distance to the server's own update is at most its norm times a factor."""
    trusted = np.full(22, 0.5)

    def gate(delta: DecodedVector, conditions: Conditions) -> Refusal | None:
        distance = np.linalg.norm(delta.to_dense() - trusted)
        is_far = distance > 1.5 * np.linalg.norm(trusted)
        return Refusal(reason=R.NORM, detail=f"{distance:.1f} from ours") if is_far else None

    engine, again = new_engine(buffer_size=1), new_engine(buffer_size=1)
    engine.gate = gate
    decision = run(engine, message(seq=1, delta=0.9), message(seq=2, delta=-0.5), message(seq=3, examples=0))
    again.ledger = engine.ledger
    again.replay([replace(record, delta=None) for record in decision.records])

    assert [None, R.NORM, R.SAMPLE_COUNT] == [r.refusal and r.refusal.reason for r in decision.records]
    assert everything(engine) == everything(again)
