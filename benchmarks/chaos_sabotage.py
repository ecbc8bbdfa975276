"""Aggregators that break a law on purpose, so that the auditor can be seen to find it.

They live here and nowhere else: no setting, flag or variable of fedmq reaches them.

    ack       PUBACK goes out before the transaction; law 1 is broken, law 4 must make up for it
    receipt   PUBACK and receipt go out before the transaction: what is killed in between is lost
    ledger    the ledger's entries are not written: what is sent again after a crash is counted twice
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fedmq.aggregator import service
from fedmq.aggregator.decision import Decision
from fedmq.aggregator.service import Service
from fedmq.aggregator.store import ChunkChanges

from fedmq import wire

#: Between the steps that are in the wrong order, or belong together: a slow disk, and room for a SIGKILL.
_SLOW_SECONDS: Final = 0.3


class _EarlyAck(Service):
    """Acknowledges, then commits."""

    def _persist(self, decision: Decision, changes: ChunkChanges) -> None:
        for delivery in self._pending:
            delivery.ack()
        time.sleep(_SLOW_SECONDS)
        super()._persist(decision, changes)


class _EarlyReceipt(_EarlyAck):
    """Acknowledges and sends receipts, then commits."""

    def _persist(self, decision: Decision, changes: ChunkChanges) -> None:
        for (client, _), receipt in decision.receipts.items():
            self._transport.publish(self._topics.receipt(client), wire.pack_receipt(receipt), retain=True)
        super()._persist(decision, changes)


class _NoLedger(Service):
    """Commits the records and forgets the ledger."""

    def _persist(self, decision: Decision, changes: ChunkChanges) -> None:
        super()._persist(replace(decision, receipts={}), changes)
        time.sleep(_SLOW_SECONDS)


SABOTAGES: Final[Mapping[str, type[Service]]] = {
    "ack": _EarlyAck,
    "receipt": _EarlyReceipt,
    "ledger": _NoLedger,
}


def sabotage(name: str) -> None:
    """Let this process's aggregator be a broken one."""
    service.Service = SABOTAGES[name]  # type: ignore[misc]  # the command has not imported it yet
