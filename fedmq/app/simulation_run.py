"""A scenario played for a person: progress while it lasts, a run folder with the demo's report afterwards.

The folder holds `scenario.toml` (a copy), `metrics.jsonl`, `report.json`, pictures and page, `clients.jsonl` (what
became of each device) and `model.safetensors`. Times are virtual seconds throughout.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedmq.errors import FedmqError
from fedmq.modelfile import save_model

from .datasets import load_dataset
from .interruption import Interruption
from .load_run import run_load
from .report import RunFacts, Setting, build_report, write_report
from .report_summary import summary_table
from .run_folder import new_run_folder, point_latest
from .runlog import (
    LOG_NAME,
    AgentState,
    AggregatorState,
    ClientTraffic,
    Evaluation,
    Event,
    Fold,
    Publish,
    Refusal,
)
from .scenario import Scenario, load_scenario
from .simulation import simulate
from .simulation_result import ClientResult, SimulationResult

#: What the report measures the way to when the scenario names no accuracy.
_TARGET: Final = 0.78
_LINE_SECONDS: Final = 5.0
_KINDS: Final[Mapping[type[Event], str]] = {
    Evaluation: "evaluation",
    Fold: "fold",
    Refusal: "refusal",
    Publish: "publish",
    AgentState: "agent",
    AggregatorState: "aggregator",
    ClientTraffic: "traffic",
}


def run_scenario(path: Path, runs: Path, console: Console, *, seed: int | None = None) -> None:
    """Play the scenario in a file, and report.

    Args:
        path: the TOML file.
        runs: folder for run folders.
        console: for progress and summary.
        seed: instead of the scenario's own.

    Raises:
        FedmqError: the scenario cannot be used, or data is missing.
        KeyboardInterrupt: Ctrl-C; the report is written of what there was.
    """
    scenario = load_scenario(path)
    if seed is not None:
        scenario = replace(scenario, seed=seed)
    folder = new_run_folder(runs)
    shutil.copy(path, folder / "scenario.toml")
    with Interruption() as interruption:
        play = run_load if scenario.training == "synthetic" else run_training
        try:
            play(scenario, folder, console, lambda: _has_come(interruption))
        except FedmqError:
            shutil.rmtree(folder)
            raise
        point_latest(folder)
        console.print(Text(f"Report: {folder}"), soft_wrap=True)
        interruption.check()


def run_training(scenario: Scenario, folder: Path, console: Console, should_stop: Callable[[], bool]) -> None:
    """Play a scenario in which something is learned, and write the report into its folder.

    Raises:
        FedmqError: the scenario cannot be used, or data is missing.
    """
    dataset = load_dataset(scenario.data.source, cache=scenario.data.cache)
    console.print(Text(dataset.describe()))
    with (folder / LOG_NAME).open("w", encoding="utf-8") as log, Progress(console, scenario) as progress:

        def observe(event: Event) -> None:
            values = {**asdict(event), "t": round(event.t, 4)}
            log.write(json.dumps({"kind": _KINDS[type(event)], **values}) + "\n")
            progress.show(event)

        result = simulate(scenario, dataset=dataset, observe=observe, should_stop=should_stop)
    report = build_report(
        folder,
        RunFacts(
            target=_target(scenario),
            dense_model_bytes=4 * result.layout.size,
            agents=scenario.data.clients,
            broker="simulated",
            settings=dict(_settings(scenario)),
            seed=scenario.seed,
            data=dataset.description,
            client_accuracy={
                client.client: client.accuracy for client in result.clients if client.accuracy is not None
            },
        ),
    )
    write_report(folder, report)
    save_model(
        folder / "model.safetensors", result.layout, result.vector, {"fedmq.version": str(result.versions)}
    )
    lines = "".join(json.dumps(asdict(client)) + "\n" for client in result.clients)
    (folder / "clients.jsonl").write_text(lines, encoding="utf-8")
    console.print(summary_table(report))
    console.print(kinds_table(result))
    console.print(
        Text(f"{result.seconds:,.0f} virtual seconds took {result.cpu_seconds:,.1f} s of processor")
    )


def _has_come(interruption: Interruption) -> bool:
    try:
        interruption.check()
    except KeyboardInterrupt:
        return True
    return False


def _target(scenario: Scenario) -> float:
    chosen = (scenario.evaluation.target, scenario.stop.accuracy, _TARGET)
    return next(value for value in chosen if value is not None)


def _settings(scenario: Scenario) -> Iterator[tuple[str, Setting]]:
    """Everything in which a scenario differs from the defaults, by path."""
    default = Scenario()
    for entry in fields(scenario):
        if entry.name != "devices":
            yield from _differing(entry.name, getattr(scenario, entry.name), getattr(default, entry.name))
    for index, kind in enumerate(scenario.devices):
        yield from _differing(f"devices[{index}]", kind, default.devices[0])


def _differing(path: str, value: object, default: object) -> Iterator[tuple[str, Setting]]:
    if is_dataclass(value):
        for entry in fields(value):
            yield from _differing(
                f"{path}.{entry.name}", getattr(value, entry.name), getattr(default, entry.name)
            )
    elif value != default:
        yield path, value if isinstance(value, int | float | bool) else str(value)


def kinds_table(result: SimulationResult) -> Table:
    """What became of the devices of each kind, for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), title="What became of the devices")
    for index, name in enumerate(
        ("kind", "", "folded", "refused", "sent", "received", "there", "trains", "J")
    ):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    kinds: dict[str, list[ClientResult]] = {kind.name: [] for kind in result.scenario.devices}
    for client in result.clients:
        kinds[client.kind].append(client)
    for name, clients in kinds.items():
        whole = max(len(clients) * result.seconds, 1e-9)
        table.add_row(
            name,
            f"{len(clients):,}",
            f"{sum(client.folded for client in clients):,}",
            f"{sum(client.refused for client in clients):,}",
            decimal(sum(client.uplink_bytes for client in clients)),
            decimal(sum(client.downlink_bytes for client in clients)),
            f"{sum(client.present_seconds for client in clients) / whole:.0%}",
            f"{sum(client.training_seconds for client in clients) / whole:.0%}",
            f"{sum(client.joules for client in clients):,.0f}",
        )
    return table


class Progress:
    """How far a simulation has come: a line that changes on a terminal, now and then a line anywhere else.

    Args:
        console: where.
        scenario: what is played.
    """

    def __init__(self, console: Console, scenario: Scenario) -> None:
        self._console, self._scenario = console, scenario
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._next_line = time.monotonic() + _LINE_SECONDS
        self._folded = self._version = 0
        self._accuracy = "–"

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Take note of an event, and show how things stand."""
        match event:
            case Fold():
                self._folded, self._version = self._folded + 1, event.version
            case Evaluation():
                self._accuracy = f"{event.accuracy:.4f}"
            case _:
                return
        if self._live is not None:
            self._live.update(Text(self._line(event.t)))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self._console.print(Text(self._line(event.t)))

    def _line(self, t: float) -> str:
        stop = self._scenario.stop
        done = [t / stop.seconds]
        done += [self._folded / stop.updates] if stop.updates else []
        done += [self._version / stop.versions] if stop.versions else []
        return (
            f"{max(done):4.0%}  {t:,.1f} virtual s · accuracy {self._accuracy} · version {self._version} · "
            f"{self._folded:,} updates folded"
        )
