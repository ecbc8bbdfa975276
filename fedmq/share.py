"""Share: what the aggregator asks of one client, where that differs from the plan.

Retained on the client's own topic, for as long as the aggregator that worked it out lives: its boot number tells. A
client may do less, or refuse shares altogether, and its updates say what was done.
"""

from dataclasses import dataclass
from typing import Final

#: Bounds on what may be asked, whoever asks.
MAX_LOCAL_STEPS: Final = 1_000_000
MAX_WAIT_SECONDS: Final = 86_400.0
MAX_JITTER_SECONDS: Final = 3600.0

#: Metrics of updates in which a client tells how it works; the aggregator takes neither on trust.
TRAIN_SECONDS: Final = "train_seconds"
ACCEPTS_SHARES: Final = "accepts_shares"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One client's share of the work.

    Attributes:
        boot: of the aggregator's life that asks. In another life only `jitter` counts, and only before a first pull.
        local_steps: optimiser steps for each update, within an epoch or beyond; 0 for the plan's epochs.
        codec: pipeline for updates; empty for the plan's.
        wait: seconds to rest between the end of an update's delivery and the next pull. Relative, since clocks jump.
        jitter: seconds: the first pull after the aggregator has appeared waits for a part of them, drawn uniformly from
            [0, jitter], so that not all clients come at once.
    """

    boot: int
    local_steps: int = 0
    codec: str = ""
    wait: float = 0.0
    jitter: float = 0.0
