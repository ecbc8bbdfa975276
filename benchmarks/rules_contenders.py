"""Who learns, from what and by which rule, in `benchmarks.rules`: the fleets and the contenders."""

from dataclasses import dataclass, field, replace
from typing import Final

from fedmq.aggregator.strategy import FoldSettings

from fedmq.app.cohort import demo_fold
from fedmq.app.scenario import AvailabilitySettings, DeviceClass

_FALLING: Final = "root(50, 0.2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Who learns from what.

    Attributes:
        clients: how many.
        alpha: Dirichlet concentration of their labels.
        images: of each.
        batch: how many make a step of SGD.
        target: an accuracy.
        updates: after so many it is enough.
        deadline: seconds after which a round of FedAvg ends with whoever has answered; None for a patient one.
        devices: what they are like.
    """

    clients: int
    alpha: float
    images: int = 1000
    batch: int = 32
    target: float
    updates: int
    deadline: float | None = None
    devices: tuple[DeviceClass, ...]


_JITTER: Final = "uniform(0.95, 1.05)"
WORKLOADS: Final = {
    "equal": Workload(
        clients=10,
        alpha=0.3,
        target=0.78,
        updates=500,
        devices=(DeviceClass(epoch_seconds="1", jitter=_JITTER),),
    ),
    "stragglers": Workload(
        clients=10,
        alpha=0.3,
        target=0.78,
        updates=500,
        devices=(
            DeviceClass(name="usual", share=8, epoch_seconds="0.26", jitter=_JITTER),
            DeviceClass(name="straggler", share=2, epoch_seconds="2.06", jitter=_JITTER),
        ),
    ),
    "skewed": Workload(
        clients=20,
        alpha=0.1,
        images=2560,
        batch=64,
        target=0.75,
        updates=800,
        devices=(DeviceClass(epoch_seconds="lognormal(1, 0.6)", jitter="uniform(0.5, 1.5)"),),
    ),
    "unreliable": Workload(
        clients=10,
        alpha=0.3,
        target=0.78,
        updates=500,
        deadline=3.0,
        devices=(
            DeviceClass(
                epoch_seconds="1",
                jitter=_JITTER,
                availability=AvailabilitySettings(
                    stays="exponential(10)", away="exponential(10)", reimaged=0.1
                ),
            ),
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One rule.

    Attributes:
        name: in tables.
        fold: its dials; FedAvg's K is the number of clients.
        dense: whether updates and models are sent as float32.
        adjusted: whether the loss is adjusted for the labels of each device.
    """

    name: str
    fold: FoldSettings = field(default_factory=FoldSettings)
    dense: bool = False
    adjusted: bool = False


_PAPER: Final = FoldSettings(
    strategy="fedbuff", buffer_size=5, learning_rate=1.0, staleness="polynomial(0.5)"
)


def contenders(workload: Workload) -> list[Contender]:
    """The rules for a workload, synchronous FedAvg first."""
    everybody = FoldSettings(strategy="fedavg", buffer_size=workload.clients)
    demo = demo_fold(workload.clients)
    buffered = demo.buffer_size
    falling = FoldSettings(buffer_size=buffered, learning_rate=1.8, schedule=_FALLING)
    hasty = replace(everybody, deadline=workload.deadline)
    deadline = Contender(name="FedAvg with a deadline, dense", fold=hasty, dense=True)
    rarity = Contender(
        name="FedBuff, falling step 2.4, adjusted, rarity 0.5", fold=replace(demo, rarity=0.5), adjusted=True
    )
    rarely = [rarity] if buffered > 1 else []  # else there is nobody in a version to be weighed against
    return [
        Contender(name="FedAvg, dense", fold=everybody, dense=True),
        *([deadline] if workload.deadline else []),
        Contender(name="FedAvg, dense, adjusted", fold=everybody, dense=True, adjusted=True),
        Contender(name="FedBuff, K = 5, dense", fold=_PAPER, dense=True),
        Contender(name="FedBuff, K = 5", fold=_PAPER),
        Contender(name="FedBuff, K = 5, adjusted", fold=_PAPER, adjusted=True),
        Contender(name="FedBuff, falling step 1.8", fold=falling),
        Contender(name="FedBuff, falling step 1.8, adjusted", fold=falling, adjusted=True),
        Contender(name="FedBuff, falling step 2.4, adjusted (the demo)", fold=demo, adjusted=True),
        *rarely,
        Contender(name="CA2FL, falling step 1.8", fold=replace(falling, strategy="ca2fl")),
        Contender(
            name="CA2FL, falling step 2.4, adjusted",
            fold=demo_fold(workload.clients, "ca2fl"),
            adjusted=True,
        ),
        Contender(
            name="CA2FL of its paper, K = 5",
            fold=FoldSettings(strategy="ca2fl", memory=1, calibration=1.0, staleness="constant"),
        ),
        Contender(name="FedAsync", fold=FoldSettings(strategy="fedasync")),
        Contender(name="FedAsync, adjusted", fold=FoldSettings(strategy="fedasync"), adjusted=True),
        Contender(name="FedFa", fold=FoldSettings(strategy="fedfa")),
    ]
