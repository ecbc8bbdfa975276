"""The engine: decides what becomes of each update, and folds. No thread, socket, file or clock.

Theory of operation. `offer` judges a batch against the state as it would be after each update before it, and changes
nothing; it returns a `Decision`: records for the journal and the ledger entries they lead to. The shell makes the
decision durable. `commit` then takes the same decision and folds it. So what is folded is always what is written,
and recovery is `restore` of a snapshot plus `replay` of the journal behind it, which folds the same records in the
same order and never judges again (law 2).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedmq import encoding, wire
from fedmq.codecs import Pipeline, pipeline_from_wire
from fedmq.encoding import DecodedVector
from fedmq.envelope import MAX_DETAIL
from fedmq.errors import StoreError, WireError
from fedmq.layout import ParamLayout
from fedmq.types import (
    ClientId,
    GlobalModel,
    ModelUpdate,
    ModelVersion,
    Refusal,
    Rejection,
    UpdateId,
)

from . import strategy
from .admission import AdmissionSettings, Conditions, judge_content, judge_header
from .decision import Arrival, Decision, Record
from .ledger import Key, Ledger, LedgerView, fits
from .strategy import FoldState, Rule

#: Bytes of decoded updates that a decision carries to its commit; beyond them `commit` decodes again, so that a batch
#: of updates that are small on the wire and large in memory stays within a bound.
_MAX_DECODED = 64 * 1024 * 1024
#: Parsed pipelines kept by their text; a hostile client that varies the text only empties the cache.
_MAX_PIPELINES = 64


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was decided since the federation began."""

    folded: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Engine:
    """One federation's state and its transitions.

    Args:
        epoch: the model epoch.
        layout: the model's.
        rule: how to fold.
        state: the fold's state; `strategy.init` for a new federation.
        ledger: what is settled.
        admission: the operator's bounds.
        max_update_bytes: larger messages are refused.
    """

    def __init__(
        self,
        *,
        epoch: int,
        layout: ParamLayout,
        rule: Rule,
        state: FoldState,
        ledger: Ledger,
        admission: AdmissionSettings,
        max_update_bytes: int,
        position: int = 0,
        tally: Tally | None = None,
    ) -> None:
        self.epoch, self.layout, self.rule, self.state = epoch, layout, rule, state
        self.ledger, self.position, self.tally = ledger, position, tally or Tally()
        self._admission, self._max_update_bytes = admission, max_update_bytes
        self._pipelines: dict[str, Pipeline] = {}

    @property
    def model(self) -> GlobalModel:
        """The model as it stands; its vector changes with the next commit."""
        version = ModelVersion(self.state.version)
        return GlobalModel(epoch=self.epoch, version=version, layout=self.layout, vector=self.state.vector)

    def is_settled(self, update_id: UpdateId) -> bool:
        """Whether an update was folded or refused before."""
        return self.ledger.get(update_id.client, update_id.epoch).is_settled(update_id.seq)

    def offer(self, batch: Sequence[Arrival]) -> Decision:
        """Judge a batch. Changes nothing."""
        return _Judgement(self, self._admission, self._max_update_bytes).judge(batch)

    def commit(self, decision: Decision) -> None:
        """Fold a decision that is durable."""
        self.ledger.install(decision.receipts, decision.forgotten)
        for record in decision.records:
            self._apply(record)

    def replay(self, records: Iterable[Record]) -> int:
        """Fold journalled records again, after a restore; the ledger is restored by itself.

        Returns:
            How many records there were.

        Raises:
            StoreError: the records do not continue this state.
        """
        count = 0
        for record in records:
            self._apply(record)
            count += 1
        return count

    def _apply(self, record: Record) -> None:
        if record.position != self.position + 1 or record.version != self.state.version:
            raise StoreError(
                f"journal record {record.position} (version {record.version}) does not continue the state at "
                f"record {self.position} (version {self.state.version}): the store is damaged; run fedmq verify"
            )
        self.position = record.position
        if record.refusal is not None:
            self.tally.refused[record.refusal.reason] += 1
            return
        delta = self._decode(record) if record.delta is None else record.delta
        self.state = strategy.step(
            self.rule,
            self.state,
            delta,
            client=record.id.client,
            num_examples=record.num_examples,
            staleness=record.staleness,
        )
        self.tally.folded += 1

    def _decode(self, record: Record) -> DecodedVector:
        try:
            update = wire.unpack_update(record.message)
            return encoding.decode(self.layout, self.pipeline(update.codec), update.payload)
        except WireError as error:
            raise StoreError(
                f"the message of journal record {record.position} cannot be decoded any more ({error}): is a codec "
                "gone that was installed? Else the store is damaged; run fedmq verify"
            ) from error

    def pipeline(self, text: str) -> Pipeline:
        """The parsed pipeline of a line of text.

        Raises:
            WireError: there is no such pipeline.
        """
        found = self._pipelines.get(text)
        if found is None:
            if len(self._pipelines) >= _MAX_PIPELINES:
                self._pipelines.clear()
            found = self._pipelines[text] = pipeline_from_wire(text)
        return found


class _Judgement:
    """The state as it would be while a batch is judged."""

    def __init__(self, engine: Engine, admission: AdmissionSettings, max_update_bytes: int) -> None:
        state = engine.state
        self._engine, self._admission, self._max_update_bytes = engine, admission, max_update_bytes
        self._view = LedgerView(engine.ledger)
        self._version, self._filled = state.version, state.filled
        self._contributors = set(state.contributors)
        self._records: list[Record] = []
        self._answers: set[Key] = set()
        self._dropped: list[tuple[str, Refusal]] = []
        self._duplicates = self._decoded = 0

    def judge(self, batch: Sequence[Arrival]) -> Decision:
        for arrival in batch:
            self._judge(arrival)
        forgotten = self._view.forgotten()
        return Decision(
            records=tuple(self._records),
            receipts=self._view.changed,
            forgotten=forgotten,
            answers=frozenset(self._answers.difference(forgotten)),
            dropped=tuple(self._dropped),
            duplicates=self._duplicates,
        )

    def _judge(self, arrival: Arrival) -> None:
        if arrival.id is not None:
            floor = self._floor(arrival.id)
            if self._is_new(arrival.client, arrival.id, floor) and arrival.refusal:
                self._settle(arrival.id, floor, 0, arrival.refusal)
            return
        if arrival.refusal is not None:
            self._dropped.append((arrival.client, arrival.refusal))
            return
        try:
            update = wire.unpack_update(arrival.message)
        except WireError as error:
            unreadable = Refusal(reason=Rejection.UNREADABLE, detail=str(error)[:MAX_DETAIL])
            self._dropped.append((arrival.client, unreadable))
            return
        if not self._is_new(arrival.client, update.id, update.floor):
            return
        refusal, delta = self._admit(update, len(arrival.message))
        self._settle(
            update.id, update.floor, update.base_version, refusal, arrival.message, update.num_examples, delta
        )

    def _floor(self, update_id: UpdateId) -> int:
        """A floor for an update whose message is not at hand: one that settles nothing else.

        An outbox holds `MAX_RECEIPT_ENTRIES`, so its client keeps nothing below it.
        """
        high_water = self._view.get(update_id.client, update_id.epoch).high_water
        return max(1, min(high_water + 1, update_id.seq - wire.MAX_RECEIPT_ENTRIES + 1))

    def _is_new(self, client: str, update_id: UpdateId, floor: int) -> bool:
        """Whether an update can and need be settled; takes note when it cannot or need not."""
        if update_id.client != client:
            detail = f"the message names {update_id.client}, it came on the topic of {client}"
            self._dropped.append((client, Refusal(reason=Rejection.FOREIGN_CLIENT, detail=detail)))
            return False
        receipt = self._view.get(update_id.client, update_id.epoch)
        if receipt.is_settled(update_id.seq):
            self._duplicates += 1
            self._answers.add((update_id.client, update_id.epoch))
            return False
        if not fits(update_id.seq, floor):
            detail = f"seq {update_id.seq} is too far beyond {receipt.high_water}, floor {floor}"
            self._dropped.append((client, Refusal(reason=Rejection.SEQUENCE, detail=detail)))
            return False
        return True

    def _admit(self, update: ModelUpdate, size: int) -> tuple[Refusal | None, DecodedVector | None]:
        if size > self._max_update_bytes:
            detail = f"{size} bytes, at most {self._max_update_bytes} are allowed"
            return Refusal(reason=Rejection.TOO_LARGE, detail=detail), None
        engine = self._engine
        conditions = Conditions(
            settings=self._admission,
            model_epoch=engine.epoch,
            layout=engine.layout,
            version=self._version,
            max_staleness=engine.rule.max_staleness,
            contributors=frozenset(self._contributors),
        )
        refusal = judge_header(update, conditions)
        if refusal is not None:
            return refusal, None
        try:
            delta = encoding.decode(engine.layout, engine.pipeline(update.codec), update.payload)
        except WireError as error:
            return Refusal(reason=Rejection.BAD_PAYLOAD, detail=str(error)[:MAX_DETAIL]), None
        return judge_content(delta, conditions), delta

    def _keep(self, delta: DecodedVector | None) -> DecodedVector | None:
        self._decoded += delta.nbytes if delta else 0
        return delta if self._decoded <= _MAX_DECODED else None

    def _settle(
        self,
        update_id: UpdateId,
        floor: int,
        base_version: int,
        refusal: Refusal | None,
        message: bytes = b"",
        num_examples: int = 0,
        delta: DecodedVector | None = None,
    ) -> None:
        engine = self._engine
        record = Record(
            position=engine.position + len(self._records) + 1,
            id=update_id,
            base_version=base_version,
            version=self._version,
            refusal=refusal,
            message=b"" if refusal else message,
            num_examples=num_examples,
            delta=None if refusal else self._keep(delta),
        )
        self._records.append(record)
        self._view.settle(update_id, floor, refusal)
        self._answers.add((ClientId(update_id.client), update_id.epoch))
        if refusal is not None:
            return
        self._filled += 1
        if engine.rule.synchronous:
            self._contributors.add(update_id.client)
        if self._filled >= engine.rule.buffer_size:
            self._version += 1
            self._filled = 0
            self._contributors.clear()
