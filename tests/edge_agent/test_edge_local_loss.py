"""What the built-in trainers minimise: adjusted for the labels that a device has, and near the model it began with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.edge_agent import numpy_trainer
from fedmq.edge_agent.local_loss import check_logit_adjustment, check_proximal, logit_adjustment
from fedmq.edge_agent.trainer import Task, Trainer
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.errors import SettingError

FEATURES, CLASSES, EXAMPLES = 6, 3, 30
SHAPE = {"features": FEATURES, "hidden": 5, "classes": CLASSES, "batch_size": EXAMPLES}
NOT_NUMBERS = [-0.1, float("nan"), float("inf"), "much", True]


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
    found = logit_adjustment(np.array(labels, np.int64), CLASSES, {"logit_adjustment": tau})
    frequencies = np.array([(labels.count(label) + 1) / (len(labels) + CLASSES) for label in range(CLASSES)])

    expected = tau * np.log(frequencies)
    np.testing.assert_allclose(expected - expected.max(), found, atol=1e-5)
    assert np.isfinite(found).all()


def test_without_a_word_of_the_plan_it_is_made_whole() -> None:
    """τ = 1 is the one that is consistent; FedProx's term is none."""
    assert 1.0 == check_logit_adjustment({})
    assert 0.0 == check_proximal({})


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize("name", ["proximal", "logit_adjustment"])
def test_what_is_no_number_of_at_least_zero_is_refused(
    make: Callable[..., Trainer], name: str, value: float | str
) -> None:
    """When the plan is taken, so that the device says that it cannot satisfy it."""
    with pytest.raises(SettingError, match=name):
        make(**{name: value})


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
