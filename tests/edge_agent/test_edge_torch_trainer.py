"""The torch trainer: which tensors travel, and that it agrees with the numpy trainer."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from fedmq.edge_agent import numpy_trainer
from fedmq.edge_agent.localdata import LocalData
from fedmq.edge_agent.trainer import Task, TrainingStoppedError

from fedmq.errors import SettingError
from fedmq.layout import SegmentKind
from fedmq.plan import Scalar
from fedmq.types import ParamVector

pytest.importorskip("torch")  # it is an extra

import torch
from fedmq.edge_agent.torch_trainer import Optimizer, PlainSgd, Shuffled, TorchTrainer, lenet, mlp
from torch import Tensor, nn

pytestmark = pytest.mark.torch

TASK = Task(local_epochs=1, settings={"learning_rate": 0.1}, seed=5)


def never() -> bool:
    """Nobody wants to stop."""
    return False


def batches(count: int = 3, features: int = 4, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Random batches of eight."""
    made = torch.Generator().manual_seed(2)
    return [
        (torch.rand(8, features, generator=made), torch.randint(0, classes, (8,), generator=made))
        for _ in range(count)
    ]


class Normalised(nn.Module):
    """A linear layer behind BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.norm(inputs))
        return outputs


class Tied(nn.Module):
    """An encoder and a decoder with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.decoder(torch.relu(self.encoder(inputs)))
        return outputs


def kinds(trainer: TorchTrainer) -> dict[str, SegmentKind]:
    """What is done with each tensor."""
    return {segment.name: segment.kind for segment in trainer.layout.segments}


def data_file(folder: Path) -> str:
    """24 examples of six features in three classes."""
    rng = np.random.default_rng(4)
    path = folder / "data.npz"
    images, labels = rng.integers(0, 256, (24, 6), np.uint8), rng.integers(0, 3, 24)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return str(path)


SETTINGS = {"features": 6, "hidden": 5, "classes": 3, "learning_rate": 0.1, "batch_size": 7, "seed": 9}


def test_both_mlps_have_one_layout(tmp_path: Path) -> None:
    """One federation may hold devices of both kinds."""
    ours = numpy_trainer.mlp(SETTINGS, data=data_file(tmp_path))
    theirs = mlp(SETTINGS, data=data_file(tmp_path))

    assert "" == ours.layout.difference(theirs.layout)
    assert ours.layout.fingerprint == theirs.layout.fingerprint


def test_both_mlps_take_the_same_steps(tmp_path: Path) -> None:
    """From one base, over the same batches in the same order, within float32's rounding."""
    path = data_file(tmp_path)
    ours = numpy_trainer.mlp(SETTINGS, data=path)
    data = ours._train
    order = np.random.default_rng(TASK.seed).permutation(len(data))
    same = [
        (torch.from_numpy(data.images[chosen]), torch.from_numpy(data.labels[chosen]))
        for chosen in np.split(order, [7, 14, 21])
    ]
    theirs = mlp(SETTINGS, data=path)
    theirs._train = same  # its loss stays: adjusted for the labels, as ours
    base = ours.initial()
    task = Task(local_epochs=1, settings=SETTINGS, seed=TASK.seed)
    numpy_result, torch_result = ours.train(base, task, never), theirs.train(base, task, never)

    assert not np.allclose(base, torch_result.vector, atol=1e-3)
    np.testing.assert_allclose(numpy_result.vector, torch_result.vector, rtol=1e-5, atol=1e-6)
    assert numpy_result.metrics["loss"] == pytest.approx(torch_result.metrics["loss"], rel=1e-5)
    assert (numpy_result.num_examples, numpy_result.local_steps) == (
        torch_result.num_examples,
        torch_result.local_steps,
    )


def test_both_mlps_measure_the_same(tmp_path: Path) -> None:
    """Accuracy, loss and the number of examples."""
    path = data_file(tmp_path)
    ours, theirs = numpy_trainer.mlp(SETTINGS, data=path), mlp(SETTINGS, data=path)
    vector = ours.initial()

    assert ours.evaluate(vector) == pytest.approx(theirs.evaluate(vector), rel=1e-5)


def test_batchnorm_statistics_are_buffers_and_counters_stay() -> None:
    """Float statistics are averaged; `num_batches_tracked` is an integer and has no place in the vector."""
    trainer = TorchTrainer(Normalised(), nn.CrossEntropyLoss(), batches())

    assert {
        "norm.weight": SegmentKind.TRAINABLE,
        "norm.bias": SegmentKind.TRAINABLE,
        "head.weight": SegmentKind.TRAINABLE,
        "head.bias": SegmentKind.TRAINABLE,
        "norm.running_mean": SegmentKind.BUFFER,
        "norm.running_var": SegmentKind.BUFFER,
    } == kinds(trainer)
    assert (4 + 4 + 12 + 3, 8) == (trainer.layout.trainable_size, trainer.layout.buffer_size)


def test_training_moves_parameters_and_statistics() -> None:
    """Both come back in the vector; the base is left alone."""
    trainer = TorchTrainer(Normalised(), nn.CrossEntropyLoss(), batches())
    base = trainer.initial()
    base.flags.writeable = False
    result = trainer.train(base, TASK, never)
    moved = result.vector != base

    slices = trainer.layout.slices
    assert all(moved[slices[name]].any() for name in slices)
    assert (24, 3) == (result.num_examples, result.local_steps)


def test_a_base_is_what_training_starts_from() -> None:
    """Also its statistics: the same base gives the same result, whatever the module held before."""
    trainer = TorchTrainer(Normalised(), nn.CrossEntropyLoss(), batches())
    base = trainer.initial()
    first = trainer.train(base, TASK, never).vector
    trainer.train(first, TASK, never)

    np.testing.assert_array_equal(first, trainer.train(base, TASK, never).vector)


def test_private_tensors_never_leave_the_device() -> None:
    """They are in no vector, are trained all the same, and survive a new base."""
    model = Normalised()
    trainer = TorchTrainer(model, nn.CrossEntropyLoss(), batches(), private=r"^head\.")
    before = model.head.weight.detach().clone()
    assert 4 + 4 + 8 == trainer.layout.size
    assert {"head.weight", "head.bias"} == {
        name for name, kind in kinds(trainer).items() if kind is SegmentKind.PRIVATE
    }
    base = trainer.initial()
    trainer.train(base, TASK, never)
    trained = model.head.weight.detach().clone()
    trainer.evaluate(base)

    assert not torch.equal(before, trained)
    assert torch.equal(trained, model.head.weight)


def test_what_is_private_makes_no_difference_to_the_fingerprint() -> None:
    """Devices with heads of their own share one model."""
    one = TorchTrainer(Normalised(), nn.CrossEntropyLoss(), batches(), private="head")

    class Wider(Normalised):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 30)

    other = TorchTrainer(Wider(), nn.CrossEntropyLoss(), batches(), private="head")

    assert one.layout.fingerprint == other.layout.fingerprint


def test_a_tied_weight_travels_once() -> None:
    """And both places get it."""
    model = Tied()
    trainer = TorchTrainer(model, nn.MSELoss(), [(torch.eye(4), torch.eye(4))])
    assert 16 == trainer.layout.size
    trainer.train(
        np.full(16, 0.25, np.float32), Task(local_epochs=1, settings={"learning_rate": 0.0}, seed=0), never
    )

    assert model.decoder.weight is model.encoder.weight
    np.testing.assert_array_equal(np.full((4, 4), 0.25), model.decoder.weight.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_travel_as_float32(dtype: torch.dtype) -> None:
    """The layout remembers what they are on the device."""
    trainer = TorchTrainer(nn.Linear(4, 3).to(dtype), nn.CrossEntropyLoss(), batches())

    assert {str(dtype).removeprefix("torch.")} == {segment.dtype for segment in trainer.layout.segments}
    vector = trainer.initial()
    assert np.float32 == vector.dtype
    trainer._write(vector)
    np.testing.assert_array_equal(vector, trainer.initial())


def test_a_scalar_parameter_travels() -> None:
    """Its shape is ()."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.factor

    trainer = TorchTrainer(Scale(), nn.CrossEntropyLoss(), batches(features=3))
    result = trainer.train(trainer.initial(), TASK, never)

    assert (1,) == result.vector.shape
    assert 2.0 != result.vector[0]


def test_the_users_optimiser_is_made_anew_for_each_update() -> None:
    """Its state does not leak from one update into the next."""
    made: list[Optimizer] = []

    class Slowing(PlainSgd):
        def step(self) -> None:
            super().step()
            self._learning_rate /= 2

    def slowing(parameters: Iterable[nn.Parameter], settings: Mapping[str, Scalar]) -> Optimizer:
        made.append(Slowing(parameters, 0.1))
        return made[-1]

    trainer = TorchTrainer(nn.Linear(4, 3), nn.CrossEntropyLoss(), batches(), optimizer=slowing)
    base = trainer.initial()
    results = [trainer.train(base, TASK, never).vector for _ in range(2)]

    assert 2 == len(made)
    np.testing.assert_array_equal(results[0], results[1])


def test_evaluation_measures_without_training() -> None:
    """Dropout is off, the parameters are the given ones and stay as they are."""
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3))
    trainer = TorchTrainer(model, nn.CrossEntropyLoss(), [], test=batches())
    vector: ParamVector = np.linspace(-1, 1, 15, dtype=np.float32)
    metrics = trainer.evaluate(vector)

    assert metrics == trainer.evaluate(vector)
    np.testing.assert_array_equal(vector, trainer.initial())
    assert {"accuracy", "loss", "examples"} == set(metrics)
    assert 24.0 == metrics["examples"]
    assert 0.0 < metrics["accuracy"] < 1.0


def test_an_accuracy_per_pixel_is_a_share_too() -> None:
    """Segmentation has many labels an example: the accuracy stays within 0 and 1."""

    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = torch.stack((inputs, 1 - inputs), dim=1) + self.unused
            return outputs

    test = [(torch.ones(2, 5, 5), torch.zeros(2, 5, 5, dtype=torch.int64))]
    metrics = TorchTrainer(Sure(), nn.CrossEntropyLoss(), [], test=test).evaluate(np.zeros(1, np.float32))

    assert 1.0 == metrics["accuracy"]


def test_a_regression_has_a_loss_and_no_accuracy() -> None:
    """There are no labels to be right about."""
    trainer = TorchTrainer(nn.Linear(4, 3), nn.MSELoss(), [], test=[(torch.rand(8, 4), torch.rand(8, 3))])

    assert {"loss", "examples"} == set(trainer.evaluate(trainer.initial()))


def test_without_test_data_nothing_is_measured() -> None:
    """And nothing is invented."""
    trainer = TorchTrainer(nn.Linear(4, 3), nn.CrossEntropyLoss(), batches())

    assert {"examples": 0.0} == trainer.evaluate(trainer.initial())


def test_it_stops_when_it_is_told_to() -> None:
    """Between two batches."""
    trainer = TorchTrainer(nn.Linear(4, 3), nn.CrossEntropyLoss(), batches())
    asked = iter([False, True])

    with pytest.raises(TrainingStoppedError):
        trainer.train(trainer.initial(), TASK, lambda: next(asked))


def test_batches_come_shuffled_by_the_task_s_seed() -> None:
    """Each example once; another seed, another order."""
    data = LocalData(images=np.arange(10, dtype=np.float32)[:, None], labels=np.arange(10))

    def order(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return [int(label) for _, labels in Shuffled(data, 3) for label in labels]

    assert list(range(10)) == sorted(order(1))
    assert order(1) == order(1)
    assert order(1) != order(2)


def test_lenet_has_the_parameters_that_the_paper_s_layers_have(tmp_path: Path) -> None:
    """156 + 2,416 + 48,120 + 10,164 + 850, for 28 × 28 pixels in ten classes; and it learns."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 200)
    images = rng.integers(0, 40, (200, 784)).astype(np.uint8)
    images[np.arange(200), labels * 78 + 30] = 255
    path = tmp_path / "images.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    trainer = lenet({"learning_rate": 0.1}, data=str(path))
    initial = trainer.initial()
    result = trainer.train(
        initial, Task(local_epochs=2, settings={"learning_rate": 0.1}, seed=1), lambda: False
    )

    assert 61_706 == trainer.layout.size
    assert trainer.evaluate(result.vector)["loss"] < trainer.evaluate(initial)["loss"]


def test_lenet_says_what_image_is_too_small(tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(SettingError, match="at least 12 pixels"):
        lenet({"side": 8}, data=str(tmp_path / "none.npz"))


def test_settings_of_a_trainer_of_ones_own_are_its_own() -> None:
    """The default optimiser reads its step and nothing else: what `batch_size` means is the user's matter."""
    batches = [(torch.ones(2, 3), torch.zeros(2, 1))]
    made = TorchTrainer(nn.Linear(3, 1), nn.MSELoss(), batches)
    task = Task(local_epochs=1, settings={"batch_size": "all", "logit_adjustment": "mine"}, seed=0)

    assert 1 == made.train(made.initial(), task, never).local_steps
