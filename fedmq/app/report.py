"""What a run came to: from its log of events to `report.json`, pictures, a page and a table for the terminal.

The events of `runlog` are summed up in a `Report`, and the report is shown. Nothing is measured here and no
number is invented: what the log does not hold is None. Drawing is in `plots`, the only importer of matplotlib.

Comparison with dense float32: a system that sends plain float32 moves one dense model down and one dense
update up for each update it makes. It is charged for each *distinct* update that reached the aggregator up
to the last evaluation, where fedmq's bytes are counted too: neither redeliveries nor what came later flatter us.
"""

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from .accounting import Accounting, account
from .fairness import worst_decile
from .runlog import LOG_NAME, Evaluation, Fold, Publish, Refusal, RunLog, read_log

Setting: TypeAlias = str | int | float | bool
Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the log does not say about a run.

    Attributes:
        target: the accuracy to reach, 0 to 1.
        dense_model_bytes: the size of the model as plain float32.
        agents: how many took part.
        broker: which one, for people.
        settings: everything that was set, by name.
        seed: of the run.
        data: which data, for people.
        client_accuracy: of the final model for each client (see `fairness`), where that is known.
    """

    target: float
    dense_model_bytes: int
    agents: int
    broker: str
    settings: Mapping[str, Setting]
    seed: int
    data: str
    client_accuracy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """How old the folded updates were, in model versions: mean, maximum, and updates by staleness."""

    mean: float | None
    max: int | None
    histogram: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run came to; None is what was not measured or not reached.

    Attributes:
        accuracy: of the last evaluation, 0 to 1.
        best_accuracy: of the best evaluation.
        target: the accuracy to reach.
        seconds_to_target: time of the first evaluation that reached the target, since the run's start.
        updates_to_target: updates folded by then.
        uplink_bytes_to_target: bytes from all agents by then, everything inside TCP.
        downlink_bytes_to_target: bytes to all agents by then, likewise.
        dense_bytes_to_target: what dense float32 would have moved by then, both ways together.
        versions: the newest model version seen.
        updates_folded: in the whole run.
        updates_refused: by reason.
        uplink_bytes: from all agents, up to the last evaluation.
        downlink_bytes: to all agents, up to the last evaluation.
        dense_bytes: what dense float32 would have moved up to the last evaluation, both ways together.
        dense_model_bytes: the size of one dense model.
        accounting: where the bytes went, and to whom.
        staleness: of the folded updates.
        agents: how many took part.
        broker: which one.
        data: which data.
        settings: everything that was set.
        seed: of the run.
        seconds: time of the last event.
        worst_decile: mean accuracy of the final model for the worst tenth of the clients.
        client_accuracy: of the final model for each client, on test data weighted by the labels of its own data.
        notes: what a reader must know, in sentences.
    """

    accuracy: float | None
    best_accuracy: float | None
    target: float
    seconds_to_target: float | None
    updates_to_target: int | None
    uplink_bytes_to_target: int | None
    downlink_bytes_to_target: int | None
    dense_bytes_to_target: int | None
    versions: int
    updates_folded: int
    updates_refused: Mapping[str, int]
    uplink_bytes: int | None
    downlink_bytes: int | None
    dense_bytes: int | None
    dense_model_bytes: int
    accounting: Accounting
    staleness: Staleness
    agents: int
    broker: str
    data: str
    settings: Mapping[str, Setting]
    seed: int
    seconds: float
    worst_decile: float | None
    client_accuracy: Mapping[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """The report as strict JSON: the histogram's keys and settings that are not finite become text."""
        values: dict[str, Json] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["accounting"] = asdict(self.accounting)
        values["staleness"] = {
            "mean": self.staleness.mean,
            "max": self.staleness.max,
            "histogram": {str(age): count for age, count in self.staleness.histogram.items()},
        }
        values["settings"] = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.settings.items()
        }
        return values


def build_report(folder: Path, facts: RunFacts) -> Report:
    """Sum up the run whose `metrics.jsonl` lies in `folder`.

    Raises:
        DataError: the log is missing or malformed, see `read_log`.
    """
    log = read_log(folder)
    evaluations, folds = log.evaluations, log.folds
    last = evaluations[-1] if evaluations else None
    reached = next((event for event in evaluations if event.accuracy >= facts.target), None)
    arrivals = log.arrivals
    ages = Counter(fold.staleness for fold in folds)
    refusals = Counter(event.reason for event in log.events if isinstance(event, Refusal))
    versions = (event.version for event in log.events if isinstance(event, Evaluation | Fold | Publish))
    return Report(
        accuracy=last.accuracy if last else None,
        best_accuracy=max((event.accuracy for event in evaluations), default=None),
        target=facts.target,
        seconds_to_target=reached.t if reached else None,
        updates_to_target=reached.folded if reached else None,
        uplink_bytes_to_target=reached.uplink_bytes if reached else None,
        downlink_bytes_to_target=reached.downlink_bytes if reached else None,
        dense_bytes_to_target=_dense_bytes(arrivals, reached, facts.dense_model_bytes),
        versions=max(versions, default=0),
        updates_folded=len(folds),
        updates_refused=dict(refusals.most_common()),
        uplink_bytes=last.uplink_bytes if last else None,
        downlink_bytes=last.downlink_bytes if last else None,
        dense_bytes=_dense_bytes(arrivals, last, facts.dense_model_bytes),
        dense_model_bytes=facts.dense_model_bytes,
        accounting=account(log),
        staleness=Staleness(
            mean=sum(fold.staleness for fold in folds) / len(folds) if folds else None,
            max=max(ages, default=None),
            histogram=dict(sorted(ages.items())),
        ),
        agents=facts.agents,
        broker=facts.broker,
        data=facts.data,
        settings=dict(facts.settings),
        seed=facts.seed,
        seconds=log.seconds,
        worst_decile=worst_decile(list(facts.client_accuracy.values())),
        client_accuracy=dict(facts.client_accuracy),
        notes=_notes(log, reached, facts.target),
    )


def _dense_bytes(arrivals: Sequence[float], until: Evaluation | None, model_bytes: int) -> int | None:
    """What dense float32 would have moved both ways for the updates that arrived before an evaluation."""
    return None if until is None else 2 * model_bytes * bisect_right(arrivals, until.t)


def _notes(log: RunLog, reached: Evaluation | None, target: float) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    notes = []
    if not log.evaluations:
        notes.append("No evaluation was recorded: accuracy and bytes are unknown.")
    elif reached is None:
        notes.append(f"The target accuracy of {target:g} was not reached.")
    if not log.folds:
        notes.append("No update was folded.")
    if account(log).measured is False:
        notes.append(
            "Bytes of agents whose system does not count them are MQTT packets without pings and TLS."
        )
    if log.cut_off:
        notes.append(f"The last line of {LOG_NAME} was cut off while it was written; it is left out.")
    return tuple(notes)


def write_report(folder: Path, report: Report) -> tuple[Path, ...]:
    """Write `report.json` and, where matplotlib is installed, the pictures and `report.html`.

    Returns:
        What was written, `report.json` first.

    Raises:
        DataError: the log, which the pictures are drawn from, is missing or malformed.
    """
    log = read_log(folder)
    path = folder / "report.json"
    path.write_text(
        json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    if find_spec("matplotlib") is None:
        return (path,)
    from . import plots  # matplotlib is in the extra `demo` and takes a second to import

    return (path, *plots.write_pictures(folder, log, report))
