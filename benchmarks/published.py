"""A published figure, and ours beside it: FedAvg on Fashion-MNIST split by Dirichlet(0.5).

    python -m benchmarks.published

The table is that of niid_bench, a baseline of Flower's that repeats Li et al., "Federated Learning on Non-IID Data
Silos: An Experimental Study" (ICDE 2022, arXiv 2102.02079): 60,000 images in ten silos, all of which take part in each
of 50 rounds with ten local epochs of SGD (0.01, momentum 0.9, batches of 64); each label is shared out in proportions
drawn from Dirichlet(0.5), so that silos differ in size, too. FedAvg: 88.09 ± 0.29 %.

Ours are played by the simulator with production's parts: the same rule, and fedmq with its defaults (FedBuff with K = 5
and η = 1; a step as long as the demo's is too long after ten local epochs), after as many updates. The network is
`torch-lenet`, which pads the first convolution and so has 61,706 parameters, theirs 44,426. There is a row for each
round.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from numpy.typing import NDArray

from benchmarks.harness import Options, Row, make_parser, print_table, read_options, write_result
from fedmq.app.datasets import Dataset, load_dataset
from fedmq.app.runlog import Evaluation, Event
from fedmq.app.scenario import DataSettings, DeviceClass, EvaluationSettings, Scenario, StopSettings
from fedmq.app.simulation import simulate

_CLIENTS: Final = 10
_ALPHA: Final = 0.5
_ROUNDS: Final = 50
#: A silo with less is drawn again.
_FEWEST: Final = 10
_PUBLISHED: Final[Row] = {
    "system": "niid_bench, FedAvg",
    "rounds": _ROUNDS,
    "accuracy": 0.8809,
    "deviation": 0.0029,
}
_DENSE: Final = PublishSettings(keyframe_codec="float32", frame_codec="float32", delta_codec="float32")
SYSTEMS: Final = ("FedAvg, dense", "fedmq")


def silos(labels: NDArray[np.uint8], *, seed: int) -> NDArray[np.int64]:
    """Whose each example is, shape (n,): each label shared out in proportions from Dirichlet(0.5)."""
    rng = np.random.default_rng(seed)
    while True:
        owners = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            places = rng.permutation(np.flatnonzero(labels == label))
            bounds = np.cumsum(rng.dirichlet(np.full(_CLIENTS, _ALPHA)))[:-1]
            for owner, part in enumerate(np.split(places, (bounds * len(places)).astype(int))):
                owners[part] = owner
        if np.bincount(owners, minlength=_CLIENTS).min() >= _FEWEST:
            return owners


def scenario(system: str, *, seed: int, rounds: int, quick: bool) -> Scenario:
    """One run."""
    settings: tuple[tuple[str, float | int], ...] = (
        ("learning_rate", 0.01),
        ("momentum", 0.9),
        ("batch_size", 64),
        ("logit_adjustment", 1.0 if system == "fedmq" else 0.0),
    )
    task = TaskSettings(trainer="torch-lenet", settings=settings, local_epochs=1 if quick else 10)
    fold, publish = FoldSettings(), PublishSettings()
    if system != "fedmq":
        task, publish = replace(task, codec="float32"), _DENSE
        fold = FoldSettings(strategy="fedavg", buffer_size=_CLIENTS)
    return Scenario(
        name=system,
        seed=seed,
        data=DataSettings(clients=_CLIENTS, split="user"),
        task=task,
        fold=fold,
        publish=publish,
        evaluation=EvaluationSettings(every=_CLIENTS, target=0.88),
        stop=StopSettings(updates=_CLIENTS * rounds),
        devices=(DeviceClass(epoch_seconds="1", jitter="uniform(0.95, 1.05)"),),
    )


def play(system: str, dataset: Dataset, options: Options, rounds: int, rows: list[Row]) -> None:
    """One run; a row for each round is added, and written at once."""

    def note(event: Event) -> None:
        if not isinstance(event, Evaluation) or not event.folded:
            return
        rows.append(
            {
                "system": system,
                "seed": options.seed,
                "rounds": event.folded / _CLIENTS,
                "accuracy": event.accuracy,
                "uplink_bytes": event.uplink_bytes,
                "downlink_bytes": event.downlink_bytes,
            }
        )
        print_table("", [rows[-1]], _HEADINGS)
        write_result("published", options, rows, data=dataset.describe())

    simulate(
        scenario(system, seed=options.seed, rounds=rounds, quick=options.quick), dataset=dataset, observe=note
    )


_HEADINGS: Final = {
    "system": "",
    "rounds": "rounds",
    "accuracy": "accuracy",
    "uplink_bytes": "bytes up",
    "downlink_bytes": "bytes down",
}


def main() -> None:
    """Run, print, write."""
    parser = make_parser("published", "a published figure, and ours beside it")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of ten updates each")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    arguments = parser.parse_args()
    options = read_options(arguments)
    dataset = load_dataset("auto", cache=DataSettings().cache)
    if options.quick:
        dataset = replace(
            dataset, train_images=dataset.train_images[:2000], train_labels=dataset.train_labels[:2000]
        )
    dataset = replace(dataset, train_owners=silos(dataset.train_labels, seed=options.seed))
    rows: list[Row] = [_PUBLISHED]
    for system in arguments.systems:
        play(system, dataset, options, 2 if options.quick else arguments.rounds, rows)
    last = {str(row["system"]): row for row in rows}
    print_table("After the last round", list(last.values()), _HEADINGS)


if __name__ == "__main__":
    main()
