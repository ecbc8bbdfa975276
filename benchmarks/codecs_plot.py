"""The picture of `benchmarks.codecs`: bits for positions, and error over bits."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from benchmarks.harness import Row

mpl.use("Agg")
from matplotlib import pyplot as plt


def plot(path: Path, positions: Sequence[Row], pipelines: Sequence[Row]) -> None:
    """Draw both.

    Args:
        path: of the PNG.
        positions: rows of `position_rows`.
        pipelines: rows of `pipeline_rows`; those on real updates are drawn.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    shares = sorted({float(row["kept"] or 0) for row in positions})
    limits = {float(row["kept"] or 0): float(row["limit_bits"] or 0) for row in positions}
    left.plot(
        [100 * p for p in shares], [limits[p] for p in shares], "k--", label="H(p)/p, positions at random"
    )
    for codec in dict.fromkeys(str(row["codec"]) for row in positions if row["codec"] != "bitmap"):
        points = [
            (100 * float(r["kept"] or 0), float(r["real_bits"] or 0))
            for r in positions
            if r["codec"] == codec
        ]
        left.plot(*zip(*points, strict=True), marker="o", label=f"{codec}, real updates")
    left.set(xscale="log", xlabel="kept, %", ylabel="bits for each kept position")
    left.legend(frameon=False)
    for row in pipelines:
        error = float(row.get("error") or 0)
        if row["sample"] != "real updates" or not error:  # lossless ones and those not installed
            continue
        place = (float(row["bits"] or 0), error)
        right.plot(*place, "o", color="tab:blue")
        right.annotate(str(row["pipeline"]), place, fontsize=6, xytext=(4, 2), textcoords="offset points")
    right.set(xscale="log", yscale="log", xlabel="bits for each parameter", ylabel="energy lost, share")
    for axis in (left, right):
        axis.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
