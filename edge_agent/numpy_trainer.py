"""A trainer for devices without torch: a network of one hidden layer, in numpy.

The same network, tensor names and settings as `torch_trainer.mlp`, so that one federation may hold devices of both
kinds. ReLU, then a linear layer; the loss is the cross-entropy of the softmax of its outputs, taken once (the outputs
themselves are no probabilities), and adjusted for what labels there are on this device (`local_loss`).
"""

from collections.abc import Callable, Mapping

import numpy as np

from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Scalar
from fedmq.types import ParamVector

from .local_loss import check_logit_adjustment, check_proximal, logit_adjustment
from .localdata import LocalData, load_local_data
from .trainer import Task, TrainingStoppedError, TrainResult


class MlpTrainer:
    """features → hidden → classes, by plain SGD.

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
        """Run plain SGD; the plan's settings are `learning_rate`, `batch_size` and those of `local_loss`."""
        rate = np.float32(task.settings.get("learning_rate", 0.05))
        batch = int(task.settings.get("batch_size", 32))
        pull = rate * np.float32(check_proximal(task.settings))
        rng = np.random.default_rng(task.seed)
        vector = base.copy()
        tensors = self.layout.unpack(vector)
        w1, b1 = tensors["hidden.weight"], tensors["hidden.bias"]
        w2, b2 = tensors["output.weight"], tensors["output.bias"]
        images, labels = self._train.images, self._train.labels
        adjustment = logit_adjustment(labels, len(b2), task.settings)
        steps, epochs, loss = 0, 0, 0.0
        with np.errstate(all="ignore"):  # what diverges is seen by the encoder, which says so
            while len(labels) and not task.is_done(steps, epochs):
                order = rng.permutation(len(labels))
                for start in range(0, len(order), batch):
                    if task.is_done(steps, epochs):
                        break
                    if should_stop():
                        raise TrainingStoppedError
                    chosen = order[start : start + batch]
                    x, y = images[chosen], labels[chosen]
                    hidden = np.maximum(x @ w1.T + b1, 0)
                    error, step_loss = _softmax_error(hidden @ w2.T + b2 + adjustment, y)
                    back = (error @ w2) * (hidden > 0)
                    if pull:  # the gradient of FedProx's term is μ (w − w_base)
                        vector -= pull * (vector - base)
                    w2 -= rate * (error.T @ hidden)
                    b2 -= rate * error.sum(axis=0)
                    w1 -= rate * (back.T @ x)
                    b1 -= rate * back.sum(axis=0)
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
            epochs=steps / max(-(-len(labels) // batch), 1),
        )

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """Accuracy and mean cross-entropy on the test split."""
        tensors = self.layout.unpack(vector)
        x, y = self._test.images, self._test.labels
        if not len(y):
            return {"examples": 0.0}
        with np.errstate(all="ignore"):  # a model that diverged has a loss of NaN
            hidden = np.maximum(x @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
            scores = hidden @ tensors["output.weight"].T + tensors["output.bias"]
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
        settings: the plan's: `features`, `hidden`, `classes`, `seed`, `learning_rate`, `batch_size`, `proximal`,
            `logit_adjustment`.
        data: this device's `.npz` file, see `localdata`.
        features: used when the plan does not say.
        hidden: likewise.
        classes: likewise.
    """
    features = int(settings.get("features", features))
    classes = int(settings.get("classes", classes))
    batch_size = int(settings.get("batch_size", 32))
    if batch_size < 1:
        raise SettingError("task.settings batch_size", batch_size, "at least 1 is allowed")
    check_proximal(settings)
    check_logit_adjustment(settings)
    return MlpTrainer(
        load_local_data(data, "train", features=features, classes=classes),
        load_local_data(data, "test", features=features, classes=classes),
        features=features,
        hidden=int(settings.get("hidden", hidden)),
        classes=classes,
        seed=int(settings.get("seed", 0)),
    )
