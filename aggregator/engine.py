"""The engine: decides what becomes of each update, and folds. No thread, socket, file or clock.

Theory of operation. `offer` judges a batch against the state as it would be after each update before it, and changes
nothing; it returns a `Decision`: records for the journal and the ledger entries they lead to. The shell makes the
decision durable. `commit` then takes the same decision and folds it. So what is folded is always what is written,
and recovery is `restore` of a snapshot plus `replay` of the journal behind it, which folds the same records in the
same order and never judges again (law 2).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from fedmq import encoding, wire
from fedmq.codecs import Pipeline, pipeline_from_wire
from fedmq.encoding import DecodedVector
from fedmq.errors import StoreError, WireError
from fedmq.layout import ParamLayout
from fedmq.mask import Mask
from fedmq.types import GlobalModel, ModelVersion, UpdateId

from . import pruning, strategy
from .admission import AdmissionSettings, ContentCheck
from .consensus import Consensus
from .deadline import NOBODY
from .decision import Arrival, Decision, Record
from .fold_state import FoldState, Kept
from .judgement import Judgement
from .ledger import Ledger
from .reputation import Reputation
from .rule import Rule

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

    Attributes:
        gate: one more check of what an update holds, after those of `admission` (`trust`). What it refuses is
            journalled, so replay does without it.
        consensus: what the folded updates have in common.
        reputation: who is not listened to, as it was before the batch at hand.
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
        consensus: Consensus | None = None,
        reputation: Reputation | None = None,
    ) -> None:
        self.epoch, self.layout, self._rule, self.state = epoch, layout, rule, state
        self.ledger, self.position, self.tally = ledger, position, tally or Tally()
        self._admission, self._max_update_bytes = admission, max_update_bytes
        self._pipelines: dict[str, Pipeline] = {}
        self.gate: ContentCheck | None = None
        self.consensus, self.reputation = consensus or Consensus(), reputation or Reputation()

    @property
    def rule(self) -> Rule:
        """How to fold. A new one takes over the state (`strategy.adapt`); only a snapshot makes that durable."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self.state = strategy.adapt(self._rule, rule, self.state, self._decode_kept)
        self._rule = rule
        pruning.prune(rule.pruning, self.layout, self.state)

    @property
    def model(self) -> GlobalModel:
        """The model that is served; its vector changes with the next commit."""
        version = ModelVersion(self.state.version)
        return GlobalModel(epoch=self.epoch, version=version, layout=self.layout, vector=self.state.served)

    @property
    def mask(self) -> Mask | None:
        """What is pruned of the model; None for nothing."""
        return pruning.present(self.state)

    def is_settled(self, update_id: UpdateId) -> bool:
        """Whether an update was folded or refused before."""
        return self.ledger.get(update_id.client, update_id.epoch).is_settled(update_id.seq)

    def offer(self, batch: Sequence[Arrival]) -> Decision:
        """Judge a batch. Changes nothing."""
        return Judgement(self, self._admission, self._max_update_bytes).judge(batch)

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
        if record.id.client != NOBODY:
            self.reputation.note(record.id.client, record.version, record.refusal)
        if record.refusal is not None:
            self.tally.refused[record.refusal.reason] += 1
            return
        if record.id.client == NOBODY:
            self.state = strategy.close(self._rule, self.state, self._decode_kept)
        else:
            self._fold(record)
        if self.state.version > record.version:
            pruning.prune(self._rule.pruning, self.layout, self.state)

    def _fold(self, record: Record) -> None:
        delta, codec, payload, mask = record.delta, "", b"", b""
        if delta is None or self._rule.keeps_updates:
            what = f"message of journal record {record.position}"
            try:
                update = wire.unpack_update(record.message)
            except WireError as error:
                raise _undecodable(what, error) from error
            codec, payload, mask = update.codec, update.payload, update.mask
            if delta is None:
                delta = self._decode(what, codec, payload, mask)
        self.consensus.note(delta)
        self.state = strategy.step(
            self._rule,
            self.state,
            self._without_pruned(delta),
            client=record.id.client,
            num_examples=record.num_examples,
            staleness=record.staleness,
            outbox=record.id.epoch,
            codec=codec,
            payload=payload,
            mask=mask,
            decode=self._decode_kept,
        )
        self.tally.folded += 1

    def _decode_kept(self, kept: Kept) -> DecodedVector:
        what = f"kept update of {kept.client}"
        return self._without_pruned(self._decode(what, kept.codec, kept.payload, kept.mask))

    def _decode(self, what: str, codec: str, payload: bytes, digest: bytes) -> DecodedVector:
        try:
            mask = pruning.find(self.state, digest)
            return encoding.decode(self.layout, self.pipeline(codec), payload, mask)
        except (WireError, LookupError) as error:
            raise _undecodable(what, error) from error

    def _without_pruned(self, delta: DecodedVector) -> DecodedVector:
        """Nothing is folded onto what is pruned, also when that was not yet so in the mask of the update."""
        mask = self.mask
        return delta if mask is None else replace(delta, trainable=mask.restrict(delta.trainable))

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


def _undecodable(what: str, error: Exception) -> StoreError:
    return StoreError(
        f"the {what} cannot be decoded any more ({error}): is a codec gone that was installed? Else the store is "
        "damaged; run fedmq verify"
    )
