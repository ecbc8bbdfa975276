"""Who is asked for how much: the plan's epochs for all, FedCompass's groups, or even arrivals.

    python -m benchmarks.allocation

In virtual time (`fedmq.app.simulation`), so a busy machine changes nothing but the wait. Three federations: `W2`, the
race's ten clients of which two are ten times slower; `spread`, thirty whose speeds are lognormal with σ = 1; and
`links`, ten equally fast ones of which four send 1,000 bytes a second, with the plan's codec for all and with a ladder
of codecs. Every piece of work takes 5 percent more or less than it should. Gaps between arrivals and staleness are
those after the first third, when everybody's speed is known; a version's updates are K = 5 and, apart from FedBuff's,
the publisher's and the codec's defaults, nothing is tuned for any policy.

Energy is that of a Raspberry Pi 4 by the model of `docs/simulation.md`: 3 W while it is there, 6.5 W while it trains.
"""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from fedmq.aggregator.allocation import AllocationSettings
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings

from benchmarks.harness import Row, parse_options, print_table, write_result
from fedmq.app.datasets import Dataset, load_dataset
from fedmq.app.runlog import Event, Fold
from fedmq.app.scenario import (
    DataSettings,
    DeviceClass,
    EnergySettings,
    EvaluationSettings,
    LinkSettings,
    Scenario,
    StopSettings,
)
from fedmq.app.simulation import simulate

SEEDS: Final = 3
_CACHE: Final = Path("runs/cache")
_JITTER: Final = "lognormal(1, 0.05)"
_ENERGY: Final = EnergySettings(idle_watts=3.0, train_watts=6.5)
_SLOW_LINK: Final = "slow link"
_WHO: Final[Mapping[str, str]] = {"federation": "", "policy": "policy"}
_LEARNING: Final[Mapping[str, str]] = {
    **_WHO,
    "updates": "updates",
    "seconds_to_target": "s to target",
    "updates_to_target": "updates",
    "accuracy": "accuracy",
    "worst_decile": "worst 10 %",
}
_ORDER: Final[Mapping[str, str]] = {
    **_WHO,
    "gap_cv": "CV of gaps",
    "staleness": "staleness",
    "staleness_sd": "sd",
    "staleness_max": "most",
    "slow_link_updates": "slow links'",
    "uplink_per_update": "B up",
    "downlink_per_update": "B down",
    "joules_per_device": "J each",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Who takes part.

    Attributes:
        name: for the table.
        clients: how many.
        per_client: training images of each.
        kinds: what their devices are like.
        seconds: virtual ones, after which a run ends.
        target: accuracy whose price is told.
        steps: fewest and most of one update.
        policies: what is compared: a policy's name, and what it is given besides.
        codec: the plan's.
    """

    name: str
    clients: int
    per_client: int
    kinds: tuple[DeviceClass, ...]
    seconds: float
    target: float
    steps: tuple[int, int]
    policies: tuple[str, ...] = ("none", "compass", "even", "even, a third")
    codec: str = "topk(0.01) | ternary | rice"


def _device(name: str, share: float, epoch_seconds: str, up: float | None = None) -> DeviceClass:
    link = LinkSettings(up=up)
    return DeviceClass(
        name=name, share=share, epoch_seconds=epoch_seconds, jitter=_JITTER, link=link, energy=_ENERGY
    )


W2: Final = Federation(
    name="W2",
    clients=10,
    per_client=1000,
    kinds=(_device("usual", 8, "0.25"), _device("straggler", 2, "2.05")),
    seconds=30.0,
    target=0.78,
    steps=(20, 100),  # FedCompass's own
)
SPREAD: Final = Federation(
    name="spread",
    clients=30,
    per_client=600,
    kinds=(_device("any", 1, "lognormal(1, 1)"),),
    seconds=25.0,
    target=0.75,
    steps=(10, 50),  # an epoch has 19
)
LINKS: Final = Federation(
    name="links",
    clients=10,
    per_client=1000,
    kinds=(_device("usual", 6, "1"), _device(_SLOW_LINK, 4, "1", up=1000.0)),
    seconds=90.0,
    target=0.78,
    steps=(20, 100),
    policies=("none", "even", "even, ladder"),
    codec="topk(0.05) | ternary | rice",
)
#: For good and slow links: the plan's codec, some 8 KB an update, and 2 KB and 0.5 KB.
_LADDER: Final = ";".join(f"topk({share}) | ternary | rice" for share in (0.05, 0.01, 0.002))


def scenario(federation: Federation, policy: str, seed: int, seconds: float) -> Scenario:
    """One run."""
    name, _, given = policy.partition(", ")
    low, high = federation.steps
    return Scenario(
        name=f"{federation.name}-{name}",
        seed=seed,
        data=DataSettings(clients=federation.clients, alpha=0.3, per_client=federation.per_client),
        task=TaskSettings(
            trainer="mlp",
            settings=(("hidden", 128), ("learning_rate", 0.05), ("batch_size", 32)),
            codec=federation.codec,
        ),
        fold=FoldSettings(strategy="fedbuff", buffer_size=5),
        allocate=AllocationSettings(
            policy=name,
            min_steps=low,
            max_steps=high,
            concurrency=federation.clients // 3 if given == "a third" else 0,
            codecs=_LADDER if given == "ladder" else "",
        ),
        publish=PublishSettings(min_interval=0.0),
        evaluation=EvaluationSettings(every=10, target=federation.target),
        stop=StopSettings(seconds=seconds),
        devices=federation.kinds,
    )


def measure(federation: Federation, policy: str, seed: int, dataset: Dataset, seconds: float) -> Row:
    """Play one run, and sum it up."""
    folds: list[Fold] = []

    def observe(event: Event) -> None:
        if isinstance(event, Fold):
            folds.append(event)

    result = simulate(scenario(federation, policy, seed, seconds), dataset=dataset, observe=observe)
    late = [fold for fold in folds if fold.t > seconds / 3]
    gaps = [after.t - before.t for before, after in pairwise(late)]
    ages = [fold.staleness for fold in late]
    reached = result.reached(federation.target)
    return {
        "federation": federation.name,
        "policy": policy,
        "seed": seed,
        "updates": result.updates,
        "target": federation.target,
        "seconds_to_target": reached.t if reached else None,
        "updates_to_target": reached.folded if reached else None,
        "accuracy": result.final_accuracy,
        "worst_decile": result.worst_decile,
        "gap_cv": statistics.pstdev(gaps) / statistics.mean(gaps) if len(gaps) > 1 else None,
        "staleness": statistics.mean(ages) if ages else None,
        "staleness_sd": statistics.pstdev(ages) if ages else None,
        "staleness_max": max(ages, default=None),
        "slow_link_updates": sum(c.folded for c in result.clients if c.kind == _SLOW_LINK) or None,
        "uplink_per_update": result.uplink_bytes / max(result.updates, 1),
        "downlink_per_update": result.downlink_bytes / max(result.updates, 1),
        "joules_per_device": result.joules / federation.clients,
        "cpu_seconds": result.cpu_seconds,
    }


def means(rows: list[Row]) -> Iterator[Row]:
    """For each federation and policy the mean of its seeds; of a number that one of them lacks, none."""
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["federation"], row["policy"]), []).append(row)
    for (federation, policy), group in groups.items():
        mean: dict[str, str | int | float | None] = {"federation": str(federation), "policy": str(policy)}
        for name in group[0]:
            values = [value for row in group if isinstance(value := row[name], int | float)]
            if name not in mean and name != "seed":
                mean[name] = statistics.fmean(values) if len(values) == len(group) else None
        yield mean


def main() -> None:
    """Run all of them, and write the table."""
    options = parse_options("allocation", "Compare ways of sharing out the work.")
    dataset = load_dataset("auto", cache=_CACHE)
    seeds = [options.seed] if options.quick else list(range(options.seed, options.seed + SEEDS))
    rows: list[Row] = []
    for federation in (W2, SPREAD, LINKS):
        seconds = federation.seconds / 10 if options.quick else federation.seconds
        for policy in federation.policies:
            for seed in seeds:
                rows.append(measure(federation, policy, seed, dataset, seconds))
                print_table(f"{federation.name}, {policy}, seed {seed}", rows[-1:], _LEARNING)
    summary = list(means(rows))
    print_table(f"What was learned, mean of {len(seeds)} seeds", summary, _LEARNING)
    print_table("When and how old", summary, _ORDER)
    write_result("allocation", options, rows, means=summary, data=dataset.describe())


if __name__ == "__main__":
    main()
