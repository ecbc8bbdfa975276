"""What everybody runs: who holds which images, the first model, and how fast each device is.

Fashion-MNIST, the MLP 784-128-10, ten clients with 1,000 training images each, labels by Dirichlet(0.3), one local
epoch of SGD (0.05, batches of 32). One folder for each seed, made once; every system reads the same files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.edge_agent.trainer import find_factory

from fedmq.app.datasets import load_dataset
from fedmq.app.partition import dirichlet_partition
from fedmq.app.shards import save_shards
from fedmq.layout import ParamLayout
from fedmq.modelfile import save_model
from fedmq.plan import Scalar

TARGET: Final = 0.78
CLIENTS: Final = 10
#: The model is measured whenever so many more updates are in it.
EVERY: Final = 10
TRAINER: Final = "torch-mlp"
BATCH_SIZE: Final = 32
LEARNING_RATE: Final = 0.05
_PER_CLIENT: Final = 1000
_ALPHA: Final = 0.3
_STRAGGLERS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How fast the devices are.

    Attributes:
        name: for the results.
        pause: seconds that a client sleeps in each local epoch.
        straggler_pause: seconds that each of the last two sleeps instead.
        limit: seconds after which a run is ended.
    """

    name: str
    pause: float
    straggler_pause: float
    limit: float

    @property
    def pauses(self) -> tuple[float, ...]:
        """Of each client."""
        return (self.pause,) * (CLIENTS - _STRAGGLERS) + (self.straggler_pause,) * _STRAGGLERS


WORKLOADS: Final = (
    Workload(name="W1", pause=0.0, straggler_pause=0.0, limit=300.0),
    Workload(name="W2", pause=0.2, straggler_pause=2.0, limit=400.0),
    # Ten processes that train contend for few cores; here waiting outweighs computing.
    Workload(name="W2-long", pause=1.0, straggler_pause=10.0, limit=900.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The files of one seed.

    Attributes:
        seed: of partition, first model and shuffling.
        data: in words.
        shards: each client's training images, `.npz`.
        test: the test images, `.npz`.
        initial: the first model for the peers: `.npz` with the tensors by name.
        model: the same for fedmq, safetensors.
        layout: the model's.
        settings: what the trainer is told.
    """

    seed: int
    data: str
    shards: tuple[Path, ...]
    test: Path
    initial: Path
    model: Path
    layout: ParamLayout
    settings: dict[str, Scalar]


def make_material(folder: Path, seed: int, *, data: str, cache: Path) -> Material:
    """Write the files of one seed.

    Args:
        folder: where they go; made here.
        seed: of everything that is drawn.
        data: which images, see `load_dataset`.
        cache: where images that must be fetched are kept.

    Raises:
        DataError: there are no images.
    """
    dataset = load_dataset(data, cache=cache)
    share = len(dataset.train_labels) // CLIENTS
    parts = dirichlet_partition(
        dataset.train_labels, clients=CLIENTS, alpha=_ALPHA, per_client=min(_PER_CLIENT, share), seed=seed
    )
    folder.mkdir(parents=True)
    names = [f"client-{index}" for index in range(CLIENTS)]
    paths = save_shards(folder, dataset, parts, names)
    settings: dict[str, Scalar] = {
        "features": dataset.train_images.shape[1],
        "hidden": 128,
        "classes": dataset.classes,
        "learning_rate": LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "seed": seed,
    }
    trainer = find_factory(TRAINER)(settings, data=str(paths["test"]))
    vector = trainer.initial()
    save_model(folder / "initial.safetensors", trainer.layout, vector)
    np.savez(folder / "initial.npz", allow_pickle=False, **trainer.layout.unpack(vector))
    return Material(
        seed=seed,
        data=dataset.description,
        shards=tuple(paths[name] for name in names),
        test=paths["test"],
        initial=folder / "initial.npz",
        model=folder / "initial.safetensors",
        layout=trainer.layout,
        settings=settings,
    )
