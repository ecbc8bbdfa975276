"""What happens to an agent, and what its session wants done about it. Values only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Linked:
    """The connection to the broker is up."""


@dataclass(frozen=True, slots=True)
class Unlinked:
    """The connection to the broker is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSeen:
    """A plan came.

    Attributes:
        usable: whether this device can satisfy it.
        once_per_version: whether a version may be trained on only once.
        resend_seconds: after how long without a receipt an update is sent again.
    """

    usable: bool
    once_per_version: bool
    resend_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorSeen:
    """The aggregator was born or died."""

    online: bool
    boot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSeen:
    """A share of the work came, or was cleared.

    Attributes:
        boot: of the aggregator's life that asks; 0 when it was cleared.
        wait: seconds between an update's delivery and the next pull, for as long as that life lasts.
        jitter: seconds, of which a part is drawn for the first pull after the aggregator has appeared, in whichever
            life.
    """

    boot: int
    wait: float
    jitter: float


@dataclass(frozen=True, slots=True)
class PieceSeen:
    """Something of a model came: the pull is alive, however slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSeen:
    """A model is complete."""

    epoch: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An update was put into the outbox, which takes no further one when it `is_full`."""

    seq: int
    is_full: bool


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """Training raised an exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The broker acknowledged all packets of an update."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTaken:
    """The broker refused a packet of an update, or nobody listens."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A receipt settled updates; they are out of the outbox, which may still be full."""

    seqs: tuple[int, ...]
    is_full: bool


Event = (
    Linked
    | Unlinked
    | PlanSeen
    | AggregatorSeen
    | ShareSeen
    | PieceSeen
    | ModelSeen
    | Trained
    | TrainingFailed
    | Taken
    | NotTaken
    | Settled
)


@dataclass(frozen=True, slots=True)
class Pull:
    """Subscribe to the model, which brings the retained head."""


@dataclass(frozen=True, slots=True)
class StopPulling:
    """Unsubscribe from the model: nobody who trains or sleeps costs the broker anything."""


@dataclass(frozen=True, slots=True)
class Train:
    """Train from the newest complete model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Publish an update of the outbox, for the first time or again."""

    seq: int


Effect = Pull | StopPulling | Train | Send
