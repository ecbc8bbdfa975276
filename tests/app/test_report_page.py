"""The pictures and the page: that they show the run, stand alone, and are well-formed."""

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from fedmq.app.plots import draw, render_page
from fedmq.app.report import RunFacts, build_report, write_report
from fedmq.app.runlog import read_log

PICTURES = ("accuracy_over_time", "accuracy_over_bytes", "staleness", "agents")
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Checks that tags are balanced and collects addresses, tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "data"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def facts(**settings: str | int | float | bool) -> RunFacts:
    """A run of three agents with these settings."""
    return RunFacts(
        target=0.6,
        dense_model_bytes=40_000,
        agents=3,
        broker="memory",
        settings=settings,
        seed=1,
        data="toys",
    )


def make_run(folder: Path) -> Path:
    """A run of three agents and thirty updates with an outage; the target is reached at t = 14."""
    lines: list[dict[str, object]] = [
        {"t": 0.0, "kind": "aggregator", "state": "up"},
        {"t": 8.0, "kind": "aggregator", "state": "down"},
        {"t": 9.0, "kind": "aggregator", "state": "up"},
        {"t": 29.5, "kind": "aggregator", "state": "down"},
    ]
    for step in range(30):
        client = f"agent-{(7, 10, 8)[step % 3]}"
        for offset, state in enumerate(("pulling", "training", "uploading", "waiting", "sleeping", "away")):
            lines.append({"t": step + offset / 10, "kind": "agent", "client": client, "state": state})
        lines.append({
            "t": float(step), "kind": "fold", "client": client, "seq": step + 1, "base_version": step,
            "version": step + 1, "staleness": step % 4, "bytes": 100,
        })  # fmt: skip
        lines.append({
            "t": float(step), "kind": "evaluation", "version": step + 1, "accuracy": min(0.9, 0.04 * (step + 1)),
            "loss": 1.0, "folded": step + 1, "uplink_bytes": 100 * (step + 1), "downlink_bytes": 5000 + 300 * step,
        })  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


def values(line: Line2D, axis: int) -> list[float]:
    """A curve's coordinates along one axis."""
    return [float(value) for value in np.asarray(line.get_xydata())[:, axis]]


def rectangles(axes: Axes) -> list[Rectangle]:
    """The bars and bands of a picture."""
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder."""
    return make_run(tmp_path)


def test_four_pictures_and_a_page_are_written(run: Path) -> None:
    """The PNG files are large enough to read in a document; the returned paths are what was written."""
    written = write_report(run, build_report(run, facts()))

    assert [path.name for path in written] == [
        "report.json",
        *(f"{name}.png" for name in PICTURES),
        "report.html",
    ]
    for name in PICTURES:
        header = (run / f"{name}.png").read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:])
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert width >= 1000
        assert height >= 300


def test_the_page_stands_alone(run: Path) -> None:
    """Nothing is fetched, no script runs, every tag is closed, and all four pictures are inside."""
    write_report(run, build_report(run, facts(alpha=0.3)))
    source = (run / "report.html").read_text("utf-8")

    reader = Reader()
    reader.feed(source)

    assert reader.open == []
    assert reader.tags.count("svg") == len(PICTURES)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert "@import" not in source
    assert set(re.findall(r"url\(([^)#]?)", source)) <= {""}
    assert "prefers-color-scheme: dark" in source


def test_the_pictures_follow_the_theme(run: Path) -> None:
    """No ink or grid colour is fixed in the page's pictures, and no ground is painted."""
    write_report(run, build_report(run, facts()))
    source = (run / "report.html").read_text("utf-8")

    pictures = "".join(re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL))
    assert "currentColor" in pictures
    assert "var(--grid)" in pictures
    assert "#1f2329" not in pictures
    assert "fill: #ffffff" not in pictures


def test_the_pictures_say_what_they_show(run: Path) -> None:
    """Axes have units; the target, its crossing, the comparison and the states are named as text."""
    write_report(run, build_report(run, facts()))
    reader = Reader()
    reader.feed((run / "report.html").read_text("utf-8"))

    for words in (
        "time since the start (s)",
        "accuracy on the test data",
        "sent so far (MB, all agents, logarithmic)",
        "staleness (model versions)",
        "0.600 after 14.0 s, 15 updates folded",
        "to 0.6: up 400× less and down 65.2× less than dense float32",
        "aggregator down",
        "mean 1.43",
        "sleeping",
        "agent-10",
    ):
        assert words in reader.text


def test_what_a_person_typed_is_shown_and_not_obeyed(run: Path) -> None:
    """Names and settings reach the page escaped."""
    hostile = "</td><script>alert(1)</script>$title${tiles}"
    reader = Reader()

    reader.feed(render_page(hostile, build_report(run, facts(note=hostile)), {}))

    assert "script" not in reader.tags
    assert reader.text.count(hostile) == 3


def test_a_clients_name_is_not_typeset(tmp_path: Path) -> None:
    """Dollar signs and angle brackets in a name are drawn as they are."""
    line = {"t": 1.0, "kind": "agent", "client": "$\\frac$<b>", "state": "training"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    write_report(tmp_path, build_report(tmp_path, facts()))
    reader = Reader()
    reader.feed((tmp_path / "report.html").read_text("utf-8"))

    assert "$\\frac$<b>" in reader.text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    """No clock and no random identifier is in it."""
    pages = []
    for parent in ("one", "two"):
        folder = tmp_path / parent / "run"
        folder.mkdir(parents=True)
        make_run(folder)
        write_report(folder, build_report(folder, facts()))
        pages.append((folder / "report.html").read_bytes())

    assert pages[0] == pages[1]


def test_the_curves_are_those_of_the_log(run: Path) -> None:
    """Accuracy by seconds, and by megabytes in each direction and for dense float32."""
    figures = draw(read_log(run), build_report(run, facts()))

    over_time, target = figures["accuracy_over_time"].axes[0].lines[:2]
    up, _, down, _, dense = figures["accuracy_over_bytes"].axes[0].lines[:5]
    assert values(over_time, 0) == [float(step) for step in range(30)]
    assert values(target, 1) == [0.6, 0.6]
    assert values(up, 0) == pytest.approx([100e-6 * (step + 1) for step in range(30)])
    assert values(down, 0) == pytest.approx([(5000 + 300 * step) * 1e-6 for step in range(30)])
    assert values(dense, 0) == pytest.approx([0.04 * (step + 1) for step in range(30)])


def test_the_timeline_has_every_agent_in_natural_order_and_every_outage(run: Path) -> None:
    """Agent 10 comes after agent 9, each span lasts until the next state, and an outage until the end is drawn."""
    axes = draw(read_log(run), build_report(run, facts()))["agents"].axes[0]

    labels = [label.get_text() for label in axes.get_yticklabels()]
    training = axes.collections[1].get_paths()[0].get_extents()
    outages = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in rectangles(axes)]
    assert labels == ["agent-7", "agent-8", "agent-10"]
    assert (training.x0, training.x1) == pytest.approx((0.1, 0.2))
    assert outages == [pytest.approx((8.0, 9.0)), pytest.approx((29.5, 29.5))]


def test_wide_staleness_shares_bars_and_loses_no_update(tmp_path: Path) -> None:
    """However stale the updates were, the bars are few and add up to the folds."""
    folds = [
        {"t": 1.0, "kind": "fold", "client": "a", "seq": seq, "base_version": 0, "version": 1, "staleness": 7 * seq,
         "bytes": 1}
        for seq in range(100)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in folds), "utf-8")

    axes = draw(read_log(tmp_path), build_report(tmp_path, facts()))["staleness"].axes[0]

    assert len(rectangles(axes)) <= 41
    assert sum(patch.get_height() for patch in rectangles(axes)) == 100
