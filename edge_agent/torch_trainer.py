"""Trainers in torch: any module, loss and data loader. The only module of the package that imports torch.

Parameters become trainable segments, floating-point buffers (BatchNorm's statistics) buffer segments; integer
buffers and what `private` matches stay on the device. A parameter that occurs twice (tied weights) travels once.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.mask import Mask
from fedmq.plan import Scalar
from fedmq.types import ParamVector

from .local_sgd import read_local_sgd, read_proximal, read_step
from .localdata import LocalData, load_local_data
from .trainer import Task, TrainingStoppedError, TrainResult

#: Batches of (inputs, targets); a DataLoader is one.
Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: LeNet-5's second convolution and poolings leave nothing of a smaller image.
_LENET_SIDE = 12


class Optimizer(Protocol):
    """What the training loop needs of an optimiser; all of `torch.optim` has it."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> object:
        """Move the parameters."""


MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter], Mapping[str, Scalar]], Optimizer]


class PlainSgd:
    """`v ← momentum · v + gradient`, `w ← w − learning_rate · v`, and nothing else.

    Not `torch.optim.SGD`: the first step of any optimiser there loads torch's compiler, which costs a small device
    70 MB and several seconds.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, momentum: float = 0.0
    ) -> None:
        self._parameters, self._learning_rate, self._momentum = list(parameters), learning_rate, momentum
        self._velocities: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters against their gradients."""
        for parameter in self._parameters:
            velocity = parameter.grad
            if velocity is None:
                continue
            if self._momentum:
                before = self._velocities.get(parameter)
                velocity = velocity.clone() if before is None else before.mul_(self._momentum).add_(velocity)
                self._velocities[parameter] = velocity
            parameter.sub_(velocity, alpha=self._learning_rate)


def sgd(parameters: Iterable[nn.Parameter], settings: Mapping[str, Scalar]) -> Optimizer:
    """SGD with the plan's `learning_rate` and `momentum`."""
    return PlainSgd(parameters, *read_step(settings))


class TorchTrainer:
    """Trains a module of the user's on the user's data.

    Args:
        model: any module; its present parameters are the initial model.
        loss: of (outputs, targets), a scalar: what training minimises.
        train: iterated once for each local epoch, for instance a DataLoader that shuffles.
        test: for `evaluate`; None when this device measures nothing.
        test_loss: what `evaluate` measures; None for `loss`.
        optimizer: makes a new optimiser for each update.
        private: regular expression; tensors whose name it matches never leave the device.
        num_examples: examples in one epoch; None counts the targets as they pass.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Batches,
        *,
        test: Batches | None = None,
        test_loss: Loss | None = None,
        optimizer: MakeOptimizer = sgd,
        private: str | None = None,
        num_examples: int | None = None,
    ) -> None:
        self._model, self._loss, self._train = model, loss, train
        self._test, self._test_loss = test, test_loss or loss
        self._make_optimizer, self._num_examples = optimizer, num_examples
        self._largest_pass = 0  # examples; a pass may end early
        self._tensors = {
            **dict(model.named_parameters()),
            **{name: tensor for name, tensor in model.named_buffers() if tensor.is_floating_point()},
        }
        buffers = {name for name, _ in model.named_buffers()}
        hidden = re.compile(private) if private else None

        def kind(name: str) -> SegmentKind:
            if hidden is not None and hidden.search(name):
                return SegmentKind.PRIVATE
            return SegmentKind.BUFFER if name in buffers else SegmentKind.TRAINABLE

        self.layout = ParamLayout(
            tuple(
                Segment(
                    name=name,
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    kind=kind(name),
                )
                for name, tensor in self._tensors.items()
            )
        )

    def initial(self) -> ParamVector:
        """The module's present parameters."""
        return self._read()

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """Load `base`, run the local epochs or steps, read the module back.

        Of the plan's settings, `proximal` is FedProx's μ; the optimiser takes the others.
        """
        torch.manual_seed(task.seed)
        self._write(base)
        self._model.train()
        optimizer = self._make_optimizer(self._model.parameters(), task.settings)
        pruned = self._pruned(task.mask)
        proximal = read_proximal(task.settings)
        anchors = self._anchors() if proximal else []
        steps, epochs, total, examples = 0, 0, 0.0, 0
        while not task.is_done(steps, epochs):
            before = examples
            for inputs, targets in self._train:
                if task.is_done(steps, epochs):
                    break
                if should_stop():
                    raise TrainingStoppedError
                optimizer.zero_grad()
                loss = self._loss(self._model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                for weight, anchor in anchors:
                    if weight.grad is not None:
                        weight.grad.add_(weight.detach() - anchor, alpha=proximal)
                optimizer.step()
                for parameter, places in pruned:
                    parameter.data.masked_fill_(places, 0)
                steps += 1
                total += float(loss.detach())
                examples += len(targets)
            epochs += 1
            self._largest_pass = max(self._largest_pass, examples - before)
            if examples == before:
                break  # there is no data: no number of passes would make a step
        size = self._num_examples or self._largest_pass
        return TrainResult(
            vector=self._read(),
            num_examples=size,
            local_steps=steps,
            metrics={"loss": total / steps} if steps else {},
            epochs=examples / size if size else 0.0,
        )

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """Mean loss and, where the targets are class labels, accuracy."""
        self._write(vector)
        self._model.eval()
        total, right, examples, labels = 0.0, 0, 0, 0
        labelled = True
        with torch.no_grad():
            for inputs, targets in self._test or ():
                outputs = self._model(inputs)
                total += float(self._test_loss(outputs, targets)) * len(targets)
                examples += len(targets)
                labelled = labelled and outputs.ndim == targets.ndim + 1 and not targets.is_floating_point()
                if labelled:
                    right += int((outputs.argmax(dim=1) == targets).sum())
                    labels += targets.numel()  # segmentation has a label for each pixel
        if not examples:
            return {"examples": 0.0}
        metrics = {"loss": total / examples, "examples": float(examples)}
        return {"accuracy": right / labels, **metrics} if labelled else metrics

    def _pruned(self, mask: Mask | None) -> list[tuple[Tensor, Tensor]]:
        """The parameters of which something is pruned, each with its pruned places, bool and of its shape."""
        if mask is None:
            return []
        parts = [
            (
                self._tensors[segment.name],
                mask.pruned[self.layout.slices[segment.name]].reshape(segment.shape),
            )
            for segment in self.layout.shared
            if segment.kind is SegmentKind.TRAINABLE
        ]
        return [(p, torch.from_numpy(part.copy()).to(p.device)) for p, part in parts if part.any()]

    def _anchors(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that the federation shares, each with a copy of what it is now."""
        parameters = dict(self._model.named_parameters())
        shared = (parameters.get(segment.name) for segment in self.layout.shared)
        return [(p, p.detach().clone()) for p in shared if p is not None]

    def _read(self) -> ParamVector:
        return self.layout.pack(
            {
                segment.name: self._tensors[segment.name].detach().to("cpu", torch.float32).numpy()
                for segment in self.layout.shared
            }
        )

    def _write(self, vector: ParamVector) -> None:
        with torch.no_grad():
            for name, values in self.layout.unpack(vector).items():
                self._tensors[name].copy_(torch.from_numpy(np.array(values)))


class Shuffled:
    """Batches of tensors in memory, in a new order at each epoch; lighter than a DataLoader.

    The order comes from torch's global generator, which `TorchTrainer.train` seeds.

    Args:
        data: the examples.
        batch_size: examples in one batch; the last one may be smaller.
    """

    def __init__(self, data: LocalData, batch_size: int) -> None:
        self._inputs, self._targets = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._targets))
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            yield self._inputs[chosen], self._targets[chosen]


def mlp(
    settings: Mapping[str, Scalar], *, data: str, features: int = 784, hidden: int = 128, classes: int = 10
) -> TorchTrainer:
    """The trainer that plans call `torch-mlp`: features → hidden → ReLU → classes.

    The last layer is linear: `CrossEntropyLoss` takes the softmax itself, and a second one before it flattens the
    gradient (`docs/article.md`).

    Args:
        settings: the plan's: `features`, `hidden`, `classes`, `seed`, `learning_rate`, `momentum`,
            `batch_size`, `proximal`, `logit_adjustment`.
        data: this device's `.npz` file, see `localdata`.
        features: used when the plan does not say.
        hidden: likewise.
        classes: likewise.
    """
    hidden, classes = int(settings.get("hidden", hidden)), int(settings.get("classes", classes))
    features = int(settings.get("features", features))
    torch.manual_seed(int(settings.get("seed", 0)))
    model = nn.Sequential()
    model.add_module("hidden", nn.Linear(features, hidden))
    model.add_module("relu", nn.ReLU())
    model.add_module("output", nn.Linear(hidden, classes))
    return _classifier(model, settings, data, features=features, classes=classes)


def lenet(settings: Mapping[str, Scalar], *, data: str, side: int = 28, classes: int = 10) -> TorchTrainer:
    """The trainer that plans call `torch-lenet`: LeNet-5 (LeCun et al. 1998) with ReLU and max pooling.

    61,706 parameters for grey images of 28 × 28 pixels in ten classes.

    Args:
        settings: the plan's: `side`, `classes`, `seed`, `learning_rate`, `momentum`, `batch_size`, `proximal`,
            `logit_adjustment`.
        data: this device's `.npz` file, see `localdata`.
        side: pixels along one side of an image; used when the plan does not say. At least 12.
        classes: likewise.
    """
    side, classes = int(settings.get("side", side)), int(settings.get("classes", classes))
    if side < _LENET_SIDE:
        raise SettingError("task.settings side", side, f"at least {_LENET_SIDE} pixels are allowed")
    torch.manual_seed(int(settings.get("seed", 0)))
    pooled = (side // 2 - 4) // 2  # a second convolution of 5 × 5, and two poolings
    layers: dict[str, nn.Module] = {
        "image": nn.Unflatten(1, (1, side, side)),
        "conv1": nn.Conv2d(1, 6, 5, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "hidden1": nn.Linear(16 * pooled * pooled, 120),
        "relu3": nn.ReLU(),
        "hidden2": nn.Linear(120, 84),
        "relu4": nn.ReLU(),
        "output": nn.Linear(84, classes),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return _classifier(model, settings, data, features=side * side, classes=classes)


def _classifier(
    model: nn.Module, settings: Mapping[str, Scalar], data: str, *, features: int, classes: int
) -> TorchTrainer:
    """A trainer of a model whose outputs are one number for each class."""
    # One device, one core: ten agents on a small box would otherwise fight for all of them.
    torch.set_num_threads(1)
    train = load_local_data(data, "train", features=features, classes=classes)
    test = load_local_data(data, "test", features=features, classes=classes)
    told = read_local_sgd(settings)
    adjustment = torch.from_numpy(told.adjustment(train.labels, classes))
    cross_entropy = nn.CrossEntropyLoss()
    return TorchTrainer(
        model,
        lambda outputs, targets: cross_entropy(outputs + adjustment, targets),
        Shuffled(train, told.batch_size),
        test=Shuffled(test, 1000) if len(test) else None,
        test_loss=cross_entropy,
        num_examples=len(train),
    )
