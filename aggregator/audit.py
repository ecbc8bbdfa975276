"""Audit: is a store what it says it is, and does its journal lead to its models? Changes nothing.

`verify` looks for damage; `replay` rebuilds a version. Both read a store that an aggregator may be writing to: SQLite
shows them one consistent moment for each question they ask.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from fedmq import encoding
from fedmq.errors import StoreError, WireError
from fedmq.plan import DEFAULT_MAX_UPDATE_BYTES
from fedmq.types import ClientId, ParamVector

from .admission import AdmissionSettings
from .deadline import NOBODY
from .decision import Record
from .engine import Engine
from .ledger import Key, Ledger
from .state import pack_state, unpack_state
from .store import Snapshot, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What `verify` saw.

    Attributes:
        records: journal rows read.
        folded: of them, how many were folded.
        clients: how many clients they are from.
        snapshots: intact snapshots.
        replayed: snapshots that the journal behind an older one leads to, bit for bit.
        damage: one sentence for each thing that is wrong; empty when nothing is.
    """

    records: int
    folded: int
    clients: int
    snapshots: int
    replayed: int
    damage: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replayed:
    """One version, built again.

    Attributes:
        engine: the state at that version.
        records: how many journal records were folded again.
        vector: the model, float32.
        digest: of the model.
        anchor: the version of the next kept snapshot, which the same replay went on to; None when there is
            none behind it.
        is_identical: whether it led to that snapshot bit for bit; None without an anchor.
    """

    engine: Engine
    records: int
    vector: ParamVector = field(repr=False)
    digest: bytes
    anchor: int | None
    is_identical: bool | None


def verify(store: Store) -> Findings:
    """Check file, hashes, gaps, duplicates, ledger, and that the journal leads from each snapshot to the next.

    Raises:
        StoreError: the file cannot be read at all.
    """
    damage = [f"SQLite: {line}" for line in store.check_integrity()]
    damage += [
        f"the snapshot at record {place} does not match its hash" for place in store.damaged_snapshots()
    ]
    snapshots = sorted(store.snapshots(), key=lambda snapshot: snapshot.position)
    damage += _check_journal(store, snapshots[0].position if snapshots else 0)
    entries = list(store.journal())
    if not snapshots and entries:
        damage.append("there is no intact snapshot")
    replayed = 0
    for older, newer in pairwise(snapshots):
        try:
            is_identical = pack_state(_run(store, older, newer.position)) == newer.state
        except (StoreError, WireError) as error:
            damage.append(f"the journal cannot be folded from record {older.position} on: {error}")
            continue
        if is_identical:
            replayed += 1
        else:
            damage.append(
                f"the journal leads from record {older.position} to another state than the snapshot's"
            )
    if snapshots:
        try:
            _run(store, snapshots[-1], None)
        except (StoreError, WireError) as error:
            damage.append(f"the newest snapshot cannot be brought up to date: {error}")
    return Findings(
        records=len(entries),
        folded=sum(not entry.reason for entry in entries),
        clients=len({entry.client for entry in entries} - {NOBODY}),
        snapshots=len(snapshots),
        replayed=replayed,
        damage=tuple(damage),
    )


def replay(store: Store, version: int | None = None) -> Replayed:
    """Build a version again from the newest snapshot before it and the journal.

    Args:
        store: the store.
        version: which; None for the newest.

    Raises:
        StoreError: the version is older than the oldest snapshot, does not exist yet, or the journal is
            damaged.
    """
    snapshots = sorted(store.snapshots(), key=lambda snapshot: snapshot.position)
    if not snapshots:
        raise StoreError(f"{store.path}: there is no intact snapshot to start from")
    if version is None:
        # The newest version's bits can only be vouched for by a snapshot that lies behind another one.
        start = snapshots[-2] if len(snapshots) > 1 else snapshots[-1]
    else:
        before = [snapshot for snapshot in snapshots if snapshot.version <= version]
        if not before:
            raise StoreError(
                f"{store.path}: version {version} is no longer kept: {snapshots[0].version} is the oldest"
            )
        start = before[-1] if before[-1].version < version or len(before) == 1 else before[-2]
    engine = _restore(start)
    count = 0
    for record in _until(store, engine, version):
        engine.replay([record])
        count += 1
    if version is not None and engine.state.version != version:
        raise StoreError(
            f"{store.path}: version {version} does not exist yet: {engine.state.version} is the newest"
        )
    vector = engine.state.vector.copy()
    anchor = next(
        (s for s in snapshots if s.position > start.position and s.version >= engine.state.version), None
    )
    is_identical = None
    if anchor is not None:
        is_identical = pack_state(_run(store, start, anchor.position)) == anchor.state
    return Replayed(
        engine=engine,
        records=count,
        vector=vector,
        digest=encoding.digest(vector),
        anchor=anchor.version if anchor else None,
        is_identical=is_identical,
    )


def _until(store: Store, engine: Engine, version: int | None) -> Iterator[Record]:
    """The records up to the moment at which a version is complete."""
    for record in store.records(engine.position):
        if version is not None and record.version >= version:
            return
        yield record


def _run(store: Store, start: Snapshot, position: int | None) -> Engine:
    engine = _restore(start)
    for record in store.records(engine.position):
        if position is not None and record.position > position:
            break
        engine.replay([record])
    return engine


def _restore(snapshot: Snapshot) -> Engine:
    return unpack_state(
        snapshot.state,
        ledger=Ledger(),
        admission=AdmissionSettings(),
        max_update_bytes=DEFAULT_MAX_UPDATE_BYTES,
    )


def _check_journal(store: Store, oldest: int) -> Iterator[str]:
    """Gaps, duplicates, missing messages, and what the ledger says otherwise."""
    ledger = Ledger(store.receipts())
    seen: dict[tuple[str, int, int], int] = {}
    newest: dict[Key, int] = {}
    expected: int | None = None
    for entry in store.journal():
        if expected is not None and entry.position != expected:
            yield f"records {expected} to {entry.position - 1} are missing from the journal"
        expected = entry.position + 1
        if entry.client == NOBODY:
            continue  # a deadline: no update, no message, no receipt
        name = entry.client, entry.epoch, entry.seq
        if name in seen:
            yield f"records {seen[name]} and {entry.position} are the same update: {entry.client} seq {entry.seq}"
        seen[name] = entry.position
        if not entry.reason and entry.message_bytes is None and entry.position > oldest:
            yield f"the message of record {entry.position} is missing"
        client = ClientId(entry.client)
        newest[client, entry.epoch] = entry.position
        is_known = entry.epoch in ledger.epochs(client)
        if is_known and not ledger.get(client, entry.epoch).is_settled(entry.seq):
            yield f"record {entry.position} is not settled in the ledger: {entry.client} seq {entry.seq}"
    for (client, epoch), position in newest.items():
        epochs = ledger.epochs(client)
        # An outbox may be forgotten once its client has later ones.
        if epoch not in epochs and position > min((newest.get((client, e), 0) for e in epochs), default=0):
            yield f"the ledger has no entry for the outbox {epoch:x} of {client}, last heard of at record {position}"
