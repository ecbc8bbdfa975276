"""Rules of folding side by side: updates, seconds and bytes to an accuracy, how steady, how fair.

    python -m benchmarks.rules

The simulator plays Fashion-MNIST with an MLP 784-128-10, SGD 0.05, one local epoch and production's codecs:

    equal        10 clients of 1,000 images, batch 32, Dirichlet(0.3), all equally fast (W1 of the race)
    stragglers   the same; every epoch takes 0.26 s, and 2.06 s on two of the ten (W2 of the race)
    skewed       20 clients of 2,560 images, batch 64, Dirichlet(0.1), log-normal speeds (sigma 0.6)
    unreliable   as equal, but each device stays for 10 s on average and is away for 10; one return in ten is that of a
                 device that has lost its outbox. FedAvg is there with a deadline of 3 s for a round, too

The same partition, first model and shuffling for each rule of a seed. Baselines are synchronous FedAvg (McMahan et al.
2017) and FedBuff as published (Nguyen et al. 2022: K = 5, η = 1, s = 1/√(1 + τ)), both with dense float32 in both
directions, and the same FedBuff with the product's codecs. "Adjusted" stands for the loss that is adjusted for the
labels of each device (`fedmq.edge_agent.local_sgd`), the product's default; the others minimise plain cross-entropy.

A target counts as reached twice: with the first evaluation there, and, since asynchronous models swing, when the mean
of three evaluations in a row is there. The swing is the standard deviation of the last ten evaluations (ten updates
apart; a synchronous rule is measured at each version). Worst decile: see `fedmq.app.fairness`.
"""

import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Final

from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.tasks import TaskSettings

from benchmarks.harness import Row, make_parser, print_table, read_options, spread, write_result
from benchmarks.rules_contenders import WORKLOADS, Contender, Workload, contenders
from fedmq.app.datasets import Dataset, load_dataset
from fedmq.app.scenario import DataSettings, EvaluationSettings, Scenario, StopSettings
from fedmq.app.simulation import SimulationResult, simulate

_HIDDEN: Final = 128
_EVERY: Final = 10
_STEADY: Final = 3
_LATE: Final = 10
_DENSE: Final = "float32"
_QUICK_UPDATES: Final = 60
#: Between publishes, in virtual seconds.
_INTERVAL: Final = 0.1


def play(contender: Contender, workload: Workload, *, seed: int, dataset: Dataset) -> SimulationResult:
    """One run."""
    trainer: tuple[tuple[str, str | int | float | bool], ...] = (
        ("hidden", _HIDDEN),
        ("learning_rate", 0.05),
        ("batch_size", workload.batch),
        ("logit_adjustment", 1.0 if contender.adjusted else 0.0),
    )
    task, publish = TaskSettings(trainer="mlp", settings=trainer), PublishSettings(min_interval=_INTERVAL)
    if contender.dense:
        task = TaskSettings(trainer="mlp", settings=trainer, codec=_DENSE)
        publish = replace(publish, keyframe_codec=_DENSE, frame_codec=_DENSE, delta_codec=_DENSE)
    scenario = Scenario(
        name=contender.name,
        seed=seed,
        data=DataSettings(clients=workload.clients, alpha=workload.alpha, per_client=workload.images),
        task=task,
        fold=contender.fold,
        publish=publish,
        evaluation=EvaluationSettings(every=_EVERY, target=workload.target),
        stop=StopSettings(updates=workload.updates),
        devices=workload.devices,
    )
    return simulate(scenario, dataset=dataset)


def row(contender: Contender, name: str, workload: Workload, seed: int, result: SimulationResult) -> Row:
    """What a run came to."""
    accuracies = [event.accuracy for event in result.evaluations]
    late = accuracies[-_LATE:]
    first = result.reached(workload.target)
    steady = steady_at(accuracies, workload.target)
    return {
        "rule": contender.name,
        "workload": name,
        "seed": seed,
        "updates_to_target": first.folded if first else None,
        "updates_to_steady_target": None if steady is None else result.evaluations[steady].folded,
        "seconds_to_target": first.t if first else None,
        "uplink_bytes_to_target": first.uplink_bytes if first else None,
        "downlink_bytes_to_target": first.downlink_bytes if first else None,
        "final_accuracy": result.final_accuracy,
        "swing": statistics.pstdev(late),
        "worst_decile": result.worst_decile,
        "mean_staleness": result.mean_staleness,
        "uplink_bytes_per_update": result.uplink_bytes / result.updates,
        "downlink_bytes_per_update": result.downlink_bytes / result.updates,
    }


def steady_at(accuracies: Sequence[float], target: float) -> int | None:
    """The index of the first evaluation that, with the two before it, is at the target on average; None if none is."""
    for last in range(_STEADY, len(accuracies) + 1):
        if statistics.fmean(accuracies[last - _STEADY : last]) >= target:
            return last - 1
    return None


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line for each workload and rule: medians, and the range of the updates to the target."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for found in rows:
        groups.setdefault((str(found["workload"]), str(found["rule"])), []).append(found)
    lines: list[Row] = []
    for (workload, rule), group in groups.items():
        line: dict[str, str | int | float | None] = {"workload": workload, "rule": rule, "seeds": len(group)}
        for key in group[0]:
            values = [float(value) for found in group if isinstance(value := found[key], int | float)]
            if key == "seed":
                continue
            if values and len(values) == len(group):
                line[key] = spread(values)[0]
            if key.startswith("updates_to"):
                line[f"{key}_each"] = ", ".join(
                    "–" if found[key] is None else str(found[key]) for found in group
                )
        lines.append(line)
    return lines


_ROW_HEADINGS: Final = {
    "rule": "rule",
    "updates_to_target": "updates",
    "updates_to_steady_target": "steady",
    "seconds_to_target": "s",
    "final_accuracy": "at end",
    "swing": "swing",
    "worst_decile": "worst 10 %",
}
_HEADINGS: Final = {
    "rule": "rule",
    "updates_to_target_each": "updates",
    "updates_to_steady_target_each": "steady",
    "seconds_to_target": "s",
    "final_accuracy": "at end",
    "swing": "swing",
    "worst_decile": "worst 10 %",
    "mean_staleness": "staleness",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One run that is to be played."""

    contender: Contender
    name: str
    workload: Workload
    seed: int


def _play(cell: _Cell) -> Row:
    """In a process of its own, which reads the images once."""
    result = play(cell.contender, cell.workload, seed=cell.seed, dataset=images())
    return row(cell.contender, cell.name, cell.workload, cell.seed, result)


def _workload(name: str, *, quick: bool) -> Workload:
    return replace(WORKLOADS[name], updates=_QUICK_UPDATES) if quick else WORKLOADS[name]


@cache
def images() -> Dataset:
    """Fashion-MNIST, read once in each process."""
    return load_dataset("auto", cache=DataSettings().cache)


def main() -> None:
    """Run, print, write."""
    parser = make_parser("rules", "rules of folding side by side")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from --seed on")
    parser.add_argument("--workloads", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rules", default="", help="only rules whose name contains this")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the JSON file has already")
    parser.add_argument("--jobs", type=int, default=1, help="federations played at a time")
    arguments = parser.parse_args()
    options = read_options(arguments)
    rows: list[Row] = json.loads(options.out.read_text("utf-8"))["rows"] if arguments.resume else []
    there = {(found["workload"], found["rule"], found["seed"]) for found in rows}
    cells = [
        _Cell(contender=contender, name=name, workload=_workload(name, quick=options.quick), seed=seed)
        for name in arguments.workloads[: 1 if options.quick else None]
        for contender in contenders(WORKLOADS[name])
        for seed in range(options.seed, options.seed + (1 if options.quick else arguments.seeds))
        if arguments.rules in contender.name and (name, contender.name, seed) not in there
    ]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for found in map(_play, cells) if arguments.jobs == 1 else pool.map(_play, cells):
            rows.append(found)
            print_table("", [found], {"workload": "", "seed": "seed"} | _ROW_HEADINGS)
            write_result("rules", options, rows, summary=summary(rows))
    lines = summary(rows)
    for name in dict.fromkeys(line["workload"] for line in lines):
        print_table(
            f"{name}: to an accuracy of {WORKLOADS[str(name)].target}; medians",
            [line for line in lines if line["workload"] == name],
            _HEADINGS,
        )
    write_result("rules", options, rows, summary=lines)


if __name__ == "__main__":
    main()
