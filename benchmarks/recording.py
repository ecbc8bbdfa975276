"""Real vectors to measure codecs on, recorded from training: updates with their residual, and model differences.

The numpy MLP 784-128-10 learns Fashion-MNIST (or the digits, where that is not installed) on ten clients that take
turns, each update encoded as top 1 % with error feedback and five averaged into a version. What is recorded is what
an agent hands to its codec, and what an aggregator would publish.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.edge_agent.feedback import encode_with_feedback
from fedmq.edge_agent.localdata import LocalData
from fedmq.edge_agent.numpy_trainer import MlpTrainer
from fedmq.edge_agent.trainer import Task

from fedmq import encoding
from fedmq.app.datasets import load_dataset
from fedmq.app.partition import dirichlet_partition
from fedmq.codecs import parse_pipeline
from fedmq.layout import ParamLayout
from fedmq.types import ParamVector

_CLIENTS: Final = 10
_EXAMPLES: Final = 1000
_BUFFER: Final = 5
_CODEC: Final = "topk(0.01) | ternary | rice"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What was recorded.

    Attributes:
        layout: the model's; all of it is trainable.
        updates: delta plus residual of single updates, float32, shape (layout.size,) each.
        versions: the model's versions, oldest first, likewise.
    """

    layout: ParamLayout
    updates: list[ParamVector]
    versions: list[ParamVector]


def record(*, updates: int, seed: int, cache: Path, alpha: float = 0.3) -> Recording:
    """Train for some updates; those of the first half are not kept, since a residual must fill first."""
    dataset = load_dataset("auto", cache=cache)
    shares = dirichlet_partition(
        dataset.train_labels,
        clients=_CLIENTS,
        alpha=alpha,
        per_client=min(_EXAMPLES, len(dataset.train_labels) // _CLIENTS),
        seed=seed,
    )
    trainers = [
        MlpTrainer(
            _data(dataset.train_images, dataset.train_labels, share),
            _data(dataset.test_images, dataset.test_labels, np.arange(1)),
            features=dataset.train_images.shape[1],
            hidden=128,
            classes=dataset.classes,
            seed=seed,
        )
        for share in shares
    ]
    layout, pipeline = trainers[0].layout, parse_pipeline(_CODEC)
    model = trainers[0].initial()
    residuals: list[ParamVector | None] = [None] * _CLIENTS
    bases = [model] * _CLIENTS
    buffer = np.zeros_like(model)
    recorded, versions = [], [model]
    for number in range(updates):
        client = number % _CLIENTS
        task = Task(
            local_epochs=1, settings={"learning_rate": 0.05, "batch_size": 32}, seed=seed * 100_003 + number
        )
        delta = trainers[client].train(bases[client], task, bool).vector - bases[client]
        before = residuals[client]
        if number >= updates // 2:
            recorded.append(delta if before is None else delta + before)
        encoded = encode_with_feedback(layout, pipeline, delta, before)
        residuals[client] = encoded.residual
        encoding.decode(layout, pipeline, encoded.payload).add_to(buffer, 1 / _BUFFER)
        if number % _BUFFER == _BUFFER - 1:
            model = model + buffer
            buffer[:] = 0
            versions.append(model)
        bases[client] = model
    return Recording(layout=layout, updates=recorded, versions=versions)


def _data(
    images: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
    labels: np.ndarray[tuple[int], np.dtype[np.uint8]],
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> LocalData:
    return LocalData(images=images[rows].astype(np.float32) / 255, labels=labels[rows].astype(np.int64))
