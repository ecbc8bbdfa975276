"""Laws 2 and 3, and the first promise: nothing lost, nothing counted twice, wherever the process dies.

The machine plays clients that send again, a broker that duplicates and reorders, and an aggregator that crashes before
and after its transaction. Deltas are multiples of 1/64 and the buffer holds four, so float32 sums are exact and
the model can be compared with the plain sum of what was sent.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.decision import Arrival, Decision, Record
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Key, Ledger
from fedmq.aggregator.state import pack_state, unpack_state
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedmq import wire
from fedmq.types import ClientId, Receipt

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]


class Disk:
    """What survives a crash: a snapshot, the journal, the ledger. Everything passes through its bytes."""

    def __init__(self, engine: Engine) -> None:
        self.snapshot = pack_state(engine)
        self.journal: list[Record] = []
        self.receipts: dict[Key, bytes] = {}

    def append(self, decision: Decision) -> None:
        """One transaction."""
        self.journal += [replace(record, delta=None) for record in decision.records]
        self.receipts.update({key: wire.pack_receipt(receipt) for key, receipt in decision.receipts.items()})

    def recover(self) -> Engine:
        """A new process."""
        engine = unpack_state(
            self.snapshot,
            ledger=Ledger(map(wire.unpack_receipt, self.receipts.values())),
            admission=AdmissionSettings(),
            max_update_bytes=100_000,
        )
        engine.replay(self.journal[engine.position :])
        return engine


def everything(engine: Engine) -> tuple[bytes, set[bytes]]:
    """State and ledger to the last bit."""
    return pack_state(engine), {wire.pack_receipt(receipt) for receipt in engine.ledger}


RULES: list[dict[str, object]] = [
    {"buffer_size": 2},
    {"buffer_size": 3, "momentum": 0.9, "staleness": "exponential(0.123456789)", "weighting": "examples"},
    {"strategy": "fedasync", "normalise_staleness": True, "max_staleness": 9},
    {"strategy": "fedavg", "buffer_size": 2, "max_staleness": 3},
    {"strategy": "fedavg", "buffer_size": 3, "max_staleness": 3, "robust": "median", "weighting": "uniform"},
    {"strategy": "ca2fl", "buffer_size": 2, "max_staleness": 1, "forget_versions": 2, "optimizer": "yogi"},
    {
        "strategy": "ca2fl",
        "buffer_size": 3,
        "clients": 4,
        "kept_bytes": 4096,
        "clip_quantile": 0.5,
        "average": 0.9,
    },
    {"strategy": "fedfa", "window": 3, "staleness": "polynomial(0.3)", "weighting": "examples"},
    {
        "strategy": "fedasync",
        "mixing": True,
        "max_staleness": 2,
        "average": 0.5,
        "schedule": "cosine(9, 0.1)",
    },
    {
        "strategy": "fadas",
        "buffer_size": 2,
        "compensation": "adaptive(0.3)",
        "late": "discount",
        "max_staleness": 1,
    },
    {"buffer_size": 2, "optimizer": "adagrad", "compensation": "constant(0.3)", "warmup_versions": 3},
    {"buffer_size": 5, "robust": "multikrum(1, 2)", "clip_quantile": 0.9},
    {"buffer_size": 3, "robust": "geometric", "weighting": "examples", "momentum": 0.5},
    {"buffer_size": 3, "robust": "trimmed(1)", "optimizer": "adam", "late": "discount", "max_staleness": 2},
]
values = st.floats(-10, 10, width=32)
updates = st.tuples(
    st.sampled_from("abc"), st.integers(1, 8), st.integers(0, 4), values, st.integers(0, 9),
    st.sampled_from(["float32", "int8", "topk(0.3) | ternary | rice"]),
)  # fmt: skip


@pytest.mark.parametrize("fold", RULES, ids=str)
@given(st.lists(st.lists(updates, max_size=5), min_size=1, max_size=6), st.data())
@settings(max_examples=25)
def test_recovery_equals_live_at_every_cut(
    new_engine: NewEngine,
    message: Message,
    fold: dict[str, object],
    batches: list[list[tuple[str, int, int, float, int, str]]],
    data: st.DataObject,
) -> None:
    """A snapshot of any moment plus the journal behind it gives the live state, bit for bit (law 2)."""
    live = new_engine(**fold)
    disk = Disk(live)
    delta = np.linspace(-1, 1, live.layout.size)
    for batch in batches:
        decision = live.offer(
            [
                Arrival(
                    client=client,
                    message=message(
                        client, seq, floor=1, base=base, delta=scale * delta, examples=examples, codec=codec
                    ),
                )
                for client, seq, base, scale, examples, codec in batch
            ]
        )
        disk.append(decision)
        live.commit(decision)

        assert everything(live) == everything(disk.recover())
        if data.draw(st.booleans(), label="snapshot"):
            disk.snapshot = pack_state(live)
        if data.draw(st.booleans(), label="restart"):
            live = disk.recover()


class Federation(RuleBasedStateMachine):
    """Three honest clients, a bad network and a process that dies."""

    message: Message
    new_engine: NewEngine

    @initialize()
    def begin(self) -> None:
        """An empty federation."""
        self.engine = self.new_engine(buffer_size=4, staleness="constant", max_staleness=10**6)
        self.disk = Disk(self.engine)
        self.sent: list[tuple[ClientId, int, bytes]] = []
        self.next_seq = dict.fromkeys(map(ClientId, "abc"), 1)
        self.pending: dict[ClientId, list[int]] = {client: [] for client in self.next_seq}
        self.delta: dict[tuple[ClientId, int], int] = {}
        self.receipts: dict[tuple[ClientId, int], bytes] = {}

    @rule(client=st.sampled_from("abc").map(ClientId), size=st.integers(-64, 64), behind=st.integers(0, 3))
    def train(self, client: ClientId, size: int, behind: int) -> None:
        """A client puts an update into its outbox."""
        seq = self.next_seq[client]
        self.next_seq[client] += 1
        self.pending[client].append(seq)
        self.delta[client, seq] = size
        base = max(0, self.engine.state.version - behind)
        floor = self.pending[client][0]
        self.sent.append((client, seq, self.message(client, seq, floor=floor, base=base, delta=size / 64)))

    def arrivals(self, data: st.DataObject) -> Sequence[Arrival]:
        """Anything ever sent, in any order, any number of times."""
        chosen = data.draw(st.lists(st.sampled_from(self.sent), max_size=6))
        return [Arrival(client=client, message=message) for client, _, message in chosen]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Decide, persist, commit."""
        decision = self.engine.offer(self.arrivals(data))
        self.disk.append(decision)
        self.engine.commit(decision)
        self.check_answers(decision)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def die_before_the_transaction(self, data: st.DataObject) -> None:
        """Nothing was acknowledged: as if it had not arrived."""
        self.engine.offer(self.arrivals(data))
        self.engine = self.disk.recover()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def die_behind_the_transaction(self, data: st.DataObject) -> None:
        """It is folded, although nobody was told."""
        decision = self.engine.offer(self.arrivals(data))
        self.disk.append(decision)
        self.engine = self.disk.recover()

    @rule()
    def snapshot(self) -> None:
        """The journal before it is not needed any more."""
        self.disk.snapshot = pack_state(self.engine)

    @rule(client=st.sampled_from("abc").map(ClientId))
    def receive_receipt(self, client: ClientId) -> None:
        """A client forgets what is settled."""
        receipt = self.engine.ledger.get(client, 7)
        self.pending[client] = [seq for seq in self.pending[client] if not receipt.is_settled(seq)]

    def check_answers(self, decision: Decision) -> None:
        """Everybody who sent something gets an answer."""
        assert decision.dropped == ()
        assert set(decision.receipts) <= decision.answers

    @invariant()
    def nothing_is_lost_or_counted_twice(self) -> None:
        """The model is the sum of what was journalled, and what was journalled is settled."""
        journalled = [(record.id.client, record.id.seq) for record in self.disk.journal]
        state = self.engine.state
        total = 4 * state.vector.astype(np.float64) + state.buffer

        assert len(set(journalled)) == len(journalled)
        assert all(record.refusal is None for record in self.disk.journal)
        assert (
            np.full(state.vector.size, sum(self.delta[key] for key in journalled) / 64).tolist()
            == total.tolist()
        )
        assert all(self.settled(client).is_settled(seq) for client, seq in journalled)
        assert not [
            (client, seq)
            for client, seqs in self.pending.items()
            for seq in seqs
            if self.settled(client).is_settled(seq) and (client, seq) not in journalled
        ]

    def settled(self, client: ClientId) -> Receipt:
        """The receipt that a client would get."""
        return self.engine.ledger.get(client, 7)

    @invariant()
    def recovery_equals_live(self) -> None:
        """Whenever the process would die."""
        assert everything(self.engine) == everything(self.disk.recover())


def test_no_crash_and_no_redelivery_loses_or_doubles_an_update(
    new_engine: NewEngine, message: Message
) -> None:
    """Clients, network and crashes in any order."""

    class Machine(Federation):
        pass

    Machine.new_engine, Machine.message = staticmethod(new_engine), staticmethod(message)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=40, stateful_step_count=25, derandomize=True, deadline=None)
    )
