"""The pictures of a run, and the page that shows them: the only module of fedmq that imports matplotlib.

One function per picture draws a `Figure`; the same figure becomes a PNG file and, inside the page, inline SVG.
In the SVG the colours of ink and grid are replaced by CSS (`currentColor`, `var(--grid)`), so a picture
follows the page's light or dark theme; the other colours, close to Okabe and Ito's, stay apart for
colour-blind readers and show on both grounds. pyplot is not used: figures are values, no global state.
A fifth of the file is the page's template, which keeps it above the usual length.
"""

import html
import io
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, StrMethodFormatter

from .report import Report
from .report_summary import Line, compare, summary_lines
from .runlog import AGENT_STATES, AgentState, AggregatorState, Evaluation, RunLog

_INK, _GRID = "#1f2329", "#d4d8dd"
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0088cc", "#e08a00", "#00996e", "#d55e00", "#8a9099"
_STATE_COLOURS: Final[Mapping[str, str]] = {
    "training": _BLUE,
    "uploading": _ORANGE,
    "pulling": _GREEN,
    "waiting": "#a9b0b8",
    "sleeping": "#8f7fc0",
    "away": _RED,
}
_STYLE: Final[dict[Any, Any]] = {  # matplotlib types the keys as literals
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "text.parse_math": False,  # a client may have a $ in its name
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font size
    "svg.hashsalt": "fedmq",  # the same run gives the same bytes
}
_CROSSING: Final[dict[str, Any]] = {
    "markersize": 10,
    "markeredgecolor": _INK,
    "markeredgewidth": 1.5,
    "zorder": 5,
}
_XLINK: Final = "http://www.w3.org/1999/xlink"
_OUTAGE_ALPHA: Final = 0.3
_MAX_AGENTS_DRAWN: Final = 40
_MAX_BARS: Final = 40
_MAX_DOTS: Final = 60
_MAX_HAIRLINES: Final = 100
_MAX_VECTOR_SPANS: Final = 2_000
_CAPTIONS: Final[Mapping[str, str]] = {
    "accuracy_over_time": "Accuracy over time",
    "accuracy_over_bytes": "Accuracy over bytes",
    "staleness": "Staleness of the folded updates",
    "agents": "What each agent did",
}


def write_pictures(folder: Path, log: RunLog, report: Report) -> tuple[Path, ...]:
    """Write one PNG per picture and `report.html` with the same pictures inside; returns the paths."""
    written = []
    with mpl.rc_context(_STYLE):
        figures = draw(log, report)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            written.append(folder / f"{name}.png")
        page = render_page(
            folder.resolve().name, report, {name: _svg(figures[name], name) for name in figures}
        )
    (folder / "report.html").write_text(page, "utf-8")
    return (*written, folder / "report.html")


def draw(log: RunLog, report: Report) -> dict[str, Figure]:
    """Draw every picture, by name: accuracy over time and over bytes, staleness, the agents' timeline."""
    return {
        "accuracy_over_time": _accuracy_over_time(log, report),
        "accuracy_over_bytes": _accuracy_over_bytes(log, report),
        "staleness": _staleness(report),
        "agents": _agents(log),
    }


def _accuracy_over_time(log: RunLog, report: Report) -> Figure:
    """Accuracy by seconds, the target, where it was reached, and when the aggregator was down."""
    figure, axes = _canvas("time since the start (s)", "accuracy on the test data")
    curve = log.evaluations
    if not curve:
        return _empty(figure, axes, "No evaluation was recorded.")
    times, accuracies = [event.t for event in curve], [event.accuracy for event in curve]
    axes.plot(times, accuracies, _stroke(curve), color=_BLUE, markersize=3.5)
    _target(axes, report)
    reached = _reached(log, report)
    if reached:
        axes.plot([reached.t], [reached.accuracy], "o", color=_BLUE, **_CROSSING)
        text = f"{reached.accuracy:.3f} after {reached.t:,.1f} s, {reached.folded:,} updates folded"
        axes.set_title(text, fontsize="medium")
    if _mark_outages(axes, log):
        key = Patch(color=_RED, alpha=_OUTAGE_ALPHA, linewidth=0, label="aggregator down")
        axes.legend(handles=[key], loc="lower right")
    axes.set_xlim(0, max(log.seconds, 1e-3))
    return figure


def _accuracy_over_bytes(log: RunLog, report: Report) -> Figure:
    """Accuracy by megabytes in each direction, beside what dense float32 would have moved."""
    figure, axes = _canvas("sent so far (MB, all agents, logarithmic)", "accuracy on the test data")
    curve, arrivals = log.evaluations, log.arrivals
    dense = [report.dense_model_bytes * bisect_right(arrivals, event.t) for event in curve]
    series = (
        ("up", _BLUE, "-", [event.uplink_bytes for event in curve]),
        ("down", _ORANGE, "-", [event.downlink_bytes for event in curve]),
        ("dense float32, either way", _GREY, "--", dense),
    )
    if not any(sum(sizes) for _, _, _, sizes in series):
        return _empty(figure, axes, "No evaluation with bytes was recorded.")
    reached = _reached(log, report)
    for label, colour, style, sizes in series:
        points = [(size / 1e6, event) for size, event in zip(sizes, curve, strict=True) if size]
        megabytes, accuracies = [size for size, _ in points], [event.accuracy for _, event in points]
        axes.plot(megabytes, accuracies, _stroke(curve, style), color=colour, label=label, markersize=3.5)
        for size, event in points:
            if event is reached:
                axes.plot([size], [event.accuracy], "o", color=colour, **_CROSSING)
    axes.set_xscale("log")
    plain = FuncFormatter(lambda size, _: f"{size:,.10g}")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())
    _target(axes, report)
    figure.legend(loc="outside upper center", ncols=3)
    up, down, both = (
        report.uplink_bytes_to_target,
        report.downlink_bytes_to_target,
        report.dense_bytes_to_target,
    )
    if up and down and both:
        ratios = f"up {compare(up, both // 2)} and down {compare(down, both // 2)} than dense float32"
        text = f"to {report.target:g}: {ratios}"
        axes.set_title(text, fontsize="medium")
    return figure


def _staleness(report: Report) -> Figure:
    """Folded updates by staleness, as bars; wide ranges share bars."""
    figure, axes = _canvas("staleness (model versions)", "folded updates")
    ages = report.staleness
    if ages.max is None or ages.mean is None:
        return _empty(figure, axes, "No update was folded.")
    width = ages.max // _MAX_BARS + 1
    bars = [0] * (ages.max // width + 1)
    for age, count in ages.histogram.items():
        bars[age // width] += count
    centres = [index * width + (width - 1) / 2 for index in range(len(bars))]
    drawn = axes.bar(centres, bars, width=0.85 * width, color=_BLUE)
    if len(bars) <= _MAX_BARS // 2:
        axes.bar_label(drawn, [f"{count:,}" if count else "" for count in bars], fontsize="small")
    axes.axvline(ages.mean, color=_ORANGE, linestyle="--", label=f"mean {ages.mean:.2f}")
    axes.set_xlim(-0.5 - width / 2, max(centres[-1] + width, 5.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper right")
    return figure


def _agents(log: RunLog) -> Figure:
    """One row per agent: what it did when."""
    changes: dict[str, list[AgentState]] = {}
    for event in log.events:
        if isinstance(event, AgentState):
            changes.setdefault(event.client, []).append(event)
    clients = sorted(changes, key=_natural)
    shown = clients[:_MAX_AGENTS_DRAWN]
    figure, axes = _canvas("time since the start (s)", "", height=max(2.5, 1.4 + 0.26 * len(shown)))
    if not shown:
        return _empty(figure, axes, "No agent's state was recorded.")
    rasterized = sum(len(changes[client]) for client in shown) > _MAX_VECTOR_SPANS
    seen: set[str] = set()
    for row, client in enumerate(shown):
        spans: dict[str, list[tuple[float, float]]] = {}
        ends = [event.t for event in changes[client][1:]] + [log.seconds]
        for event, end in zip(changes[client], ends, strict=True):
            spans.setdefault(event.state, []).append((event.t, end - event.t))
        for state, bars in spans.items():
            brief = state in {"uploading", "pulling"}
            # A hairline keeps what takes milliseconds visible; many of them would hide the rest.
            line = 0.8 if brief and len(bars) <= _MAX_HAIRLINES else 0
            drawn = axes.broken_barh(bars, (row - 0.36, 0.72), color=_STATE_COLOURS[state], linewidth=line)
            drawn.set(zorder=3 if brief else 2, rasterized=rasterized)
        seen |= spans.keys()
    key = [Patch(color=_STATE_COLOURS[state], label=state) for state in AGENT_STATES if state in seen]
    if _mark_outages(axes, log):
        key.append(Patch(color=_RED, alpha=_OUTAGE_ALPHA, linewidth=0, label="aggregator down"))
    axes.set_xlim(0, max(log.seconds, 1e-3))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), shown)
    axes.grid(visible=False, axis="y")
    if len(clients) > len(shown):
        axes.set_ylabel(f"first {len(shown)} of {len(clients)} agents")
    figure.legend(handles=key, loc="outside upper center", ncols=4, handlelength=1, columnspacing=1.2)
    return figure


def _canvas(x_label: str, y_label: str, *, height: float = 4.0) -> tuple[Figure, Axes]:
    """An empty picture, 8 inches wide."""
    figure = Figure(figsize=(8, height))
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _empty(figure: Figure, axes: Axes, message: str) -> Figure:
    """A picture that says why it shows nothing."""
    figure.set_size_inches(8, 1.2)
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    return figure


def _stroke(curve: list[Evaluation], line: str = "-") -> str:
    """The format of a curve: a line, with dots where the points are few."""
    return f"{line}o" if len(curve) <= _MAX_DOTS else line


def _target(axes: Axes, report: Report) -> None:
    """The line to reach, named in the margin."""
    axes.axhline(report.target, color=_INK, linestyle=":", linewidth=1.5)
    axes.annotate(
        f"target\n{report.target:g}",
        (1, report.target),
        (5, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
    )


def _reached(log: RunLog, report: Report) -> Evaluation | None:
    """The first evaluation at or above the target."""
    return next((event for event in log.evaluations if event.accuracy >= report.target), None)


def _mark_outages(axes: Axes, log: RunLog) -> bool:
    """Shade the times when the aggregator was down, and tell whether there were any."""
    changes = [event for event in log.events if isinstance(event, AggregatorState)]
    ends = [event.t for event in changes[1:]] + [log.seconds]
    spans = [(event.t, end) for event, end in zip(changes, ends, strict=False) if event.state == "down"]
    for start, end in spans:
        axes.axvspan(start, end, color=_RED, alpha=_OUTAGE_ALPHA, linewidth=0, zorder=1)
    return bool(spans)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts client-10 after client-9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _svg(figure: Figure, name: str) -> str:
    """A figure as an inline SVG element in the page's colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", dpi=150, transparent=True, metadata={"Date": None})
    svg = stream.getvalue()[stream.getvalue().index("<svg") :]
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # unused, and the same in each picture
    # Without a size of its own, so that the page decides, and with a name for those who cannot see it.
    opening = rf'<svg viewBox="\1" role="img" aria-label="{_CAPTIONS[name]}" xmlns:xlink="{_XLINK}">'
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, svg, count=1)


def render_page(title: str, report: Report, pictures: Mapping[str, str]) -> str:
    """The whole page: one file, no script, nothing fetched; `pictures` are SVG elements by name."""
    lines = summary_lines(report)
    return _PAGE.substitute(
        title=html.escape(title),
        notes="".join(f'<p class="note">{html.escape(note)}</p>' for note in report.notes),
        tiles="".join(map(_tile, lines[:4])),
        pictures="".join(
            f"<figure><figcaption>{_CAPTIONS[name]}</figcaption>{svg}</figure>"
            for name, svg in pictures.items()
        ),
        summary=_rows((line.label, line.value, line.remark) for line in lines),
        settings=_rows((name, str(value)) for name, value in report.settings.items())
        or _rows([("none recorded",)]),
    )


def _tile(line: Line) -> str:
    """One headline figure."""
    label, value, remark = map(html.escape, (line.label, line.value, line.remark))
    return f"<div><span>{label}</span><strong>{value}</strong><span>{remark}</span></div>"


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    """Table rows, the first cell a heading."""
    return "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )


_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fedmq run $title</title>
<style>
:root { color-scheme: light dark;
        --ground: #fff; --card: #f5f6f8; --ink: #1f2329; --soft: #5b626b; --grid: #d4d8dd; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --card: #1e2227; --ink: #e4e7eb; --soft: #9aa2ac; --grid: #3a4048; }
}
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1rem; background: var(--ground); color: var(--ink);
       font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.note { border-left: 4px solid #e08a00; padding: .4rem .8rem; background: var(--card); margin: 0 0 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .8rem 1rem;
             display: flex; flex-direction: column; }
.tiles strong { font-size: 1.5rem; line-height: 1.3; }
.tiles span, footer { color: var(--soft); font-size: .9rem; }
figure { margin: 2rem 0 0; }
figcaption { font-size: 1.15rem; font-weight: 600; margin-bottom: .3rem; }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
footer { margin-top: 2rem; }
</style>
</head>
<body>
<h1>fedmq run $title</h1>
$notes
<div class="tiles">$tiles</div>
$pictures
<h2>In numbers</h2>
<div class="wide"><table>$summary</table></div>
<h2>Settings</h2>
<div class="wide"><table>$settings</table></div>
<footer>
<p>Bytes are everything inside the TCP connections of all agents: MQTT, pings and TLS included. Dense float32 stands
for a system that sends one dense model down and one dense update up for each distinct update that reached the
aggregator. Staleness is by how many versions the model had advanced when an update was folded.</p>
</footer>
</body>
</html>
""")
