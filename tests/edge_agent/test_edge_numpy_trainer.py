"""The numpy trainer: its gradient, its bookkeeping, and that it stops when it is told to."""

from pathlib import Path

import numpy as np
import pytest
from fedmq.edge_agent.localdata import LocalData
from fedmq.edge_agent.numpy_trainer import MlpTrainer, mlp
from fedmq.edge_agent.trainer import Task, TrainerError, TrainingStoppedError
from numpy.typing import NDArray

from fedmq.errors import SettingError
from fedmq.types import ParamVector

FEATURES, HIDDEN, CLASSES = 6, 5, 3
RNG = np.random.default_rng(11)


def examples(count: int) -> LocalData:
    """Random images with random labels."""
    return LocalData(
        images=RNG.random((count, FEATURES)).astype(np.float32), labels=RNG.integers(0, CLASSES, count)
    )


def trainer(train: LocalData, test: LocalData | None = None) -> MlpTrainer:
    """A small network."""
    return MlpTrainer(train, test or examples(0), features=FEATURES, hidden=HIDDEN, classes=CLASSES, seed=1)


def task(epochs: int = 1, seed: int = 0, **settings: float) -> Task:
    """A piece of work."""
    return Task(local_epochs=epochs, settings=settings, seed=seed)


def never() -> bool:
    """Nobody wants to stop."""
    return False


def loss(made: MlpTrainer, vector: NDArray[np.float64], data: LocalData, tau: float = 0.0) -> float:
    """Mean cross-entropy in float64, written anew: what the gradient must be the gradient of."""
    tensors = {
        segment.name: vector[made.layout.slices[segment.name]].reshape(segment.shape)
        for segment in made.layout.shared
    }
    hidden = np.maximum(data.images @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
    scores = hidden @ tensors["output.weight"].T + tensors["output.bias"]
    frequencies = np.array(
        [(np.sum(data.labels == label) + 1) / (len(data) + CLASSES) for label in range(CLASSES)]
    )
    scores += tau * np.log(frequencies)
    scores -= scores.max(axis=1, keepdims=True)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return float(-np.log(chances[np.arange(len(data)), data.labels]).mean())


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_a_step_goes_along_the_gradient(tau: float) -> None:
    """Every coordinate, against the finite differences of a loss computed another way."""
    data = examples(16)
    made = trainer(data)
    base = made.initial()
    rate = 0.5
    step = (
        made.train(base, task(learning_rate=rate, batch_size=16, logit_adjustment=tau), never).vector - base
    )
    gradient = np.empty(base.size)
    for at in range(base.size):
        low, high = base.astype(np.float64), base.astype(np.float64)
        low[at] -= 1e-5
        high[at] += 1e-5
        gradient[at] = (loss(made, high, data, tau) - loss(made, low, data, tau)) / 2e-5

    np.testing.assert_allclose(-rate * gradient, step, atol=2e-6)


def test_the_loss_that_is_reported_is_the_loss() -> None:
    """Of the model before the step: in training adjusted for the labels that there are, in evaluation plain."""
    data = examples(16)
    made = trainer(data, data)
    base = made.initial()
    plain, adjusted = (loss(made, base.astype(np.float64), data, tau) for tau in (0.0, 1.0))

    trained = made.train(base, task(batch_size=16), never)
    assert adjusted == pytest.approx(trained.metrics["loss"], rel=1e-5)
    assert plain == pytest.approx(made.evaluate(base)["loss"], rel=1e-5)
    assert plain != pytest.approx(adjusted, rel=1e-3)


def test_training_learns() -> None:
    """Three separable classes are told apart."""
    labels = np.repeat(np.arange(CLASSES), 20)
    images = np.zeros((60, FEATURES), np.float32)
    images[np.arange(60), labels] = 1.0
    data = LocalData(images=images, labels=labels)
    made = trainer(data, data)
    result = made.train(made.initial(), task(epochs=60, learning_rate=0.5, batch_size=10), never)

    assert 1.0 == made.evaluate(result.vector)["accuracy"]
    assert made.evaluate(result.vector)["loss"] < 0.1


def test_the_base_is_left_alone() -> None:
    """It is the global model, and read-only."""
    made = trainer(examples(10))
    base = made.initial()
    base.flags.writeable = False
    before = base.copy()
    result = made.train(base, task(), never)

    np.testing.assert_array_equal(before, base)
    assert (np.dtype(np.float32), base.shape) == (result.vector.dtype, result.vector.shape)


def test_the_same_seed_gives_the_same_bits() -> None:
    """And another one does not: the order of the batches differs."""
    made = trainer(examples(40))
    base = made.initial()

    def run(seed: int) -> ParamVector:
        return made.train(base, task(seed=seed, batch_size=8), never).vector

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


@pytest.mark.parametrize(
    ("examples_", "batch", "epochs", "steps"), [(10, 4, 3, 9), (8, 4, 1, 2), (3, 100, 2, 2)]
)
def test_steps_and_examples_are_counted(examples_: int, batch: int, epochs: int, steps: int) -> None:
    """The last batch may be smaller; examples count once, not once an epoch."""
    made = trainer(examples(examples_))
    result = made.train(made.initial(), task(epochs=epochs, batch_size=batch), never)

    assert (examples_, steps) == (result.num_examples, result.local_steps)


def test_it_stops_when_it_is_told_to() -> None:
    """Between two batches."""
    asked = iter([False, False, True])

    with pytest.raises(TrainingStoppedError):
        trainer(examples(100)).train(trainer(examples(1)).initial(), task(batch_size=1), lambda: next(asked))


def test_a_device_without_examples_has_nothing_to_say() -> None:
    """Its update would be refused by every aggregator."""
    made = trainer(examples(0))

    with pytest.raises(TrainerError, match="num_examples = 0"):
        made.train(made.initial(), task(), never)


def test_a_training_that_diverges_says_so_in_its_vector() -> None:
    """No warning, no exception: the encoder finds what is not finite."""
    made = trainer(examples(50), examples(5))
    result = made.train(made.initial(), task(epochs=20, learning_rate=1e30, batch_size=5), never)

    assert not np.isfinite(result.vector).all()
    assert np.isnan(made.evaluate(result.vector)["loss"])


def test_a_device_without_test_data_measures_nothing() -> None:
    """It says so instead of inventing an accuracy."""
    made = trainer(examples(5))

    assert {"examples": 0.0} == made.evaluate(made.initial())


def test_the_initial_model_depends_on_the_seed_alone() -> None:
    """Uniform in ±1/√fan-in."""
    made = trainer(examples(1))
    initial = made.initial()

    np.testing.assert_array_equal(initial, trainer(examples(9)).initial())
    tensors = made.layout.unpack(initial)
    assert np.abs(tensors["hidden.weight"]).max() <= FEATURES**-0.5
    assert np.abs(tensors["output.bias"]).max() <= HIDDEN**-0.5
    assert initial.std() > 0.1


def test_the_factory_takes_the_plan_s_settings_before_the_device_s(tmp_path: Path) -> None:
    """A federation's model is the same on every device."""
    path = tmp_path / "data.npz"
    np.savez(path, train_images=np.zeros((4, 6), np.uint8), train_labels=np.arange(4) % 3)
    made = mlp({"features": 6, "hidden": 7, "classes": 3}, data=str(path), hidden=99)

    assert (7, 6) == made.layout.unpack(made.initial())["hidden.weight"].shape
    assert 4 == made.train(made.initial(), task(), never).num_examples


def test_the_factory_refuses_a_batch_of_nothing(tmp_path: Path) -> None:
    """When the plan comes, not at the first training."""
    path = tmp_path / "data.npz"
    np.savez(path, train_images=np.zeros((4, 6), np.uint8), train_labels=np.arange(4) % 3)

    with pytest.raises(SettingError, match="batch_size = 0 cannot be used: a whole number of at least 1"):
        mlp({"features": 6, "classes": 3, "batch_size": 0}, data=str(path))
