"""Shares of the work from end to end: over sockets, and by the hundred in virtual time."""

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.allocation import AllocationSettings
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.broker import BrokerSettings, EmbeddedBroker
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.numpy_trainer import mlp
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings, TrainerSettings

from fedmq import wire
from fedmq.app.datasets import Dataset
from fedmq.app.runlog import Event, Fold
from fedmq.app.scenario import DataSettings, DeviceClass, EvaluationSettings, Scenario, StopSettings
from fedmq.app.simulation import simulate
from fedmq.connection import ConnectionSettings
from fedmq.errors import SettingError
from fedmq.modelfile import save_model
from fedmq.share import Share
from fedmq.topics import Topics
from fedmq.transport.base import Delivery, Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.transport.mqtt import MqttTransport

FEATURES, EXAMPLES, BATCH = 4, 24, 4
STEPS = EXAMPLES // BATCH
SHAPE = (("features", FEATURES), ("hidden", 3), ("classes", 2), ("batch_size", BATCH))
PATIENCE = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With data and a first model."""
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=random.integers(0, 256, (EXAMPLES, FEATURES), np.uint8),
        train_labels=np.arange(EXAMPLES) % 2,
    )
    trainer = mlp(dict(SHAPE), data=str(tmp_path / "data.npz"))
    save_model(tmp_path / "model.safetensors", trainer.layout, trainer.initial())
    return tmp_path


def aggregator(folder: Path, **settings: object) -> AggregatorSettings:
    """One that asks everybody for nine steps, as soon as it knows them."""
    return AggregatorSettings(
        model=folder / "model.safetensors",
        task=TaskSettings(settings=SHAPE, codec="float32"),
        fold=FoldSettings(strategy="fedasync"),
        allocate=AllocationSettings(policy="even", min_steps=9, max_steps=9, jitter=0.0),
        store=StoreSettings(path=folder / "store.db"),
        publish=PublishSettings(min_interval=0.0),
        **settings,  # type: ignore[arg-type]
    )


def device(folder: Path, name: str, **trainer: object) -> AgentSettings:
    """One client over the folder's data."""
    own = TrainerSettings(settings=(("data", str(folder / "data.npz")),), pause=0.01, **trainer)  # type: ignore[arg-type]
    return AgentSettings(client=name, trainer=own, outbox=OutboxSettings(folder=folder / name))


def test_a_share_reaches_an_agent_over_a_broker_and_changes_its_steps(folder: Path) -> None:
    """Nine steps instead of an epoch's six; who refuses shares stays with the plan, who is bounded does less."""
    told: dict[str, list[int]] = {"willing": [], "refuses": [], "bounded": []}
    enough = threading.Event()

    class Watched(Store):
        """Production's, which notes what was folded."""

        def append(self, records, *more, **options):  # type: ignore[no-untyped-def]
            super().append(records, *more, **options)
            for record in records:
                update = wire.unpack_update(record.message)
                told[update.id.client].append(update.local_steps)
                if told[update.id.client][-1] == 6 and update.id.client == "refuses":
                    assert ("accepts_shares", 0.0) in update.metrics
            if min(map(len, told.values())) >= 6:
                enough.set()

    with EmbeddedBroker(settings=BrokerSettings(sys_interval=0)) as broker:
        connection = ConnectionSettings(host=broker.host, port=broker.port)
        settings = aggregator(folder, broker=connection)
        service = Service(
            settings,
            Watched(settings.store.path),
            lambda client_id, will, expiry: MqttTransport(
                connection.mqtt(client_id=client_id, will=will, session_expiry=expiry)
            ),
        )
        agents = [
            Agent(
                own,
                Outbox(own.outbox.folder / "outbox.db"),
                lambda client_id, will: MqttTransport(connection.mqtt(client_id=client_id, will=will)),
            )
            for own in (
                device(folder, "willing"),
                device(folder, "refuses", accept_shares=False),
                device(folder, "bounded", max_steps=2),
            )
        ]
        threads = [threading.Thread(target=party.run, daemon=True) for party in (service, *agents)]
        for thread in threads:
            thread.start()
        came = enough.wait(PATIENCE)
        for party in (*agents, service):
            party.stop()
        for thread in threads:
            thread.join(PATIENCE)

    assert came
    assert [STEPS, STEPS] == told["willing"][:2]  # the plan's, until its speed is known
    assert 9 == told["willing"][-1]
    assert {STEPS} == set(told["refuses"])
    assert {2} == set(told["bounded"])


class Herd:
    """An aggregator and many agents over the memory broker, in one thread, by a clock that the test moves."""

    def __init__(self, folder: Path, count: int, jitter: float) -> None:
        self.folder, self.now = folder, 1000.0
        self.broker = MemoryBroker(clock=lambda: self.now)
        settings = aggregator(folder)
        allocate = replace(settings.allocate, jitter=jitter)
        self.settings = replace(settings, allocate=allocate)
        self.pulls: dict[str, float] = {}
        self.agents = []
        for index in range(count):
            own = device(folder, f"d{index}")
            work = replace(own.trainer, pause=0.0)
            outbox = Outbox(own.outbox.folder / "outbox.db")
            agent = Agent(
                replace(own, trainer=work), outbox, self.join, clock=lambda: self.now, spawn=self.later
            )
            self._watch(own.client, agent)
            self.agents.append((agent, outbox))
        self.serve()

    def later(self, work):  # type: ignore[no-untyped-def]
        """Training that is done within the turn."""
        work()
        return lambda: None

    def join(self, client_id: str, will: Will, expiry: int = 0) -> MemoryTransport:
        return MemoryTransport(
            self.broker, client_id, will=will, clean_start=expiry == 0, session_expiry=expiry
        )

    def serve(self) -> None:
        """A new life of the aggregator."""
        self.service = Service(self.settings, Store(self.settings.store.path), self.join, lambda: self.now)
        self.service._transport.start()

    def _watch(self, client: str, agent: Agent) -> None:
        subscribe, model = agent.transport.subscribe, Topics("default").model

        def watched(topic: str) -> None:
            if topic == model:
                self.pulls.setdefault(client, self.now)
            subscribe(topic)

        agent.transport.subscribe = watched  # type: ignore[method-assign]
        agent.transport.start()

    def turn(self, times: int = 12) -> None:
        for _ in range(times):
            self.service.turn()
            for agent, _ in self.agents:
                agent.turn()

    def close(self) -> None:
        self.service._store.close()
        for _, outbox in self.agents:
            outbox.close()


def test_a_herd_spreads_its_pulls_over_the_jitter_when_the_aggregator_comes_back(folder: Path) -> None:
    """Fifty agents whose aggregator was restarted; none comes at once, all have come when the jitter is over."""
    count, jitter, step = 50, 10.0, 1.0
    herd = Herd(folder, count, jitter)
    herd.turn(8)
    assert count == len(herd.pulls)
    assert 1 == len({*herd.pulls.values()})  # nobody was told anything before the first update

    herd.broker.disconnect("default-aggregator-0")  # its will says so
    herd.service._transport.close()
    herd.service._store.close()
    for agent, _ in 4 * herd.agents:
        agent.turn()
    herd.pulls.clear()
    back = herd.now
    herd.serve()
    while herd.now < back + jitter + step:
        herd.turn(3)
        herd.now += step
    times = sorted(time - back for time in herd.pulls.values())
    herd.close()

    assert count == len(times)
    assert jitter + step >= times[-1] > 0.7 * jitter
    # uniform: no tenth of the window holds more than a third of them
    assert count / 3 > max(times.count(time) for time in times)


def test_a_share_of_an_aggregator_that_allocates_no_more_is_not_followed(folder: Path) -> None:
    """It lies retained on the broker, and has another boot number than the life that is there."""
    herd = Herd(folder, 1, jitter=0.0)
    topic = Topics("default").task("d0")
    ears = MemoryTransport(herd.broker, "ears")
    ears.start()
    ears.subscribe(topic)
    stale = wire.pack_share(Share(boot=1, local_steps=999, wait=3600.0))
    ears.publish(topic, stale, retain=True)
    agent, _ = herd.agents[0]
    while agent.task is None:
        herd.turn(1)

    assert agent.task.steps is None
    herd.close()


def test_a_client_finds_its_share_before_the_receipt_with_which_it_goes_on(folder: Path) -> None:
    """Otherwise it would pull and train by the share before."""
    herd = Herd(folder, 1, jitter=0.0)
    topics = Topics("default")
    ears = MemoryTransport(herd.broker, "ears")
    ears.start()
    for topic in (topics.task("d0"), topics.receipt("d0")):
        ears.subscribe(topic)
    heard: list[str] = []
    while len(heard) < 2:
        herd.turn(1)
        while (event := ears.poll(0.0)) is not None:
            if isinstance(event, Delivery):
                heard.append(event.topic)
                event.ack()
    herd.close()

    assert [topics.task("d0"), topics.receipt("d0")] == heard[:2]


def test_rounds_and_shares_exclude_each_other(folder: Path) -> None:
    """With fedavg everybody waits for everybody."""
    settings = replace(aggregator(folder), fold=FoldSettings(strategy="fedavg", buffer_size=2))
    store = Store(settings.store.path)
    broker = MemoryBroker(clock=time.monotonic)

    with pytest.raises(SettingError) as found:
        Service(settings, store, lambda client_id, will, expiry: MemoryTransport(broker, client_id))
    store.close()
    assert "allocate.policy" == found.value.name


def folds(blobs: Dataset, **settings: object) -> tuple[list[Fold], list[int]]:
    """What was folded in half a minute of eight fast devices and two that are eight times slower."""
    seen: list[Event] = []
    scenario = Scenario(
        data=DataSettings(clients=10, alpha=1.0, per_client=80),
        task=TaskSettings(
            settings=(("hidden", 4), ("batch_size", 8), ("learning_rate", 0.1)),
            codec="topk(0.2) | int8 | rice",
        ),
        fold=FoldSettings(strategy="fedbuff"),
        allocate=AllocationSettings(min_steps=5, max_steps=40, **settings),  # type: ignore[arg-type]
        publish=PublishSettings(min_interval=0.0),
        evaluation=EvaluationSettings(every=1000),
        stop=StopSettings(seconds=30.0),
        devices=(
            DeviceClass(name="fast", share=8, epoch_seconds="1", jitter="lognormal(1, 0.05)"),
            DeviceClass(name="slow", share=2, epoch_seconds="8", jitter="lognormal(1, 0.05)"),
        ),
    )
    result = simulate(scenario, dataset=blobs, observe=seen.append)
    return [event for event in seen if isinstance(event, Fold)], [c.folded for c in result.clients]


@pytest.fixture(scope="module")
def evenly(blobs: Dataset) -> list[Fold]:
    """What was folded under `even`."""
    return folds(blobs, policy="even")[0]


def test_in_the_simulator_slow_devices_take_part_more_often_when_asked_for_less(
    blobs: Dataset, evenly: list[Fold]
) -> None:
    """Production's aggregator and agents, in virtual time; a simulated device's work is as long as its steps."""
    _, plain = folds(blobs, policy="none")
    late = [fold for fold in evenly if fold.t > 18]  # the slow ones are known
    counts = Counter(fold.client for fold in late)

    assert max(plain[8:]) < 0.15 * min(plain[:8])
    assert min(counts[f"agent-{index:02d}"] for index in (8, 9)) > 0.3 * max(counts.values())
    assert 8 > max(fold.staleness for fold in late)  # eight seconds of eight updates a second would be twelve


def test_in_the_simulator_a_limit_on_concurrency_halves_what_is_in_flight(
    blobs: Dataset, evenly: list[Fold]
) -> None:
    """Updates are fewer, and less stale."""
    some, _ = folds(blobs, policy="even", concurrency=5)
    ages = [sum(fold.staleness for fold in found[30:]) / len(found[30:]) for found in (some, evenly)]

    assert ages[0] < 0.75 * ages[1]
    assert 30 < len(some) < 0.8 * len(evenly)
