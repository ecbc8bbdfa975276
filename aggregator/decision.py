"""What goes into the engine and comes out of it: arrivals, journal records, decisions. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmq.encoding import DecodedVector
from fedmq.types import Receipt, Refusal, UpdateId

from .ledger import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One whole message from the update topic, or what its chunks already tell of it.

    Attributes:
        client: whose topic it came on.
        message: the envelope, untrusted; empty in the other cases.
        id: names an update that is settled (no refusal), or that is refused here and now.
        refusal: with an id, why that update is refused; without, why a message was dropped.
    """

    client: str
    message: bytes = field(repr=False)
    id: UpdateId | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the journal.

    Attributes:
        position: its place, from 1 without gaps.
        id: the update.
        base_version: the version it was trained from.
        version: the model's version when it was folded or refused.
        refusal: None when it was folded.
        message: the envelope, from which replay folds again; empty when it was refused.
        num_examples: as claimed.
        delta: the decoded message; not in the journal.
    """

    position: int
    id: UpdateId
    base_version: int
    version: int
    refusal: Refusal | None
    message: bytes = field(repr=False)
    num_examples: int
    delta: DecodedVector | None = field(default=None, repr=False, compare=False)

    @property
    def staleness(self) -> int:
        """Versions between its base and the model it was folded into."""
        return self.version - self.base_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be made durable, then committed.

    Attributes:
        records: for the journal, in order.
        receipts: the ledger's new entries.
        forgotten: the entries that they push out, of outboxes that their clients lost long ago.
        answers: the receipts to send: the new ones, and those of duplicates.
        dropped: messages that could not be read or settled; counted, and told to the client as a notice.
        duplicates: how many arrivals were settled before.
    """

    records: tuple[Record, ...]
    receipts: Mapping[Key, Receipt]
    forgotten: tuple[Key, ...]
    answers: frozenset[Key]
    dropped: tuple[tuple[str, Refusal], ...]
    duplicates: int
