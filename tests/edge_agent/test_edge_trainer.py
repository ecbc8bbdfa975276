"""The port to trainers: which ones a device runs, what they may return, and the thread that they run in."""

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.edge_agent import numpy_trainer
from fedmq.edge_agent.trainer import (
    Task,
    TrainerError,
    TrainingStoppedError,
    TrainResult,
    find_factory,
    installed_factory,
    make_trainer,
    plain_metrics,
)
from fedmq.edge_agent.training import Training

from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Plan
from fedmq.types import GlobalModel, ModelVersion, ParamVector

LAYOUT = ParamLayout((Segment(name="weight", shape=(4,)),))
MODEL = GlobalModel(epoch=1, version=ModelVersion(1), layout=LAYOUT, vector=np.zeros(4, np.float32))
PLAN = Plan(epoch=1, layout=LAYOUT, trainer="mlp", trainer_settings=(("learning_rate", 0.5),))
TASK = Task(local_epochs=1, settings={}, seed=0)


class Constant:
    """A trainer whose every result is the same."""

    layout = LAYOUT

    def __init__(self, train: Callable[[Callable[[], bool]], TrainResult] | None = None) -> None:
        self._train = train

    def initial(self) -> ParamVector:
        return np.zeros(4, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        return self._train(should_stop) if self._train else result()

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        return {}


def result(**fields: Any) -> TrainResult:
    """A valid result, but for some fields."""
    valid: dict[str, Any] = {"vector": np.ones(4, np.float32), "num_examples": 1, "local_steps": 0}
    return TrainResult(**valid | fields)


def factory(settings: Mapping[str, object], **own: object) -> Constant:
    """What `find_factory` finds in this module."""
    assert {"learning_rate": 0.5} == settings
    assert {"data": "here"} == own
    return Constant()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name under which this module can be imported."""
    monkeypatch.setitem(sys.modules, "trainers_of_the_user", sys.modules[__name__])
    return "trainers_of_the_user"


def test_an_installed_trainer_is_found_by_its_name() -> None:
    """The ones that fedmq ships are entry points like any other package's."""
    assert numpy_trainer.mlp is find_factory("mlp")
    assert numpy_trainer.mlp is installed_factory("mlp")


def test_a_function_is_found_by_its_module(module: str) -> None:
    """What the operator writes into the settings."""
    assert factory is find_factory(f"{module}:factory")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nonesuch",
            r"trainer.factory = 'nonesuch' .* one of mlp, torch-lenet, torch-mlp, or .* package.module:function",
        ),
        ("", "one of mlp, torch-lenet, torch-mlp"),
        ("nonesuch:factory", "No module named 'nonesuch'"),
        ("json:nonesuch", "no attribute 'nonesuch'"),
        ("json:__doc__", "it is not callable"),
        (":factory", "cannot be imported"),
        ("..json:loads", "cannot be imported"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_setting_error(name: str, message: str) -> None:
    """It says what was looked for and what would be found."""
    with pytest.raises(SettingError, match=message):
        find_factory(name)


@pytest.mark.parametrize(
    "code", ["1 / 0", "raise ValueError('mine')", "import nonesuch", "this is not python"]
)
def test_a_module_that_fails_while_it_is_imported_is_a_setting_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Whatever it raises."""
    (tmp_path / "broken_trainer.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(SettingError, match=r"trainer.factory = 'broken_trainer:make'.*cannot be imported"):
        find_factory("broken_trainer:make")


def test_a_missing_torch_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one dependency that a device may well not have."""
    (tmp_path / "needs_torch.py").write_text("raise ImportError(\"No module named 'torch'\", name='torch')")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(SettingError, match=r"install fedmq\[torch\]"):
        find_factory("needs_torch:make")


def test_a_trainer_is_made_from_the_plan_s_settings_and_the_device_s(module: str) -> None:
    """The operator's choice goes before the plan's name."""
    made = make_trainer(PLAN, f"{module}:factory", (("data", "here"),))

    assert isinstance(made, Constant)


@pytest.mark.parametrize("name", ["this:s", "trainers_of_the_user:factory", "nonesuch", ""])
def test_a_plan_names_an_installed_trainer_and_nothing_else(module: str, name: str) -> None:
    """No code travels, and none is chosen from afar: a module that a peer names is not even imported."""
    sys.modules.pop("this", None)
    plan = Plan(epoch=1, layout=LAYOUT, trainer=name)

    with pytest.raises(SettingError, match="one of mlp, torch-lenet, torch-mlp"):
        make_trainer(plan, "", ())
    assert "this" not in sys.modules


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), TypeError("mine"), SystemExit("mine")])
def test_whatever_a_factory_raises_is_a_trainer_error(error: BaseException) -> None:
    """With its type and its words."""

    def broken(settings: object) -> Constant:
        raise error

    with pytest.raises(TrainerError, match=f"trainer mlp cannot be made: {type(error).__name__}: mine"):
        make_trainer(PLAN, "", (), broken)


def test_a_factory_s_own_setting_error_stays_one() -> None:
    """It is clearer than anything that could be put around it."""
    with pytest.raises(SettingError, match=r"trainer.settings data"):
        make_trainer(PLAN, "mlp", (("data", "/nonexistent.npz"),))


def test_a_factory_that_makes_no_trainer_is_a_trainer_error() -> None:
    """None, for instance: a return was forgotten."""
    with pytest.raises(TrainerError, match="AttributeError"):
        make_trainer(PLAN, "", (), lambda settings: None)  # type: ignore[arg-type, return-value]


def test_a_trainer_of_another_model_is_refused() -> None:
    """With the first tensor that differs."""
    plan = Plan(epoch=1, layout=ParamLayout((Segment(name="weight", shape=(5,)),)), trainer="mlp")

    with pytest.raises(TrainerError, match=r"another model than the plan: weight \[4\].* here, weight \[5\]"):
        make_trainer(plan, "", (), lambda settings: Constant())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vector": np.ones(4)}, r"float32 in one dimension, not float64\(4,\)"),
        ({"vector": np.ones((2, 2), np.float32)}, r"not float32\(2, 2\)"),
        ({"vector": [1.0]}, "not list"),
        ({"num_examples": 0}, "num_examples = 0: a whole number, at least 1"),
        ({"num_examples": 2.5}, "num_examples = 2.5"),
        ({"num_examples": 2**63}, "num_examples"),
        ({"local_steps": -1}, "local_steps = -1: a whole number, at least 0"),
        ({"metrics": {str(i): 1.0 for i in range(17)}}, "17 metrics: at most 16"),
        ({"metrics": {"x" * 65: 1.0}}, "at most 64 letters"),
        ({"metrics": {1: 1.0}}, "metric 1 = 1.0"),
        ({"metrics": {"loss": "low"}}, "metric 'loss' = 'low'"),
        ({"metrics": {"loss": None}}, "metric 'loss' = None"),
    ],
)
def test_a_result_that_no_aggregator_could_read_is_refused(fields: dict[str, Any], message: str) -> None:
    """Where it is made, in the user's own code: such an update would never get a receipt."""
    with pytest.raises(TrainerError, match=message):
        result(**fields)


def test_a_result_may_be_counted_in_numpy_s_numbers() -> None:
    """And measured in them; a loss may be NaN."""
    made = result(num_examples=np.int64(3), metrics={"loss": np.float32(np.nan), "seconds": 2})

    assert np.int64(3) == made.num_examples


def test_metrics_do_not_take_the_names_of_a_diary_s_own_fields() -> None:
    """They are floats, and `time` stays the diary's."""
    metrics: dict[str, Any] = {"loss": np.float32(0.5), "time": 1.0, "kind": 2.0, "version": 3.0}

    assert {"loss": 0.5} == plain_metrics(metrics)


def test_training_runs_in_a_thread_and_wakes_the_agent() -> None:
    """Once for each piece of work."""
    woken, threads = threading.Event(), []

    def train(should_stop: Callable[[], bool]) -> TrainResult:
        threads.append(threading.current_thread())
        return result()

    training = Training(woken.set)
    assert training.take() is None
    training.start(MODEL, Constant(train), TASK)
    assert woken.wait(10)
    assert training.has_finished
    finished = training.take()

    assert finished is not None
    assert isinstance(finished.outcome, TrainResult)
    assert MODEL is finished.model
    assert threading.current_thread() not in threads
    assert not training.has_finished


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), SystemExit(1), KeyboardInterrupt(), TrainingStoppedError(), MemoryError()]
)
def test_whatever_a_trainer_raises_comes_back(error: BaseException) -> None:
    """Nothing is lost with the thread: the agent would wait for it for ever."""

    def train(should_stop: Callable[[], bool]) -> TrainResult:
        raise error

    training = Training(lambda: None)
    training.start(MODEL, Constant(train), TASK)
    training.join()
    finished = training.take()

    assert finished is not None
    assert error is finished.outcome


def test_a_trainer_that_returns_nothing_has_failed() -> None:
    """A return was forgotten."""
    training = Training(lambda: None)
    training.start(MODEL, Constant(lambda should_stop: None), TASK)  # type: ignore[arg-type, return-value]
    training.join()
    finished = training.take()

    assert finished is not None
    assert "returned None instead of a TrainResult" in str(finished.outcome)


def test_a_stop_reaches_the_trainer_and_its_pause() -> None:
    """Neither may hold up the end of the process."""
    begun = threading.Event()

    def train(should_stop: Callable[[], bool]) -> TrainResult:
        begun.set()
        while not should_stop():
            threading.Event().wait(0.001)
        return result()

    training = Training(lambda: None, pause=3600.0)
    training.start(MODEL, Constant(train), TASK)
    assert begun.wait(10)
    training.stop()
    training.join()

    assert training.has_finished


def test_joining_before_anything_was_begun_returns() -> None:
    """An agent may be stopped before it saw a model."""
    Training(lambda: None).join()
