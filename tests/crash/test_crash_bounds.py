"""Bounded for months: the file, the ledger and the spool stop growing, however long the federation lasts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator import strategy
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.audit import verify
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.recovery import restore
from fedmq.aggregator.spool import Spool
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import ChunkChanges, Snapshot, Store
from fedmq.aggregator.strategy import FoldSettings, make_rule

from fedmq import encoding, wire
from fedmq.chunks import PIECE_BYTES, checksum, split
from fedmq.codecs import parse_pipeline
from fedmq.layout import ParamLayout, Segment
from fedmq.types import Chunk, ClientId, ModelUpdate, ModelVersion, Rejection, UpdateId

LAYOUT = ParamLayout((Segment(name="w", shape=(8,)),))
PAYLOAD = encoding.encode(LAYOUT, parse_pipeline("float32"), np.full(8, 0.01, np.float32))
CLIENTS, KEEP_EPOCHS, KEEP_SNAPSHOTS, KEEP_RECORDS, SNAPSHOT_RECORDS, BATCH = 10, 3, 2, 3000, 1000, 500
MAX_STALENESS = 110  # versions; a batch of the long run makes 100


def message(client: str, epoch: int, seq: int, *, base: int = 0) -> bytes:
    """A tiny update."""
    return wire.pack_update(
        ModelUpdate(
            id=UpdateId(client=ClientId(client), epoch=epoch, seq=seq),
            floor=seq,
            model_epoch=1,
            base_version=ModelVersion(base),
            fingerprint=LAYOUT.fingerprint,
            num_examples=1,
            local_steps=1,
            codec="float32",
            payload=PAYLOAD,
        )
    )


class Aggregator:
    """Engine and store, with small bounds."""

    def __init__(self, path: Path) -> None:
        rule = make_rule(FoldSettings(buffer_size=5, max_staleness=MAX_STALENESS))
        self.store = Store(path)
        self.engine = Engine(
            epoch=1,
            layout=LAYOUT,
            rule=rule,
            state=strategy.init(rule, np.zeros(LAYOUT.size, np.float32)),
            ledger=Ledger(keep_epochs=KEEP_EPOCHS),
            admission=AdmissionSettings(),
            max_update_bytes=10_000,
        )
        self.snapshot()

    def take(self, batch: list[tuple[str, bytes]], changes: ChunkChanges = ChunkChanges()) -> None:  # noqa: B008
        decision = self.engine.offer([Arrival(client=client, message=data) for client, data in batch])
        self.store.append(decision.records, decision.receipts, changes, 1.0, decision.forgotten)
        self.engine.commit(decision)

    def snapshot(self) -> None:
        state = pack_state(self.engine)
        self.store.save_snapshot(
            Snapshot(position=self.engine.position, version=self.engine.state.version, state=state),
            created=1.0,
            keep=KEEP_SNAPSHOTS,
            keep_records=KEEP_RECORDS,
        )

    def rows(self, table: str) -> int:
        return int(self.store._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def size(self) -> tuple[int, int]:
        """Pages of the file, with those that are still in its log, and bytes of the log."""
        (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
        return pages, self.store.path.with_name(self.store.path.name + "-wal").stat().st_size


@pytest.fixture
def aggregator(tmp_path: Path) -> Iterator[Aggregator]:
    """A new one."""
    aggregator = Aggregator(tmp_path / "store.db")
    yield aggregator
    aggregator.store.close()


def test_a_run_of_months_does_not_grow(aggregator: Aggregator) -> None:
    """Fifty thousand updates; ten clients, each of which loses its outbox every thousand updates of its own."""
    sizes, most = [], {"journal": 0, "message": 0, "snapshot": 0, "receipt": 0}
    for start in range(0, 50_000, BATCH):
        base = aggregator.engine.state.version
        batch = []
        for number in range(start, start + BATCH):
            turn, client = divmod(number, CLIENTS)
            epoch, seq = divmod(turn, 1000)
            batch.append((f"c{client}", message(f"c{client}", epoch + 1, seq + 1, base=base)))
        for part in (batch[:250], batch[250:], batch[-50:]):  # the last ones come again
            aggregator.take(part)
        if (start + BATCH) % SNAPSHOT_RECORDS == 0:
            for table in most:
                most[table] = max(most[table], aggregator.rows(table))
            aggregator.snapshot()
            sizes.append(aggregator.size())
    pages, logs = zip(*sizes, strict=True)

    assert 50_000 == aggregator.engine.position
    assert {
        "journal": KEEP_RECORDS + SNAPSHOT_RECORDS,
        "message": KEEP_SNAPSHOTS * SNAPSHOT_RECORDS,
        "snapshot": KEEP_SNAPSHOTS,
        "receipt": CLIENTS * KEEP_EPOCHS,
    } == most
    # What is pruned makes room for what comes: after a quarter of the way only some pages more, for longer numbers.
    assert max(pages) <= 1.05 * pages[12]
    assert max(logs) <= 1.05 * logs[12]
    assert () == verify(aggregator.store).damage
    recovered = restore(aggregator.store, keep_epochs=KEEP_EPOCHS)
    assert recovered is not None
    assert pack_state(aggregator.engine) == pack_state(recovered)
    assert set(map(wire.pack_receipt, aggregator.engine.ledger)) == set(
        map(wire.pack_receipt, recovered.ledger)
    )


def test_a_device_that_is_set_up_anew_every_day_keeps_few_entries(aggregator: Aggregator) -> None:
    """The oldest is forgotten, after a restart, too; what was in it is refused as stale if it ever comes again."""
    first = message("a", 1000, 1)
    aggregator.take([("a", first)])
    for day in range(1, 400):
        base = aggregator.engine.state.version
        # epochs are drawn at random: their order says nothing
        aggregator.take(
            [("a", message("a", 1000 - day, 1, base=base)), ("b", message("b", 1, day, base=base))]
        )
        if day == 50:
            recovered = restore(aggregator.store, keep_epochs=KEEP_EPOCHS)
            assert recovered is not None
            aggregator.engine = recovered
    folded = aggregator.engine.tally.folded
    aggregator.take([("a", first)])

    assert (602, 601, 1000) == aggregator.engine.ledger.epochs(ClientId("a"))
    assert KEEP_EPOCHS + 1 == len(aggregator.engine.ledger) == aggregator.rows("receipt")
    assert folded == aggregator.engine.tally.folded
    refusal = aggregator.engine.ledger.get(ClientId("a"), 1000).refusal(1)
    assert refusal is not None
    assert refusal.reason is Rejection.STALE


def test_an_outbox_that_is_used_is_not_forgotten_for_its_age(aggregator: Aggregator) -> None:
    """Two devices of one name, by mistake: what counts is which was last heard of."""
    for day in range(1, 20):
        aggregator.take([("a", message("a", 7, day)), ("a", message("a", 100 + day, 1))])

    assert (118, 7, 119) == aggregator.engine.ledger.epochs(ClientId("a"))
    assert ("a", 119) == aggregator.engine.ledger.latest(ClientId("a"))
    recovered = restore(aggregator.store, keep_epochs=KEEP_EPOCHS)
    assert recovered is not None
    assert ("a", 119) == recovered.ledger.latest(ClientId("a"))


def test_many_outboxes_in_one_batch_leave_few_entries(aggregator: Aggregator) -> None:
    """The bound holds at the end of the batch, in memory and on the disk."""
    aggregator.take([("a", message("a", epoch, 1)) for epoch in range(1, 51)])

    assert (48, 49, 50) == aggregator.engine.ledger.epochs(ClientId("a"))
    assert KEEP_EPOCHS == aggregator.rows("receipt")
    assert () == verify(aggregator.store).damage


def test_an_entry_that_is_gone_although_its_outbox_is_the_newest_is_damage(aggregator: Aggregator) -> None:
    """An entry may only be missing behind later ones of its client."""
    for epoch in (1, 2, 3):
        aggregator.take([("a", message("a", epoch, 1))])
    aggregator.store._db.execute("DELETE FROM receipt WHERE epoch = 1")
    pushed_out = verify(aggregator.store).damage
    aggregator.store._db.execute("DELETE FROM receipt WHERE epoch = 3")

    assert () == pushed_out
    assert ("the ledger has no entry for the outbox 3 of a, last heard of at record 3",) == verify(
        aggregator.store
    ).damage


def test_chunks_that_are_never_completed_do_not_pile_up(aggregator: Aggregator) -> None:
    """Neither in memory nor on the disk, from as many clients for as long as they like."""
    bound = 20_000
    spool = Spool(is_settled=aggregator.engine.is_settled, max_update_bytes=5000, max_bytes=bound, ttl=600.0)
    whole = bytes(range(200)) * 10
    pieces = split(whole, 500)
    most = 0
    for hour in range(300):
        for client in ("a", "b", "c"):
            for seq in range(1, 7):
                chunk = Chunk(
                    id=UpdateId(client=ClientId(client), epoch=hour + 1, seq=seq),
                    index=0,
                    count=len(pieces),
                    size=len(whole),
                    digest=checksum(whole),
                    data=pieces[0],
                )
                spool.take(client, wire.pack_chunk(chunk), hour * 3600.0)
        aggregator.take([], spool.take_changes())
        most = max(most, aggregator.rows("chunk"))
        spool.expire(hour * 3600.0 + 601.0)
    aggregator.take([], spool.take_changes())

    assert 12 == most  # four of each client
    assert most * (500 + PIECE_BYTES) <= bound
    assert 0 == aggregator.rows("chunk")
