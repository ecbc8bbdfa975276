"""The auditor: looks at what the processes left on disk, from outside, and balances the accounts.

Three accounts that do not know each other:

* marks. Each training result has a number of its own (see `chaos_trainer`), which travels in the update and ends in
  the journal. A result is *finished* when its update was put into the outbox. That is so when the trainer was given
  another piece of work by the same process, or the agent's diary says so, or an outbox was seen to hold it, or the
  journal has it; a result whose process died before is not. Every finished mark must stand in the journal once,
  folded or refused, or still be in an outbox. Sequence numbers, receipts and the ledger are not asked.
* mass. Each result adds exactly 1 to its agent's parameter. What an agent finished must be in the model and its
  buffer, in the agent's residual, or in an update still in its outbox, to the last bit.
* bits. After each end of the aggregator its store is copied and recovered: every kept snapshot, with the journal
  behind it, must lead to one and the same state, and so must the journal between snapshots (`fedmq verify`). Each
  version that is rebuilt on the way must have the digest of the model that agents trained from while it was live.
  And a journal that was seen once must be the beginning of every later one.

Devices that were given an empty disk on purpose take their outbox with them; what it held was seen before, and is
accounted for as *wiped* unless it was folded or refused.
"""

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.audit import verify
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.recovery import restore
from fedmq.aggregator.state import pack_state, unpack_state
from fedmq.aggregator.store import JournalEntry, Snapshot, Store

from benchmarks.chaos_trainer import LAYOUT, MARKS, Result
from fedmq import encoding, wire
from fedmq.codecs import pipeline_from_wire
from fedmq.errors import FedmqError
from fedmq.plan import DEFAULT_MAX_UPDATE_BYTES
from fedmq.types import ParamVector

#: Contributions per version: a power of two, so that the mean is exact.
BUFFER_SIZE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What one look at a store that nobody has open has shown.

    Attributes:
        problems: one sentence for each thing that is wrong; empty when the recovery is bit-identical.
        snapshots: from how many snapshots the state was reached.
        rows: journal rows.
        chain: SHA-256 over them.
        digests: of the versions that were rebuilt.
    """

    problems: tuple[str, ...]
    snapshots: int
    rows: int
    chain: bytes
    digests: Mapping[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What an outbox holds.

    Attributes:
        pending: mass of each update, by mark.
        residual: mass that stayed behind.
    """

    pending: Mapping[int, float] = field(default_factory=dict)
    residual: float = 0.0


@dataclass(slots=True, kw_only=True)
class Device:
    """What was seen of one agent.

    Attributes:
        agent: its number.
        results: what its trainer returned.
        noted: marks that its diary calls trained.
        seen: marks that its outbox was seen to hold.
        wiped: its outboxes that were destroyed on purpose.
        final: its outbox at the end.
    """

    agent: int
    results: list[Result] = field(default_factory=list)
    noted: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    wiped: list[Contents] = field(default_factory=list)
    final: Contents = field(default_factory=Contents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """How it came out.

    Attributes:
        returned: results that trainers returned.
        finished: of them, those that were put into an outbox.
        folded, refused: finished ones with such a row in the journal; refused by reason.
        in_outbox: finished ones that wait in an outbox.
        wiped: finished ones that went with a device's disk.
        lost: marks that are finished and nowhere.
        doubled: marks with more than one row.
        unknown: rows with a mark that no trainer made.
        mass: one sentence for each agent whose mass does not add up.
        bases_checked: results whose base was rebuilt from a journal.
        bases_wrong: of them, those that had other bits.
    """

    returned: int
    finished: int
    folded: int
    refused: Mapping[str, int]
    in_outbox: int
    wiped: int
    lost: tuple[int, ...]
    doubled: tuple[int, ...]
    unknown: int
    mass: tuple[str, ...]
    bases_checked: int
    bases_wrong: int


def audit_recovery(path: Path) -> Recovery:
    """Recover a copied store from each of its snapshots, and compare.

    Args:
        path: a copy in a folder of its own, which goes away unless something is wrong.
    """
    problems: list[str] = []
    digests: dict[int, bytes] = {}
    rows, chain, snapshots = 0, b"", 0
    try:
        store = Store(path)
        try:
            problems += verify(store).damage
            recovered = restore(store)
            if recovered is not None:
                state = pack_state(recovered)
                for snapshot in store.snapshots():
                    snapshots += 1
                    if pack_state(_replay(store, snapshot, digests)) != state:
                        problems.append(f"the snapshot at record {snapshot.position} leads to another state")
            rows, chain = _chain(store.journal(), None)
        finally:
            store.close()
    except FedmqError as error:
        problems.append(str(error))
    if not problems:
        shutil.rmtree(path.parent)
    return Recovery(problems=tuple(problems), snapshots=snapshots, rows=rows, chain=chain, digests=digests)


def _replay(store: Store, snapshot: Snapshot, digests: dict[int, bytes]) -> Engine:
    """The state behind a snapshot; notes the digest of each version on the way."""
    engine = unpack_state(
        snapshot.state,
        ledger=Ledger(),
        admission=AdmissionSettings(),
        max_update_bytes=DEFAULT_MAX_UPDATE_BYTES,
    )
    digests[engine.state.version] = encoding.digest(engine.state.vector)
    for record in store.records(engine.position):
        before = engine.state.version
        engine.replay([record])
        if engine.state.version != before:
            digests[engine.state.version] = encoding.digest(engine.state.vector)
    return engine


def _chain(entries: Iterable[JournalEntry], rows: int | None) -> tuple[int, bytes]:
    """Number and SHA-256 of the journal's rows, or of its first `rows`."""
    chain, count = hashlib.sha256(), 0
    for entry in entries:
        if count == rows:
            break
        fields = (entry.position, entry.client, entry.epoch, entry.seq, entry.version, entry.examples)
        chain.update(repr((*fields, entry.base_version, entry.reason)).encode())
        count += 1
    return count, chain.digest()


def read_outbox(path: Path, agent: int) -> Contents:
    """What a copied outbox holds; nothing when there is no file, or no table in it yet.

    Raises:
        ValueError: an update holds what its trainer never made.
    """
    if not path.exists():
        return Contents()
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'outbox'").fetchone()[0]:
            return Contents()
        messages = [message for (message,) in db.execute("SELECT message FROM outbox")]
        row = db.execute("SELECT value FROM state WHERE key = 'residual'").fetchone()
    pending = {}
    for message in messages:
        update = wire.unpack_update(message)
        decoded = encoding.decode(LAYOUT, pipeline_from_wire(update.codec), update.payload)
        pending[update.num_examples] = _own(decoded.to_dense(), agent)
    return Contents(
        pending=pending, residual=_own(np.frombuffer(row[0], "<f4"), agent) if row is not None else 0.0
    )


def _own(vector: ParamVector, agent: int) -> float:
    """The mass of a vector that may hold nothing but this agent's."""
    others = np.delete(vector, agent)
    if others.any():
        raise ValueError(f"agent {agent} holds mass of others: {others[others != 0][:5]}")
    return float(vector[agent])


def count_pending(path: Path) -> int:
    """How many updates a live outbox holds; one that cannot be read now counts as 1."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as db:
            (count,) = db.execute("SELECT count(*) FROM outbox").fetchone()
            return int(count)
    except sqlite3.Error:
        return 1


def noted_marks(path: Path) -> set[int]:
    """Marks that an agent's diary calls trained."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    events = [
        json.loads(line) for line in lines if line.endswith("}")
    ]  # the last of a killed one may be half
    return {int(event["mark"]) for event in events if event["kind"] == "trained"}


def balance(store: Store, devices: Iterable[Device], digests: Mapping[int, bytes]) -> Accounts:
    """Balance the accounts.

    Args:
        store: the final one.
        devices: all that there were.
        digests: of the versions that were rebuilt from journals.

    Raises:
        StoreError: the store cannot be recovered.
    """
    folded: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    bases: dict[int, int] = {}
    for entry in store.journal():
        (refused if entry.reason else folded)[entry.examples] += 1
        bases[entry.examples] = entry.base_version
        if entry.reason:
            reasons[entry.reason] += 1
    engine = restore(store)
    everything = folded + refused
    returned = in_outbox = wiped = checked = wrong = 0
    finished: set[int] = set()
    lost: list[int] = []
    mass: list[str] = []
    for device in devices:
        returned += len(device.results)
        own = {mark for mark in everything if mark // MARKS == device.agent}
        done = {result.mark for result in device.results if result.accepted}
        done |= device.noted | device.seen | device.final.pending.keys() | own
        finished |= done
        open_marks = done - everything.keys()
        in_outbox += len(open_marks & device.final.pending.keys())
        open_marks -= device.final.pending.keys()
        gone = {mark for contents in device.wiped for mark in contents.pending}
        wiped += len(open_marks & gone)
        lost += sorted(open_marks - gone)
        places = [*device.wiped, device.final]
        outside = sum(
            contents.residual + sum(m for mark, m in contents.pending.items() if mark not in folded)
            for contents in places
        )
        inside = 0.0
        if engine is not None:
            state = engine.state
            inside = float(state.vector[device.agent]) * BUFFER_SIZE + float(state.buffer[device.agent])
        if inside + outside != len(done):
            mass.append(
                f"agent {device.agent} finished {len(done)}; the model holds {inside:g}, "
                f"its outboxes {outside:g}"
            )
        for result in device.results:
            digest = digests.get(bases[result.mark]) if result.mark in bases else None
            checked += digest is not None
            wrong += digest is not None and digest != result.digest
    made = {result.mark for device in devices for result in device.results}
    return Accounts(
        returned=returned,
        finished=len(finished),
        folded=sum(folded.values()),
        refused=dict(reasons),
        in_outbox=in_outbox,
        wiped=wiped,
        lost=tuple(lost),
        doubled=tuple(sorted(mark for mark, rows in everything.items() if rows > 1)),
        unknown=sum(rows for mark, rows in everything.items() if mark not in made),
        mass=tuple(mass),
        bases_checked=checked,
        bases_wrong=wrong,
    )


def judge_recoveries(
    recoveries: Iterable[Recovery], store: Store, final: Recovery
) -> tuple[int, dict[int, bytes], list[str]]:
    """How many recoveries were bit-identical, with each other and with the final journal.

    Returns:
        The number, the digests of all versions that were rebuilt, and what was wrong.
    """
    entries = list(store.journal())
    digests = dict(final.digests)
    identical, problems = 0, list(final.problems)
    for number, recovery in enumerate(recoveries, 1):
        found = list(recovery.problems)
        if _chain(entries, recovery.rows) != (recovery.rows, recovery.chain):
            found.append(f"its journal of {recovery.rows} rows is not how the final one begins")
        for version, digest in recovery.digests.items():
            if digests.setdefault(version, digest) != digest:
                found.append(f"version {version} had other bits in another recovery")
        identical += not found
        problems += [f"recovery {number}: {problem}" for problem in found]
    return identical, digests, problems
