"""Attackers in the simulator: what each hands in, and what becomes of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.reputation import ReputationSettings
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.aggregator.trust import TrustSettings
from fedmq.edge_agent.trainer import Task, TrainerError
from fedmq.edge_agent.training import at_once, in_a_thread

from fedmq.app.attack import attacker, forge, parse_attack
from fedmq.app.datasets import Dataset
from fedmq.app.runlog import Event, Refusal
from fedmq.app.scenario import DataSettings, DeviceClass, EvaluationSettings, Scenario, StopSettings
from fedmq.app.simulation import simulate
from fedmq.app.simulation_result import SimulationResult
from fedmq.app.tutor import TrainingTutor, make_tutor
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.types import GlobalModel, ModelVersion

PLAN = {"hidden": 16, "batch_size": 5, "learning_rate": 0.1}
HONEST, ATTACKERS = 7, 3
BASE = Scenario(
    seed=3,
    data=DataSettings(clients=HONEST + ATTACKERS, alpha=10.0, per_client=100),
    task=TaskSettings(settings=tuple(PLAN.items()), codec="topk(0.2) | ternary | rice"),
    fold=FoldSettings(buffer_size=2, clip_quantile=0.5),
    publish=PublishSettings(min_interval=0.0),
    evaluation=EvaluationSettings(every=10),
    stop=StopSettings(updates=90, seconds=200),
)
QUARANTINE = ReputationSettings(least=0.25)


def attacked(attack: str) -> tuple[DeviceClass, DeviceClass]:
    """Three of ten attack."""
    kind = DeviceClass(name="honest", share=HONEST, jitter="uniform(0.8, 1.2)")
    return kind, replace(kind, name="attacker", share=ATTACKERS, attack=attack)


def play(blobs: Dataset, scenario: Scenario) -> tuple[SimulationResult, Counter[tuple[str, str]]]:
    """The result, and how often whose updates were refused for what."""
    refused: Counter[tuple[str, str]] = Counter()

    def observe(event: Event) -> None:
        if isinstance(event, Refusal):
            refused[event.client, event.reason] += 1

    return simulate(scenario, dataset=blobs, observe=observe), refused


def locked_up(result: SimulationResult, refused: Counter[tuple[str, str]], kind: str) -> int:
    """How many clients of a kind were ever in quarantine."""
    names = [client.client for client in result.clients if client.kind == kind]
    return sum(refused[name, "quarantined"] > 0 for name in names)


def save(path: Path, dataset: Dataset, count: int) -> Path:
    """Some of the data as a device has it."""
    np.savez(path, train_images=dataset.train_images[:count], train_labels=dataset.train_labels[:count])
    return path


def test_each_attack_is_what_it_says() -> None:
    """Lengths and directions."""
    delta = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    size = float(np.linalg.norm(delta))
    made = {
        text: [forge(attack, delta, seed) for seed in (1, 2)]
        for text in ("sign_flip(3)", "noise(2)", "label_flip", "same_value(0.5)")
        if (attack := parse_attack(text)) is not None
    }

    assert (-3 * delta).tolist() == made["sign_flip(3)"][0].tolist() == made["sign_flip(3)"][1].tolist()
    assert delta.tolist() == made["label_flip"][0].tolist()
    assert [2 * size] * 2 == pytest.approx([float(np.linalg.norm(noise)) for noise in made["noise(2)"]])
    assert abs(float(made["noise(2)"][0] @ made["noise(2)"][1])) < (2 * size) ** 2 / 5
    assert made["same_value(0.5)"][0].tolist() == made["same_value(0.5)"][1].tolist()
    assert 0.5 * size == pytest.approx(float(np.linalg.norm(made["same_value(0.5)"][0])))
    assert 1 == len(np.unique(np.abs(made["same_value(0.5)"][0])))


def test_no_attack_and_no_nonsense() -> None:
    """A scenario says what is wrong with it."""
    assert parse_attack("none") is None
    with pytest.raises(SettingError, match=r"sign_flip\(scale=1\)"):
        DeviceClass(attack="sign_flop")
    with pytest.raises(SettingError, match="scale must be"):
        DeviceClass(attack="noise(-1)")


def test_who_learns_nothing_cannot_lie_about_it() -> None:
    """Synthetic updates are nobody's."""
    with pytest.raises(SettingError, match=r"devices\[1\].attack.*training = real"):
        replace(BASE, training="synthetic", devices=attacked("label_flip"))


def test_false_labels_teach_the_contrary(tmp_path: Path, blobs: Dataset) -> None:
    """Class y is called classes - 1 - y; the device's file stays as it is."""
    path = save(tmp_path / "data.npz", blobs, 200)
    before = path.read_bytes()
    settings = {**PLAN, "features": blobs.train_images.shape[1], "classes": blobs.classes}
    trainer = attacker(settings, attack="label_flip", trainer="mlp", data=str(path))
    base = trainer.initial()
    result = trainer.train(base, Task(local_epochs=5, settings=settings, seed=0), lambda: False)
    judge = attacker(
        settings, attack="noise", trainer="mlp", data=str(save_test(tmp_path / "test.npz", blobs))
    )

    assert before == path.read_bytes()
    assert trainer.layout == judge.layout
    # of five classes the middle one keeps its name
    middle = float((blobs.test_labels == 2).mean())
    assert judge.evaluate(result.vector)["accuracy"] == pytest.approx(middle, abs=0.05)


def save_test(path: Path, dataset: Dataset) -> Path:
    """The test data as an evaluator has it."""
    np.savez(
        path,
        train_images=dataset.train_images[:1],
        train_labels=dataset.train_labels[:1],
        test_images=dataset.test_images,
        test_labels=dataset.test_labels,
    )
    return path


def test_three_of_ten_who_flip_signs_end_in_quarantine_and_nobody_else(blobs: Dataset) -> None:
    """Without trusted data; and what they leave behind is nearly what there is without them."""
    guarded = replace(BASE, trust=TrustSettings(rule="agreement"), reputation=QUARANTINE)
    peace, nobody = play(blobs, guarded)
    saved, refused = play(blobs, replace(guarded, devices=attacked("sign_flip(10)")))
    lost, _ = play(blobs, replace(BASE, fold=FoldSettings(buffer_size=2), devices=attacked("sign_flip(10)")))

    assert (ATTACKERS, 0) == (locked_up(saved, refused, "attacker"), locked_up(saved, refused, "honest"))
    assert 0 == locked_up(peace, nobody, "device")
    assert (lost.final_accuracy or 0.0) < 0.5 < 0.8 < (saved.final_accuracy or 0.0)
    assert (peace.final_accuracy or 0.0) - 0.05 < (saved.final_accuracy or 0.0)


def test_the_same_attack_has_the_same_result(blobs: Dataset) -> None:
    """To the last bit, refusals, quarantines and trusted data included."""
    short = replace(BASE, stop=StopSettings(updates=40, seconds=60), devices=attacked("noise(5)"))
    guarded = replace(short, trust=TrustSettings(rule="agreement"), reputation=QUARANTINE)
    one, other = play(blobs, guarded), play(blobs, guarded)

    assert one[1] == other[1]
    assert one[0].vector.tobytes() == other[0].vector.tobytes()


@pytest.mark.parametrize("rule", ["zeno", "aflguard"])
def test_trusted_data_tells_liars_from_the_first_update_on(tmp_path: Path, blobs: Dataset, rule: str) -> None:
    """Not one of theirs is folded."""
    trusted = save(tmp_path / "trusted.npz", blobs, 100)
    scenario = replace(
        BASE,
        trust=TrustSettings(rule=rule, data=trusted),
        reputation=QUARANTINE,
        devices=attacked("sign_flip(10)"),
    )
    result, refused = play(blobs, scenario)

    assert (ATTACKERS, 0) == (locked_up(result, refused, "attacker"), locked_up(result, refused, "honest"))
    assert [0] * ATTACKERS == [client.folded for client in result.clients if client.kind == "attacker"]
    assert 0.8 < (result.final_accuracy or 0.0)


def test_in_a_thread_a_tutor_learns_the_same(tmp_path: Path, blobs: Dataset) -> None:
    """And from a copy: the engine's model moves on meanwhile."""
    settings = AggregatorSettings(
        task=replace(BASE.task, settings=(*BASE.task.settings, ("features", 36), ("classes", 5))),
        trust=TrustSettings(rule="zeno", data=save(tmp_path / "trusted.npz", blobs, 50)),
    )
    learned = []
    for spawn in (at_once, in_a_thread):
        tutor = make_tutor(settings, spawn)
        assert isinstance(tutor, TrainingTutor)
        vector = np.full(tutor.layout.size, 0.01, np.float32)
        tutor.begin(GlobalModel(epoch=1, version=ModelVersion(3), layout=tutor.layout, vector=vector))
        vector[:] = np.nan
        learned.append(tutor.take(wait=True))
        assert tutor.take() is None

    assert learned[0] is not None
    assert learned[1] is not None
    assert np.isfinite(learned[0]).all()
    assert learned[0].tobytes() == learned[1].tobytes()


def test_a_model_that_diverges_teaches_nothing(tmp_path: Path, blobs: Dataset) -> None:
    """Everything would contradict NaN."""
    settings = AggregatorSettings(
        task=replace(BASE.task, settings=(*BASE.task.settings, ("features", 36), ("classes", 5))),
        trust=TrustSettings(rule="zeno", data=save(tmp_path / "trusted.npz", blobs, 50)),
    )
    tutor = make_tutor(settings, at_once)
    assert isinstance(tutor, TrainingTutor)
    vector = np.full(tutor.layout.size, np.inf, np.float32)
    tutor.begin(GlobalModel(epoch=1, version=ModelVersion(3), layout=tutor.layout, vector=vector))

    with pytest.raises(TrainerError, match="diverged"):
        tutor.take()


def test_trusted_data_of_another_model_is_refused(tmp_path: Path, blobs: Dataset) -> None:
    """With the difference; and none is asked for without need."""
    settings = AggregatorSettings(
        task=replace(BASE.task, settings=(*BASE.task.settings, ("features", 36), ("classes", 5))),
        trust=TrustSettings(rule="zeno", data=save(tmp_path / "trusted.npz", blobs, 10)),
    )
    tutor = make_tutor(settings, at_once)
    layout = ParamLayout((Segment(name="w", shape=(3,)),))
    model = GlobalModel(epoch=1, version=ModelVersion(0), layout=layout, vector=np.zeros(3, np.float32))

    assert tutor is not None
    with pytest.raises(TrainerError, match="for another model"):
        tutor.begin(model)
    assert make_tutor(AggregatorSettings(trust=TrustSettings(rule="agreement"))) is None
