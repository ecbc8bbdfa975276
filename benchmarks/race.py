"""The race: fedmq and its peers side by side, on the same data, from the same first model, to the same accuracy.

Each system runs as processes of its own over loopback; Flower, APPFL and the naive design in environments that are
made here (`runs/peers`, once). Every client reaches its server through a proxy that counts bytes. The clock starts
when all clients have connected and stand before their first local epoch, which leaves out everybody's set-up. The
global model is measured every 10 updates by a process of its own. All of it takes about an hour for each seed;
`--resume` goes on where an interrupted race was. `--quick` is fedmq and Flower on W1, once.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from typing import Final

from benchmarks.harness import Options, Row, describe_machine, make_parser, write_result
from benchmarks.race_fedmq import FEDMQ
from benchmarks.race_peers import PEERS
from benchmarks.race_plot import plot
from benchmarks.race_run import run
from benchmarks.race_summary import curve_rows, read_curves, sentence, summarise, write_curves, write_page
from benchmarks.race_system import System
from benchmarks.race_venvs import ROOT, UnavailableError
from benchmarks.race_workload import CLIENTS, EVERY, TARGET, WORKLOADS, Material, Workload, make_material

SYSTEMS: Final[tuple[System, ...]] = (*FEDMQ, *PEERS)
_NAMES: Final = {system.name.lower().replace(",", "").replace(" ", "-"): system for system in SYSTEMS}
_FOLDER: Final = ROOT / "runs" / "race"
_QUICK: Final = ("fedmq", "flower")


class Race:
    """Runs what is asked for, and writes everything after each run.

    Args:
        options: where results go.
        resume: keep the runs that the results hold already.

    Attributes:
        rows: one for each run.
        page: the table for readers.
    """

    def __init__(self, options: Options, *, resume: bool) -> None:
        self._options = options
        self.page = options.out.with_suffix(".md")
        self._curves_path = options.out.with_name(f"{options.out.stem}-curves.csv")
        self.rows: list[Row] = []
        self._curves: list[Row] = []
        self._versions: dict[str, dict[str, str]] = {}
        self._data = ""
        if resume and options.out.exists():
            former = json.loads(options.out.read_text(encoding="utf-8"))
            self.rows, self._curves = former["rows"], read_curves(self._curves_path)
            self._versions = former["system_versions"]

    def has(self, system: System, workload: Workload, seed: int) -> bool:
        """Whether this run is in the results."""
        return any(
            (row["system"], row["workload"], row["seed"]) == (system.name, workload.name, seed)
            for row in self.rows
        )

    def run(self, system: System, workload: Workload, material: Material) -> None:
        """Run it, and add what came of it; a system that cannot be installed is a row, too."""
        self._data = material.data
        folder = _FOLDER / f"{workload.name}-{material.seed}-{system.name.replace(',', '').replace(' ', '-')}"
        try:
            self._versions[system.name] = system.prepare()
        except UnavailableError as error:
            row: Row = {
                "system": system.name,
                "workload": workload.name,
                "seed": material.seed,
                "reached": False,
                "note": f"cannot be installed: {error}",
            }
        else:
            outcome = run(system, workload, material, folder)
            row = outcome.row
            self._curves += curve_rows(row, outcome.curve)
        self.rows.append(row)
        print(sentence(row), flush=True)
        self.write()

    def write(self) -> None:
        """Write JSON, curves, page and pictures."""
        lines = summarise(self.rows)
        out = self._options.out
        facts = {
            "target": TARGET,
            "measured_every_updates": EVERY,
            "clients": CLIENTS,
            "data": self._data,
            "system_versions": self._versions,
        }
        write_result("race", self._options, self.rows, summary=lines, curves=self._curves_path.name, **facts)
        write_curves(self._curves_path, self._curves)
        title = f"Race to {TARGET:.0%} accuracy, {CLIENTS} clients"
        write_page(self.page, title, lines, self.rows, {**facts, "machine": describe_machine()})
        for workload in dict.fromkeys(str(row["workload"]) for row in self._curves):
            picture = out.with_name(f"{out.stem}-{workload}.png")
            plot(picture, workload, self._curves, [system.name for system in SYSTEMS])


def main() -> None:
    """Run, print, write, draw."""
    parser = make_parser("race", "fedmq and its peers side by side: updates, time and bytes to an accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from --seed on")
    parser.add_argument("--workloads", nargs="+", choices=[w.name for w in WORKLOADS], metavar="NAME")
    parser.add_argument("--systems", nargs="+", choices=list(_NAMES), metavar="NAME", help=", ".join(_NAMES))
    parser.add_argument("--data", default="auto", help="auto, debian, download or a folder of IDX files")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the results hold already")
    arguments = parser.parse_args()
    race(arguments)


def race(arguments: argparse.Namespace) -> None:
    """Run everything that the command line asks for, systems in turns, so that a busy hour hits them alike."""
    options = Options(quick=arguments.quick, seed=arguments.seed, out=arguments.out)
    systems, workloads, seeds = _chosen(arguments)
    contest = Race(options, resume=arguments.resume)
    for seed in range(options.seed, options.seed + seeds):
        folder = _FOLDER / f"material-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        material = make_material(folder, seed, data=arguments.data, cache=ROOT / "runs" / "cache")
        for workload in workloads:
            for system in systems:
                if not contest.has(system, workload, seed):
                    contest.run(system, workload, material)
    print(contest.page.read_text(encoding="utf-8"))


def _chosen(arguments: argparse.Namespace) -> tuple[Sequence[System], Sequence[Workload], int]:
    names = arguments.systems or (_QUICK if arguments.quick else list(_NAMES))
    wanted = arguments.workloads or (["W1"] if arguments.quick else [w.name for w in WORKLOADS])
    seeds = 1 if arguments.quick else arguments.seeds
    return [_NAMES[name] for name in names], [w for w in WORKLOADS if w.name in wanted], seeds


if __name__ == "__main__":
    main()
