"""Attackers: what each defence saves, what it costs when nobody attacks, and whom it refuses.

    python -m benchmarks.attackers

Twenty simulated clients hold a thousand images of Fashion-MNIST each, labels by Dirichlet(0.3), and train the numpy
MLP 784-128-10 with the default loss; the codec is the default one but where another is named. A share of them attacks
(`fedmq.app.attack`). Accuracy is taken at an equal number of folded updates: what is refused is not folded, and
somebody else's update is in its place. So a defence pays for what it refuses with time and bytes, which are in the
JSON, and for clients that are locked out with their data.

The defences with trusted data get 200 images drawn from the data set at large. Each figure is the mean of the last
five evaluations, 20 updates apart; runs that differ in nothing but their luck scatter by about a point.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.reputation import ReputationSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.aggregator.trust import TrustSettings

from benchmarks.harness import Row, make_parser, print_table, read_options, spread, write_result
from fedmq.app.datasets import Dataset, load_dataset
from fedmq.app.runlog import Event, Refusal
from fedmq.app.scenario import (
    AvailabilitySettings,
    DataSettings,
    DeviceClass,
    EvaluationSettings,
    Scenario,
    StopSettings,
)
from fedmq.app.simulation import simulate
from fedmq.app.simulation_result import ClientResult

_CLIENTS: Final = 20
#: Of the labels, where nothing else is said.
_ALPHA: Final = 0.3
_ATTACKER: Final = "attacker"
_TRUSTED: Final = 200
_CLIP: Final = FoldSettings(clip_quantile=0.3)
_QUARANTINE: Final = ReputationSettings(least=0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defence:
    """The settings that make one."""

    fold: FoldSettings
    codec: str = TaskSettings().codec
    trust: str = "none"
    reputation: ReputationSettings = field(default_factory=ReputationSettings)


def _buffered(robust: str) -> FoldSettings:
    return FoldSettings(buffer_size=10, staleness="constant", robust=robust)


DEFENCES: Final[Mapping[str, Defence]] = {
    "none": Defence(fold=FoldSettings()),
    "clip": Defence(fold=_CLIP),
    # Of sparse updates each coordinate's median, and what is left when it is trimmed, is nothing.
    "median, K = 10, int8": Defence(fold=_buffered("median"), codec="int8"),
    "trimmed(3), K = 10, int8": Defence(fold=_buffered("trimmed(3)"), codec="int8"),
    "krum(3), K = 10": Defence(fold=_buffered("krum(3)")),
    "multikrum(3, 5), K = 10": Defence(fold=_buffered("multikrum(3, 5)")),
    "geometric, K = 10": Defence(fold=_buffered("geometric")),
    "clip, agreement": Defence(fold=_CLIP, trust="agreement"),
    "clip, agreement, quarantine": Defence(fold=_CLIP, trust="agreement", reputation=_QUARANTINE),
    "clip, zeno, quarantine": Defence(fold=_CLIP, trust="zeno", reputation=_QUARANTINE),
    "clip, aflguard, quarantine": Defence(fold=_CLIP, trust="aflguard", reputation=_QUARANTINE),
}
#: What is looked at more closely: the robust default, and what it is compared with.
_DEFAULT: Final = "clip, agreement, quarantine"
#: Only there to tell what the quarantine adds.
_UNAIDED: Final = "clip, agreement"
_CENTRAL: Final = ("none", "clip", _DEFAULT)
_MAIN_ATTACK: Final = "sign_flip(10)"
ATTACKS: Final = (_MAIN_ATTACK, "noise(10)", "label_flip", "same_value(10)")
_MAIN_SHARE: Final = 0.3
SHARES: Final = (0.1, 0.2, _MAIN_SHARE, 0.4)
#: Not an attack: the same clients never come. What is lost then is lost with their data.
_ABSENT: Final = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One federation to be played."""

    defence: str
    attack: str
    share: float
    seed: int
    updates: int
    alpha: float = _ALPHA


def grid(seeds: Sequence[int], updates: int) -> Iterator[Cell]:
    """Everything with the first seed; more seeds, and Dirichlet(0.1), where it matters."""
    for number, seed in enumerate(seeds):
        for defence in DEFENCES:
            if number and defence not in _CENTRAL:
                continue
            yield Cell(defence=defence, attack="none", share=0.0, seed=seed, updates=updates)
            yield Cell(defence=defence, attack=_MAIN_ATTACK, share=_MAIN_SHARE, seed=seed, updates=updates)
            if defence == _DEFAULT:
                yield Cell(defence=defence, attack=_ABSENT, share=_MAIN_SHARE, seed=seed, updates=updates)
    first = seeds[0]
    for defence in DEFENCES:
        for attack, share in product(ATTACKS, SHARES) if defence != _UNAIDED else ():
            if (attack, share) != (_MAIN_ATTACK, _MAIN_SHARE):
                yield Cell(defence=defence, attack=attack, share=share, seed=first, updates=updates)
        if defence in ("none", _DEFAULT):
            for attack, share in (("none", 0.0), (_MAIN_ATTACK, _MAIN_SHARE)):
                yield Cell(
                    defence=defence, attack=attack, share=share, seed=first, updates=updates, alpha=0.1
                )


def play(cell: Cell) -> Row:
    """One federation from its beginning to its end; a row of the result."""
    logging.disable(logging.CRITICAL)  # a line for each refusal
    dataset = load_dataset("auto", cache=Path("runs/cache"))
    refused: Counter[tuple[str, str]] = Counter()

    def observe(event: Event) -> None:
        if isinstance(event, Refusal):
            refused[event.client, event.reason] += 1

    with tempfile.TemporaryDirectory() as folder:
        trusted = Path(folder) / "trusted.npz"
        write_trusted(trusted, dataset, cell.seed)
        result = simulate(scenario(cell, trusted), dataset=dataset, observe=observe)
    row: dict[str, str | int | float | None] = {
        "defence": cell.defence,
        "attack": cell.attack,
        "share": cell.share,
        "alpha": cell.alpha,
        "seed": cell.seed,
        "accuracy": result.final_accuracy,
        "updates": result.updates,
        "asked_updates": cell.updates,
        "virtual_seconds": result.seconds,
        "uplink_bytes": result.uplink_bytes,
        "cpu_seconds": result.cpu_seconds,
    }
    for who, wanted in (("attackers", True), ("honest", False)):
        clients = [client for client in result.clients if (client.kind == _ATTACKER) == wanted]
        row |= {f"{who}_{name}": value for name, value in _fate(clients, refused).items()}
    return row


def _fate(clients: Sequence[ClientResult], refused: Counter[tuple[str, str]]) -> dict[str, int]:
    names = [client.client for client in clients]
    return {
        "folded": sum(client.folded for client in clients),
        "refused": sum(client.refused for client in clients),
        "suspicious": sum(refused[name, "suspicious"] for name in names),
        "quarantined": sum(refused[name, "quarantined"] > 0 for name in names),
        "clients": len(names),
    }


def scenario(cell: Cell, trusted: Path) -> Scenario:
    """What a cell stands for."""
    defence = DEFENCES[cell.defence]
    kind = DeviceClass(name="honest", share=1 - cell.share, jitter="uniform(0.8, 1.2)")
    attackers = replace(kind, name=_ATTACKER, share=cell.share)
    if cell.attack == _ABSENT:
        attackers = replace(attackers, availability=AvailabilitySettings(joins="1e9"))
    else:
        attackers = replace(attackers, attack=cell.attack)
    return Scenario(
        name=f"{cell.defence} / {cell.attack} {cell.share:.0%}",
        seed=cell.seed,
        data=DataSettings(clients=_CLIENTS, alpha=cell.alpha, per_client=1000),
        task=TaskSettings(
            settings=(("hidden", 128), ("learning_rate", 0.05), ("batch_size", 32)), codec=defence.codec
        ),
        fold=defence.fold,
        trust=TrustSettings(rule=defence.trust, data=trusted),
        reputation=defence.reputation,
        publish=PublishSettings(min_interval=0.0),
        evaluation=EvaluationSettings(every=20),
        # whom nobody folds any more would go on for ever
        stop=StopSettings(updates=cell.updates, seconds=10.0 * cell.updates / _CLIENTS),
        devices=(kind, attackers) if cell.share else (kind,),
    )


def write_trusted(path: Path, dataset: Dataset, seed: int) -> None:
    """What an operator could have collected: a few examples of everything."""
    chosen = np.random.default_rng([seed, _TRUSTED]).choice(len(dataset.train_labels), _TRUSTED, False)
    np.savez(path, train_images=dataset.train_images[chosen], train_labels=dataset.train_labels[chosen])


def summarise(rows: Sequence[Row]) -> list[Row]:
    """A row for each defence, attack and share: median and spread over seeds, and the price in points."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["alpha"], row["attack"], row["share"], row["defence"]), []).append(row)
    summary: list[Row] = []
    for (alpha, attack, share, defence), group in sorted(groups.items(), key=lambda item: str(item[0])):
        accuracy, low, high = spread([float(row["accuracy"] or 0) for row in group])
        seeds = {row["seed"] for row in group}
        peaceful = [
            float(row["accuracy"] or 0)
            for row in groups.get((alpha, "none", 0.0, defence), [])
            if row["seed"] in seeds
        ]
        first = group[0]
        summary.append(
            {
                "case": f"{attack} {float(str(share)):.0%}" + ("" if alpha == _ALPHA else f", α {alpha}"),
                "alpha": float(str(alpha)),
                "attack": str(attack),
                "share": f"{float(str(share)):.0%}",
                "defence": str(defence),
                "seeds": len(group),
                "accuracy": accuracy,
                "range": f"{low:.3f} … {high:.3f}",
                "cost_points": 100 * (spread(peaceful)[0] - accuracy) if peaceful else None,
                "attackers_refused": _share(group, "attackers"),
                "honest_refused": _share(group, "honest"),
                "attackers_quarantined": f"{_sum(group, 'attackers_quarantined')}/{_sum(group, 'attackers_clients')}",
                "honest_quarantined": f"{_sum(group, 'honest_quarantined')}/{_sum(group, 'honest_clients')}",
                "updates": int(str(first["updates"])),
            }
        )
    return summary


def _sum(rows: Sequence[Row], name: str) -> int:
    return sum(int(row[name] or 0) for row in rows)


def _share(rows: Sequence[Row], who: str) -> float | None:
    refused, folded = _sum(rows, f"{who}_refused"), _sum(rows, f"{who}_folded")
    return refused / (refused + folded) if refused + folded else None


def _key(values: Mapping[str, object]) -> tuple[object, ...]:
    """What tells a cell, or its row, from others."""
    return tuple(values[name] for name in ("defence", "attack", "share", "seed", "alpha"))


def _known(path: Path, cells: Sequence[Cell]) -> list[Row]:
    """Rows of an earlier run that belong to these cells."""
    if not path.exists():
        return []
    wanted = {(*_key(asdict(cell)), cell.updates) for cell in cells}
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return [row for row in rows if (*_key(row), row["asked_updates"]) in wanted]


def main() -> None:
    """Run, print, write."""
    parser = make_parser("attackers", "defences against attackers: accuracy, price, and whom they refuse")
    parser.add_argument("--seeds", type=int, default=3, help="how many, for the cells that matter most")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file has already")
    parser.add_argument("--jobs", type=int, default=1, help="federations played at a time")
    arguments = parser.parse_args()
    options = read_options(arguments)
    seeds = range(options.seed, options.seed + (1 if options.quick else arguments.seeds))
    cells = list(grid(seeds, 60 if options.quick else 400))
    if options.quick:
        cells = [cell for cell in cells if cell.defence in _CENTRAL and cell.attack in ("none", _MAIN_ATTACK)]
        cells = [cell for cell in cells if cell.share in (0.0, _MAIN_SHARE) and cell.alpha > 0.1]
    rows = _known(options.out, cells) if arguments.resume else []
    played = {_key(row) for row in rows}
    cells = [cell for cell in cells if _key(asdict(cell)) not in played]
    try:
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
            for row in pool.map(play, cells):
                rows.append(row)
                print(f"{len(rows) - len(played)}/{len(cells)} {row}", flush=True)
    finally:  # what was played before Ctrl-C is there for --resume
        summary = summarise(rows)
        write_result("attackers", options, summary, runs=rows)
    print_table(
        "Defences",
        summary,
        {
            "case": "attack",
            "defence": "defence",
            "accuracy": "accuracy",
            "cost_points": "cost",
            "attackers_refused": "refused",
            "honest_refused": "honest",
            "attackers_quarantined": "locked up",
            "honest_quarantined": "honest",
        },
    )


if __name__ == "__main__":
    main()
