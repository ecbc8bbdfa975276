"""A trainer for devices without torch: a network of one hidden layer, in numpy.

The same network, tensor names and settings as `torch_trainer.mlp`, so that one federation may hold devices of both
kinds. ReLU, then a linear layer; the loss is the cross-entropy of the softmax of its outputs, taken once (the outputs
themselves are no probabilities), and adjusted for what labels there are on this device (`local_sgd`).
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Scalar
from fedmq.types import ParamVector

from .local_sgd import read_local_sgd
from .localdata import LocalData, load_local_data
from .trainer import Task, TrainingStoppedError, TrainResult


class MlpTrainer:
    """features → hidden → classes, by SGD.

    Args:
        train: what to learn from.
        test: what to measure on.
        features: numbers in one example.
        hidden: width of the hidden layer.
        classes: number of labels.
        seed: of the initial model.
    """

    def __init__(
        self, train: LocalData, test: LocalData, *, features: int, hidden: int, classes: int, seed: int
    ) -> None:
        self._train, self._test = train, test
        self._seed = seed
        self.layout = ParamLayout(
            (
                Segment(name="hidden.weight", shape=(hidden, features)),
                Segment(name="hidden.bias", shape=(hidden,)),
                Segment(name="output.weight", shape=(classes, hidden)),
                Segment(name="output.bias", shape=(classes,)),
            )
        )

    def initial(self) -> ParamVector:
        """Uniform in ±1/√fan-in, as torch initialises its linear layers."""
        rng = np.random.default_rng(self._seed)
        vector = np.empty(self.layout.size, np.float32)
        tensors = self.layout.unpack(vector)
        for layer in ("hidden", "output"):
            weight = tensors[f"{layer}.weight"]
            bound = 1 / np.sqrt(weight.shape[1])
            weight[:] = rng.uniform(-bound, bound, weight.shape)
            tensors[f"{layer}.bias"][:] = rng.uniform(-bound, bound, weight.shape[0])
        return vector

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """Run SGD as the plan's settings say, see `local_sgd`."""
        sgd = read_local_sgd(task.settings)
        rate, momentum, proximal = map(np.float32, (sgd.learning_rate, sgd.momentum, sgd.proximal))
        rng = np.random.default_rng(task.seed)
        vector = base.copy()
        gradient = np.empty_like(vector)
        velocity = np.zeros_like(vector) if momentum else gradient
        w1, b1, w2, b2 = self._tensors(vector)
        to_w1, to_b1, to_w2, to_b2 = self._tensors(gradient)
        images, labels = self._train.images, self._train.labels
        adjustment = sgd.adjustment(labels, len(b2))
        steps, epochs, loss = 0, 0, 0.0
        with np.errstate(all="ignore"):  # what diverges is seen by the encoder, which says so
            while len(labels) and not task.is_done(steps, epochs):
                order = rng.permutation(len(labels))
                for start in range(0, len(order), sgd.batch_size):
                    if task.is_done(steps, epochs):
                        break
                    if should_stop():
                        raise TrainingStoppedError
                    chosen = order[start : start + sgd.batch_size]
                    x, y = images[chosen], labels[chosen]
                    hidden = np.maximum(x @ w1.T + b1, 0)
                    error, step_loss = _softmax_error(hidden @ w2.T + b2 + adjustment, y)
                    back = (error @ w2) * (hidden > 0)
                    np.matmul(error.T, hidden, out=to_w2)
                    np.sum(error, axis=0, out=to_b2)
                    np.matmul(back.T, x, out=to_w1)
                    np.sum(back, axis=0, out=to_b1)
                    if proximal:
                        gradient += proximal * (vector - base)
                    if momentum:
                        velocity *= momentum
                        velocity += gradient
                    vector -= rate * velocity
                    if task.mask is not None:
                        task.mask.clear(vector)
                    steps += 1
                    loss += step_loss
                epochs += 1
        return TrainResult(
            vector=vector,
            num_examples=len(labels),
            local_steps=steps,
            metrics={"loss": loss / steps} if steps else {},
            epochs=steps / max(-(-len(labels) // sgd.batch_size), 1),
        )

    def _tensors(self, vector: ParamVector) -> Iterator[NDArray[np.float32]]:
        """Weight and bias of the hidden layer, weight and bias of the output: parts of the vector."""
        tensors = self.layout.unpack(vector)
        return (tensors[f"{layer}.{part}"] for layer in ("hidden", "output") for part in ("weight", "bias"))

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """Accuracy and mean cross-entropy on the test split."""
        w1, b1, w2, b2 = self._tensors(vector)
        x, y = self._test.images, self._test.labels
        if not len(y):
            return {"examples": 0.0}
        with np.errstate(all="ignore"):  # a model that diverged has a loss of NaN
            scores = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
            _, loss = _softmax_error(scores, y)
        accuracy = float((scores.argmax(axis=1) == y).mean())
        return {"accuracy": accuracy, "loss": loss, "examples": float(len(y))}


def _softmax_error(scores: ParamVector, labels: np.ndarray) -> tuple[ParamVector, float]:
    """Gradient of the mean cross-entropy with respect to the scores, and that mean."""
    scores = scores - scores.max(axis=1, keepdims=True)
    exponents = np.exp(scores)
    sums = exponents.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float((np.log(sums[:, 0]) - scores[rows, labels]).mean())
    error = exponents / sums
    error[rows, labels] -= 1
    error /= np.float32(len(labels))
    return error, loss


def mlp(
    settings: Mapping[str, Scalar], *, data: str, features: int = 784, hidden: int = 128, classes: int = 10
) -> MlpTrainer:
    """The trainer that plans call `mlp`.

    Args:
        settings: the plan's: `features`, `hidden`, `classes`, `seed`, `learning_rate`, `momentum`,
            `batch_size`, `proximal`, `logit_adjustment`.
        data: this device's `.npz` file, see `localdata`.
        features: used when the plan does not say.
        hidden: likewise.
        classes: likewise.
    """
    features = int(settings.get("features", features))
    classes = int(settings.get("classes", classes))
    read_local_sgd(settings)
    return MlpTrainer(
        load_local_data(data, "train", features=features, classes=classes),
        load_local_data(data, "test", features=features, classes=classes),
        features=features,
        hidden=int(settings.get("hidden", hidden)),
        classes=classes,
        seed=int(settings.get("seed", 0)),
    )
