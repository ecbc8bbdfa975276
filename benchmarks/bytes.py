"""Accuracy against bytes: pipelines of updates and models on one workload, several seeds, with spread.

    python -m benchmarks.bytes

Ten clients of 1,000 Fashion-MNIST images, labels by Dirichlet(0.3), an MLP 784-128-10, one local epoch, batch 32,
SGD 0.05, all clients equally fast; the same partition, first model and shuffling for each pipeline of a seed. The
simulator plays it with the production parts, so every MQTT packet between devices and broker is counted, in both
directions. What differs between the rows is `task.codec` and `publish.*`; the rows of fedmq fold as the demo does (the
convolutional network with a step of 1.8) and adjust the loss for each device's labels, which is the default; all others
minimise plain cross-entropy and fold as `FoldSettings` says.

STC and EDEN are what OpenFL ships, as published: STC with one magnitude and Golomb positions in both directions
(Sattler et al. 2019, p = 1/100), EDEN with few bits up (Vargaftik et al. 2022). SZ3 and ZFP are what APPFL ships, in
use when their packages are installed (`bytes_peers`). Flower ships none: its FedAvg, which waits for all clients, is
the first row, and what the others are compared with.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings

from benchmarks import bytes_peers
from benchmarks.bytes_plot import plot
from benchmarks.harness import Row, make_parser, print_table, read_options, spread, write_result
from fedmq.app.cohort import demo_fold
from fedmq.app.scenario import DataSettings, DeviceClass, EvaluationSettings, Scenario, StopSettings
from fedmq.app.simulation import SimulationResult, simulate

_TARGETS: Final = {"mlp": 0.78, "torch-lenet": 0.70}
_UPDATES: Final = {"mlp": 500, "torch-lenet": 350}
#: Rows are compared at this many updates, besides at the target: the curves still rise and swing there.
_EQUAL_UPDATES: Final = 330
_CLIENTS: Final = 10
#: The interval in virtual seconds: an epoch takes one.
_PUBLISH: Final = PublishSettings(min_interval=0.1)
_ROWS: Final = "topk(0.005) | ternary | rows | range"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of sending updates and models.

    Attributes:
        name: in tables.
        task: what the devices are asked; None for the product's defaults.
        publish: how the model goes out; likewise.
        fold: how updates are folded.
        adjusted: whether the loss is adjusted for the labels of each device.
    """

    name: str
    task: str | None
    publish: PublishSettings | None = None
    fold: FoldSettings = field(default_factory=FoldSettings)
    adjusted: bool = False


def _sent_as(up: str, keyframe: str, frame: str, delta: str) -> tuple[str, PublishSettings]:
    return up, replace(_PUBLISH, keyframe_codec=keyframe, frame_codec=frame, delta_codec=delta)


_DENSE: Final = _sent_as("float32", "float32", "float32", "float32")


def contenders(trainer: str) -> list[Contender]:
    """The rows for a model, dense first."""
    ways = {
        "dense float32": _DENSE,
        "int8, both ways": _sent_as("int8", "int8", "int8", "int8"),
        "QSGD 4 bits up, int8 down": _sent_as("qsgd(4)", "int8", "int8", "int8"),
        "EDEN 1 bit up, 4 bits down (OpenFL)": _sent_as("eden(1)", "eden(4)", "eden(4)", "eden(4)"),
        "STC 1/100, both ways (OpenFL)": _sent_as(
            "topk(0.01) | ternary | rice",
            "float32",
            "topk(0.01) | ternary | rice",
            "topk(0.01) | ternary | rice",
        ),
    }
    for name in bytes_peers.offer():
        ways[f"{name.upper()}, error within 1 % of the range, dense down (APPFL)"] = (
            f"float32 | {name}(0.01)",
            _DENSE[1],
        )
    synchronous = FoldSettings(strategy="fedavg", buffer_size=_CLIENTS)
    up, down = _DENSE
    found = [
        Contender(name="dense float32, synchronous (Flower)", task=up, publish=down, fold=synchronous),
        *(Contender(name=name, task=up, publish=publish) for name, (up, publish) in ways.items()),
    ]
    ours = demo_fold(_CLIENTS)
    if trainer == "torch-lenet":
        ours = replace(ours, learning_rate=1.8)
    return [
        *found,
        Contender(name="fedmq, plain loss", task=None, fold=replace(ours, learning_rate=1.8)),
        Contender(name="fedmq, positions by rows", task=_ROWS, fold=ours, adjusted=True),
        Contender(name="fedmq", task=None, fold=ours, adjusted=True),
        # With more room, for models whose layers learn at very different rates.
        Contender(
            name="fedmq, 2 % up, 5 % down",
            task="topk(0.02) | ternary(64) | rice",
            publish=replace(
                _PUBLISH,
                frame_codec="topk(0.05) | ternary(64) | rice",
                delta_codec="topk(0.033) | ternary(64) | rice",
            ),
            fold=ours,
            adjusted=True,
        ),
    ]


def play(contender: Contender, *, trainer: str, seed: int, updates: int) -> SimulationResult:
    """One run."""
    settings: tuple[tuple[str, str | int | float | bool], ...] = (
        ("learning_rate", 0.05),
        ("batch_size", 32),
        ("logit_adjustment", 1.0 if contender.adjusted else 0.0),
    )
    task = TaskSettings(trainer=trainer, settings=settings)
    if contender.task is not None:
        task = TaskSettings(trainer=trainer, settings=settings, codec=contender.task)
    scenario = Scenario(
        name=contender.name,
        seed=seed,
        data=DataSettings(clients=_CLIENTS, alpha=0.3),
        task=task,
        fold=contender.fold,
        publish=contender.publish or _PUBLISH,
        evaluation=EvaluationSettings(every=10, target=_TARGETS[trainer]),
        stop=StopSettings(updates=updates),
        devices=(DeviceClass(epoch_seconds="1", jitter="uniform(0.95, 1.05)"),),
    )
    return simulate(scenario)


def _row(contender: Contender, seed: int, trainer: str, result: SimulationResult) -> Row:
    reached = result.reached(_TARGETS[trainer])
    equal = [
        event.accuracy for event in result.evaluations if abs((event.folded or 0) - _EQUAL_UPDATES) <= 20
    ]
    return {
        "pipeline": contender.name,
        "codec": result.scenario.task.codec,
        "model": trainer,
        "seed": seed,
        "updates_to_target": reached.folded if reached else None,
        "uplink_bytes_to_target": reached.uplink_bytes if reached else None,
        "downlink_bytes_to_target": reached.downlink_bytes if reached else None,
        "accuracy_at_equal_updates": sum(equal) / len(equal) if equal else None,
        "final_accuracy": result.final_accuracy,
        "uplink_bytes_per_update": result.uplink_bytes / result.updates,
        "downlink_bytes_per_update": result.downlink_bytes / result.updates,
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line for each pipeline and model: medians with their range, and the bytes beside dense float32's."""
    lines: list[Row] = []
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["model"]), str(row["pipeline"])), []).append(row)
    dense: dict[str, dict[str, float]] = {}
    for (model, name), group in groups.items():
        line: dict[str, str | int | float | None] = {"model": model, "pipeline": name, "seeds": len(group)}
        for key in ("updates_to_target", "uplink_bytes_to_target", "downlink_bytes_to_target"):
            found = [float(value) for row in group if (value := row[key]) is not None]
            if len(found) == len(group):
                middle, low, high = spread(found)
                line[key], line[f"{key}_range"] = middle, f"{low:,.0f} … {high:,.0f}"
        for key in ("accuracy_at_equal_updates", "final_accuracy"):
            middle, low, high = spread([float(row[key] or 0) for row in group])
            line[key], line[f"{key}_range"] = middle, f"{low:.3f} … {high:.3f}"
        base = dense.setdefault(
            model, {key: value for key, value in line.items() if isinstance(value, float)}
        )
        for direction in ("uplink", "downlink"):
            key = f"{direction}_bytes_to_target"
            if key in line and key in base:
                line[f"{direction}_mb"] = float(line[key] or 0) / 1e6
                line[f"{direction}_ratio"] = base[key] / float(line[key] or 1)
        lines.append(line)
    return lines


_HEADINGS: Final = {
    "pipeline": "pipeline",
    "updates_to_target_range": "updates",
    "uplink_mb": "MB up",
    "uplink_ratio": "÷",
    "downlink_mb": "MB down",
    "downlink_ratio": "÷",
    "accuracy_at_equal_updates": f"at {_EQUAL_UPDATES}",
    "final_accuracy": "at end",
}


def main() -> None:
    """Run, print, write, draw."""
    parser = make_parser("bytes", "accuracy against bytes, pipelines side by side")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from --seed on")
    parser.add_argument("--models", nargs="+", choices=tuple(_TARGETS), default=["mlp"])
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name contains one of these")
    arguments: argparse.Namespace = parser.parse_args()
    options = read_options(arguments)
    rows: list[Row] = []
    curves: list[tuple[str, int, SimulationResult]] = []
    for trainer in arguments.models:
        chosen = [c for c in contenders(trainer) if any(part in c.name for part in arguments.only)]
        for contender in [chosen[0], chosen[-1]] if options.quick else chosen:
            for seed in range(options.seed, options.seed + (1 if options.quick else arguments.seeds)):
                updates = _EQUAL_UPDATES if options.quick else _UPDATES[trainer]
                result = play(contender, trainer=trainer, seed=seed, updates=updates)
                rows.append(_row(contender, seed, trainer, result))
                curves.append((contender.name, seed, result))
                print_table("", [rows[-1]], {"pipeline": "", "seed": "seed", "updates_to_target": "updates"})
                write_result("bytes", options, rows, summary=summary(rows))
    lines = summary(rows)
    for trainer in arguments.models:
        print_table(
            f"{trainer}: updates and bytes to an accuracy of {_TARGETS[trainer]}, everything on the wire "
            "counted (÷: times fewer than the first row's)",
            [line for line in lines if line["model"] == trainer],
            _HEADINGS,
        )
    picture = options.out.with_suffix(".png")
    write_result("bytes", options, rows, summary=lines, picture=picture.name)
    plot(Path(picture), curves)


if __name__ == "__main__":
    main()
