"""The simulator: a whole federation in virtual time, in one thread, from one seed.

Theory of operation. What is simulated is time, the network and power; everything else is what runs in production:
`Service` with its engine and store, an `Agent` with its outbox on each device, their codecs and messages, the trainer
and the data. They talk through the memory transport, whose wires take virtual time (`simulated_link`). An agenda
(`virtual_time`) knows what happens next: a packet arrives, a piece of training is finished, a device comes or goes, a
party wants to look after something. Nothing ever waits for a real clock, so a day takes as long as its computing.

The aggregator and the broker take no time themselves, except that a batch waits `store.batch_delay` for company. The
broker notices at once when a device has gone. The same scenario always leads to the same result, as far as the
trainer's arithmetic does.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from fedmq.edge_agent.trainer import Trainer, find_factory
from fedmq.plan import Scalar
from fedmq.transport.base import Traffic
from fedmq.types import ParamVector

from .datasets import Dataset, load_dataset
from .fairness import client_accuracy, label_accuracies
from .partition import partition
from .resources import allow_open_files, one_blas_thread, scratch_folder
from .runlog import AgentState, AggregatorState, ClientTraffic, Evaluation, Event, Fold, Refusal
from .scenario import Scenario
from .shards import save_shards
from .simulated_aggregator import News, SimulatedAggregator
from .simulated_device import SimulatedDevice
from .simulation_result import SimulationResult
from .virtual_time import Agenda

__all__ = ["SimulationResult", "simulate"]

#: SQLite's three, and the lock.
_FILES_A_DEVICE: Final = 4
_OTHER_FILES: Final = 256


def simulate(
    scenario: Scenario,
    *,
    dataset: Dataset | None = None,
    observe: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SimulationResult:
    """Play a scenario to its end.

    Args:
        scenario: what to play.
        dataset: the data; None loads what the scenario names.
        observe: told of each event as it happens, with virtual seconds.
        should_stop: asked all the time; ends the simulation before its end.

    Raises:
        FedmqError: a setting cannot be used, or data is missing.
    """
    began = time.process_time()
    dataset = dataset or load_dataset(scenario.data.source, cache=scenario.data.cache)
    with ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        allow_open_files(_FILES_A_DEVICE * scenario.data.clients + _OTHER_FILES)
        folder = Path(stack.enter_context(scratch_folder()))
        simulation = _Simulation(scenario, dataset, folder, observe)
        stack.callback(simulation.close)
        simulation.run(should_stop)
        return simulation.result(time.process_time() - began)


class _Simulation:
    """One scenario being played."""

    def __init__(
        self, scenario: Scenario, dataset: Dataset, folder: Path, observe: Callable[[Event], None]
    ) -> None:
        self._scenario, self._observe = scenario, observe
        self._agenda = Agenda()
        self._evaluations: list[Evaluation] = []
        self._staleness: Counter[int] = Counter()
        self._refusals: Counter[str] = Counter()
        self._reached = False
        clients = dict(scenario.clients())
        shards = _cut(scenario, dataset, folder, list(clients))
        plan = _trainer_settings(scenario, dataset)
        self._make_trainer: Callable[[Path], Trainer] = lambda path: find_factory(scenario.task.trainer)(
            plan, data=str(path)
        )
        self._trainer = self._make_trainer(shards["test"])
        self._dataset, self._folder = dataset, folder
        self._shards = [shards[name] for name in clients]
        self._aggregator = SimulatedAggregator(
            scenario,
            plan,
            self._trainer.layout,
            self._trainer.initial(),
            folder=folder,
            agenda=self._agenda,
            on_news=self._take_news,
            on_turn=self._evaluate_if_due,
        )
        observe(AggregatorState(t=0.0, state="up"))
        self._devices = {
            name: SimulatedDevice(
                index=index,
                client=name,
                kind=kind,
                scenario=scenario,
                data=shards[name],
                folder=folder,
                agenda=self._agenda,
                broker=self._aggregator.broker,
                on_state=self._note_state,
            )
            for index, (name, kind) in enumerate(clients.items())
        }

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Until it is enough."""
        until = self._scenario.stop.seconds
        while not self._is_enough() and not should_stop() and self._agenda.step(until):
            pass
        if not self._evaluations or self._evaluations[-1].folded < self._folded:
            self._evaluate()

    def result(self, cpu_seconds: float) -> SimulationResult:
        """What it came to; the devices are switched off for it."""
        vector = self._aggregator.engine.state.vector.copy()
        clients = tuple(
            replace(device.close(), accuracy=accuracy)
            for device, accuracy in zip(self._devices.values(), self._client_accuracies(vector), strict=True)
        )
        for name, device in self._devices.items():
            self._note_traffic(name, device.traffic)
        state = self._aggregator.engine.state
        return SimulationResult(
            scenario=self._scenario,
            layout=self._aggregator.engine.layout,
            vector=vector,
            evaluations=tuple(self._evaluations),
            seconds=self._agenda.now,
            versions=state.version,
            updates=self._folded,
            staleness=dict(sorted(self._staleness.items())),
            refusals=dict(self._refusals.most_common()),
            clients=clients,
            cpu_seconds=cpu_seconds,
        )

    def _client_accuracies(self, vector: ParamVector) -> Iterator[float | None]:
        """How well a model serves each client."""
        by_label = label_accuracies(self._dataset, vector, self._make_trainer, self._folder)
        for path in self._shards:
            with np.load(path) as arrays:
                yield client_accuracy(by_label, arrays["train_labels"])

    def close(self) -> None:
        """Give all files back."""
        for device in self._devices.values():
            device.close()
        self._aggregator.close()

    @property
    def _folded(self) -> int:
        return self._staleness.total()

    def _is_enough(self) -> bool:
        stop = self._scenario.stop
        return (
            self._reached
            or (stop.updates is not None and self._folded >= stop.updates)
            or (stop.versions is not None and self._aggregator.engine.state.version >= stop.versions)
        )

    def _evaluate_if_due(self) -> None:
        every, last = self._scenario.evaluation.every, self._evaluations[-1:]
        if self._folded // every > (last[0].folded // every if last else 0):
            self._evaluate()

    def _evaluate(self) -> None:
        model = self._aggregator.engine.model
        metrics = self._trainer.evaluate(model.vector)
        traffic = [device.traffic for device in self._devices.values()]
        evaluation = Evaluation(
            t=self._agenda.now,
            version=model.version,
            accuracy=metrics["accuracy"],
            loss=metrics["loss"],
            folded=self._folded,
            uplink_bytes=sum(moved.bytes_sent for moved in traffic),
            downlink_bytes=sum(moved.bytes_received for moved in traffic),
        )
        self._evaluations.append(evaluation)
        target = self._scenario.stop.accuracy
        self._reached = target is not None and evaluation.accuracy >= target
        self._observe(evaluation)

    def _take_news(self, event: News) -> None:
        match event:
            case Fold(client=client, staleness=staleness):
                self._devices[client].folded += 1
                self._staleness[staleness] += 1
            case Refusal(client=client, reason=reason):
                self._devices[client].refused += 1
                self._refusals[reason] += 1
        self._observe(event)

    def _note_traffic(self, client: str, traffic: Traffic) -> None:
        self._observe(
            ClientTraffic(
                t=self._agenda.now,
                client=client,
                sent=traffic.bytes_sent,
                received=traffic.bytes_received,
                payload_sent=traffic.payload_sent,
                payload_received=traffic.payload_received,
                topic_sent=traffic.topic_sent,
                topic_received=traffic.topic_received,
                measured=False,
            )
        )

    def _note_state(self, client: str, state: str) -> None:
        self._observe(AgentState(t=self._agenda.now, client=client, state=state))


def _cut(scenario: Scenario, dataset: Dataset, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Give each client its file, as the demo does."""
    parts = partition(
        dataset.train_labels,
        dataset.train_owners,
        split=scenario.data.split,
        clients=len(names),
        alpha=scenario.data.alpha,
        per_client=scenario.data.per_client,
        seed=scenario.seed,
    )
    return save_shards(folder, dataset, parts, names)


def _trainer_settings(scenario: Scenario, dataset: Dataset) -> dict[str, Scalar]:
    return {
        "features": dataset.train_images.shape[1],
        "classes": dataset.classes,
        "seed": scenario.seed,
        **dict(scenario.task.settings),
    }
