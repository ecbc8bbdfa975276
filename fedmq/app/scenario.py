"""A scenario: who learns what from what, on which devices, and until when. Values only; `simulation` plays it.

One dataclass, read from a TOML file or made in Python. Its tables `task`, `fold`, `admission`, `allocate`, `publish`
and `store` are the aggregator's own, with the same keys as in `aggregator.toml`; `[[devices]]` may be given several
times.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.allocation import AllocationSettings
from fedmq.aggregator.pruning import PruneSettings
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.reputation import ReputationSettings
from fedmq.aggregator.settings import StoreSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.aggregator.trust import TrustSettings
from fedmq.errors import SettingError
from fedmq.settings import Leaf, leaves, load, setting

from .attack import parse_attack
from .distribution import parse_distribution
from .partition import SPLITS

S = TypeVar("S")

HOURS_A_DAY: Final = 24.0
TRAINING: Final = ("real", "synthetic")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is learned, and who holds how much of it."""

    source: str = setting("auto", help="auto, debian, digits, download, wearable, or a folder of IDX files")
    clients: int = setting(10, help="how many devices", low=1, high=10_000_000)
    split: str = setting(
        "auto",
        help="who holds which examples; auto is user where the data says whose they are, otherwise dirichlet",
        choices=SPLITS,
    )
    alpha: float = setting(0.3, help="Dirichlet concentration: 0.1 very uneven labels, 100 nearly even")
    per_client: int | None = setting(
        None, help="training examples of each device by Dirichlet; 1000 if there are as many", low=1
    )
    cache: Path = setting(Path("runs/cache"), help="folder for data that is downloaded or converted")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSettings:
    """Updates that nobody learned."""

    parameters: int = setting(101_770, help="of the model", low=1, high=100_000_000)
    payloads: int = setting(64, help="different updates that are drawn from", low=1, high=100_000)
    sample: float = setting(60.0, help="virtual seconds between samples of the load", low=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """A device's connection to the broker."""

    up: float | None = setting(None, help="bytes a second towards the broker; any number if not given", low=1)
    down: float | None = setting(None, help="bytes a second from the broker, likewise", low=1)
    latency: float = setting(0.0, help="seconds that a packet travels, one way", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilitySettings:
    """When a device is there. It goes as if its power were cut: work that is not in its outbox is lost."""

    joins: str = setting("0", help="seconds after the start at which it first may come; a distribution")
    stays: str | None = setting(None, help="seconds for which it stays, then goes; a distribution")
    away: str = setting("60", help="seconds for which it is away then; a distribution")
    reimaged: float = setting(
        0.0, help="share of its returns at which it has lost its outbox and all else", low=0, high=1
    )
    opens: float = setting(0.0, help="hour of the day at which it may take part", low=0, high=HOURS_A_DAY)
    hours: float = setting(
        HOURS_A_DAY,
        help="for how many hours of each day it may take part from then on",
        low=0.1,
        high=HOURS_A_DAY,
    )
    spread: float = setting(
        0.0, help="hours by which devices differ in that, in all", low=0, high=HOURS_A_DAY
    )

    def __post_init__(self) -> None:
        parse_distribution("availability.joins", self.joins)
        parse_distribution("availability.away", self.away)
        if self.stays is not None:
            parse_distribution("availability.stays", self.stays)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySettings:
    """What a device draws: E = P_idle t_idle + P_train t_train + e_byte bytes, while it is there."""

    idle_watts: float = setting(0.0, help="power while it is there and does not train", low=0)
    train_watts: float = setting(0.0, help="power while it trains", low=0)
    joules_per_byte: float = setting(0.0, help="energy of each byte that it sends or receives", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """Devices of one kind."""

    name: str = setting("device", help="of the kind, for reports")
    share: float = setting(
        1.0, help="how many of all devices, in proportion to the other kinds' shares", low=0
    )
    epoch_seconds: str = setting(
        "1", help="seconds of one local epoch: a distribution from which each device draws once"
    )
    jitter: str = setting("1", help="factor by which each piece of work differs from that; a distribution")
    attack: str = setting(
        "none",
        help="what it hands in instead of what it learned: none, sign_flip(scale), noise(scale), label_flip, "
        "same_value(scale)",
    )
    link: LinkSettings = field(default_factory=LinkSettings)
    availability: AvailabilitySettings = field(default_factory=AvailabilitySettings)
    energy: EnergySettings = field(default_factory=EnergySettings)

    def __post_init__(self) -> None:
        parse_attack(self.attack)
        parse_distribution("epoch_seconds", self.epoch_seconds)
        parse_distribution("jitter", self.jitter)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """How the model is measured: the aggregator's own, on all test data."""

    every: int = setting(10, help="updates folded between evaluations", low=1)
    target: float | None = setting(
        None,
        help="accuracy whose price the report tells; stop.accuracy, or else 0.78, if not given",
        low=0,
        high=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings:
    """When it is enough: whatever comes first."""

    updates: int | None = setting(None, help="after so many updates were folded", low=1)
    versions: int | None = setting(None, help="with this version of the model", low=1)
    accuracy: float | None = setting(None, help="with the first evaluation that reaches it", low=0, high=1)
    seconds: float = setting(86_400.0, help="after so many virtual seconds in any case", low=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Everything in a scenario but its devices."""

    name: str = setting("scenario", help="for reports")
    seed: int = setting(0, help="of everything random: partition, model, shuffling, durations", low=0)
    topic_aliases: int = setting(
        10, help="topics that a client may abbreviate at the broker; mosquitto takes 10", low=0, high=65_535
    )
    training: str = setting(
        "real", help="real, or synthetic: only what devices send, for many of them", choices=TRAINING
    )
    data: DataSettings = field(default_factory=DataSettings)
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    fold: FoldSettings = field(default_factory=FoldSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
    reputation: ReputationSettings = field(default_factory=ReputationSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    allocate: AllocationSettings = field(default_factory=AllocationSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    stop: StopSettings = field(default_factory=StopSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario(Tables):
    """Everything that a simulation is told.

    Attributes:
        devices: their kinds; clients are numbered through the kinds in this order.
    """

    devices: tuple[DeviceClass, ...] = (DeviceClass(),)

    def __post_init__(self) -> None:
        if not sum(kind.share for kind in self.devices) > 0:
            raise SettingError(
                "devices", len(self.devices), "at least one kind with a share above 0 is allowed"
            )
        for index, kind in enumerate(self.devices):
            if self.training != "real" and parse_attack(kind.attack) is not None:
                raise SettingError(
                    f"devices[{index}].attack",
                    kind.attack,
                    "only with training = real does a device learn anything",
                )
        if self.training == "synthetic" and self.allocate.policy != "none":
            raise SettingError(
                "allocate.policy", self.allocate.policy, "with synthetic training, none is allowed"
            )

    def clients(self) -> Iterator[tuple[str, DeviceClass]]:
        """Each client id with what its device is like."""
        index = 0
        for kind, count in zip(self.devices, self.counts(), strict=True):
            for _ in range(count):
                yield client_name(index), kind
                index += 1

    def counts(self) -> list[int]:
        """How many devices of each kind there are: in proportion to the shares, the largest remainders up."""
        whole = sum(kind.share for kind in self.devices)
        exact = [self.data.clients * kind.share / whole for kind in self.devices]
        counts = [int(number) for number in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for index in by_remainder[: self.data.clients - sum(counts)]:
            counts[index] += 1
        return counts


def client_name(index: int) -> str:
    """The client id of a device by its number; the demo's agents have the same ones."""
    return f"agent-{index:02d}"


def load_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file.

    Raises:
        SettingError: the file cannot be read, has an unknown key, or a value that cannot be used; the message names
            the key and what is allowed.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("scenario", str(path), f"the file cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError("scenario", str(path), f"it is not valid TOML: {error}") from None
    kinds = tree.pop("devices", [{}])
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, dict) for kind in kinds):
        raise SettingError("devices", "…", "one or more tables, each headed [[devices]], are allowed")
    tables = _fill(Tables, tree, "", extra="devices")
    devices = tuple(_fill(DeviceClass, kind, f"devices[{index}].") for index, kind in enumerate(kinds))
    return Scenario(**{name: getattr(tables, name) for name in Tables.__dataclass_fields__}, devices=devices)


def _fill(cls: type[S], tree: Mapping[str, object], prefix: str, extra: str = "") -> S:
    known = {leaf.path: leaf for leaf in leaves(cls)}
    try:
        return load(cls, flags=dict(_flatten(tree, "", known, extra)))
    except SettingError as error:
        raise SettingError(prefix + error.name, error.value, error.allowed) from None


def _flatten(
    tree: Mapping[str, object], table: str, known: Mapping[str, Leaf], extra: str
) -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        path = table + key
        if path in known:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            yield (
                path,
                str(value) if is_number and known[path].kind is str else value,
            )  # a constant distribution
        elif isinstance(value, dict) and any(name.startswith(path + ".") for name in known):
            yield from _flatten(value, path + ".", known, extra)
        else:
            beside = {name.removeprefix(table).split(".")[0] for name in known if name.startswith(table)}
            allowed = ", ".join(sorted(beside | {extra} if extra and not table else beside))
            raise SettingError(path, value, f"there is no such setting; here {allowed} are allowed")
