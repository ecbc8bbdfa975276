"""The ledger: which updates are settled. Pure; the store keeps its entries.

One entry for each client and outbox epoch, and the entry *is* the receipt that the client gets: a duplicate is
answered with the same bytes. An entry does not grow: the client's floor, carried in every update, moves its
high-water mark past what the client no longer has.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from fedmq.types import ClientId, Receipt, Refusal, UpdateId
from fedmq.wire import MAX_RECEIPT_ENTRIES

Key = tuple[ClientId, int]


def settle(receipt: Receipt, seq: int, floor: int, refusal: Refusal | None) -> Receipt:
    """The receipt after `seq` was folded (`refusal` None) or refused.

    Args:
        receipt: the one before.
        seq: the update's number; must not be settled yet.
        floor: the lowest number the client still keeps.
        refusal: why it was refused.
    """
    high_water = max(receipt.high_water, floor - 1)
    beyond = {other for other in (*receipt.beyond, seq) if other > high_water}
    while high_water + 1 in beyond:
        high_water += 1
        beyond.remove(high_water)
    refused = [entry for entry in receipt.refused if entry[0] >= floor]
    if refusal is not None:
        refused.append((seq, refusal))
    return replace(receipt, high_water=high_water, beyond=tuple(sorted(beyond)), refused=tuple(refused))


def fits(seq: int, floor: int) -> bool:
    """Whether settling `seq` keeps its receipt within its bound.

    It always does for a client whose outbox spans at most `MAX_RECEIPT_ENTRIES` numbers. Entries below the floor of
    the highest number are gone, and none comes back: both lists lie within one such span.
    """
    return seq - floor < MAX_RECEIPT_ENTRIES


class Ledger:
    """All entries, in memory."""

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self._receipts = {(receipt.client, receipt.epoch): receipt for receipt in receipts}
        self._latest: dict[ClientId, int] = dict(self._receipts.keys())

    def __len__(self) -> int:
        return len(self._receipts)

    def __iter__(self) -> Iterator[Receipt]:
        return iter(self._receipts.values())

    def get(self, client: ClientId, epoch: int) -> Receipt:
        """The receipt of one outbox; an empty one when nothing of it has been seen."""
        return self._receipts.get((client, epoch)) or Receipt(client=client, epoch=epoch)

    def install(self, entries: Mapping[Key, Receipt]) -> None:
        """Replace entries by newer ones."""
        self._receipts.update(entries)
        self._latest.update(entries.keys())

    def latest(self, client: ClientId) -> Key:
        """The key of the outbox that was last heard of; with epoch 0 when none was."""
        return client, self._latest.get(client, 0)


class LedgerView:
    """A ledger with changes that are not made yet; what `Engine.offer` decides on."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.changed: dict[Key, Receipt] = {}

    def get(self, client: ClientId, epoch: int) -> Receipt:
        """The receipt as it would be."""
        return self.changed.get((client, epoch)) or self._ledger.get(client, epoch)

    def settle(self, update_id: UpdateId, floor: int, refusal: Refusal | None) -> None:
        """Note that an update is folded or refused."""
        receipt = self.get(update_id.client, update_id.epoch)
        self.changed[update_id.client, update_id.epoch] = settle(receipt, update_id.seq, floor, refusal)
