"""The chronicle: what was decided, told to people: statistics, diary and log. Nothing depends on it."""

import logging
from collections.abc import Sequence

from fedmq import wire
from fedmq.eventlog import EventLog
from fedmq.transport.base import Delivery
from fedmq.types import Refusal, Rejection

from .complaints import WINDOW, Complaints
from .deadline import NOBODY
from .decision import Decision, Record
from .stats import Counters

log = logging.getLogger(__name__)


class Chronicle:
    """One life of the aggregator.

    Args:
        events: its diary.

    Attributes:
        counters: what happened since the start.
    """

    def __init__(self, events: EventLog) -> None:
        self.counters = Counters()
        self._events, self._complaints = events, Complaints()

    def note(self, batch: Sequence[Delivery], decision: Decision, now: float) -> None:
        """Tell what became of a batch.

        Args:
            batch: the messages.
            decision: what they came to.
            now: seconds, monotonic.
        """
        counters = self.counters
        counters.batches += 1
        counters.received += len(batch)
        counters.received_bytes += sum(len(delivery.payload) for delivery in batch)
        counters.duplicates += decision.duplicates
        for client, refusal in decision.dropped:
            counters.dropped[refusal.reason] += 1
            if self._complaints.admits(client, now):
                log.warning("dropped a message from %s: %s", client, refusal)
                self._events.write("refusal", client=client, seq=0, reason=refusal.reason)
        for record in decision.records:
            if record.id.client == NOBODY:
                continue  # a deadline
            if record.refusal is None:
                self._note_fold(record)
            else:
                self._note_refusal(record, record.refusal, now)

    def catch_up(self, now: float) -> None:
        """Tell how much was not told."""
        if left_out := self._complaints.take_left_out(now):
            log.warning("%d more messages were dropped or refused within %g s", left_out, WINDOW)

    def _note_fold(self, record: Record) -> None:
        self._events.write(
            "fold",
            client=record.id.client,
            seq=record.id.seq,
            base_version=record.base_version,
            version=record.version,
            staleness=record.staleness,
            bytes=len(record.message),
            payload=len(wire.unpack_update(record.message).payload),
        )

    def _note_refusal(self, record: Record, refusal: Refusal, now: float) -> None:
        if self._complaints.admits(record.id.client, now):
            log.warning("refused %s: %s", record.id, refusal)
            if refusal.reason is Rejection.FUTURE_VERSION:
                log.error(
                    "clients know a later version of this model than the store: if an older store was "
                    "restored, start the aggregator once with --store-new-epoch"
                )
        self._events.write("refusal", client=record.id.client, seq=record.id.seq, reason=refusal.reason)
