"""The race's pictures: accuracy over time, over updates and over bytes, one picture for each workload."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl

from benchmarks.harness import Row
from benchmarks.race_workload import TARGET

mpl.use("Agg")
from matplotlib import pyplot as plt

_PANELS: Final = (
    ("seconds", "seconds since all clients stood ready", 1.0),
    ("updates", "updates folded", 1.0),
    ("uplink_bytes", "MB up, all clients", 1e6),
    ("downlink_bytes", "MB down, all clients", 1e6),
)


def plot(path: Path, workload: str, curves: Sequence[Row], systems: Sequence[str]) -> None:
    """Draw one workload; a line for each run.

    Args:
        path: of the PNG.
        workload: which.
        curves: rows of the curves, of any workload.
        systems: in the order of their colours, which are the same in all pictures.
    """
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(16, 4.5), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab20")
    runs: dict[tuple[str, float], list[Row]] = {}
    for row in curves:
        if row["workload"] == workload:
            runs.setdefault((str(row["system"]), float(row["seed"] or 0)), []).append(row)
    for (system, _), points in runs.items():
        for axis, (column, _, unit) in zip(axes, _PANELS, strict=True):
            axis.plot(
                [float(point[column] or 0) / unit for point in points],
                [float(point["accuracy"] or 0) for point in points],
                color=colours(systems.index(system)),
                linewidth=1,
                alpha=0.8,
            )
    there = {system for system, _ in runs}
    for number, system in enumerate(systems):
        if system in there:
            axes[0].plot([], [], color=colours(number), label=system)
    for axis, (column, label, _) in zip(axes, _PANELS, strict=True):
        axis.axhline(TARGET, color="black", linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        axis.set_ylim(0.3, 0.85)
        axis.grid(visible=True, alpha=0.3)
        if column != "updates":
            axis.set_xscale("log")
    axes[0].set_ylabel("accuracy on the test images")
    figure.suptitle(workload)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
