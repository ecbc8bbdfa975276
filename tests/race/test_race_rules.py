"""The comparison of rules: what its figures mean, and that it plays its workloads."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.strategy import FoldSettings

from benchmarks import rules
from benchmarks.rules import WORKLOADS, Contender, contenders, play, row, steady_at, summary
from fedmq.app.datasets import Dataset
from fedmq.app.partition import dirichlet_partition

SMALL = replace(WORKLOADS["equal"], clients=4, images=100, target=0.5, updates=60)


def test_a_target_is_held_when_three_evaluations_in_a_row_are_there_on_average() -> None:
    """One that is there for a moment does not count."""
    assert 5 == steady_at([0.1, 0.9, 0.1, 0.3, 0.9, 0.7], 0.53)
    assert 2 == steady_at([0.5, 0.5, 0.5], 0.5)
    assert None is steady_at([0.9, 0.9], 0.5)
    assert None is steady_at([0.9, 0.1, 0.1, 0.9], 0.5)


def test_a_row_says_what_the_run_came_to(blobs: Dataset) -> None:
    """Its swing and its bytes are the run's own."""
    contender = Contender(name="one by one", fold=FoldSettings(strategy="fedasync"))
    result = play(contender, SMALL, seed=1, dataset=blobs)
    found = row(contender, "equal", SMALL, 1, result)
    late = [event.accuracy for event in result.evaluations[-10:]]

    assert ("one by one", "equal", 1) == (found["rule"], found["workload"], found["seed"])
    assert float(np.std(late)) == pytest.approx(found["swing"])
    assert result.uplink_bytes / 60 == found["uplink_bytes_per_update"]
    assert result.worst_decile == found["worst_decile"]


def test_the_worst_decile_is_the_client_whose_labels_the_model_knows_least(blobs: Dataset) -> None:
    """By hand: the accuracy on each label, weighed by the client's shares."""
    contender = Contender(name="short", fold=FoldSettings(strategy="fedasync"))
    workload = replace(SMALL, alpha=0.1, updates=10)
    result = play(contender, workload, seed=2, dataset=blobs)
    tensors = result.layout.unpack(result.vector)
    x = blobs.test_images.astype(np.float32) / 255
    hidden = np.maximum(x @ tensors["hidden.weight"].T + tensors["hidden.bias"], 0)
    right = (hidden @ tensors["output.weight"].T + tensors["output.bias"]).argmax(1) == blobs.test_labels
    by_label = [right[blobs.test_labels == label].mean() for label in range(blobs.classes)]
    parts = dirichlet_partition(blobs.train_labels, clients=4, alpha=0.1, per_client=100, seed=2)
    clients = [np.mean([by_label[label] for label in blobs.train_labels[part]]) for part in parts]

    assert min(clients) == pytest.approx(result.worst_decile)


def test_a_summary_has_a_median_only_where_all_seeds_have_a_value(blobs: Dataset) -> None:
    """And it shows each seed's updates."""
    rows = [
        {"workload": "equal", "rule": "a", "seed": seed, "updates_to_target": updates, "swing": swing}
        for seed, updates, swing in [(0, 300, 0.1), (1, None, 0.3), (2, 310, 0.2)]
    ]
    (line,) = summary(rows)

    assert (3, 0.2, "300, –, 310") == (line["seeds"], line["swing"], line["updates_to_target_each"])
    assert "updates_to_target" not in line


def test_every_rule_can_be_played(blobs: Dataset) -> None:
    """Their dials go together, and FedAvg waits for everybody."""
    short = replace(SMALL, updates=8)
    found = [play(contender, short, seed=0, dataset=blobs) for contender in contenders(short)]

    assert 4 == found[0].scenario.fold.buffer_size
    assert {0: 8} == found[0].staleness
    assert all(result.updates >= 8 and not result.refusals for result in found)
    assert len(found) == len({result.scenario.name for result in found})


def test_the_command_writes_its_rows_and_goes_on_from_them(
    blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there already is not played again."""
    out = tmp_path / "rules.json"
    monkeypatch.setattr(rules, "images", lambda: blobs)
    monkeypatch.setattr(rules, "WORKLOADS", {"equal": SMALL})
    command = ["rules", "--quick", "--workloads", "equal", "--out", str(out), "--rules"]
    two = [found for found in contenders(SMALL) if found.name in ("FedAsync", "FedFa")]
    monkeypatch.setattr(rules, "contenders", lambda workload: two)
    monkeypatch.setattr(sys, "argv", [*command, "FedAsync"])
    rules.main()
    first = json.loads(out.read_text("utf-8"))["rows"]
    monkeypatch.setattr(sys, "argv", [*command, "Fed", "--resume"])
    rules.main()
    second = json.loads(out.read_text("utf-8"))

    assert ["FedAsync"] == [found["rule"] for found in first]
    assert first == second["rows"][:1]
    assert ["FedAsync", "FedFa"] == [line["rule"] for line in second["summary"]]
