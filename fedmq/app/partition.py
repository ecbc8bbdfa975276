"""Who holds which examples: a skewed split of one dataset among many clients, and a picture of it.

Pure: labels and a seed in, indices out. Nothing here knows images, devices or files.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from fedmq.errors import SettingError

#: Shade and style of a cell by the share of the client's examples that it holds, strongest first.
_SHADES: Final = ((0.5, "█", "bold cyan"), (0.25, "▓", "cyan"), (0.1, "▒", ""), (0.0, "░", "dim"))
#: How much fits on 80 columns and one screen.
_MAX_CLIENTS_SHOWN: Final = 20
_MAX_CLASSES_COUNTED: Final = 10
_MAX_CLASSES_SHOWN: Final = 30


def dirichlet_partition(
    labels: NDArray[np.integer[Any]], *, clients: int, alpha: float, per_client: int | None, seed: int
) -> list[NDArray[np.int64]]:
    """Give every client equally many examples, with a label mix of its own drawn from Dir(alpha).

    Small `alpha` gives clients that know one or two classes, large `alpha` gives clients that are alike.
    Mixes are drawn over the classes that occur, with a uniform prior; examples are drawn without replacement,
    so the parts are disjoint. When a class is exhausted its share goes to the client's other classes in
    proportion, or, when those have no weight, to what is left. The larger the share of `labels` that is given
    away, the more the last clients take what is left rather than what they drew.
    Source: Hsu, Qi, Brown 2019 (arXiv:1909.06335), section 3.

    Args:
        labels: shape (n,), integers.
        clients: how many parts.
        alpha: concentration, above 0.
        per_client: examples per client; None gives each client n // clients.
        seed: the same seed and arguments give the same parts.

    Returns:
        One int64 array of indices into `labels` per client, shape (per_client,), in random order.

    Raises:
        SettingError: an argument is out of range, or there are not enough examples.
    """
    if clients < 1:
        raise SettingError("clients", clients, "use at least 1")
    if not (math.isfinite(alpha) and alpha > 0):
        raise SettingError("alpha", alpha, "use a number above 0, such as 0.3")
    share = len(labels) // clients
    size = share if per_client is None else per_client
    if not 1 <= size <= share:
        raise SettingError(
            "per_client", size, f"{len(labels)} examples for {clients} clients allow 1 to {share}"
        )
    rng = np.random.default_rng(seed)
    _, classes = np.unique(labels, return_inverse=True)
    pools = [rng.permutation(np.flatnonzero(classes == index)) for index in range(int(classes.max()) + 1)]
    left = np.array([len(pool) for pool in pools])
    parts = []
    for _ in range(clients):
        wanted = _draw_counts(rng, rng.dirichlet(np.full(len(pools), alpha)), left, size)
        chosen = [pool[rest - count : rest] for pool, rest, count in zip(pools, left, wanted, strict=True)]
        left = left - wanted
        parts.append(rng.permutation(np.concatenate(chosen)).astype(np.int64))
    return parts


def _draw_counts(
    rng: np.random.Generator, mix: NDArray[np.float64], left: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """Draw how many examples of each class a client takes: `size` in all, at most `left` of each."""
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        weights = np.where(counts < left, mix, 0.0)
        if weights.sum() == 0.0:
            weights = (left - counts).astype(np.float64)
        counts = np.minimum(counts + rng.multinomial(missing, weights / weights.sum()), left)
    return counts


def partition_picture(
    labels: NDArray[np.integer[Any]], parts: Sequence[NDArray[np.int64]], class_names: Sequence[str]
) -> Table:
    """Draw who holds which labels: a row per client, a column per class, a shaded count in each cell.

    The shades are characters, so the picture reads without colour. It fits 80 columns: beyond 10 classes the
    cells lose their counts, and of more than 30 classes or 20 clients the first are shown.

    Args:
        labels: shape (n,), each an index into `class_names`.
        parts: indices into `labels`, one array per client.
        class_names: one name per class.
    """
    shown = min(len(class_names), _MAX_CLASSES_SHOWN)
    counted = shown <= _MAX_CLASSES_COUNTED
    table = Table(box=None, padding=(0, 1, 0, 0), title="Who holds which labels", caption_justify="left")
    table.add_column("client", justify="right", style="bold", no_wrap=True)
    for index in range(shown):
        table.add_column(str(index), justify="right", no_wrap=True, min_width=5 if counted else 2)
    table.add_column("all", justify="right", no_wrap=True)
    for client, part in enumerate(parts[:_MAX_CLIENTS_SHOWN]):
        counts = np.bincount(labels[part], minlength=len(class_names))
        cells = [_cell(int(count), len(part), counted=counted) for count in counts[:shown]]
        table.add_row(str(client), *cells, str(len(part)))
    table.caption = _caption(class_names, shown_classes=shown, clients=len(parts))
    return table


def _cell(count: int, size: int, *, counted: bool) -> Text:
    """One client's hold on one class."""
    if count == 0:
        return Text("·", style="dim")
    shade, style = next((shade, style) for least, shade, style in _SHADES if count >= least * size)
    return Text(f"{shade}{count:>4}" if counted else shade * 2, style=style)


def _caption(class_names: Sequence[str], *, shown_classes: int, clients: int) -> str:
    """The key to the shades and to the class numbers, and what is left out."""
    lines = ["of a client's examples: █ half or more, ▓ a quarter, ▒ a tenth, ░ fewer, · none"]
    if list(class_names) != [str(index) for index in range(len(class_names))]:
        names = (f"{index}={name}" for index, name in enumerate(class_names[:shown_classes]))
        lines.append(", ".join(names))
    if clients > _MAX_CLIENTS_SHOWN:
        lines.append(f"… and {clients - _MAX_CLIENTS_SHOWN} more clients")
    if len(class_names) > shown_classes:
        lines.append(f"… and {len(class_names) - shown_classes} more classes")
    return "\n".join(lines)
