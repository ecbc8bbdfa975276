"""The schedule of faults: what goes wrong, where, when and for how long. Pure, and the same for the same seed.

A fault belongs to a plane of its target: a process, its link, its disk or its clock. Two faults of one plane of one
target never overlap, so that the end of one does not undo the other; faults of different planes and targets overlap
as they fall: an agent is killed while the aggregator's disk is full and the broker is stopped.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

AGGREGATOR: Final = "aggregator"
BROKER: Final = "broker"
#: Of link faults, this share hits the aggregator's link; the agents share the rest.
_AGGREGATOR_LINK: Final = 0.3


class Kind(StrEnum):
    """What can go wrong."""

    KILL_AGGREGATOR = "kill-aggregator"
    PAUSE_AGGREGATOR = "pause-aggregator"
    RESTART_AGGREGATOR = "restart-aggregator"
    KILL_AGENT = "kill-agent"
    PAUSE_AGENT = "pause-agent"
    RESTART_AGENT = "restart-agent"
    REIMAGE_AGENT = "reimage-agent"
    KILL_BROKER = "kill-broker"
    PAUSE_BROKER = "pause-broker"
    RESTART_BROKER = "restart-broker"
    WIPE_BROKER = "wipe-broker"
    CUT_LINK = "cut-link"
    STALL_LINK = "stall-link"
    THROTTLE_LINK = "throttle-link"
    HALF_OPEN_BROKER = "half-open-at-broker"
    HALF_OPEN_PARTY = "half-open-at-party"
    PARTITION = "partition"
    FULL_STORE = "disk-full-store"
    FULL_OUTBOX = "disk-full-outbox"
    STEP_CLOCK = "step-clock"


class Plane(StrEnum):
    """What of a target is hit."""

    PROCESS = "process"
    LINK = "link"
    DISK = "disk"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How one kind of fault comes.

    Attributes:
        weight: how often, relative to the others.
        plane: what it hits.
        targets: "aggregator", "agent", "broker", or "link" for any but the broker.
        shortest, longest: how long it lasts, in seconds.
    """

    weight: float
    plane: Plane
    targets: str
    shortest: float
    longest: float


def _shape(weight: float, plane: Plane, targets: str, shortest: float, longest: float) -> Shape:
    return Shape(weight=weight, plane=plane, targets=targets, shortest=shortest, longest=longest)


_P, _L, _D = Plane.PROCESS, Plane.LINK, Plane.DISK
SHAPES: Final[Mapping[Kind, Shape]] = {
    Kind.KILL_AGGREGATOR: _shape(8, _P, AGGREGATOR, 0.0, 1.0),
    Kind.PAUSE_AGGREGATOR: _shape(3, _P, AGGREGATOR, 0.1, 3.0),
    Kind.RESTART_AGGREGATOR: _shape(2, _P, AGGREGATOR, 0.0, 1.0),
    Kind.KILL_AGENT: _shape(12, _P, "agent", 0.0, 2.0),
    Kind.PAUSE_AGENT: _shape(6, _P, "agent", 0.1, 8.0),
    Kind.RESTART_AGENT: _shape(3, _P, "agent", 0.0, 2.0),
    Kind.REIMAGE_AGENT: _shape(1.5, _P, "agent", 0.0, 1.0),
    Kind.KILL_BROKER: _shape(3, _P, BROKER, 0.0, 1.0),
    Kind.PAUSE_BROKER: _shape(3, _P, BROKER, 0.1, 3.0),
    Kind.RESTART_BROKER: _shape(1.5, _P, BROKER, 0.0, 1.0),
    Kind.WIPE_BROKER: _shape(1.5, _P, BROKER, 0.0, 1.0),
    Kind.CUT_LINK: _shape(16, _L, "link", 0.0, 0.0),
    Kind.STALL_LINK: _shape(9, _L, "link", 0.1, 4.0),
    Kind.THROTTLE_LINK: _shape(7, _L, "link", 0.5, 4.0),
    Kind.HALF_OPEN_BROKER: _shape(7, _L, "link", 0.2, 4.0),
    Kind.HALF_OPEN_PARTY: _shape(4, _L, "link", 0.2, 4.0),
    Kind.PARTITION: _shape(6, _L, "link", 0.2, 6.0),
    Kind.FULL_STORE: _shape(3, _D, AGGREGATOR, 0.2, 3.0),
    Kind.FULL_OUTBOX: _shape(4, _D, "agent", 0.2, 6.0),
    Kind.STEP_CLOCK: _shape(5, Plane.CLOCK, "link", 0.0, 0.0),
}
DISK_KINDS: Final = frozenset(kind for kind, shape in SHAPES.items() if shape.plane is Plane.DISK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        at: when it begins, in seconds from the start of the campaign.
        kind: what.
        target: whom.
        seconds: how long it lasts; 0 for one that is over at once.
        amount: in [0, 1), for what else is to be drawn.
    """

    at: float
    kind: Kind
    target: str
    seconds: float
    amount: float


def make_schedule(
    seed: int, *, seconds: float, per_minute: float, agents: list[str], kinds: frozenset[Kind]
) -> Iterator[Fault]:
    """Faults in the order in which they begin.

    Args:
        seed: the same seed gives the same faults.
        seconds: all begin before.
        per_minute: how many begin in a minute, on average.
        agents: the agents' names.
        kinds: which may occur.
    """
    draw = random.Random(seed)
    shapes = {kind: shape for kind, shape in SHAPES.items() if kind in kinds}
    weights = [shape.weight for shape in shapes.values()]
    busy: dict[tuple[str, Plane], float] = {}
    at = draw.expovariate(per_minute / 60)
    while at < seconds:
        kind, shape = draw.choices(list(shapes.items()), weights)[0]
        target = _target(draw, shape.targets, agents)
        length, amount = draw.uniform(shape.shortest, shape.longest), draw.random()
        if busy.get((target, shape.plane), 0.0) < at:  # else drawn again: the moment stays
            busy[target, shape.plane] = at + length
            yield Fault(at=at, kind=kind, target=target, seconds=length, amount=amount)
            at += draw.expovariate(per_minute / 60)
        else:
            at += 0.001  # so that a moment at which everything is broken already passes


def _target(draw: random.Random, targets: str, agents: list[str]) -> str:
    match targets:
        case "agent":
            return draw.choice(agents)
        case "link":
            return AGGREGATOR if draw.random() < _AGGREGATOR_LINK else draw.choice(agents)
        case _:
            return targets
