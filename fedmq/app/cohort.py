"""A cohort on disk: the run folder with data shards, a first model and a TOML file for each role.

The demo starts its processes from these files, and a person can start any of them again by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.aggregator.strategy import STRATEGIES, FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.trainer import find_factory
from fedmq.layout import ParamLayout
from fedmq.modelfile import save_model
from fedmq.plan import Scalar
from fedmq.settings import setting

from .datasets import Dataset
from .partition import SPLITS, partition
from .shards import save_shards
from .toml import Value, write_toml

#: Spread of the agents' pauses: the slowest of ten is some five times slower than the middle one.
_PAUSE_SIGMA: Final = 0.9
#: K as a share of the agents, η, and how it falls with the versions: what did best in `benchmarks.rules`
#: (docs/choosing.md).
_BUFFERED: Final = 0.3
_SERVER_RATE: Final = 2.4
_SERVER_SCHEDULE: Final = "root(50, 0.2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSettings:
    """Who learns, from what, and how."""

    agents: int = setting(10, help="how many edge agents", low=1)
    split: str = setting(
        "auto",
        help="who holds which examples; auto is user where the data says whose they are, otherwise dirichlet",
        choices=SPLITS,
    )
    alpha: float = setting(0.3, help="Dirichlet concentration: 0.1 very uneven labels, 100 nearly even")
    per_client: int | None = setting(
        None, help="training examples of each agent by Dirichlet; 1000 if there are as many", low=1
    )
    seed: int = setting(0, help="seed of partition, initial model and shuffling", low=0)
    trainer: str = setting("torch-mlp", help="torch-mlp or mlp (numpy)")
    hidden: int = setting(128, help="width of the network's hidden layer", low=1)
    learning_rate: float = setting(0.05, help="of the local SGD", low=0)
    batch_size: int = setting(32, help="of the local SGD", low=1)
    local_epochs: int = setting(1, help="passes over the local data for each update", low=1)
    pause: float = setting(
        0.2, help="median seconds that an agent pauses in each epoch; agents differ", low=0
    )
    strategy: str = setting("fedbuff", help="how the aggregator folds", choices=STRATEGIES)
    buffer_size: int | None = setting(
        None,
        help="updates in each version (K); fedbuff and ca2fl take three for every ten agents if not given, "
        "others have their own",
        low=1,
    )
    staleness: str | None = setting(None, help="weight of late updates, for instance polynomial(0.5)")
    codec: str = setting(TaskSettings().codec, help="pipeline of updates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What was written.

    Attributes:
        folder: the run's.
        federation: its name on the broker.
        clients: client ids.
        parts: which training examples each client holds.
        layout: the model's.
    """

    folder: Path
    federation: str
    clients: tuple[str, ...]
    parts: list[NDArray[np.int64]]
    layout: ParamLayout

    @property
    def aggregator(self) -> Path:
        """The aggregator's settings."""
        return self.folder / "aggregator.toml"

    @property
    def evaluator(self) -> Path:
        """The evaluator's settings."""
        return self.folder / "evaluator.toml"

    @property
    def store(self) -> Path:
        """The aggregator's store."""
        return self.folder / "state" / "aggregator.db"

    def agent(self, client: str) -> Path:
        """An agent's settings."""
        return self.folder / f"{client}.toml"


def make_cohort(
    folder: Path, federation: str, dataset: Dataset, settings: CohortSettings, host: str, port: int
) -> Cohort:
    """Write everything that the processes of a demo need.

    Args:
        folder: the run's, empty.
        federation: a name for the topics.
        dataset: what to learn from.
        settings: how.
        host: the broker's.
        port: the broker's.

    Raises:
        SettingError: a setting cannot be used.
    """
    clients = tuple(f"agent-{index:02d}" for index in range(settings.agents))
    parts = partition(
        dataset.train_labels,
        dataset.train_owners,
        split=settings.split,
        clients=settings.agents,
        alpha=settings.alpha,
        per_client=settings.per_client,
        seed=settings.seed,
    )
    for name in ("data", "events", "logs", "state"):
        (folder / name).mkdir()
    shards = save_shards(folder / "data", dataset, parts, clients)
    test = shards["test"]
    plan: dict[str, Scalar] = {
        "features": dataset.train_images.shape[1],
        "hidden": settings.hidden,
        "classes": dataset.classes,
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    trainer = find_factory(settings.trainer)(plan, data=str(test))
    model = folder / "initial.safetensors"
    save_model(model, trainer.layout, trainer.initial())

    broker: dict[str, Value] = {"host": host, "port": port, "reconnect_min": 0.2, "reconnect_max": 2.0}
    common: dict[str, Value] = {"federation": federation, "broker": broker}
    cohort = Cohort(folder=folder, federation=federation, clients=clients, parts=parts, layout=trainer.layout)
    write_toml(cohort.aggregator, {**common, **_aggregator(folder, model, cohort.store, plan, settings)})
    rng = np.random.default_rng([settings.seed, 1])
    pauses = settings.pause * rng.lognormal(0.0, _PAUSE_SIGMA, settings.agents)
    for client, pause in zip(clients, pauses, strict=True):
        write_toml(
            cohort.agent(client),
            {
                **common,
                "client": client,
                "events": folder.resolve() / "events" / f"{client}.jsonl",
                "outbox": {"folder": folder.resolve() / "state" / client},
                "trainer": {
                    "pause": round(float(pause), 3),
                    "seed": settings.seed,
                    "settings": {"data": str(shards[client].resolve())},
                },
            },
        )
    write_toml(
        cohort.evaluator,
        {
            **common,
            "events": folder.resolve() / "events" / "evaluator.jsonl",
            "trainer": {"settings": {"data": str(test.resolve())}},
        },
    )
    return cohort


def demo_fold(agents: int, strategy: str = CohortSettings().strategy) -> FoldSettings:
    """How the demo folds the updates of so many agents, unless it is told otherwise."""
    match strategy:
        case "fedbuff" | "ca2fl":
            size = max(1, round(_BUFFERED * agents))
            return FoldSettings(
                strategy=strategy, buffer_size=size, learning_rate=_SERVER_RATE, schedule=_SERVER_SCHEDULE
            )
        case "fedavg":
            return FoldSettings(strategy=strategy, buffer_size=agents)
        case _:
            return FoldSettings(strategy=strategy)


def fold_table(fold: FoldSettings) -> dict[str, Value]:
    """A fold's dials that are not the defaults, for a file of settings."""
    mine = ((entry.name, getattr(fold, entry.name)) for entry in fields(FoldSettings))
    default = FoldSettings(strategy=fold.strategy)
    return {name: value for name, value in mine if value != getattr(default, name) or name == "strategy"}


def _aggregator(
    folder: Path, model: Path, store: Path, plan: Mapping[str, Scalar], settings: CohortSettings
) -> dict[str, Value]:
    chosen = demo_fold(settings.agents, settings.strategy)
    fold: dict[str, Value] = {"strategy": chosen.strategy}
    if settings.buffer_size is not None:
        fold["buffer_size"] = settings.buffer_size
    else:
        fold |= fold_table(chosen)
    if settings.staleness is not None:
        fold["staleness"] = settings.staleness
    return {
        "model": model.resolve(),
        "events": folder.resolve() / "events" / "aggregator.jsonl",
        "stats_interval": 2.0,
        "store": {"path": store.resolve()},
        "task": {
            "trainer": settings.trainer,
            "settings": dict(plan),
            "local_epochs": settings.local_epochs,
            "codec": settings.codec,
            "resend_seconds": 20.0,
        },
        "fold": fold,
    }
