"""Faults on demand: what a bad network or a bad broker would do to a publish, exactly when a test wants it.

A `FaultPlan` looks at each publish that arrives and says which fault, if any, befalls it. It decides by
count, by topic, by client, and by a seeded coin, so the same plan on the same traffic does the same; it
carries nothing out itself (that is `core`).
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .errors import BrokerSettingError
from .topics import check_filter, matches


class FaultAction(Enum):
    """What befalls a publish.

    `LOSE_BEFORE_PUBACK`: it vanishes, and its sender hears nothing.
    `LOSE_AFTER_PUBACK`: it vanishes, and its sender hears that it was accepted, as a broker does that
        acknowledges before it stores.
    `DUPLICATE`: it is delivered twice.
    `REORDER`: it waits until the next publish has gone ahead of it, or `seconds` have passed.
    `DELAY`: it waits for `seconds`, and so does its PUBACK.
    `DISCONNECT_BEFORE`: its sender's connection is cut, and it is not accepted.
    `DISCONNECT_AFTER`: it is accepted, and its sender's connection is cut before the PUBACK.
    """

    LOSE_BEFORE_PUBACK = "lose before puback"
    LOSE_AFTER_PUBACK = "lose after puback"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    DISCONNECT_BEFORE = "disconnect before"
    DISCONNECT_AFTER = "disconnect after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault and the publishes that it may befall.

    Attributes:
        action: what happens.
        topic: a filter on the topic.
        client: the sender's client identifier, None for any.
        skip: how many matching publishes pass untouched first.
        times: how often it strikes, None for without end.
        probability: of striking a matching publish.
        seconds: how long `DELAY`, and at most `REORDER`, hold the publish.
    """

    action: FaultAction
    topic: str = "#"
    client: str | None = None
    skip: int = 0
    times: int | None = 1
    probability: float = 1.0
    seconds: float = 1.0

    def __post_init__(self) -> None:
        check_filter(self.topic)
        if not 0.0 <= self.probability <= 1.0:
            raise BrokerSettingError("probability", self.probability, "from 0 to 1")
        if self.seconds < 0.0:
            raise BrokerSettingError("seconds", self.seconds, "0 or more")


class FaultPlan:
    """An ordered list of faults; the first that applies to a publish strikes it.

    Args:
        faults: the faults.
        seed: of the coin that `probability` flips.
    """

    def __init__(self, faults: Sequence[Fault], *, seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.struck: Counter[FaultAction] = Counter()
        self._random = random.Random(seed)
        self._seen = [0] * len(self.faults)
        self._strikes = [0] * len(self.faults)

    def decide(self, client: str, topic: str) -> Fault | None:
        """The fault that befalls this publish; every call counts."""
        for index, fault in enumerate(self.faults):
            if (fault.client is not None and fault.client != client) or not matches(fault.topic, topic):
                continue
            self._seen[index] += 1
            if self._seen[index] <= fault.skip or self._strikes[index] == fault.times:
                continue
            if fault.probability < 1.0 and self._random.random() >= fault.probability:
                continue
            self._strikes[index] += 1
            self.struck[fault.action] += 1
            return fault
        return None
