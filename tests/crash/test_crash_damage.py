"""Files that a crash or a bad disk has torn, bent, emptied or closed to writing: found, told, and recovered from."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator import store as store_module
from fedmq.aggregator import strategy
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.audit import verify
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.recovery import restore
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import ChunkChanges, Snapshot, Store
from fedmq.aggregator.strategy import FoldSettings, make_rule
from fedmq.edge_agent.outbox import Outbox

from fedmq import encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.errors import StoreError
from fedmq.layout import ParamLayout, Segment
from fedmq.types import ClientId, ModelUpdate, ModelVersion, UpdateId

LAYOUT = ParamLayout((Segment(name="w", shape=(300,)),))
RECORDS = 24


def message(seq: int) -> bytes:
    """An update that no other equals."""
    vector = np.random.default_rng(seq).normal(size=LAYOUT.size).astype(np.float32)
    return wire.pack_update(
        ModelUpdate(
            id=UpdateId(client=ClientId("a"), epoch=7, seq=seq),
            floor=1,
            model_epoch=1,
            base_version=ModelVersion(0),
            fingerprint=LAYOUT.fingerprint,
            num_examples=1,
            local_steps=1,
            codec="float32",
            payload=encoding.encode(LAYOUT, parse_pipeline("float32"), vector),
        )
    )


class Life:
    """An aggregator without its network; remembers its state after each transaction."""

    def __init__(self, path: Path) -> None:
        rule = make_rule(FoldSettings(buffer_size=2, max_staleness=1000))
        self.store = Store(path)
        self.engine = Engine(
            epoch=1,
            layout=LAYOUT,
            rule=rule,
            state=strategy.init(rule, np.zeros(LAYOUT.size, np.float32)),
            ledger=Ledger(),
            admission=AdmissionSettings(),
            max_update_bytes=100_000,
        )
        self.states = [pack_state(self.engine)]
        self.snapshot()

    def snapshot(self) -> None:
        state = pack_state(self.engine)
        self.store.save_snapshot(
            Snapshot(position=self.engine.position, version=self.engine.state.version, state=state),
            created=1.0,
            keep=3,
            keep_records=1000,
        )

    def take(self, seq: int) -> None:
        decision = self.engine.offer([Arrival(client="a", message=message(seq))])
        self.store.append(decision.records, decision.receipts, ChunkChanges(), 1.0, decision.forgotten)
        self.engine.commit(decision)
        self.states.append(pack_state(self.engine))


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    """With snapshots at records 0, 8 and 16, and all that is not in the file yet in its log."""
    life = Life(tmp_path / "live" / "store.db")
    for seq in range(1, RECORDS + 1):
        life.take(seq)
        if seq in (8, 16):
            life.snapshot()
    yield life
    life.store.close()


@pytest.fixture
def file(tmp_path: Path, life: Life) -> Path:
    """The closed store: its log is worked in."""
    life.store.close()
    return life.store.path


def left_behind(life: Life, home: Path, bend: Callable[[bytearray], object]) -> Path:
    """What a killed process leaves, with its log bent by a disk that lost power, too."""
    home.mkdir()
    shutil.copy(life.store.path, home / "store.db")
    log = bytearray(life.store.path.with_name("store.db-wal").read_bytes())
    bend(log)
    (home / "store.db-wal").write_bytes(log)
    return home / "store.db"


def check_prefix(life: Life, path: Path) -> int | None:
    """The store is empty or a healthy prefix of the history, which then goes on to the same end; how long it is."""
    store = Store(path)
    try:
        engine = restore(store)
        if engine is None:
            return None
        position = engine.position
        assert life.states[position] == pack_state(engine)
        assert () == verify(store).damage
        for seq in range(1, RECORDS + 1):  # all of them again: the known ones change nothing
            decision = engine.offer([Arrival(client="a", message=message(seq))])
            store.append(decision.records, decision.receipts, ChunkChanges(), 1.0)
            engine.commit(decision)
        assert life.states[-1] == pack_state(engine)
        return position
    finally:
        store.close()


def test_a_log_that_ends_anywhere_gives_a_prefix(life: Life, tmp_path: Path) -> None:
    """A torn log: SQLite takes the whole transactions before the tear, and nothing of the one that it is in."""
    size = life.store.path.with_name("store.db-wal").stat().st_size
    cuts = [0, 1, 31, 32, 33, *np.random.default_rng(0).integers(0, size, 40).tolist(), size - 1, size]
    found = []
    for number, cut in enumerate(sorted(cuts)):

        def tear(log: bytearray, cut: int = cut) -> None:
            del log[cut:]

        found.append(check_prefix(life, left_behind(life, tmp_path / str(number), tear)))
    positions = [-1 if position is None else position for position in found]

    assert sorted(positions) == positions
    assert RECORDS == positions[-1]
    assert len(set(positions)) > 10


def test_a_log_with_a_flipped_bit_gives_a_prefix(life: Life, tmp_path: Path) -> None:
    """Every page in the log has a checksum that runs on from the one before: what is behind the flaw does not count."""
    size = life.store.path.with_name("store.db-wal").stat().st_size
    found = set()
    for number, place in enumerate(np.random.default_rng(1).integers(0, size, 30).tolist()):

        def flip(log: bytearray, place: int = place) -> None:
            log[place] ^= 1 << place % 8

        found.add(check_prefix(life, left_behind(life, tmp_path / str(number), flip)))

    assert len(found) > 8


def test_no_damaged_page_goes_unnoticed(life: Life, file: Path, tmp_path: Path) -> None:
    """Whichever page is overwritten: opening says so, or `verify` does; or the page held nothing that counts."""
    content = file.read_bytes()
    pages = len(content) // 4096
    harmless = 0
    for page in range(pages):
        path = tmp_path / f"{page}.db"
        bent = bytearray(content)
        bent[page * 4096 : page * 4096 + 4096] = np.random.default_rng(page).bytes(4096)
        path.write_bytes(bent)
        if not complaints(path):
            harmless += 1
            store = Store(path)
            engine = restore(store)
            store.close()

            assert engine is not None
            assert life.states[-1] == pack_state(engine)

    assert pages > 15
    assert harmless <= 2


def complaints(path: Path) -> tuple[str, ...]:
    """What opening or `verify` says."""
    try:
        store = Store(path)
    except StoreError as error:
        return (str(error),)
    try:
        return verify(store).damage
    except StoreError as error:
        return (str(error),)
    finally:
        store.close()


@pytest.mark.parametrize("statement", ["DELETE FROM snapshot WHERE position = ?",
                                       "UPDATE snapshot SET state = zeroblob(500) WHERE position = ?",
                                       "UPDATE snapshot SET digest = zeroblob(32) WHERE position = ?"])  # fmt: skip
def test_the_snapshot_before_leads_to_the_same_state(life: Life, file: Path, statement: str) -> None:
    """A missing or damaged snapshot costs a longer replay; without any there is no guess."""
    for gone in (16, 8):
        store = Store(file)
        store._db.execute(statement, (gone,))
        engine = restore(store)
        store.close()

        assert engine is not None
        assert life.states[-1] == pack_state(engine)
    store = Store(file)
    store._db.execute(statement, (0,))
    with pytest.raises(StoreError, match="no intact snapshot is left: restore a backup"):
        restore(store)
    store.close()


def test_a_store_on_a_full_disk_says_so_and_goes_on_when_there_is_room(life: Life) -> None:
    """Wherever in a transaction the disk is full; what is decided is neither half there nor lost."""
    store, engine = life.store, life.engine
    decision = engine.offer([Arrival(client="a", message=message(RECORDS + 1))])
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    for spare in range(3):
        store._db.execute(f"PRAGMA max_page_count = {pages + spare}")
        padding = tuple((UpdateId(client=ClientId("b"), epoch=1, seq=i), 0, bytes(4000)) for i in range(1, 9))
        with pytest.raises(StoreError, match="Free some space; nothing that was acknowledged is lost"):
            store.append(decision.records, decision.receipts, ChunkChanges(added=padding), 1.0)
        with pytest.raises(StoreError, match=r"cannot write a snapshot: .*full"):
            store.save_snapshot(
                Snapshot(position=RECORDS, version=1, state=bytes(100_000)),
                created=1.0,
                keep=3,
                keep_records=9,
            )
        recovered = restore(store)
        assert recovered is not None
        assert life.states[-1] == pack_state(recovered)
    store._db.execute("PRAGMA max_page_count = 1000000")
    life.take(RECORDS + 1)

    recovered = restore(store)
    assert recovered is not None
    assert life.states[-1] == pack_state(recovered)
    assert () == verify(store).damage


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("opens", [Store, Outbox])
def test_a_disk_that_takes_no_file_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: Callable[[Path], object], number: int
) -> None:
    """Read-only, forbidden or full: the message names the file and says what to do."""

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(StoreError, match=r"x\.db: cannot open: .*(may write the file|Free some space)"):
        opens(tmp_path / "x.db")


def test_a_store_that_becomes_read_only_keeps_what_it_has(life: Life) -> None:
    """A file system that is mounted anew after an error: every write fails, nothing is half there."""
    life.store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot write: attempt to write a readonly database"):
        life.take(RECORDS + 1)
    life.store._db.execute("PRAGMA query_only = OFF")
    life.take(RECORDS + 1)

    recovered = restore(life.store)
    assert recovered is not None
    assert RECORDS + 1 == recovered.position
    assert life.states[-1] == pack_state(recovered)


def test_a_store_of_another_schema_is_told_of(file: Path) -> None:
    """Rather than misread."""
    store = Store(file)
    store._db.execute(f"PRAGMA user_version = {store_module.SCHEMA + 1}")
    store.close()

    with pytest.raises(StoreError, match="schema 2, this release reads schema 1"):
        Store(file)
