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

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from fedmq import wire
from fedmq.aggregator.decision import Record
from fedmq.aggregator.ledger import Key
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.store import ChunkChanges, Store
from fedmq.edge_agent.trainer import Trainer, find_factory
from fedmq.modelfile import save_model
from fedmq.plan import Scalar
from fedmq.topics import Topics
from fedmq.transport.base import Will
from fedmq.transport.memory import MemoryBroker
from fedmq.types import ObjectRef, Receipt

from .datasets import Dataset, load_dataset
from .partition import dirichlet_partition
from .processor import one_blas_thread
from .runlog import AgentState, AggregatorState, Evaluation, Event, Fold, Publish, Refusal
from .scenario import LinkSettings, Scenario
from .shards import save_shards
from .simulated_device import SimulatedDevice
from .simulated_link import VirtualTransport, VirtualWire
from .simulation_result import SimulationResult
from .virtual_time import Agenda, Party

__all__ = ["SimulationResult", "simulate"]

#: A folder in memory, where the system has one: what need not survive us need not reach a disk.
_MEMORY_FOLDER: Final = Path("/dev/shm")
_PER_CLIENT: Final = 1000


def simulate(
    scenario: Scenario,
    *,
    dataset: Dataset | None = None,
    observe: Callable[[Event], None] = lambda event: None,
) -> SimulationResult:
    """Play a scenario to its end.

    Args:
        scenario: what to play.
        dataset: the data; None loads what the scenario names.
        observe: told of each event as it happens, with virtual seconds; what it raises ends the simulation.

    Raises:
        FedmqError: a setting cannot be used, or data is missing.
    """
    began = time.process_time()
    dataset = dataset or load_dataset(scenario.data.source, cache=scenario.data.cache)
    with ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        in_memory = _MEMORY_FOLDER if os.access(_MEMORY_FOLDER, os.W_OK) else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-", dir=in_memory)))
        simulation = _Simulation(scenario, dataset, folder, observe)
        stack.callback(simulation.close)
        simulation.run()
        return simulation.result(time.process_time() - began)


class _WatchedStore(Store):
    """Production's store, which tells what it has made durable."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.news: list[Record] = []

    def append(
        self,
        records: Sequence[Record],
        receipts: Mapping[Key, Receipt],
        chunks: ChunkChanges,
        received: float,
        forgotten: Collection[Key] = (),
    ) -> None:
        super().append(records, receipts, chunks, received, forgotten)
        self.news += records


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
        names = [f"agent-{index:02d}" for index in range(scenario.data.clients)]
        shards = _cut(scenario, dataset, folder, names)
        plan = _trainer_settings(scenario, dataset)
        self._trainer: Trainer = find_factory(scenario.task.trainer)(plan, data=str(shards["test"]))
        save_model(folder / "initial.safetensors", self._trainer.layout, self._trainer.initial())
        settings = _aggregator_settings(scenario, folder, plan)
        self._topics = Topics(settings.federation)
        chunk_room = 1024
        self._broker = MemoryBroker(
            clock=self._agenda.clock,
            maximum_packet_size=max(settings.publish.chunk_bytes, 262_144) + chunk_room,
        )
        self._party = Party(
            self._agenda, scenario.data.clients, self._turn, delay=settings.store.batch_delay
        )
        self._store = _WatchedStore(settings.store.path)
        try:
            self._service = Service(settings, self._store, self._connect, self._agenda.clock)
        except BaseException:
            self._store.close()
            raise
        self._transport.start()
        self._party.wake()
        observe(AggregatorState(t=0.0, state="up"))
        kinds = [kind for kind, count in zip(scenario.devices, scenario.counts(), strict=True) for _ in range(count)]
        self._devices = {
            name: SimulatedDevice(
                index=index,
                client=name,
                kind=kind,
                scenario=scenario,
                data=shards[name],
                folder=folder,
                agenda=self._agenda,
                broker=self._broker,
                on_state=self._note_state,
            )
            for index, (name, kind) in enumerate(zip(names, kinds, strict=True))
        }

    def run(self) -> None:
        """Until it is enough."""
        stop = self._scenario.stop
        while not self._is_enough() and self._agenda.step(stop.seconds):
            pass
        if not self._evaluations or self._evaluations[-1].folded < self._folded:
            self._evaluate()

    def result(self, cpu_seconds: float) -> SimulationResult:
        """What it came to; the devices are switched off for it."""
        state = self._service.engine.state
        return SimulationResult(
            scenario=self._scenario,
            layout=self._service.engine.layout,
            vector=state.vector.copy(),
            evaluations=tuple(self._evaluations),
            seconds=self._agenda.now,
            versions=state.version,
            updates=self._folded,
            staleness=dict(sorted(self._staleness.items())),
            refusals=dict(self._refusals.most_common()),
            clients=tuple(device.close() for device in self._devices.values()),
            cpu_seconds=cpu_seconds,
        )

    def close(self) -> None:
        """Give all files back."""
        for device in self._devices.values():
            device.close()
        self._store.close()

    @property
    def _folded(self) -> int:
        return self._service.engine.tally.folded

    def _is_enough(self) -> bool:
        stop = self._scenario.stop
        return (
            self._reached
            or (stop.updates is not None and self._folded >= stop.updates)
            or (stop.versions is not None and self._service.engine.state.version >= stop.versions)
        )

    def _connect(self, client_id: str, will: Will, expiry: int) -> VirtualTransport:
        wire = VirtualWire(self._agenda, LinkSettings(), self._party.wake)
        self._transport = VirtualTransport(self._broker, client_id, will, expiry, wire)
        self._transport.published = self._note_publish
        return self._transport

    def _turn(self) -> float:
        return self._transport.exhaust(self._work)

    def _work(self) -> None:
        """One turn of the aggregator, and what it led to."""
        before = self._folded
        self._service.turn()
        news, self._store.news = self._store.news, []
        for record in news:
            self._note_record(record)
        every = self._scenario.evaluation.every
        if self._folded // every > before // every:
            self._evaluate()

    def _evaluate(self) -> None:
        model = self._service.engine.model
        metrics = self._trainer.evaluate(model.vector)
        evaluation = Evaluation(
            t=self._agenda.now,
            version=model.version,
            accuracy=metrics["accuracy"],
            loss=metrics["loss"],
            folded=self._folded,
            uplink_bytes=sum(device.uplink_bytes for device in self._devices.values()),
            downlink_bytes=sum(device.downlink_bytes for device in self._devices.values()),
        )
        self._evaluations.append(evaluation)
        target = self._scenario.stop.accuracy
        self._reached = target is not None and evaluation.accuracy >= target
        self._observe(evaluation)

    def _note_record(self, record: Record) -> None:
        device, now = self._devices[record.id.client], self._agenda.now
        if record.refusal is not None:
            device.refused += 1
            reason = str(record.refusal.reason)
            self._refusals[reason] += 1
            self._observe(Refusal(t=now, client=record.id.client, seq=record.id.seq, reason=reason))
            return
        device.folded += 1
        self._staleness[record.staleness] += 1
        self._observe(
            Fold(
                t=now,
                client=record.id.client,
                seq=record.id.seq,
                base_version=record.base_version,
                version=record.version,
                staleness=record.staleness,
                bytes=len(record.message),
            )
        )

    def _note_publish(self, topic: str, payload: bytes) -> None:
        if topic != self._topics.model or not payload:
            return
        head = wire.unpack_head(payload)
        delta = head.delta
        self._observe(
            Publish(
                t=self._agenda.now,
                version=head.version,
                frame_bytes=0 if delta else head.frames[-1].content.size,
                delta_bytes=len(payload)
                + (delta.content.size if delta and isinstance(delta.content, ObjectRef) else 0),
            )
        )

    def _note_state(self, client: str, state: str) -> None:
        self._observe(AgentState(t=self._agenda.now, client=client, state=state))


def _cut(scenario: Scenario, dataset: Dataset, folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Give each client its file, as the demo does."""
    share = len(dataset.train_labels) // len(names)
    wanted = scenario.data.per_client
    parts = dirichlet_partition(
        dataset.train_labels,
        clients=len(names),
        alpha=scenario.data.alpha,
        per_client=min(_PER_CLIENT, share) if wanted is None else wanted,
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


def _aggregator_settings(
    scenario: Scenario, folder: Path, trainer_settings: Mapping[str, Scalar]
) -> AggregatorSettings:
    fold = scenario.fold
    if fold.strategy == "fedavg" and fold.buffer_size is None:
        fold = replace(fold, buffer_size=scenario.data.clients)
    return AggregatorSettings(
        model=folder / "initial.safetensors",
        task=replace(scenario.task, settings=tuple(trainer_settings.items())),
        fold=fold,
        admission=scenario.admission,
        publish=scenario.publish,
        store=replace(scenario.store, path=folder / "aggregator.db"),
    )
