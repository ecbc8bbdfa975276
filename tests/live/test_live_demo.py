"""The whole thing as real processes over real MQTT: it learns, it survives kill -9, it leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.recovery import restore
from fedmq.aggregator.store import Store
from fedmq.broker import EmbeddedBroker

from fedmq.connection import ConnectionSettings
from fedmq.transport.base import Connected, Delivery
from fedmq.transport.mqtt import MqttTransport

SECONDS = 120.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 8×8 images: a bright quarter each, and enough noise to need some learning."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for stem, count in (("train", 1200), ("t10k", 300)):
        labels = rng.integers(0, 4, count).astype(np.uint8)
        pictures = rng.integers(0, 160, (count, 8, 8)).astype(np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            row, column = divmod(int(label), 2)
            picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 60
        shape = b"".join(side.to_bytes(4, "big") for side in (count, 8, 8))
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(
            (0x803).to_bytes(4, "big") + shape + pictures.tobytes()
        )
        labels[: count // 30] = 3 - labels[: count // 30]  # so that nobody is ever right about everything
        head = (0x801).to_bytes(4, "big") + count.to_bytes(4, "big")
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


@contextmanager
def demo(folder: Path, images: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A demo of four numpy agents, killed at the end if it is still there."""
    command = [
        *(sys.executable, "-m", "fedmq.app", "demo", "--agents", "4", "--trainer", "mlp", "--pause", "0.05"),
        *("--data", str(images), "--codec", "topk(0.05) | ternary | rice", *arguments),
    ]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], folder: Path) -> None:
    """Until a condition holds; fails when the demo ends before, or the time is up."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, (folder / "output").read_text()
        assert time.monotonic() < deadline, (folder / "output").read_text()
        os.sched_yield()


def run_folder(folder: Path) -> Path | None:
    """The one run's folder, once it is there."""
    return next((path for path in (folder / "runs").glob("2*") if path.is_dir()), None)


def folds(folder: Path) -> int:
    """How many updates the aggregator has noted in its diary."""
    run = run_folder(folder)
    diary = run / "events" / "aggregator.jsonl" if run else None
    return diary.read_text().count('"fold"') if diary and diary.exists() else 0


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def aggregator_of(folder: Path) -> int | None:
    """The aggregator's process, while there is one."""
    for pid in processes_of(folder):
        try:
            if b"aggregator" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        except OSError:
            continue
    return None


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(request: pytest.FixtureRequest) -> str:
    """Both brokers that the demo can start."""
    name = str(request.param)
    if name == "mosquitto" and not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()):
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed")
        pytest.skip("mosquitto is not installed")
    return name


def test_the_demo_learns_and_reports(tmp_path: Path, images: Path, broker: str) -> None:
    """Status 0, and a report whose parts agree with each other."""
    with demo(tmp_path, images, "--broker", broker, "--target", "0.9") as process:
        status = process.wait(SECONDS)
    run = tmp_path / "runs" / "latest"
    report = json.loads((run / "report.json").read_text())
    evaluations = [
        entry
        for entry in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if entry["kind"] == "evaluation"
    ]

    assert status == 0, (tmp_path / "output").read_text()
    assert report["accuracy"] == evaluations[-1]["accuracy"] >= 0.9
    assert report["broker"] == broker
    assert report["agents"] == 4
    assert report["updates_refused"] == {}
    assert report["seconds_to_target"] == next(e["t"] for e in evaluations if e["accuracy"] >= 0.9)
    assert report["uplink_bytes"] < report["dense_bytes"]
    assert {path.name for path in run.iterdir()} >= {"report.html", "agents.png", "model.safetensors"}
    assert processes_of(tmp_path) == []


def test_a_killed_aggregator_goes_on_where_it_was(tmp_path: Path, images: Path, broker: str) -> None:
    """Kill -9 in the middle, twice: the demo restarts it, nothing is folded twice, the target is reached."""
    with demo(tmp_path, images, "--broker", broker, "--target", "0.9", "--pause", "0.3") as process:
        for _ in range(2):
            goal = folds(tmp_path) + 8
            wait_for(lambda goal=goal: folds(tmp_path) >= goal, process, tmp_path)
            pid = aggregator_of(tmp_path)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: aggregator_of(tmp_path) not in (None, pid), process, tmp_path)
        status = process.wait(SECONDS)
    run = tmp_path / "runs" / "latest"
    store = Store(run / "state" / "aggregator.db")
    records = list(store.records(0))
    engine = restore(store)
    store.close()

    assert status == 0, (tmp_path / "output").read_text()
    assert len({record.id for record in records}) == len(records)
    assert engine is not None
    assert engine.tally.folded == sum(record.refusal is None for record in records)


def test_ctrl_c_leaves_nothing_running_and_a_report(tmp_path: Path, images: Path) -> None:
    """Status 130, no process, an intact store and the report of what there was."""
    with demo(tmp_path, images, "--target", "1.0", "--timeout", "100") as process:
        wait_for(lambda: folds(tmp_path) >= 4, process, tmp_path)
        process.send_signal(signal.SIGINT)
        status = process.wait(30)
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    store = Store(tmp_path / "runs" / "latest" / "state" / "aggregator.db")
    engine = restore(store)
    store.close()

    assert status == 130, (tmp_path / "output").read_text()
    assert processes_of(tmp_path) == []
    assert report["updates_folded"] >= 4
    assert engine is not None


def test_ctrl_c_before_anything_has_begun_is_as_clean(tmp_path: Path, images: Path) -> None:
    """While processes are still starting."""
    with demo(tmp_path, images) as process:
        wait_for(lambda: aggregator_of(tmp_path) is not None, process, tmp_path)
        process.send_signal(signal.SIGINT)
        status = process.wait(30)

    assert status == 130, (tmp_path / "output").read_text()
    assert processes_of(tmp_path) == []


def test_a_killed_demo_takes_its_children_along(tmp_path: Path, images: Path) -> None:
    """Nobody is left to stop them."""
    with demo(tmp_path, images, "--target", "1.0") as process:
        wait_for(lambda: folds(tmp_path) >= 2, process, tmp_path)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < deadline:
        os.sched_yield()

    assert processes_of(tmp_path) == []


def test_the_demo_runs_in_one_process(tmp_path: Path, images: Path) -> None:
    """For a debugger."""
    with demo(tmp_path, images, "--in-process", "--target", "0.9") as process:
        status = process.wait(SECONDS)

    assert status == 0, (tmp_path / "output").read_text()


def test_a_broker_that_was_there_before_is_left_as_it_was(tmp_path: Path, images: Path) -> None:
    """With HOST:PORT neither retained messages nor sessions of the demo stay behind."""
    with EmbeddedBroker() as broker:
        with demo(tmp_path, images, "--broker", f"{broker.host}:{broker.port}", "--target", "0.9") as process:
            status = process.wait(SECONDS)
        leftover = retained(broker.host, broker.port)
        sessions = broker.counters

    assert status == 0, (tmp_path / "output").read_text()
    assert leftover == {}
    assert sessions.connected == 0


def test_status_tells_of_a_running_demo(tmp_path: Path, images: Path) -> None:
    """Version, updates and accuracy, from the retained topics alone."""
    with EmbeddedBroker() as broker:
        address = ("--broker-host", broker.host, "--broker-port", str(broker.port))
        with demo(
            tmp_path,
            images,
            "--broker",
            f"{broker.host}:{broker.port}",
            "--target",
            "1.0",
            "--timeout",
            "100",
        ) as process:
            wait_for(lambda: folds(tmp_path) >= 10, process, tmp_path)
            run = run_folder(tmp_path)
            assert run is not None
            done = subprocess.run(
                [sys.executable, "-m", "fedmq.app", "status", "--federation", f"demo-{run.name}", *address],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

    assert done.returncode == 0, done.stderr
    for word in ("aggregator", "online", "version", "updates_folded", "accuracy", "agent-03"):
        assert word in done.stdout


def retained(host: str, port: int) -> dict[str, bytes]:
    """All retained messages of a broker but its own counters."""
    found = {}
    transport = MqttTransport(ConnectionSettings(host=host, port=port).mqtt(client_id="look"))
    transport.start()
    try:
        while (event := transport.poll(2.0)) is not None:
            match event:
                case Connected():
                    transport.subscribe("#")
                case Delivery(topic=topic, payload=payload):
                    found[topic] = payload
                case _:
                    pass
    finally:
        transport.close()
    return found
