"""What a Softmax before CrossEntropyLoss costs: the same network, data and seed with it and without.

fedmq shards data --clients 1 --per-client 5000 --alpha 1000
python examples/double_softmax.py data/shard-0.npz data/test.npz
"""

import sys

import torch
from fedmq.edge_agent.localdata import load_local_data
from fedmq.edge_agent.torch_trainer import Shuffled, TorchTrainer
from fedmq.edge_agent.trainer import Task
from torch import nn

EPOCHS = 10


def make(train_file: str, test_file: str, *, softmax: bool) -> TorchTrainer:
    """784-128-10, as in the article with a Softmax at its end, or without."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)]
    train = load_local_data(train_file, "train", features=784, classes=10)
    test = load_local_data(test_file, "test", features=784, classes=10)
    return TorchTrainer(
        nn.Sequential(*layers, nn.Softmax(dim=1)) if softmax else nn.Sequential(*layers),
        nn.CrossEntropyLoss(),
        Shuffled(train, 32),
        test=Shuffled(test, 1000),
    )


def first_gradient(*, softmax: bool) -> float:
    """Length of the loss's gradient at ten equal scores, with respect to the scores."""
    scores = torch.zeros(1, 10, requires_grad=True)
    outputs = scores.softmax(dim=1) if softmax else scores
    nn.CrossEntropyLoss()(outputs, torch.tensor([3])).backward()
    assert scores.grad is not None
    return float(scores.grad.norm())


def main(train_file: str, test_file: str) -> None:
    """Train both side by side and print a table."""
    torch.set_num_threads(1)
    once, twice = (make(train_file, test_file, softmax=softmax) for softmax in (False, True))
    a, b = once.initial(), twice.initial()
    gradients = first_gradient(softmax=False), first_gradient(softmax=True)
    print(f"gradient at equal scores: {gradients[0]:.3f} and {gradients[1]:.3f}")
    print("epoch  once: loss  accuracy  twice: loss  accuracy")
    for epoch in range(1, EPOCHS + 1):
        task = Task(local_epochs=1, settings={"learning_rate": 0.05}, seed=epoch)
        a = once.train(a, task, lambda: False).vector
        b = twice.train(b, task, lambda: False).vector
        left, right = once.evaluate(a), twice.evaluate(b)
        print(
            f"{epoch:5}{left['loss']:12.3f}{left['accuracy']:10.3f}{right['loss']:13.3f}{right['accuracy']:10.3f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
