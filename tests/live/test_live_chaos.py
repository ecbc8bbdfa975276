"""The fault campaign, short: nothing is lost or doubled, and the auditor finds what is broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.chaos_schedule import SHAPES, Fault, Kind, make_schedule

ROOT = Path(__file__).parent.parent.parent
SECONDS = 180.0
HAS_MOSQUITTO = bool(shutil.which("mosquitto")) or Path("/usr/sbin/mosquitto").exists()
AGENTS = [f"agent-{number}" for number in range(3)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One campaign: its exit status, its JSON, what it printed."""

    status: int
    result: dict[str, int]
    output: str


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    """A campaign of a few seconds."""
    command = [
        *(sys.executable, "-m", "benchmarks.chaos", "--out", str(folder / f"{name}.json")),
        *("--agents", str(len(AGENTS)), "--seed", "3", *arguments),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, campaigns: dict[str, subprocess.Popen[str]]) -> dict[str, Ran]:
    """Wait for campaigns that run side by side."""
    ran = {}
    for name, process in campaigns.items():
        output, _ = process.communicate(timeout=SECONDS)
        path = folder / f"{name}.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        ran[name] = Ran(status=process.returncode, result=result, output=output)
    return ran


@pytest.fixture(scope="module")
def sabotaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """One campaign for each way to break a law, in which only the aggregator is killed."""
    folder = tmp_path_factory.mktemp("sabotaged")
    kills = ("--broker", "embedded", "--only", "kill-aggregator", "--minutes", "0.2", "--per-minute", "45")
    return finish(
        folder,
        {name: start(folder, name, "--sabotage", name, *kills) for name in ("ack", "receipt", "ledger")},
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """One campaign for each broker that there is, with all kinds of faults."""
    folder = tmp_path_factory.mktemp("clean")
    brokers = ["embedded", "mosquitto"] if HAS_MOSQUITTO else ["embedded"]
    faults = ("--minutes", "0.1", "--per-minute", "400")
    return finish(folder, {name: start(folder, name, "--broker", name, *faults) for name in brokers})


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(request: pytest.FixtureRequest) -> str:
    """Both brokers."""
    name = str(request.param)
    if name == "mosquitto" and not HAS_MOSQUITTO:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed")
        pytest.skip("mosquitto is not installed")
    return name


def test_a_short_campaign_loses_nothing_and_doubles_nothing(clean: dict[str, Ran], broker: str) -> None:
    """All kinds of faults for a few seconds; every account balances, and every recovery is bit-identical."""
    ran = clean[broker]
    result = ran.result

    assert ran.status == 0, ran.output
    assert result["faults"] >= 20
    assert result["finished"] > 0
    accounted = [result[name] for name in ("folded", "refused", "in_outbox", "wiped")]
    assert result["finished"] == sum(accounted)
    assert [0, 0, 0] == [result["lost"], result["doubled"], result["unknown"]]
    assert result["recoveries"] > 0
    assert result["recoveries"] == result["recoveries_bit_identical"]
    assert result["bases_checked"] > 0


def test_an_ack_before_the_commit_loses_nothing_because_the_edge_waits_for_the_receipt(
    sabotaged: dict[str, Ran],
) -> None:
    """Law 4 makes up for a broken law 1: what is killed after PUBACK is sent again."""
    ran = sabotaged["ack"]

    assert ran.status == 0, ran.output
    assert ran.result["faults"] > 3
    assert ran.result["lost"] == 0


def test_nothing_stays_mounted(clean: dict[str, Ran], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The small disks go with their campaigns."""
    mounts = Path("/proc/mounts")
    mounted = mounts.read_text() if mounts.exists() else ""

    assert clean
    assert str(tmp_path_factory.getbasetemp()) not in mounted


def test_the_auditor_finds_what_a_receipt_before_the_commit_loses(sabotaged: dict[str, Ran]) -> None:
    """The campaign can fail: the loss is counted, update by update and in the model itself."""
    ran = sabotaged["receipt"]

    assert ran.status != 0
    assert ran.result["lost"] > 0
    assert ran.result["mass_errors"]


def test_the_auditor_finds_what_is_counted_twice_without_a_ledger(sabotaged: dict[str, Ran]) -> None:
    """The other half of the promise can fail, too."""
    ran = sabotaged["ledger"]

    assert ran.status != 0
    assert ran.result["doubled"] > 0
    assert ran.result["recoveries"] > ran.result["recoveries_bit_identical"]


def test_a_seed_gives_the_same_faults_and_none_of_them_undoes_another() -> None:
    """The schedule is pure; faults of one plane of one target do not overlap; every kind comes up."""

    def faults(seed: int) -> list[Fault]:
        kinds = frozenset(Kind)
        return list(make_schedule(seed, seconds=600, per_minute=300, agents=AGENTS, kinds=kinds))

    by_plane: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults(1):
        by_plane.setdefault((fault.target, SHAPES[fault.kind].plane), []).append(fault)
    overlaps = [
        (one, next_one)
        for group in by_plane.values()
        for one, next_one in pairwise(group)
        if one.at + one.seconds >= next_one.at
    ]

    assert faults(1) == faults(1)
    assert faults(1) != faults(2)
    assert [] == overlaps
    assert set(Kind) == {fault.kind for fault in faults(1)}
