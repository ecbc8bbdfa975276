"""A load in virtual time: production's aggregator under the updates of very many devices.

What a scenario with `training = "synthetic"` is for: how many updates arrive when, how stale they are, what they take
on the network, and how long the aggregator's processor works for them. Nothing is learned. The aggregator, its store,
its messages and codecs are production's; of the devices only their visits are there (`crowd`).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from fedmq.aggregator.settings import AggregatorSettings
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.topics import Topics

from .crowd import Crowd, KindTotals
from .resources import one_blas_thread, scratch_folder
from .runlog import Fold, Refusal
from .scenario import Scenario
from .simulated_aggregator import News, SimulatedAggregator
from .virtual_time import Agenda

_TRAINER: Final = "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """How things stand at some moment; the counts are since the start.

    Attributes:
        t: virtual seconds since the start.
        visits: begun.
        present: devices in the middle of one, at this moment.
        updates: folded.
        refused: updates refused.
        version: of the model.
        uplink_bytes: from all devices, as MQTT packets.
        downlink_bytes: to all devices, likewise.
        published_bytes: payloads that the aggregator published: plan, model, receipts.
    """

    t: float
    visits: int
    present: int
    updates: int
    refused: int
    version: int
    uplink_bytes: int
    downlink_bytes: int
    published_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load came to.

    Attributes:
        scenario: what was played.
        seconds: virtual seconds that passed.
        versions: the model's version at the end.
        updates: folded.
        staleness: how often each staleness was folded.
        refusals: updates refused, by reason.
        samples: how things stood every `synthetic.sample` virtual seconds, and at the end.
        kinds: what the devices of each class did, in the scenario's order.
        cpu_seconds: processor time that the simulation took.
    """

    scenario: Scenario
    seconds: float
    versions: int
    updates: int
    staleness: Mapping[int, int]
    refusals: Mapping[str, int]
    samples: tuple[LoadSample, ...] = field(repr=False)
    kinds: tuple[KindTotals, ...] = field(repr=False)
    cpu_seconds: float

    @property
    def updates_per_cpu_second(self) -> float:
        """Updates that were simulated in each second of the processor, refused ones included."""
        return (self.updates + sum(self.refusals.values())) / self.cpu_seconds

    @property
    def mean_staleness(self) -> float | None:
        """Mean over the folded updates; None when there was none."""
        return (
            sum(age * count for age, count in self.staleness.items()) / self.updates if self.updates else None
        )

    @property
    def peak_rate(self) -> float:
        """Updates a virtual second that were settled in the busiest interval between two samples."""
        settled = [(0.0, 0), *((sample.t, sample.updates + sample.refused) for sample in self.samples)]
        return max(
            (after - before) / (end - start)
            for (start, before), (end, after) in pairwise(settled)
            if end > start
        )


def simulate_load(
    scenario: Scenario,
    *,
    observe: Callable[[LoadSample], None] = lambda sample: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LoadResult:
    """Play a scenario whose training is synthetic.

    Args:
        scenario: what to play.
        observe: told of each sample.
        should_stop: asked all the time; ends the simulation before its end.

    Raises:
        FedmqError: a setting cannot be used.
    """
    if scenario.fold.strategy == "fedavg":
        raise SettingError(
            "fold.strategy", "fedavg", "synthetic devices wait for no version: fedbuff or fedasync is allowed"
        )
    began = time.process_time()
    with ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        folder = Path(stack.enter_context(scratch_folder()))
        load = _Load(scenario, folder, observe)
        stack.callback(load.close)
        load.run(should_stop)
        return load.result(time.process_time() - began)


class _Load:
    """One scenario being played."""

    def __init__(self, scenario: Scenario, folder: Path, observe: Callable[[LoadSample], None]) -> None:
        self._scenario, self._observe = scenario, observe
        self._agenda = Agenda()
        self._staleness: Counter[int] = Counter()
        self._refusals: Counter[str] = Counter()
        self._samples: list[LoadSample] = []
        self._stats = Topics(AggregatorSettings().federation).stats("aggregator")
        layout = ParamLayout((Segment(name="w", shape=(scenario.synthetic.parameters,)),))
        self._aggregator = SimulatedAggregator(
            scenario,
            {},
            layout,
            np.zeros(layout.size, np.float32),
            folder=folder,
            agenda=self._agenda,
            on_news=self._take_news,
            on_publish=self._take_publish,
        )
        self._published = 0
        self._crowd = Crowd(scenario, layout, self._agenda, self._aggregator)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Until it is enough."""
        while not self._crowd.is_ready:
            self._agenda.step()
        agenda, crowd, stop = self._agenda, self._crowd, self._scenario.stop
        next_sample = self._scenario.synthetic.sample
        while not self._is_enough() and not should_stop():
            due = min(agenda.next_time, crowd.next_time)
            while next_sample <= min(due, stop.seconds):
                agenda.advance(next_sample)
                self._take_sample()
                next_sample += self._scenario.synthetic.sample
            if due > stop.seconds:
                break
            if crowd.next_time < agenda.next_time:
                crowd.step()
            else:
                agenda.step()
                crowd.take_receipts()
        if not self._samples or self._samples[-1].t < agenda.now:
            self._take_sample()

    def result(self, cpu_seconds: float) -> LoadResult:
        """What it came to."""
        return LoadResult(
            scenario=self._scenario,
            seconds=self._agenda.now,
            versions=self._aggregator.engine.state.version,
            updates=self._staleness.total(),
            staleness=dict(sorted(self._staleness.items())),
            refusals=dict(self._refusals.most_common()),
            samples=tuple(self._samples),
            kinds=tuple(self._crowd.totals),
            cpu_seconds=cpu_seconds,
        )

    def close(self) -> None:
        """Give the store back."""
        self._aggregator.close()

    def _is_enough(self) -> bool:
        stop = self._scenario.stop
        return (stop.updates is not None and self._staleness.total() >= stop.updates) or (
            stop.versions is not None and self._aggregator.engine.state.version >= stop.versions
        )

    def _take_news(self, event: News) -> None:
        match event:
            case Fold(staleness=staleness):
                self._staleness[staleness] += 1
            case Refusal(reason=reason):
                self._refusals[reason] += 1

    def _take_publish(self, topic: str, payload: bytes) -> None:
        if topic != self._stats:  # which tell the wall time, and so differ in length from run to run
            self._published += len(payload)
        self._crowd.take_publish(topic, payload)

    def _take_sample(self) -> None:
        totals = self._crowd.totals
        sample = LoadSample(
            t=self._agenda.now,
            visits=sum(kind.visits for kind in totals),
            present=self._crowd.present,
            updates=self._staleness.total(),
            refused=self._refusals.total(),
            version=self._aggregator.engine.state.version,
            uplink_bytes=sum(kind.uplink_bytes for kind in totals),
            downlink_bytes=sum(kind.downlink_bytes for kind in totals),
            published_bytes=self._published,
        )
        self._samples.append(sample)
        self._observe(sample)
