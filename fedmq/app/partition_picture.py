"""A picture of who holds which labels, for a terminal."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

#: Shade and style of a cell by the share of the client's examples that it holds, strongest first.
_SHADES: Final = ((0.5, "█", "bold cyan"), (0.25, "▓", "cyan"), (0.1, "▒", ""), (0.0, "░", "dim"))
#: How much fits on 80 columns and one screen.
_MAX_CLIENTS_SHOWN: Final = 20
_MAX_CLASSES_COUNTED: Final = 10
_MAX_CLASSES_SHOWN: Final = 30


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
