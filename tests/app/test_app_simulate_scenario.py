"""Scenarios: what may stand in one, what is said about what may not, and their page in the documentation.

Run as a script it writes the page's tables anew: `python tests/app/test_app_simulate_scenario.py`.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.app.availability import periods, window
from fedmq.app.distribution import parse_distribution
from fedmq.app.scenario import (
    AvailabilitySettings,
    DataSettings,
    DeviceClass,
    Scenario,
    Tables,
    load_scenario,
)
from fedmq.errors import SettingError
from fedmq.settings import Leaf, leaves

DAY = 86_400.0
PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"
AGGREGATORS = ("task", "fold", "admission", "trust", "reputation", "allocate", "publish", "store")
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "scenarios").glob("*.toml"))


def read(folder: Path, text: str) -> Scenario:
    """A scenario from a text."""
    path = folder / "scenario.toml"
    path.write_text(text)
    return load_scenario(path)


def test_every_table_of_a_file_is_read(tmp_path: Path) -> None:
    """The aggregator's tables have the aggregator's keys."""
    scenario = read(
        tmp_path,
        """
        name = "all"
        seed = 7
        [data]
        clients = 12
        [task]
        codec = "float32"
        settings = { hidden = 8 }
        [fold]
        strategy = "fedasync"
        [publish]
        min_interval = 2
        [admission]
        max_norm = 5
        [stop]
        updates = 100
        [[devices]]
        name = "a"
        share = 2
        epoch_seconds = "lognormal(3, 0.5)"
        [devices.link]
        up = 1000
        [[devices]]
        name = "b"
        epoch_seconds = 0.25
        [devices.availability]
        stays = "exponential(60)"
        [devices.energy]
        train_watts = 3
        """,
    )

    assert ("all", 7, 12) == (scenario.name, scenario.seed, scenario.data.clients)
    assert ("float32", (("hidden", 8),)) == (scenario.task.codec, scenario.task.settings)
    assert ("fedasync", 2.0, 5.0) == (
        scenario.fold.strategy,
        scenario.publish.min_interval,
        scenario.admission.max_norm,
    )
    assert 100 == scenario.stop.updates
    assert ["a", "b"] == [kind.name for kind in scenario.devices]
    assert ["lognormal(3, 0.5)", "0.25"] == [kind.epoch_seconds for kind in scenario.devices]
    assert 1000.0 == scenario.devices[0].link.up
    assert "exponential(60)" == scenario.devices[1].availability.stays
    assert 3.0 == scenario.devices[1].energy.train_watts
    assert [8, 4] == scenario.counts()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seeds = 1",
            "setting seeds = 1 cannot be used: there is no such setting; here admission, allocate, data, devices",
        ),
        ("[fold]\nK = 5", "setting fold.K = 5 cannot be used: there is no such setting; here "),
        (
            "[stop]\nupdates = 0",
            "setting stop.updates = 0 cannot be used: a whole number, at least 1 is allowed",
        ),
        ("[data]\nclients = 'ten'", "setting data.clients = 'ten'"),
        ("training = 'none'", "one of real, synthetic is allowed"),
        ("devices = 3", "setting devices = '…' cannot be used: one or more tables, each headed [[devices]]"),
        (
            "[[devices]]\n[[devices]]\nspeed = 1",
            "setting devices[1].speed = 1 cannot be used: there is no such",
        ),
        ("[[devices]]\nlink.up = 0", "setting devices[0].link.up = 0 cannot be used: a number, at least 1"),
        (
            "[[devices]]\nepoch_seconds = 'gauss(1, 2)'",
            "setting devices[0].epoch_seconds = 'gauss(1, 2)' cannot be used: a number, or one of constant(c)",
        ),
        (
            "[[devices]]\navailability.stays = 'soon'",
            "setting devices[0].availability.stays = 'soon' cannot be used: a number, or one of",
        ),
        ("[[devices]]\nshare = 0", "at least one kind with a share above 0 is allowed"),
        ("= 3", "it is not valid TOML"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    """The key as it stands in the file."""
    with pytest.raises(SettingError) as caught:
        read(tmp_path, text)

    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """And why it cannot be read."""
    with pytest.raises(SettingError, match=r"nothing\.toml.*cannot be read"):
        load_scenario(tmp_path / "nothing.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_can_be_read(path: Path) -> None:
    """All that lie in examples/scenarios."""
    scenario = load_scenario(path)

    assert path.stem == scenario.name


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 500))
def test_every_device_is_of_some_kind(shares: list[float], clients: int) -> None:
    """As many as there are, and each kind within one of its share."""
    devices = tuple(DeviceClass(name=str(i), share=share) for i, share in enumerate(shares))
    scenario = Scenario(data=DataSettings(clients=clients), devices=devices)
    counts = scenario.counts()

    assert clients == sum(counts) == len(list(scenario.clients()))
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - clients * share / sum(shares)) < 1 + 1e-9


@pytest.mark.parametrize(
    ("text", "mean"),
    [
        ("3", 3.0),
        ("constant(3)", 3.0),
        ("uniform(2, 4)", 3.0),
        ("exponential(3)", 3.0),
        ("lognormal(3, 0.1)", 3.01),
    ],
)
def test_a_distribution_has_the_mean_that_it_should_have(text: str, mean: float) -> None:
    """And draws the same one by one and at once."""
    distribution = parse_distribution("x", text)
    drawn = distribution.draw_many(np.random.default_rng(1), 4000)
    random = np.random.default_rng(1)

    assert mean == pytest.approx(drawn.mean(), rel=0.05)
    assert drawn.min() >= 0
    assert drawn[:20].tolist() == [distribution.draw(random) for _ in range(20)]
    assert distribution == parse_distribution("x", str(distribution))


@pytest.mark.parametrize(
    "text", ["", "-1", "uniform(1)", "uniform(4, 2)", "lognormal(1, x)", "nan", "exponential(inf)"]
)
def test_a_distribution_that_is_none_is_refused(text: str) -> None:
    """With the name of its setting."""
    with pytest.raises(SettingError, match="jitter"):
        parse_distribution("jitter", text)


@given(st.floats(0, 24), st.floats(0.1, 24), st.floats(0, 24), st.floats(-0.5, 0.5), st.floats(0, 10 * DAY))
def test_a_window_opens_soon_and_closes_in_time(
    opens: float, hours: float, spread: float, shift: float, time: float
) -> None:
    """Nobody waits for more than a day, or stays for longer than the window is open."""
    settings = AvailabilitySettings(opens=opens, hours=hours, spread=spread)
    comes, closes = window(settings, shift, time)

    assert time <= comes <= time + DAY
    assert comes < closes
    if hours < 24:
        assert closes - comes <= 3600 * hours + 1e-3
        since = (comes - 3600 * (opens + spread * shift)) % DAY
        assert since < 3600 * hours or since > DAY - 1e-3
    else:
        assert (time, math.inf) == (comes, closes)


@given(st.integers(0, 50), st.floats(0.5, 24))
def test_periods_follow_one_another(seed: int, hours: float) -> None:
    """Ascending, and each of some length or none, but never overlapping."""
    settings = AvailabilitySettings(
        joins="uniform(0, 1000)", stays="exponential(2000)", away="exponential(500)", hours=hours, opens=7
    )
    found = periods(settings, np.random.default_rng(seed))
    last = 0.0
    for _ in range(20):
        comes, goes = next(found)

        assert last <= comes <= goes < math.inf
        last = goes


def test_who_is_always_there_comes_once() -> None:
    """Without a window and without `stays` a device never goes."""
    assert [(0.0, math.inf)] == list(periods(AvailabilitySettings(), np.random.default_rng(0)))


def rows(name: str) -> Iterator[str]:
    """The lines of one of the page's tables."""
    yield from ("| setting | default | allowed | meaning |", "|---|---|---|---|")
    for leaf in leaves({"scenario": Tables, "devices": DeviceClass}[name]):
        if leaf.path.partition(".")[0] not in AGGREGATORS:
            yield _row(leaf)


def _row(leaf: Leaf) -> str:
    default = "" if leaf.default is None else f"`{leaf.default}`"
    return f"| `{leaf.path}` | {default} | {leaf.allowed} | {leaf.help} |"


def place(name: str) -> re.Pattern[str]:
    """Where the page has a table: between two comments."""
    return re.compile(rf"(<!-- settings: {name} -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)


def page_with_tables() -> str:
    """The page as it must be."""
    page = PAGE.read_text(encoding="utf-8")
    for name in ("scenario", "devices"):
        table = "\n".join([*rows(name), ""])
        page = place(name).sub(lambda found, table=table: found[1] + table + found[2], page)
    return page


def test_the_page_lists_every_setting() -> None:
    """With its default and what is allowed, as they are declared."""
    assert page_with_tables() == PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(), encoding="utf-8")
