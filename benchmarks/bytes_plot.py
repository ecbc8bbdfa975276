"""The picture of `benchmarks.bytes`: accuracy over bytes, both directions, one colour for each pipeline."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from fedmq.app.simulation import SimulationResult

mpl.use("Agg")
from matplotlib import pyplot as plt


def plot(path: Path, curves: Sequence[tuple[str, int, SimulationResult]]) -> None:
    """Draw accuracy over uplink and over downlink bytes, logarithmic; one line for each seed.

    Args:
        path: of the PNG.
        curves: name, seed and result of each run.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    names = list(dict.fromkeys(name for name, _, _ in curves))
    colours = plt.get_cmap("tab20")
    for name, _, result in curves:
        number = names.index(name)
        for axis, direction in zip(axes, ("uplink_bytes", "downlink_bytes"), strict=True):
            points = [
                (value / 1e6, event.accuracy)
                for event in result.evaluations
                if (value := getattr(event, direction))
            ]
            axis.plot(*zip(*points, strict=True), color=colours(number), linewidth=1, alpha=0.8)
    for number, name in enumerate(names):
        axes[0].plot([], [], color=colours(number), label=name)
    for axis, title in zip(axes, ("uplink", "downlink"), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel(f"{title}, MB, all devices")
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("accuracy on the test images")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
