"""The rule of folding: every dial with its value.

A snapshot keeps the rule, so that the journal behind it is folded again with what it was folded with. `dials` makes it
from the settings; the modules that do the folding read it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedmq.envelope import MAX_INTEGER

from .compensation import Compensation, parse_compensation
from .optimizer import SGD, Optimizer, parse_optimizer
from .pruning import Pruning, parse_pruning
from .robust import Robust, parse_robust
from .schedule import CONSTANT, Schedule, parse_schedule
from .staleness import StalenessWeight, parse_staleness


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What `FoldSettings` come to: every dial has a value.

    Attributes:
        buffer_size: K.
        staleness: s.
        normalise_staleness: whether s is divided by its value at the running mean.
        by_examples: whether n_i is the number of examples, or 1.
        learning_rate: η.
        momentum: β.
        max_staleness: older updates are late.
        synchronous: clients train once on each version, and each counts once in it.
        method: how contributions become a direction: mean, ca2fl or fedfa.
        late: refuse, discount or refresh.
        optimizer: the server's.
        schedule: of η.
        warmup: versions in which η rises.
        delay_limit: τ_c, or None.
        average: what the running mean of the models keeps; 0 without.
        mixing: whether whole models are mixed in.
        compensation: of the delay, or None.
        clip_quantile: of the norms, or None.
        robust: a mean that bears outliers, or None.
        window: FedFa's K.
        clients: CA2FL's n, or None.
        memory: updates of each client whose mean is CA2FL's h_i.
        calibration: CA2FL's beta, or None where it is measured.
        forget_versions: versions of silence after which CA2FL forgets a client.
        cache_bytes: bound of the updates that are kept.
        deadline: seconds, or None.
        rarity: ρ; 0 for no such weight.
        pruning: the schedule by which the model becomes sparse, or None.
    """

    buffer_size: int
    staleness: StalenessWeight
    normalise_staleness: bool
    by_examples: bool
    learning_rate: float
    momentum: float
    max_staleness: int
    synchronous: bool
    method: str = "mean"
    late: str = "refuse"
    optimizer: Optimizer = SGD
    schedule: Schedule = CONSTANT
    warmup: int = 0
    delay_limit: int | None = None
    average: float = 0.0
    mixing: bool = False
    compensation: Compensation | None = None
    clip_quantile: float | None = None
    robust: Robust | None = None
    window: int = 0
    clients: int | None = None
    memory: int = 1
    calibration: float | None = 1.0
    forget_versions: int = 1000
    cache_bytes: int = 268_435_456
    deadline: float | None = None
    rarity: float = 0.0
    pruning: Pruning | None = None

    @property
    def oldest_admitted(self) -> int:
        """The largest staleness of an update that is not refused."""
        return self.max_staleness if self.late == "refuse" else MAX_INTEGER

    @property
    def needs_past(self) -> bool:
        """Whether models of the past are kept, one for each version up to `max_staleness`."""
        return self.mixing or self.compensation is not None

    @property
    def keeps_updates(self) -> bool:
        """Whether updates are kept as they came."""
        return self.method != "mean" or self.robust is not None

    @property
    def largest_kept(self) -> int | None:
        """The largest payload that an update may have, in bytes; None when its size does not matter."""
        slots = self.window if self.method == "fedfa" else self.buffer_size
        return self.cache_bytes // slots if self.keeps_updates and self.method != "ca2fl" else None


def pack_rule(rule: Rule) -> dict[str, object]:
    """A rule as msgpack can hold it: numbers, truth values and the formulas' texts."""
    fields = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    texts = {name: str(fields[name] or "none") for name in _FORMULAS}
    return fields | texts


def unpack_rule(fields: Mapping[str, object]) -> Rule:
    """What `pack_rule` packed; a field that an older release did not have gets its default.

    Raises:
        SettingError, TypeError: it is not that.
    """
    parsed = {name: parse(str(fields[name])) for name, parse in _FORMULAS.items() if name in fields}
    return Rule(**(dict(fields) | parsed))  # type: ignore[arg-type]  # the keys are the fields' names


_FORMULAS: Final = {
    "staleness": parse_staleness,
    "optimizer": parse_optimizer,
    "schedule": parse_schedule,
    "compensation": parse_compensation,
    "robust": parse_robust,
    "pruning": parse_pruning,
}
