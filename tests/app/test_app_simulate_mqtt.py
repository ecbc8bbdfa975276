"""The simulator and MQTT agree: the same scenario in virtual time, and over sockets and threads in real time."""

import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fedmq.aggregator.decision import Decision
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.broker import EmbeddedBroker
from fedmq.edge_agent.numpy_trainer import mlp
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings, TrainerSettings

from fedmq.app.commands.agent import make_agent
from fedmq.app.commands.aggregator import make_aggregator
from fedmq.app.datasets import Dataset
from fedmq.app.partition import dirichlet_partition
from fedmq.app.scenario import (
    DataSettings,
    DeviceClass,
    EvaluationSettings,
    Scenario,
    StopSettings,
    client_name,
)
from fedmq.app.shards import save_shards
from fedmq.app.simulation import simulate
from fedmq.connection import ConnectionSettings
from fedmq.modelfile import save_model

CLIENTS, UPDATES, SECONDS = 4, 80, 0.15
TRAINER = (
    ("features", 36),
    ("classes", 5),
    ("seed", 1),
    ("hidden", 16),
    ("batch_size", 5),
    ("learning_rate", 0.1),
)
SCENARIO = Scenario(
    seed=1,
    data=DataSettings(clients=CLIENTS, alpha=10.0, per_client=100),
    task=TaskSettings(settings=TRAINER, codec="topk(0.2) | int8 | rice"),
    fold=FoldSettings(strategy="fedbuff", buffer_size=2),
    publish=PublishSettings(min_interval=0.0),
    store=StoreSettings(batch_delay=0.0),
    devices=(DeviceClass(epoch_seconds=str(SECONDS), jitter="lognormal(1, 0.1)"),),
    evaluation=EvaluationSettings(every=UPDATES),
    stop=StopSettings(updates=UPDATES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a federation over MQTT came to after so many updates."""

    versions: int
    updates: int
    staleness: Counter[int]
    sent: int
    received: int
    accuracy: float


def over_mqtt(blobs: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """The scenario's federation, each agent in a thread of its own, at the embedded broker."""
    names = [client_name(index) for index in range(CLIENTS)]
    parts = dirichlet_partition(
        blobs.train_labels, clients=CLIENTS, alpha=10.0, per_client=100, seed=SCENARIO.seed
    )
    shards = save_shards(folder, blobs, parts, names)
    judge = mlp(dict(TRAINER), data=str(shards["test"]))
    save_model(folder / "model.safetensors", judge.layout, judge.initial())
    staleness: Counter[int] = Counter()
    with EmbeddedBroker() as broker:
        connection = ConnectionSettings(host=broker.host, port=broker.port)
        service = make_aggregator(
            AggregatorSettings(
                model=folder / "model.safetensors",
                broker=connection,
                task=SCENARIO.task,
                fold=SCENARIO.fold,
                publish=SCENARIO.publish,
                store=replace(SCENARIO.store, path=folder / "store.db"),
            )
        )
        commit = service.engine.commit

        def note(decision: Decision) -> None:
            staleness.update(record.staleness for record in decision.records if record.refusal is None)
            commit(decision)

        monkeypatch.setattr(service.engine, "commit", note)
        agents = [
            make_agent(
                AgentSettings(
                    client=name,
                    broker=connection,
                    trainer=TrainerSettings(
                        pause=SECONDS, seed=SCENARIO.seed, settings=(("data", str(shards[name])),)
                    ),
                    outbox=OutboxSettings(folder=folder / name),
                )
            )
            for name in names
        ]
        threads = [threading.Thread(target=agent.run) for agent in agents]
        for thread in threads:
            thread.start()
        service._transport.start()
        while service.engine.tally.folded < UPDATES:
            service.turn()
        traffic = [agent.transport.traffic for agent in agents]
        outcome = Outcome(
            versions=service.engine.state.version,
            updates=service.engine.tally.folded,
            staleness=staleness,
            sent=sum(moved.bytes_sent for moved in traffic),
            received=sum(moved.bytes_received for moved in traffic),
            accuracy=judge.evaluate(service.engine.model.vector)["accuracy"],
        )
        for agent in agents:
            agent.stop()
        for thread in threads:
            thread.join()
        service._transport.close()
        service._store.close()
    return outcome


def test_the_simulator_and_mqtt_agree(
    blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In versions, staleness and accuracy, and in bytes of an update up; down within a factor of two.

    Down they differ by the heads of versions that come while an agent is still subscribed: half of what this small
    model takes, and how many there are is up to the machine's scheduling of threads.
    """
    real = over_mqtt(blobs, tmp_path, monkeypatch)
    virtual = simulate(SCENARIO, dataset=blobs)
    mean = sum(age * count for age, count in real.staleness.items()) / real.updates
    accuracy = virtual.final_accuracy

    assert real.updates // 2 == real.versions
    assert virtual.updates // 2 == virtual.versions
    assert virtual.mean_staleness == pytest.approx(mean, abs=0.7)
    assert accuracy == pytest.approx(real.accuracy, abs=0.15)
    assert virtual.uplink_bytes / virtual.updates == pytest.approx(real.sent / real.updates, rel=0.1)
    assert 0.5 < (real.received / real.updates) / (virtual.downlink_bytes / virtual.updates) < 2.0
