"""Local SGD: its settings, its momentum, and a loss that is adjusted for the labels that a device has."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.edge_agent import numpy_trainer
from fedmq.edge_agent.local_sgd import LocalSgd, read_local_sgd
from fedmq.edge_agent.trainer import Task, Trainer
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.errors import SettingError

FEATURES, CLASSES, EXAMPLES = 6, 3, 30
SHAPE = {"features": FEATURES, "hidden": 5, "classes": CLASSES, "batch_size": EXAMPLES}


def save(folder: Path, labels: NDArray[np.int64]) -> Path:
    """Images that show their label, with noise."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 60, (len(labels), FEATURES), np.uint8)
    images[np.arange(len(labels)), labels] += 150
    path = folder / "data.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


@pytest.fixture(params=["numpy", pytest.param("torch", marks=pytest.mark.torch)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes either trainer over examples with these labels."""
    if request.param == "torch":
        pytest.importorskip("torch")  # it is an extra
        from fedmq.edge_agent import torch_trainer

        factory: Callable[..., Any] = torch_trainer.mlp
    else:
        factory = numpy_trainer.mlp
    uneven = np.repeat(np.arange(CLASSES), (25, 5, 0))
    return lambda labels=uneven, **settings: factory({**SHAPE, **settings}, data=str(save(tmp_path, labels)))


def trained(trainer: Trainer, **settings: float) -> NDArray[np.float32]:
    """The model after two steps over all data."""
    task = Task(local_epochs=2, settings={**SHAPE, "learning_rate": 0.3, **settings}, seed=3)
    return trainer.train(trainer.initial(), task, lambda: False).vector


@given(st.lists(st.integers(0, CLASSES - 1), max_size=50), st.floats(0, 4))
def test_the_adjustment_is_the_logarithm_of_the_frequencies(labels: list[int], tau: float) -> None:
    """τ log π, π_c = (n_c + 1) / (n + classes), up to what all classes share; never infinite."""
    sgd = read_local_sgd({"logit_adjustment": tau})
    found = sgd.adjustment(np.array(labels, np.int64), CLASSES)
    frequencies = np.array([(labels.count(label) + 1) / (len(labels) + CLASSES) for label in range(CLASSES)])

    expected = tau * np.log(frequencies)
    np.testing.assert_allclose(expected - expected.max(), found, atol=1e-5)
    assert np.isfinite(found).all()


def test_without_a_word_of_the_plan_there_are_defaults() -> None:
    """Plain SGD, with the adjustment made whole: τ = 1 is the one that is consistent."""
    expected = LocalSgd(learning_rate=0.05, momentum=0.0, batch_size=32, proximal=0.0, logit_adjustment=1.0)

    assert expected == read_local_sgd({"hidden": 7, "somebody else's": "text"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(
            ("learning_rate", "momentum", "proximal", "logit_adjustment"),
            (float("nan"), float("inf"), "much", True),
        ),
        *itertools.product(("momentum", "proximal", "logit_adjustment"), (-0.1,)),
        ("momentum", 1.0),
        *itertools.product(("batch_size",), (0, 2.5, "all", True)),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(
    make: Callable[..., Trainer], name: str, value: float | str
) -> None:
    """When the plan is taken, so that the device says that it cannot satisfy it."""
    with pytest.raises(SettingError, match=name):
        make(**{name: value})


def test_momentum_carries_a_part_of_the_last_step_into_the_next(make: Callable[..., Trainer]) -> None:
    """By hand: v ← m v + g, w ← w − η v, from plain gradients; all batches are the whole data, so order is nothing."""
    trainer, rate, momentum = make(), 0.3, 0.6
    base = trainer.initial()

    def step(start: NDArray[np.float32]) -> NDArray[np.float64]:
        task = Task(local_epochs=1, settings={**SHAPE, "learning_rate": rate}, seed=3, steps=1)
        return trainer.train(start, task, lambda: False).vector.astype(np.float64) - start

    first = step(base)
    second = step((base + first).astype(np.float32)) + momentum * first
    task = Task(local_epochs=2, settings={**SHAPE, "learning_rate": rate, "momentum": momentum}, seed=3)
    found = [trainer.train(base, task, lambda: False).vector for _ in range(2)]

    np.testing.assert_allclose(base + first + second, found[0], atol=2e-6)
    assert found[0].tobytes() == found[1].tobytes()  # an update begins without the one before


def test_where_all_classes_are_equally_frequent_it_is_the_plain_loss(make: Callable[..., Trainer]) -> None:
    """To the last bit."""
    even = np.repeat(np.arange(CLASSES), 10)
    adjusted, plain = (trained(make(even, logit_adjustment=tau), logit_adjustment=tau) for tau in (1.0, 0.0))

    assert adjusted.tobytes() == plain.tobytes()


def test_a_class_that_a_device_has_not_seen_is_hardly_pushed_away(make: Callable[..., Trainer]) -> None:
    """The bias of its output falls less than with the plain loss, and that of the frequent class rises less."""
    trainer = make()
    first = trainer.layout.unpack(trainer.initial())["output.bias"]
    plain, adjusted = (
        trainer.layout.unpack(trained(make(logit_adjustment=tau), logit_adjustment=tau))["output.bias"]
        - first
        for tau in (0.0, 1.0)
    )

    assert plain[2] < 4 * adjusted[2] < 0
    assert plain[0] > 4 * adjusted[0]


def test_measuring_is_plain(make: Callable[..., Trainer]) -> None:
    """The test's loss is the cross-entropy of the model itself, whatever labels there are to learn from."""
    vector = make().initial()

    assert make(logit_adjustment=0.0).evaluate(vector) == make(logit_adjustment=2.0).evaluate(vector)
