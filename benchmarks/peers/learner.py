"""Local training, the same for all peers and, step by step, the same as fedmq's trainer."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from job import Job
from mlp import Mlp
from torch import Tensor, nn

torch.set_num_threads(1)


def load_shard(path: str) -> tuple[Tensor, Tensor]:
    """A client's images, float32 in [0, 1], and labels."""
    with np.load(path) as file:
        images = torch.from_numpy(file["train_images"].astype(np.float32) / np.float32(255))
        return images, torch.from_numpy(file["train_labels"].astype(np.int64))


def order(job: Job, epoch: int, examples: int) -> Tensor:
    """The order of a client's examples in its n-th local epoch; the rule is `race_trainer.shuffling_seed`."""
    torch.manual_seed((job.seed * 100 + job.client) * 100_000 + epoch)
    return torch.randperm(examples)


def warm_up() -> None:
    """The first step of any `torch.optim` loads torch's compiler; these seconds belong to the set-up."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=0.0).step()


def adjustment(labels: Tensor, classes: int) -> Tensor:
    """What `fedmq.edge_agent.local_sgd` adds to the outputs in training: log of how frequent each class is here."""
    counts = torch.bincount(labels, minlength=classes).double() + 1.0
    return torch.log(counts / counts.max()).float()


class Learner:
    """Trains one client's model, with plain cross-entropy or, where the option `adjusted` is set, with fedmq's loss.

    Args:
        job: the race's.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._epoch = job, 0
        self._images, self._labels = load_shard(job.shards[job.client])
        self._model = Mlp(**job.network)
        self._loss = nn.CrossEntropyLoss()
        classes = job.network["classes"]
        self._adjustment = (
            adjustment(self._labels, classes) if job.options.get("adjusted") else torch.zeros(classes)
        )
        warm_up()

    def __len__(self) -> int:
        return len(self._labels)

    def fit(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One local epoch from a global model; then the pause of a slower device. The first waits for the start.

        Args:
            tensors: the model in the order of the job's `names`, float32 arrays.

        Returns:
            The local model likewise.
        """
        job, model = self._job, self._model
        model.load_state_dict({name: torch.tensor(t) for name, t in zip(job.names, tensors, strict=True)})
        if not self._epoch:
            job.wait_for_start()
        optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
        for chosen in order(job, self._epoch, len(self)).split(job.batch_size):
            optimizer.zero_grad()
            self._loss(model(self._images[chosen]) + self._adjustment, self._labels[chosen]).backward()
            optimizer.step()
        self._epoch += 1
        time.sleep(job.pauses[job.client])
        state = model.state_dict()
        return [state[name].numpy() for name in job.names]
