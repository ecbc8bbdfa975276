"""The evaluator: measures the newest model, tells what it found, and is ended by nobody."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from fedmq.edge_agent.evaluator import Evaluator
from fedmq.edge_agent.settings import EvaluatorSettings, TrainerSettings
from fedmq.edge_agent.trainer import Task, TrainerFactory, TrainResult

from fedmq import encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Plan
from fedmq.topics import Topics
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import Frame, ModelHead, ModelVersion, ObjectRef, ParamVector

LAYOUT = ParamLayout((Segment(name="weight", shape=(4,)),))
TOPICS = Topics("default")
PLAN = Plan(epoch=1, layout=LAYOUT, trainer="mlp")


class Meter:
    """A trainer that measures the mean of a model, and its own factory."""

    layout = LAYOUT

    def __init__(self, evaluate: Callable[[ParamVector], Mapping[str, float]] | None = None) -> None:
        self.measured: list[float] = []
        self._evaluate = evaluate or (lambda vector: {"accuracy": 0.5, "loss": float(vector.mean())})

    def __call__(self, settings: Mapping[str, object], **own: object) -> "Meter":
        """Its own factory."""
        return self

    def initial(self) -> ParamVector:
        return np.zeros(4, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        raise AssertionError("an evaluator does not train")

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        self.measured.append(float(vector.mean()))
        return self._evaluate(vector)


class Stage:
    """A broker with a plan, and an evaluator."""

    def __init__(
        self, folder: Path, factory: TrainerFactory | None, plan: Plan = PLAN, min_interval: float = 0.0
    ) -> None:
        self.now = 100.0
        self.folder = folder
        self.broker = MemoryBroker(clock=lambda: self.now)
        self.retain(TOPICS.plan, wire.pack_plan(plan))
        settings = EvaluatorSettings(
            folder=folder / "cache",
            events=folder / "events.jsonl",
            min_interval=min_interval,
            trainer=TrainerSettings(settings=(("data", "/nonexistent.npz"),)),
        )
        self.evaluator = Evaluator(settings, self.connect, factory, lambda: self.now)
        self.evaluator.transport.start()

    def connect(self, client_id: str) -> MemoryTransport:
        return MemoryTransport(self.broker, client_id, clean_start=True, session_expiry=0)

    def retain(self, topic: str, payload: bytes) -> None:
        self.broker.publish(topic, payload, retain=True, expiry=None)

    def model(self, version: int, value: float) -> None:
        """Publish a model of equal values."""
        pipeline = parse_pipeline("float32")
        content = encoding.encode(LAYOUT, pipeline, np.full(4, value, np.float32))
        ref = ObjectRef(id=encoding.object_id(content), size=len(content), chunks=1)
        decoded = encoding.decode(LAYOUT, pipeline, content).to_dense()
        head = ModelHead(
            epoch=1,
            version=ModelVersion(version),
            fingerprint=LAYOUT.fingerprint,
            frames=(Frame(codec="float32", content=ref),),
            delta=None,
            digest=encoding.digest(decoded),
        )
        self.retain(TOPICS.object(ref.id, 0), content)
        self.retain(TOPICS.model, wire.pack_head(head))

    def close(self) -> None:
        self.evaluator.transport.close()
        self.evaluator._events.close()

    def settle(self) -> None:
        for _ in range(20):
            self.evaluator.turn()

    @property
    def stats(self) -> dict[str, float | None]:
        """What dashboards see; strict JSON, as other languages read it."""

        def refuse(constant: str) -> float:
            raise AssertionError(f"{constant} is no JSON")

        payload = self.broker._retained[TOPICS.stats("evaluator")].payload
        read: dict[str, float | None] = json.loads(payload, parse_constant=refuse)
        return read

    @property
    def diary(self) -> list[dict[str, float]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [{"version": line["version"], "loss": line["loss"]} for line in map(json.loads, lines)]


Setting = Callable[..., Stage]


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Setting]:
    """Makes stages; see `Stage`."""
    with contextlib.ExitStack() as stack:

        def make(factory: TrainerFactory | None, plan: Plan = PLAN, min_interval: float = 0.0) -> Stage:
            stage = Stage(tmp_path, factory, plan, min_interval)
            stack.callback(stage.close)
            return stage

        yield make


def test_each_new_version_is_measured_and_told(staged: Setting) -> None:
    """In the diary and, retained, on the stats topic."""
    meter = Meter()
    stage = staged(meter)
    stage.model(1, 0.25)
    stage.settle()
    stage.model(2, 0.75)
    stage.settle()

    assert [0.25, 0.75] == meter.measured
    assert (2, 0.5, 0.75) == (stage.stats["version"], stage.stats["accuracy"], stage.stats["loss"])
    assert [{"version": 1, "loss": 0.25}, {"version": 2, "loss": 0.75}] == stage.diary


def test_what_was_measured_is_not_measured_again(staged: Setting) -> None:
    """After a reconnect the retained model comes again."""
    meter = Meter()
    stage = staged(meter)
    stage.model(1, 0.25)
    stage.settle()
    stage.broker.disconnect("default-evaluator-evaluator")
    stage.settle()
    assert [0.25] == meter.measured
    stage.model(2, 0.75)
    stage.settle()

    assert [0.25, 0.75] == meter.measured


def test_between_two_measurements_the_newest_wins(staged: Setting) -> None:
    """Measuring may be dear; versions come faster."""
    meter = Meter()
    stage = staged(meter, min_interval=10.0)
    for version in (1, 2, 3):
        stage.model(version, float(version))
        stage.settle()
    stage.now += 9.5
    stage.settle()
    assert [1.0] == meter.measured
    stage.now += 0.5
    stage.settle()

    assert [1.0, 3.0] == meter.measured


def test_a_model_that_diverged_is_told_in_valid_json(staged: Setting) -> None:
    """JSON has no NaN: a dashboard in another language would refuse the message."""
    stage = staged(Meter(lambda vector: {"loss": float("nan"), "accuracy": float("inf")}))
    stage.model(1, 0.25)
    stage.settle()

    assert (1, None, None) == (stage.stats["version"], stage.stats["loss"], stage.stats["accuracy"])


def test_metrics_do_not_replace_what_the_message_says_itself(staged: Setting) -> None:
    """A trainer's `version` or `kind` is dropped, numpy's floats are floats."""
    measured = {"loss": np.float32(0.5), "version": 99.0, "kind": 1.0, "time": 0.0}
    stage = staged(Meter(lambda vector: measured))  # type: ignore[arg-type, return-value]
    stage.model(1, 0.25)
    stage.settle()

    assert (1, 0.5) == (stage.stats["version"], stage.stats["loss"])
    assert [{"version": 1, "loss": 0.5}] == stage.diary


def test_a_measurement_that_fails_is_logged_and_the_next_one_made(
    staged: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """The trainer is the user's code."""

    def fail(vector: ParamVector) -> Mapping[str, float]:
        if vector[0] < 0.5:
            raise ZeroDivisionError("in the user's code")
        return {"loss": 1.0}

    stage = staged(Meter(fail))
    stage.model(1, 0.25)
    stage.settle()
    assert "version 1 could not be evaluated" in caplog.text
    assert "ZeroDivisionError: in the user's code" in caplog.text
    stage.model(2, 0.75)
    stage.settle()

    assert 2 == stage.stats["version"]


def broken(settings: Mapping[str, object], **own: object) -> Meter:
    """A factory with a mistake in it."""
    raise RuntimeError("in the user's code")


@pytest.mark.parametrize(
    ("plan", "factory", "message"),
    [
        (PLAN, broken, "RuntimeError: in the user's code"),
        (PLAN, None, "trainer.settings data"),
        (Plan(epoch=1, layout=LAYOUT, trainer="os:getcwd"), None, "one of mlp, torch-lenet, torch-mlp"),
        (
            Plan(epoch=1, layout=ParamLayout((Segment(name="w", shape=(1,)),)), trainer="mlp"),
            Meter(),
            "another model than the plan",
        ),
    ],
)
def test_an_unusable_plan_is_refused_and_the_next_one_taken(
    staged: Setting,
    caplog: pytest.LogCaptureFixture,
    plan: Plan,
    factory: TrainerFactory | None,
    message: str,
) -> None:
    """The log says what is missing, and the evaluator stays."""
    stage = staged(factory, plan)
    stage.model(1, 0.25)
    stage.settle()
    assert "this evaluator cannot satisfy the plan" in caplog.text
    assert message in caplog.text
    stage.evaluator._factory = meter = Meter()
    stage.retain(TOPICS.plan, wire.pack_plan(Plan(epoch=1, layout=LAYOUT, trainer="mlp", local_epochs=2)))
    stage.settle()

    assert [0.25] == meter.measured


def test_an_old_plan_that_comes_back_is_taken_again(staged: Setting) -> None:
    """In between there was one that could not be satisfied."""
    meter = Meter()
    stage = staged(meter)
    stage.settle()
    other = Plan(epoch=1, layout=ParamLayout((Segment(name="w", shape=(1,)),)), trainer="mlp")
    for plan in (other, PLAN):
        stage.retain(TOPICS.plan, wire.pack_plan(plan))
        stage.settle()
    stage.model(1, 0.25)
    stage.settle()

    assert [0.25] == meter.measured


def test_what_is_no_plan_changes_nothing(staged: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """The plan that is in force stays."""
    meter = Meter()
    stage = staged(meter)
    stage.settle()
    stage.broker.publish(TOPICS.plan, b"garbage", retain=False, expiry=None)
    stage.broker.publish(TOPICS.plan, b"", retain=False, expiry=None)
    stage.model(1, 0.25)
    stage.settle()

    assert [0.25] == meter.measured
    assert "ignored a plan" in caplog.text


def test_a_second_evaluator_of_the_same_name_is_told_of(
    staged: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """They throw each other out; the log says why."""
    stage = staged(Meter())
    stage.settle()
    stage.connect("default-evaluator-evaluator").start()
    stage.settle()

    assert "another evaluator is called evaluator: give each its own name" in caplog.text


def test_run_ends_when_it_is_stopped(staged: Setting) -> None:
    """After the measurement at hand."""

    def stop(vector: ParamVector) -> Mapping[str, float]:
        stage.evaluator.stop()
        return {"loss": 1.0}

    stage = staged(Meter(stop))
    stage.model(1, 0.25)
    stage.evaluator.run()

    assert [{"version": 1, "loss": 1.0}] == stage.diary


def test_a_name_that_cannot_stand_in_a_topic_is_refused(staged: Setting) -> None:
    """Before anything is connected."""
    with pytest.raises(SettingError, match="setting name = 'a/b'"):
        Evaluator(EvaluatorSettings(name="a/b"), staged(Meter()).connect)
