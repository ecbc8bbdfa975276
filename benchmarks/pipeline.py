"""What the pipeline itself costs: real processes over real MQTT, with a trainer that takes no time.

Ten agent processes pull, "train", encode, keep and upload as fast as they can; the aggregator folds, commits durably,
answers and publishes. Measured from outside: processor time and resident memory of the processes, bytes as MQTT
packets. Flower's figures beside ours are from its no-training flood with ten clients and dense updates
(Flower 1.41, start_server/start_client, two shared cores; measured once, not in this run).
"""

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
from fedmq.broker import EmbeddedBroker, Mosquitto, MosquittoMissingError

from benchmarks.harness import Options, Row, parse_options, print_table, spread, write_result
from benchmarks.idle import LAYOUT
from fedmq.app.supervisor import Child, stop_all
from fedmq.app.toml import write_toml
from fedmq.connection import ConnectionSettings
from fedmq.modelfile import save_model
from fedmq.topics import Topics
from fedmq.transport.base import Connected, Delivery
from fedmq.transport.mqtt import MqttTransport

AGENTS = 10
CODECS = ("topk(0.01) | ternary | rice", "int8", "float32")
#: Flower 1.41: the range of the repeats of its no-training flood and of its training runs.
FLOWER: Row = {
    "system": "Flower 1.41",
    "codec": "float32",
    "updates_per_second": 148.0,
    "aggregator_cpu_ms_per_update": 4.35,
    "aggregator_rss_mb": 377.0,
    "agent_rss_mb": 401.0,
    "uplink_bytes_per_update": 413_000.0,
    "downlink_bytes_per_update": 417_500.0,
}


_HEADINGS = {
    "system": "system",
    "codec": "codec",
    "updates_per_second": "updates/s",
    "aggregator_cpu_ms_per_update": "CPU ms/u",
    "aggregator_rss_mb": "agg. MB",
    "agent_rss_mb": "agent MB",
    "uplink_bytes_per_update": "up B/u",
    "downlink_bytes_per_update": "down B/u",
}


def measure(codec: str, host: str, port: int, seconds: float, seed: int, folder: Path) -> dict[str, float]:
    """Run one flood and measure it for `seconds` after a warm-up."""
    folder.mkdir()
    broker = {"host": host, "port": port, "reconnect_min": 0.1}
    federation = f"bench-{folder.name}"
    save_model(folder / "initial.safetensors", LAYOUT, np.zeros(LAYOUT.size, np.float32))
    write_toml(
        folder / "aggregator.toml",
        {
            "federation": federation,
            "model": folder / "initial.safetensors",
            "stats_interval": 0.5,
            "broker": broker,
            "store": {"path": folder / "aggregator.db"},
            "task": {"codec": codec},
        },
    )
    children = [_child("aggregator", folder / "aggregator.toml", folder)]
    for index in range(AGENTS):
        config = folder / f"agent-{index}.toml"
        write_toml(
            config,
            {
                "federation": federation,
                "client": f"agent-{index}",
                "events": folder / f"agent-{index}.jsonl",
                "broker": broker,
                "outbox": {"folder": folder / f"agent-{index}"},
                "trainer": {
                    "factory": "benchmarks.idle:idle_trainer",
                    "settings": {"seed": seed + index},
                },
            },
        )
        children.append(_child("agent", config, folder))
    try:
        with _Stats(host, port, federation, children) as stats:
            stats.wait_for(folded=20 * AGENTS, seconds=30)
            aggregator, agents = children[0], children[1:]
            process = psutil.Process(aggregator.process.pid)
            before, cpu, traffic, clock = stats.folded, _cpu(process), _traffic(folder), time.monotonic()
            stats.wait_for(folded=None, seconds=seconds)
            folded = stats.folded - before
            elapsed, spent = time.monotonic() - clock, _cpu(process) - cpu
            after = _traffic(folder)
            if not folded:
                raise RuntimeError(f"nothing was folded in {elapsed:.0f} s: see {folder}")
            return {
                "updates_per_second": folded / elapsed,
                "aggregator_cpu_ms_per_update": 1000 * spent / folded,
                "aggregator_rss_mb": process.memory_info().rss / 1e6,
                "agent_rss_mb": max(psutil.Process(a.process.pid).memory_info().rss for a in agents) / 1e6,
                "uplink_bytes_per_update": (after[0] - traffic[0]) / folded,
                "downlink_bytes_per_update": (after[1] - traffic[1]) / folded,
            }
    finally:
        stop_all(children)


class _Stats:
    """Follows the aggregator's statistics from outside."""

    def __init__(self, host: str, port: int, federation: str, children: list[Child]) -> None:
        self._children = children
        self._topic = Topics(federation).stats("aggregator")
        self._transport = MqttTransport(
            ConnectionSettings(host=host, port=port).mqtt(client_id=f"{federation}-watch")
        )
        self.folded = 0

    def __enter__(self) -> "_Stats":
        self._transport.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def wait_for(self, folded: int | None, seconds: float) -> None:
        """Until so many updates are folded; without a number, for the whole time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for child in self._children:
                if child.has_ended:
                    raise RuntimeError(f"{child.name} ended: {child.last_words()}")
            match self._transport.poll(min(left, 1.0)):
                case Connected():
                    self._transport.subscribe(self._topic)
                case Delivery(payload=payload) as delivery:
                    self.folded = json.loads(payload)["updates_folded"]
                    delivery.ack()
                    if folded is not None and self.folded >= folded:
                        return
                case _:
                    pass
        if folded is not None:
            raise RuntimeError(f"only {self.folded} updates were folded in {seconds:.0f} s")


def _child(role: str, config: Path, folder: Path) -> Child:
    arguments = ["--log-level", "warning", role, "--config", str(config)]
    return Child(config.stem, arguments, folder / f"{config.stem}.log")


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _traffic(folder: Path) -> tuple[int, int]:
    """Bytes sent and received by all agents, as their diaries say."""
    sent = received = 0
    for path in folder.glob("agent-*.jsonl"):
        last = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-2])  # the last may be half
        sent, received = sent + last["sent"], received + last["received"]
    return sent, received


def run(options: Options) -> list[Row]:
    """Measure each codec several times, in turns, and give medians with their range."""
    repeats, seconds = (1, 8.0) if options.quick else (3, 20.0)
    samples: dict[str, list[dict[str, float]]] = {codec: [] for codec in CODECS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-pipeline-")))
        broker: Mosquitto | EmbeddedBroker
        try:
            broker = stack.enter_context(Mosquitto())
        except MosquittoMissingError:
            broker = stack.enter_context(EmbeddedBroker())
        system = f"fedmq, {type(broker).__name__}"
        for repeat in range(repeats):
            for index, codec in enumerate(CODECS):
                place = folder / f"{repeat}-{index}"
                samples[codec].append(
                    measure(codec, broker.host, broker.port, seconds, options.seed + 100 * repeat, place)
                )
    rows: list[Row] = []
    for codec, measured in samples.items():
        row: dict[str, str | int | float | None] = {"system": system, "codec": codec}
        for name in measured[0]:
            median, low, high = spread([sample[name] for sample in measured])
            row[name] = median
            row[f"{name}_range"] = f"{low:.4g} … {high:.4g}"
        rows.append(row)
    rows.append(FLOWER)
    return rows


def main() -> None:
    """Run, print, write."""
    options = parse_options("pipeline", "what the pipeline itself costs, without training")
    rows = run(options)
    print_table("The pipeline without training, ten agents", rows, _HEADINGS)
    write_result("pipeline", options, rows, agents=AGENTS, parameters=LAYOUT.size)


if __name__ == "__main__":
    main()
