"""What the final model does for each client."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.numpy_trainer import mlp
from rich.console import Console

from fedmq.app.datasets import Dataset
from fedmq.app.fairness import client_accuracy, label_accuracies, worst_decile
from fedmq.app.scenario import DataSettings, Scenario, StopSettings
from fedmq.app.simulation import simulate
from fedmq.app.simulation_run import run_training

SCENARIO = Scenario(
    data=DataSettings(clients=12, alpha=0.1, per_client=60),
    task=TaskSettings(settings=(("hidden", 8), ("learning_rate", 0.1)), codec="topk(0.2) | int8 | rice"),
    stop=StopSettings(updates=24),
)


def test_a_clients_accuracy_is_that_of_its_labels_in_its_proportions() -> None:
    """By hand: three of four examples have label 0."""
    accuracies = {0: 0.8, 1: 0.4, 2: 0.0}

    assert 0.7 == pytest.approx(client_accuracy(accuracies, np.array([0, 0, 1, 0])))
    assert 0.0 == client_accuracy(accuracies, np.array([2, 2]))


def test_labels_that_nobody_can_test_are_left_out() -> None:
    """And a client that has no other has no accuracy."""
    assert 0.8 == client_accuracy({0: 0.8}, np.array([0, 7, 7]))
    assert client_accuracy({0: 0.8}, np.array([7])) is None


@pytest.mark.parametrize(
    ("accuracies", "worst"),
    [
        ([], None),
        ([0.5], 0.5),
        ([0.9, 0.1, 0.5], 0.1),
        ([0.1 * index for index in range(10)], 0.0),
        ([index / 29 for index in range(29, -1, -1)], 1 / 29),
    ],
)
def test_the_worst_decile_is_a_tenth_of_the_clients_and_at_least_one(
    accuracies: list[float], worst: float | None
) -> None:
    """Of thirty, the mean of three."""
    assert worst == (None if worst is None else pytest.approx(worst_decile(accuracies)))


def test_the_labels_accuracies_add_up_to_the_models(blobs: Dataset, tmp_path: Path) -> None:
    """Weighted as the test data has them; no file stays."""
    settings = {"features": 36, "hidden": 8, "classes": 5}
    whole = tmp_path / "whole.npz"
    np.savez(
        whole,
        train_images=blobs.train_images,
        train_labels=blobs.train_labels,
        test_images=blobs.test_images,
        test_labels=blobs.test_labels,
    )
    trainer = mlp(settings, data=str(whole))
    vector = trainer.initial()
    found = label_accuracies(blobs, vector, lambda path: mlp(settings, data=str(path)), tmp_path)

    assert trainer.evaluate(vector)["accuracy"] == pytest.approx(client_accuracy(found, blobs.test_labels))
    assert [whole] == list(tmp_path.iterdir())


def test_a_simulation_tells_how_well_each_client_is_served(blobs: Dataset) -> None:
    """Of the final model; the worst decile of twelve is the worst one."""
    result = simulate(SCENARIO, dataset=blobs)
    accuracies = [client.accuracy for client in result.clients]

    assert all(accuracy is not None and 0 <= accuracy <= 1 for accuracy in accuracies)
    assert min(accuracy for accuracy in accuracies if accuracy is not None) == result.worst_decile
    assert result.worst_decile < (result.final_accuracy or 0.0)


def test_the_report_shows_it(blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In report.json, in clients.jsonl, and on the terminal."""
    monkeypatch.setattr("fedmq.app.simulation_run.load_dataset", lambda source, cache: blobs)
    console = Console(record=True, width=100)
    run_training(replace(SCENARIO, name="fair"), tmp_path, console, lambda: False)
    report = json.loads((tmp_path / "report.json").read_text())
    lines = (tmp_path / "clients.jsonl").read_text().splitlines()

    assert {line["client"]: line["accuracy"] for line in map(json.loads, lines)} == report["client_accuracy"]
    assert 12 == len(report["client_accuracy"])
    assert worst_decile(list(report["client_accuracy"].values())) == report["worst_decile"]
    assert f"{report['worst_decile']:.4f}" in console.export_text()
