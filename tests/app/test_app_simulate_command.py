"""`fedmq simulate` as a person meets it."""

import gzip
import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedmq.app import simulation_run
from fedmq.app.commands.simulate import simulate
from fedmq.app.datasets import Dataset
from fedmq.app.runlog import Fold, Publish, read_log
from fedmq.errors import SettingError
from fedmq.modelfile import load_model

TRAINING = """
name = "small"
[data]
clients = 4
per_client = 100
[task]
codec = "topk(0.2) | int8 | rice"
settings = { hidden = 8, batch_size = 10 }
[publish]
min_interval = 0.0
[stop]
updates = 30
[[devices]]
name = "quick"
share = 3
[[devices]]
name = "slow"
epoch_seconds = "5"
energy.train_watts = 2
"""
LOAD = """
name = "load"
training = "synthetic"
[data]
clients = 20
[synthetic]
parameters = 500
payloads = 2
sample = 100
[stop]
seconds = 300
[[devices]]
availability.away = "exponential(60)"
"""


@pytest.fixture
def folder(tmp_path: Path, blobs: Dataset) -> Path:
    """One with data that lies there as IDX files."""
    parts = {
        "train-images-idx3-ubyte": blobs.train_images.reshape(-1, 6, 6),
        "train-labels-idx1-ubyte": blobs.train_labels,
        "t10k-images-idx3-ubyte": blobs.test_images.reshape(-1, 6, 6),
        "t10k-labels-idx1-ubyte": blobs.test_labels,
    }
    (tmp_path / "blobs").mkdir()
    for name, array in parts.items():
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / "blobs" / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def run(folder: Path, text: str, *arguments: str) -> Result:
    """Play a scenario that is written in a text."""
    path = folder / "scenario.toml"
    path.write_text(text)
    return CliRunner().invoke(
        simulate, [str(path), "--runs", str(folder / "runs"), *arguments], catch_exceptions=False
    )


def test_a_scenario_leaves_a_run_like_the_demo_s(folder: Path) -> None:
    """Its log can be read, its report says what it came to, and the model lies beside them."""
    text = TRAINING.replace("[data]", f'[data]\nsource = "{folder / "blobs"}"')
    done = run(folder, text, "--seed", "5")
    latest = folder / "runs" / "latest"
    log = read_log(latest)
    report = json.loads((latest / "report.json").read_text())
    clients = [json.loads(line) for line in (latest / "clients.jsonl").read_text().splitlines()]
    layout, _ = load_model(latest / "model.safetensors")

    assert 0 == done.exit_code
    assert "updates folded" in done.output
    assert "quick" in done.output
    assert "slow" in done.output
    assert report["updates_folded"] == len(log.folds) == sum(client["folded"] for client in clients) >= 30
    assert (5, "simulated", 4) == (report["seed"], report["broker"], report["agents"])
    assert 4 * layout.size == report["dense_model_bytes"]
    assert 0 < report["seconds"] < 30
    assert "5" == report["settings"]["devices[1].epoch_seconds"]
    assert ["quick"] * 3 + ["slow"] == [client["kind"] for client in clients]
    assert clients[3]["joules"] == pytest.approx(2 * clients[3]["training_seconds"])
    assert report["accounting"]["uplink"]["updates"] == sum(fold.bytes for fold in log.folds)
    assert any(isinstance(event, Publish) for event in log.events)
    assert all(event.bytes > 50 for event in log.events if isinstance(event, Fold))
    assert text == (latest / "scenario.toml").read_text()
    assert {"report.html", "accuracy_over_time.png"} <= {path.name for path in latest.iterdir()}


def test_a_load_leaves_its_samples(folder: Path) -> None:
    """One for each interval, and the sum of all."""
    done = run(folder, LOAD)
    latest = folder / "runs" / "latest"
    samples = [json.loads(line) for line in (latest / "samples.jsonl").read_text().splitlines()]
    load = json.loads((latest / "load.json").read_text())

    assert 0 == done.exit_code
    assert [100.0, 200.0, 300.0] == [sample["t"] for sample in samples]
    assert samples[-1]["updates"] == load["updates"] == sum(load["staleness"].values()) > 20
    assert "B a visit" in done.output


def test_an_interrupted_run_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it, with a report of what there was."""
    checks = count()

    def check(self: object) -> None:
        if next(checks) > 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(simulation_run.Interruption, "check", check)
    text = TRAINING.replace("[data]", f'[data]\nsource = "{folder / "blobs"}"')
    done = run(folder, text)
    report = json.loads((folder / "runs" / "latest" / "report.json").read_text())

    assert 1 == done.exit_code
    assert "Aborted" in done.output
    assert 0 < report["updates_folded"] < 30


def test_a_scenario_that_cannot_be_used_leaves_no_run(folder: Path) -> None:
    """The message names the key; `fedmq` prints it in one line."""
    with pytest.raises(SettingError, match=r"setting data\.client = 3 .* alpha, cache, clients, per_client"):
        run(folder, "[data]\nclient = 3")

    assert not (folder / "runs").exists()
    with pytest.raises(SettingError, match=r"fold\.strategy"):
        run(folder, LOAD + "\n[fold]\nstrategy = 'fedavg'")
    assert [] == list((folder / "runs").iterdir())
