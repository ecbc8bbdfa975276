"""The race's bookkeeping, and that everybody trains alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import Row
from benchmarks.race_fedmq import Diaries
from benchmarks.race_summary import sentence, summarise, write_page
from benchmarks.race_system import Tail


def run(system: str, seed: int, *, reached: bool = True, seconds: float = 10.0, up: int = 1000) -> Row:
    """A row of one run on W1."""
    row: dict[str, str | int | float | None] = {"system": system, "workload": "W1", "seed": seed}
    measures = {"updates": 300, "seconds": seconds, "uplink_bytes": up, "downlink_bytes": 500}
    return {**row, "reached": reached, "note": "", **measures}


def test_medians_are_those_of_the_runs_that_reached_the_target():
    """A run that was ended does not count as a fast one."""
    rows = [
        run("fedmq", 0, seconds=8.0),
        run("fedmq", 1, seconds=9.0),
        run("fedmq", 2, reached=False, seconds=1.0),
    ]

    [line] = summarise(rows)

    assert ("2 of 3", 8.5) == (line["runs"], line["seconds"])


def test_ratios_are_flowers_figure_divided_by_the_systems():
    """More is better."""
    fedmq, _ = summarise([run("fedmq", 0, up=10, seconds=5.0), run("Flower", 0, up=1000, seconds=20.0)])

    assert (100.0, 4.0) == (fedmq["uplink_ratio"], fedmq["seconds_ratio"])


def test_a_peer_that_cannot_be_installed_is_in_the_table_with_the_reason(tmp_path: Path):
    """It is not left out in silence."""
    reason = "cannot be installed: no such version"
    absent: Row = {"system": "APPFL", "workload": "W1", "seed": 0, "reached": False, "note": reason}
    rows = [run("Flower", 0), absent]

    write_page(tmp_path / "race.md", "Race", summarise(rows), rows, {})
    page = (tmp_path / "race.md").read_text(encoding="utf-8")

    assert "| W1 | APPFL | 0 of 1 | –" in page
    assert reason in page
    assert reason in sentence(absent)


def test_a_snapshot_holds_the_updates_that_were_folded_before_its_version(tmp_path: Path):
    """Versions 0, 1 and 2, each made of five updates; 10 updates are due, and 5 are not."""
    folds = [{"kind": "fold", "time": 100.0 + index, "version": index // 5} for index in range(12)]
    evaluations = [{"snapshot": number, "version": version} for number, version in ((1, 0), (2, 1), (3, 2))]
    for name, entries in (("aggregator", folds), ("evaluator", evaluations)):
        lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "snapshots").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "snapshots" / f"{number}.npy").touch()

    [snapshot] = Diaries(tmp_path).snapshots()

    assert (10, 109.0, "3.npy") == (snapshot.updates, snapshot.time, snapshot.path.name)


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path):
    """The writer is another process."""
    path = tmp_path / "index.jsonl"
    tail = Tail(path)
    path.write_bytes(b'{"a": 1}\n{"a"')
    first = tail.read()
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')

    assert ([{"a": 1}], [{"a": 2}]) == (first, tail.read())


@pytest.mark.torch
@pytest.mark.parametrize("adjusted", [False, True])
def test_fedmq_and_the_peers_take_the_same_steps(
    adjusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From the same model, over the same images in the same order, with either loss; in the second epoch, too."""
    from fedmq.edge_agent.trainer import Task

    from benchmarks import race_peers, race_trainer

    rng = np.random.default_rng(0)
    data = tmp_path / "client.npz"
    np.savez(
        data,
        train_images=rng.integers(0, 256, (100, 784), dtype=np.uint8),
        train_labels=rng.integers(0, 10, 100),
    )
    (tmp_path / "go").touch()
    settings = {"logit_adjustment": float(adjusted)}
    trainer = race_trainer.gated(settings, data=str(data), seed=3, client=1, gate=str(tmp_path))
    base = trainer.initial()
    monkeypatch.syspath_prepend(str(Path(race_peers.__file__).parent / "peers"))
    import job
    import learner

    names = [segment.name for segment in trainer.layout.shared]
    told = job.Job(
        port=0, ports=[0, 0], model="", names=names, shards=[str(data)] * 2, examples=100,
        network={"features": 784, "hidden": 128, "classes": 10}, batch_size=32, learning_rate=0.05, seed=3,
        pauses=[0.0, 0.0], every=10, gate=str(tmp_path), snapshots="",
        options={"adjusted": adjusted}, client=1,
    )  # fmt: skip
    peer = learner.Learner(told)

    ours, theirs = base, list(trainer.layout.unpack(base).values())
    for _ in range(2):
        ours = trainer.train(ours, Task(local_epochs=1, settings=settings, seed=0), lambda: False).vector
        theirs = peer.fit(theirs)

    np.testing.assert_array_equal(ours, np.concatenate([tensor.ravel() for tensor in theirs]))
