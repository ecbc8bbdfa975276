"""What a person sees while a run goes on: a display that redraws itself on a terminal, lines anywhere else."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .recorder import AgentView, RunView

_LINE_SECONDS: Final = 5.0
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_STYLES: Final = {
    "training": "green",
    "uploading": "cyan",
    "pulling": "blue",
    "waiting": "yellow",
    "sleeping": "magenta",
    "away": "red",
    "starting": "dim",
}


class Display:
    """Shows a `RunView`.

    Args:
        console: where.
        target: the accuracy to reach.
        model_bytes: size of the model as dense float32.
    """

    def __init__(self, console: Console, target: float, model_bytes: int) -> None:
        self._console, self._target, self._model_bytes = console, target, model_bytes
        self._live = (
            Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        )
        self._started = time.monotonic()
        self._line_at = 0.0
        self._news_shown = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

    def show(self, view: RunView, *, final: bool = False) -> None:
        """Show how things stand."""
        if self._live is not None:
            self._live.update(self._picture(view), refresh=True)
            return
        elapsed = time.monotonic() - self._started
        if elapsed >= self._line_at or final:
            self._line_at = elapsed + _LINE_SECONDS
            self._console.print(Text(f"{elapsed:5.0f} s  {self._headline(view)}"), soft_wrap=True)

    def _headline(self, view: RunView) -> str:
        accuracy = f"{view.accuracy[-1][2]:.3f}" if view.accuracy else "  –  "
        mean = sum(tau * count for tau, count in view.staleness.items()) / max(view.folded, 1)
        refused = f", {sum(view.refused.values())} refused" if view.refused else ""
        return (
            f"accuracy {accuracy} of {self._target:.2f} · version {view.version} · "
            f"{view.folded} updates folded{refused} · staleness {mean:.1f} · {self._bytes(view)}"
        )

    def _bytes(self, view: RunView) -> str:
        up, down = view.uplink_bytes, view.downlink_bytes
        dense = view.folded * self._model_bytes
        if not view.folded:
            return f"up {decimal(up)}, down {decimal(down)}"
        return f"up {decimal(up)} (dense ÷{dense / up:.0f}), down {decimal(down)} (÷{dense / down:.0f})"

    def _picture(self, view: RunView) -> RenderableType:
        curve = [accuracy for _, _, accuracy in view.accuracy[-60:]]
        sparks = "".join(_SPARKS[min(int(value * len(_SPARKS)), len(_SPARKS) - 1)] for value in curve)
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("agent", "is", "updates", "base", "sent", "received"):
            table.add_column(name, justify="left" if name in ("agent", "is") else "right", no_wrap=True)
        shown = sorted(view.agents.items())[:20]
        for client, agent in shown:
            table.add_row(client, *_row(agent))
        parts: list[RenderableType] = [
            Text(self._headline(view), style="bold"),
            Text(sparks, style="green"),
            table,
        ]
        if len(view.agents) > len(shown):
            parts.append(Text(f"… and {len(view.agents) - len(shown)} more", style="dim"))
        return Group(*parts)


def _row(agent: AgentView) -> tuple[RenderableType, ...]:
    return (
        Text(agent.state, style=_STYLES.get(agent.state, "")),
        str(agent.updates),
        str(agent.base_version) if agent.base_version >= 0 else "–",
        decimal(agent.traffic["sent"]),
        decimal(agent.traffic["received"]),
    )
