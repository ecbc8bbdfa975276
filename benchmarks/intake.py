"""How many sparse updates a second the aggregator takes in, each durable before it is acknowledged.

Two publishers flood a mosquitto with updates made beforehand; the aggregator has one core for itself, everything else
the others. Beside it, on the same broker and with the same flood: a subscriber that only counts and acknowledges
(`null`), and the aggregator with SQLite's `synchronous=NORMAL`, which a power cut may roll back. Then the time that
an aggregator needs to be ready again over a store with many journalled updates.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.recovery import recover
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import ChunkChanges, Snapshot, Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.broker import Mosquitto

from benchmarks.flood import CODEC, updates
from benchmarks.harness import Row, parse_options, print_table, spread, write_result
from benchmarks.idle import LAYOUT
from fedmq.connection import ConnectionSettings
from fedmq.modelfile import save_model
from fedmq.topics import Topics
from fedmq.transport.base import Connected, Delivery
from fedmq.transport.mqtt import MqttTransport

_PUBLISHERS = 2
_BATCH = 256
#: All updates of the flood are trained from version 0.
_MAX_STALENESS = 10**9
_HEADINGS = {
    "system": "what takes it in",
    "updates_per_second": "updates/s",
    "updates_per_second_range": "range",
    "cpu_ms_per_update": "CPU ms/u",
}


def _settings(folder: Path, port: int, federation: str) -> AggregatorSettings:
    return AggregatorSettings(
        federation=federation,
        model=folder / "initial.safetensors",
        broker=ConnectionSettings(port=port),
        store=StoreSettings(path=folder / f"{federation}.db", batch_size=_BATCH),
        fold=FoldSettings(max_staleness=_MAX_STALENESS),
    )


def serve(folder: Path, port: int, federation: str, count: int, synchronous: str) -> None:
    """The measured process: an aggregator until it has folded `count` updates; prints seconds and CPU seconds."""
    settings = _settings(folder, port, federation)
    store = Store(settings.store.path)
    store._db.execute(f"PRAGMA synchronous = {synchronous}")
    broker = settings.broker
    service = Service(
        settings,
        store,
        lambda client_id, will, expiry: MqttTransport(
            broker.mqtt(
                client_id=client_id,
                will=will,
                session_expiry=expiry,
                receive_maximum=2 * _BATCH,
                max_queued=4096,
            )
        ),
    )
    _report(
        lambda: service.engine.tally.folded,
        count,
        service.turn,
        service._transport.start,
        service.engine.epoch,
    )


def count_only(folder: Path, port: int, federation: str, count: int) -> None:
    """The measured process: a subscriber that counts and acknowledges."""
    transport = MqttTransport(
        ConnectionSettings(port=port).mqtt(
            client_id=f"{federation}-null", session_expiry=3600, receive_maximum=2 * _BATCH
        )
    )
    taken = 0

    def turn() -> None:
        nonlocal taken
        match transport.poll(1.0):
            case Connected():
                transport.subscribe(Topics(federation).updates("0"))
            case Delivery() as delivery:
                delivery.ack()
                taken += 1
            case _:
                pass

    _report(lambda: taken, count, turn, transport.start, 1)


def _report(
    taken: Callable[[], int], count: int, turn: Callable[[], None], start: Callable[[], None], epoch: int
) -> None:
    start()
    sys.stdout.write(f"{epoch}\n")
    sys.stdout.flush()
    while not taken():
        turn()
    first, began, cpu = taken(), time.monotonic(), time.process_time()
    while taken() < count:
        turn()
    elapsed, spent = time.monotonic() - began, time.process_time() - cpu
    sys.stdout.write(f"{(count - first) / elapsed} {1000 * spent / (count - first)}\n")
    sys.stdout.flush()
    os._exit(0)  # what the shutdown costs is not the question


def measure(kind: str, folder: Path, port: int, count: int, seed: int) -> tuple[float, float]:
    """Updates per second and CPU milliseconds per update of one kind of intake."""
    federation = f"intake-{kind}-{seed}"
    code = f"from benchmarks import intake; from pathlib import Path; folder = Path({str(folder)!r}); " + (
        f"intake.count_only(folder, {port}, {federation!r}, {count})"
        if kind == "null"
        else f"intake.serve(folder, {port}, {federation!r}, {count}, {kind!r})"
    )
    cores = sorted(os.sched_getaffinity(0))
    rest = set(cores[1:]) or set(cores)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as taker:
        os.sched_setaffinity(taker.pid, {cores[0]})
        assert taker.stdout is not None
        epoch = taker.stdout.readline().strip()
        publishers = []
        for index in range(_PUBLISHERS):
            share = str(count // _PUBLISHERS + 1)
            arguments = ["127.0.0.1", str(port), federation, epoch, str(seed * 10 + index), share]
            publisher = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.flood", *arguments], env=environment
            )
            os.sched_setaffinity(publisher.pid, rest)
            publishers.append(publisher)
        try:
            result = taker.stdout.readline().split()
        finally:
            for publisher in publishers:
                publisher.kill()
                publisher.wait()
            taker.kill()
    if len(result) != 2:
        raise RuntimeError(f"the {kind} intake ended before its time")
    return float(result[0]), float(result[1])


def recovery_seconds(folder: Path, count: int) -> tuple[float, float]:
    """Seconds until an aggregator is ready over a store of `count` journalled updates, and the store's megabytes.

    The worst case: the process dies when the next snapshot would just have been due.
    """
    settings = _settings(folder, 1, "recovery")
    count += settings.store.snapshot_records - count % settings.store.snapshot_records - _BATCH
    store = Store(settings.store.path)
    engine = recover(settings, store)
    batch: list[Arrival] = []
    covered = 0
    for client, message in updates(engine.epoch, 99, count):
        batch.append(Arrival(client=client, message=message))
        if len(batch) == _BATCH:
            decision = engine.offer(batch)
            store.append(decision.records, decision.receipts, ChunkChanges(), 0.0)
            engine.commit(decision)
            batch.clear()
            if engine.position - covered >= settings.store.snapshot_records:  # as the service does
                covered = engine.position
                snapshot = Snapshot(
                    position=engine.position, version=engine.state.version, state=pack_state(engine)
                )
                store.save_snapshot(snapshot, created=0.0, keep=3, keep_records=count)
    store.close()
    began = time.monotonic()
    store = Store(settings.store.path)
    again = recover(settings, store)
    elapsed = time.monotonic() - began
    store.close()
    if not np.array_equal(again.state.vector, engine.state.vector):
        raise RuntimeError("the recovered model differs")
    return elapsed, settings.store.path.stat().st_size / 1e6


def run(*, quick: bool, seed: int) -> tuple[list[Row], dict[str, float]]:
    """Measure all kinds in turns, then recovery."""
    repeats, count, journalled = (1, 12_000, 50_000) if quick else (3, 60_000, 1_000_000)
    kinds = {
        "null": "a subscriber that only counts",
        "FULL": "fedmq, durable",
        "NORMAL": "fedmq, synchronous=NORMAL",
    }
    samples: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-intake-")))
        save_model(folder / "initial.safetensors", LAYOUT, np.zeros(LAYOUT.size, np.float32))
        mosquitto = stack.enter_context(Mosquitto())
        for repeat in range(repeats):
            for kind in kinds:
                samples[kind].append(measure(kind, folder, mosquitto.port, count, seed + 1 + repeat))
        seconds, megabytes = recovery_seconds(folder, journalled)
    rows: list[Row] = []
    for kind, name in kinds.items():
        median, low, high = spread([rate for rate, _ in samples[kind]])
        rows.append(
            {
                "system": name,
                "updates_per_second": median,
                "updates_per_second_range": f"{low:,.0f} … {high:,.0f}",
                "cpu_ms_per_update": spread([cpu for _, cpu in samples[kind]])[0],
            }
        )
    facts = {
        "updates_per_second": float(rows[1]["updates_per_second"] or 0),
        "null_subscriber_per_second": float(rows[0]["updates_per_second"] or 0),
        "normal_updates_per_second": float(rows[2]["updates_per_second"] or 0),
        "recovery_seconds": seconds,
        "recovery_records": float(journalled),
        "recovery_store_mb": megabytes,
    }
    return rows, facts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, write."""
    options = parse_options("intake", "sustained durable intake on one core beside mosquitto, and recovery")
    rows, facts = run(quick=options.quick, seed=options.seed)
    print_table(f"Intake of {CODEC} updates on one core, two publishers, mosquitto", rows, _HEADINGS)
    sys.stdout.write(
        f"recovery over {facts['recovery_records']:,.0f} journalled updates "
        f"({facts['recovery_store_mb']:,.0f} MB): {facts['recovery_seconds']:.2f} s\n"
    )
    write_result("intake", options, rows, **facts)


if __name__ == "__main__":
    main()
