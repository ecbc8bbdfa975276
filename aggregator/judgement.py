"""The judgement of a batch: what becomes of each arrival, against the state as it would be after those before it.

Nothing is changed and nothing is folded: version and contributors run ahead in here, by the rule's own word on what
fills a buffer (`strategy.counts`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fedmq import encoding, wire
from fedmq.encoding import DecodedVector
from fedmq.envelope import MAX_DETAIL
from fedmq.errors import WireError
from fedmq.types import ClientId, ModelUpdate, Refusal, Rejection, UpdateId

from . import pruning, strategy
from .admission import AdmissionSettings, Conditions, judge_content, judge_header
from .deadline import NOBODY, closing
from .decision import Arrival, Decision, Record
from .ledger import Key, LedgerView, fits

if TYPE_CHECKING:
    from .engine import Engine

#: Bytes of decoded updates that a decision carries to its commit; beyond them `commit` decodes again, so that a batch
#: of updates that are small on the wire and large in memory stays within a bound.
_MAX_DECODED: Final = 64 * 1024 * 1024


class Judgement:
    """The state as it would be while a batch is judged; for one batch."""

    def __init__(self, engine: "Engine", admission: AdmissionSettings, max_update_bytes: int) -> None:
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
        """What becomes of each arrival."""
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
        if arrival.id is not None and arrival.id.client == NOBODY:
            self._judge_deadline(arrival.id)
            return
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

    def _judge_deadline(self, name: UpdateId) -> None:
        if name != closing(self._version) or not self._filled:
            return  # the version is complete by now
        self._records.append(
            Record(
                position=self._engine.position + len(self._records) + 1,
                id=name,
                base_version=self._version,
                version=self._version,
                refusal=None,
                message=b"",
                num_examples=0,
            )
        )
        self._complete()

    def _complete(self) -> None:
        self._version += 1
        self._filled = 0
        self._contributors.clear()

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
            max_staleness=engine.rule.oldest_admitted,
            contributors=frozenset(self._contributors),
            max_payload=engine.rule.largest_kept,
            masks=pruning.admitted(engine.rule.pruning, engine.layout, engine.state, self._version),
        )
        refusal = judge_header(update, conditions)
        if refusal is None:
            refusal = engine.reputation.refusal(update.id.client, self._version)
        if refusal is not None:
            return refusal, None
        try:
            mask = pruning.find(engine.state, update.mask)
            delta = encoding.decode(engine.layout, engine.pipeline(update.codec), update.payload, mask)
        except WireError as error:
            return Refusal(reason=Rejection.BAD_PAYLOAD, detail=str(error)[:MAX_DETAIL]), None
        refusal = judge_content(delta, conditions)
        if refusal is None and engine.gate is not None:
            refusal = engine.gate(delta, conditions)
        return refusal, delta

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
        if not strategy.counts(engine.rule, record.staleness):
            return
        self._filled += 1
        if engine.rule.synchronous:
            self._contributors.add(update_id.client)
        if self._filled >= engine.rule.buffer_size:
            self._complete()
