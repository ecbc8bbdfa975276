"""Steps instead of epochs, and FedProx's term, by both built-in trainers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.edge_agent import numpy_trainer
from fedmq.edge_agent.trainer import Task, Trainer, TrainResult
from fedmq.edge_agent.training import Training, at_once
from numpy.typing import NDArray

from fedmq.layout import ParamLayout, Segment
from fedmq.types import GlobalModel, ModelVersion, ParamVector

FEATURES, EXAMPLES, BATCH = 6, 24, 8
SHAPE = {"features": FEATURES, "hidden": 5, "classes": 3, "batch_size": BATCH}


def never() -> bool:
    """Nobody wants to stop."""
    return False


@pytest.fixture(params=["numpy", pytest.param("torch", marks=pytest.mark.torch)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes either trainer over the same 24 examples, three batches of eight."""
    rng = np.random.default_rng(4)
    path = tmp_path / "data.npz"
    images, labels = rng.integers(0, 256, (EXAMPLES, FEATURES), np.uint8), rng.integers(0, 3, EXAMPLES)
    np.savez(path, train_images=images, train_labels=labels)
    np.savez(tmp_path / "none.npz", train_images=images[:0], train_labels=labels[:0])
    if request.param == "torch":
        pytest.importorskip("torch")  # it is an extra
        from fedmq.edge_agent import torch_trainer

        factory: Callable[..., Any] = torch_trainer.mlp
    else:
        factory = numpy_trainer.mlp
    return lambda file="data", **settings: factory({**SHAPE, **settings}, data=str(tmp_path / f"{file}.npz"))


def train(
    trainer: Trainer, base: ParamVector, settings: Mapping[str, Any] | None = None, **task: Any
) -> TrainResult:
    """One piece of work of two epochs, or of what else is asked for."""
    made = Task(local_epochs=2, settings={**SHAPE, "learning_rate": 0.1, **(settings or {})}, seed=3, **task)
    return trainer.train(base, made, never)


@pytest.mark.parametrize(
    ("asked", "steps", "epochs"),
    [
        ({}, 6, 2.0),
        ({"steps": 1}, 1, 1 / 3),
        ({"steps": 3}, 3, 1.0),
        ({"steps": 11}, 11, 11 / 3),
        ({"max_steps": 4}, 4, 4 / 3),
        ({"max_steps": 100}, 6, 2.0),
        ({"steps": 11, "max_steps": 2}, 2, 2 / 3),
    ],
)
def test_a_trainer_takes_as_many_steps_as_are_asked_for(
    make: Callable[..., Trainer], asked: dict[str, int], steps: int, epochs: float
) -> None:
    """Within an epoch or beyond; the operator's bound holds in any case, and the data is as large as it is."""
    trainer = make()
    result = train(trainer, trainer.initial(), **asked)

    assert (steps, EXAMPLES) == (result.local_steps, result.num_examples)
    assert epochs == pytest.approx(result.epochs)


def test_as_many_steps_as_the_epochs_have_come_to_the_same(make: Callable[..., Trainer]) -> None:
    """To the last bit."""
    trainer = make()
    base = trainer.initial()

    assert train(trainer, base).vector.tobytes() == train(trainer, base, steps=6).vector.tobytes()


def test_without_data_no_number_of_steps_is_waited_for() -> None:
    """A pass makes none, so there is no second one."""
    empty = numpy_trainer.LocalData(images=np.zeros((0, FEATURES), np.float32), labels=np.zeros(0, np.int64))
    trainer = numpy_trainer.MlpTrainer(empty, empty, features=FEATURES, hidden=5, classes=3, seed=0)
    task = Task(local_epochs=2, settings={}, seed=3, steps=40)

    with pytest.raises(Exception, match="num_examples"):
        trainer.train(trainer.initial(), task, never)


def _steps(trainer: Trainer, base: ParamVector, proximal: float) -> NDArray[np.float64]:
    """Two steps by hand: plain SGD's gradients, μ (w − w_base) added.

    The first step has w = w_base, so it is plain; the second's gradient is what plain SGD does from there. All batches
    are the whole data, so their order matters nothing.
    """
    rate, whole = 0.1, {"batch_size": EXAMPLES}
    first = train(trainer, base, whole, steps=1).vector.astype(np.float64)
    plain = train(trainer, first.astype(np.float32), whole, steps=1).vector.astype(np.float64)
    return plain - rate * proximal * (first - base)


@pytest.mark.parametrize("proximal", [0.5, 2.0])
def test_the_proximal_term_pulls_towards_the_base(make: Callable[..., Trainer], proximal: float) -> None:
    """FedProx (Li et al. 2020), eq. 2: the gradient of μ/2 · ‖w − w_base‖² is added to each step's."""
    trainer = make(batch_size=EXAMPLES)
    base = trainer.initial()
    by_hand = _steps(trainer, base, proximal)
    found = train(trainer, base, {"batch_size": EXAMPLES, "proximal": proximal}, steps=2).vector

    np.testing.assert_allclose(by_hand, found, rtol=0, atol=2e-6)
    assert np.abs(found - train(trainer, base, {"batch_size": EXAMPLES}, steps=2).vector).max() > 1e-4


@pytest.mark.parametrize(("epochs", "pause"), [(None, 6.0), (0.5, 1.5)])
def test_a_slower_devices_pause_is_as_long_as_what_was_done(
    monkeypatch: pytest.MonkeyPatch, epochs: float | None, pause: float
) -> None:
    """Three seconds for each epoch; of a trainer that does not say, for each that was asked for."""
    layout = ParamLayout((Segment(name="w", shape=(1,)),))
    vector = np.zeros(1, np.float32)

    class Stub:
        def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
            return TrainResult(vector=base, num_examples=1, local_steps=1, epochs=epochs)

    training = Training(lambda: None, 3.0, spawn=at_once)
    paused: list[float] = []
    monkeypatch.setattr(training._stopping, "wait", paused.append)
    model = GlobalModel(epoch=1, version=ModelVersion(0), layout=layout, vector=vector)
    training.start(model, Stub(), Task(local_epochs=2, settings={}, seed=0))  # type: ignore[arg-type]

    assert [pause] == paused
