"""A load played for a person: a line for each sample while it lasts, a table and two files afterwards."""

import json
import resource
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from .load_simulation import LoadResult, LoadSample, simulate_load
from .scenario import Scenario

_KILOBYTE: Final = 1024  # getrusage counts in these


def run_load(scenario: Scenario, folder: Path, console: Console, should_stop: Callable[[], bool]) -> None:
    """Play a scenario whose training is synthetic; `samples.jsonl` and `load.json` are written into the folder.

    Raises:
        FedmqError: the scenario cannot be used.
    """
    console.print(Text(f"{scenario.data.clients:,} devices, {scenario.synthetic.parameters:,} parameters"))
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:

        def observe(sample: LoadSample) -> None:
            file.write(json.dumps(asdict(sample)) + "\n")
            console.print(Text(_line(sample)), soft_wrap=True)

        result = simulate_load(scenario, observe=observe, should_stop=should_stop)
    (folder / "load.json").write_text(json.dumps(_summary(result), indent=2) + "\n", encoding="utf-8")
    console.print(load_table(result))


def _line(sample: LoadSample) -> str:
    return (
        f"{sample.t:>12,.0f} virtual s · {sample.present:,} devices there · {sample.updates:,} updates folded, "
        f"{sample.refused:,} refused · version {sample.version:,} · up {decimal(sample.uplink_bytes)}, "
        f"down {decimal(sample.downlink_bytes)}"
    )


def _summary(result: LoadResult) -> Mapping[str, object]:
    last = result.samples[-1]
    return {
        "scenario": result.scenario.name,
        "seed": result.scenario.seed,
        "clients": result.scenario.data.clients,
        "seconds": result.seconds,
        "visits": last.visits,
        "updates": result.updates,
        "refusals": dict(result.refusals),
        "versions": result.versions,
        "updates_per_second": result.updates / result.seconds,
        "peak_updates_per_second": result.peak_rate,
        "staleness": {str(age): count for age, count in result.staleness.items()},
        "uplink_bytes": last.uplink_bytes,
        "downlink_bytes": last.downlink_bytes,
        "published_bytes": last.published_bytes,
        "kinds": {
            kind.name: asdict(totals)
            for kind, totals in zip(result.scenario.devices, result.kinds, strict=True)
        },
        "cpu_seconds": result.cpu_seconds,
    }


def load_table(result: LoadResult) -> Table:
    """The result for a terminal."""
    last, refused = result.samples[-1], sum(result.refusals.values())
    mean, visits = result.mean_staleness, max(last.visits, 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE
    busiest = f"in the busiest {result.scenario.synthetic.sample:g} s"
    speed = f"{result.updates_per_cpu_second:,.0f} updates a second, {decimal(memory)} of memory"
    rows = {
        "visits": f"{last.visits:,} of {result.scenario.data.clients:,} devices",
        "updates folded": f"{result.updates:,} into {result.versions:,} versions",
        "updates refused": ", ".join(
            [f"{refused:,}", *(f"{count:,} {reason}" for reason, count in result.refusals.items())]
        ),
        "staleness": "–" if mean is None else f"{mean:.1f} on average, {max(result.staleness)} at most",
        "updates a second": f"{result.updates / result.seconds:,.1f} on average, {result.peak_rate:,.1f} {busiest}",
        "uplink": f"{decimal(last.uplink_bytes)}, {last.uplink_bytes / visits:,.0f} B a visit",
        "downlink": f"{decimal(last.downlink_bytes)}, {last.downlink_bytes / visits:,.0f} B a visit",
        "published": f"{decimal(last.published_bytes)} by the aggregator",
        "simulated": f"{result.seconds:,.0f} virtual seconds in {result.cpu_seconds:,.1f} s of processor, {speed}",
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title="What the load came to")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, value in rows.items():
        table.add_row(label, value)
    return table
