"""The ledger: which updates are settled. Pure; the store keeps its entries.

One entry for each client and outbox epoch, and the entry *is* the receipt that the client gets: a duplicate is
answered with the same bytes. An entry does not grow: the client's floor, carried in every update, moves its
high-water mark past what the client no longer has. Nor does the number of a client's entries: a device that loses its
outbox again and again leaves an entry each time, and only the newest few are kept.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Final

from fedmq.types import ClientId, Receipt, Refusal, UpdateId
from fedmq.wire import MAX_RECEIPT_ENTRIES

Key = tuple[ClientId, int]

DEFAULT_KEEP_EPOCHS: Final = 8


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
    """All entries, in memory.

    Args:
        receipts: those there are, in the order in which they were last added to.
        keep_epochs: how many outbox epochs of one client are kept; the one that was silent for longest is forgotten.
    """

    def __init__(self, receipts: Iterable[Receipt] = (), *, keep_epochs: int = DEFAULT_KEEP_EPOCHS) -> None:
        self.keep_epochs = keep_epochs
        # By client, then by epoch; the epoch that was last added to comes last.
        self._clients: dict[ClientId, dict[int, Receipt]] = {}
        self.install({(receipt.client, receipt.epoch): receipt for receipt in receipts})

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[Receipt]:
        return chain.from_iterable(epochs.values() for epochs in self._clients.values())

    def get(self, client: ClientId, epoch: int) -> Receipt:
        """The receipt of one outbox; an empty one when nothing of it has been seen."""
        return self._clients.get(client, {}).get(epoch) or Receipt(client=client, epoch=epoch)

    def install(self, entries: Mapping[Key, Receipt], forgotten: Iterable[Key] = ()) -> None:
        """Replace entries by newer ones, then let go of some."""
        for (client, epoch), receipt in entries.items():
            epochs = self._clients.setdefault(client, {})
            epochs.pop(epoch, None)
            epochs[epoch] = receipt
        for client, epoch in forgotten:
            self._clients[client].pop(epoch, None)

    def epochs(self, client: ClientId) -> tuple[int, ...]:
        """A client's outbox epochs; the one that was last added to comes last."""
        return tuple(self._clients.get(client, ()))

    def latest(self, client: ClientId) -> Key:
        """The key of the outbox that was last heard of; with epoch 0 when none was."""
        return client, next(reversed(self._clients.get(client, {0: None})))


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
        key = update_id.client, update_id.epoch
        receipt = self.get(*key)
        self.changed.pop(key, None)  # the order is that of the last change
        self.changed[key] = settle(receipt, update_id.seq, floor, refusal)

    def forgotten(self) -> tuple[Key, ...]:
        """The entries that the changes push out."""
        heard: dict[ClientId, list[int]] = {}
        for client, epoch in self.changed:
            heard.setdefault(client, []).append(epoch)
        return tuple(
            (client, epoch)
            for client, epochs in heard.items()
            for epoch in self._in_order(client, epochs)[: -self._ledger.keep_epochs]
        )

    def _in_order(self, client: ClientId, heard: list[int]) -> list[int]:
        return [epoch for epoch in self._ledger.epochs(client) if epoch not in heard] + heard
