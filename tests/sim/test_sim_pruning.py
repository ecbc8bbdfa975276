"""A whole federation that learns digits while it is pruned: it learns as well, and nothing pruned is ever sent."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.export import export_store
from fedmq.aggregator.pruning import PruneSettings
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.localdata import LocalData
from fedmq.edge_agent.numpy_trainer import MlpTrainer
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings
from fedmq.edge_agent.training import at_once

from fedmq import encoding, wire
from fedmq.app.datasets import load_dataset
from fedmq.codecs import parse_pipeline
from fedmq.mask import Mask
from fedmq.modelfile import load_model, save_model
from fedmq.transport.base import Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import ModelUpdate

DEVICES, HIDDEN, VERSIONS = 4, 16, 50
PRUNE = PruneSettings(sparsity=0.8, begin=5, end=35, every=5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[LocalData], LocalData]:
    """The devices' shares, with labels of all kinds, and test data."""
    data = load_dataset("digits", cache=tmp_path_factory.mktemp("digits"))
    order = np.random.default_rng(1).permutation(len(data.train_labels))[: 300 * DEVICES]
    images = (data.train_images / np.float32(255)).astype(np.float32)
    tests = (data.test_images / np.float32(255)).astype(np.float32)
    shares = [
        LocalData(images=images[p], labels=data.train_labels[p].astype(np.int64))
        for p in np.split(order, DEVICES)
    ]
    return shares, LocalData(images=tests, labels=data.test_labels.astype(np.int64))


class Federation:
    """One broker, one aggregator, some devices, one thread."""

    def __init__(self, folder: Path, digits: tuple[list[LocalData], LocalData], prune: PruneSettings) -> None:
        shares, test = digits
        self.now = 0.0
        self.broker = MemoryBroker(clock=lambda: self.now)
        trainers = [
            MlpTrainer(share, test, features=784, hidden=HIDDEN, classes=10, seed=1) for share in shares
        ]
        self.judge, self.store_path = trainers[0], folder / "store.db"
        save_model(folder / "model.safetensors", self.judge.layout, self.judge.initial())
        settings = AggregatorSettings(
            model=folder / "model.safetensors",
            fold=FoldSettings(strategy="fedbuff", buffer_size=DEVICES),
            prune=prune,
            task=TaskSettings(
                settings=(("learning_rate", 0.2), ("batch_size", 20)), codec="topk(0.05) | ternary | rice"
            ),
            publish=PublishSettings(min_interval=0.0),
            store=StoreSettings(path=self.store_path, batch_delay=0.0, snapshot_records=10_000),
        )
        self.service = Service(settings, Store(self.store_path), self.connect, lambda: self.now)
        self.service._transport.start()
        self.masks: dict[bytes, Mask] = {}
        self.agents = []
        for index, trainer in enumerate(trainers):
            home = folder / f"d{index}"
            agent = Agent(
                AgentSettings(client=f"d{index}", outbox=OutboxSettings(folder=home)),
                Outbox(home / "outbox.db"),
                self.connect,
                lambda settings, trainer=trainer, **own: trainer,
                lambda: self.now,
                spawn=at_once,
            )
            agent.transport.start()
            self.agents.append(agent)

    def connect(self, client_id: str, will: Will, expiry: int = 0) -> MemoryTransport:
        """A transport to the broker."""
        return MemoryTransport(
            self.broker, client_id, will=will, clean_start=expiry == 0, session_expiry=expiry
        )

    def learn(self, versions: int) -> None:
        """Until a version."""
        while self.service.engine.state.version < versions:
            self.now += 0.1
            for agent in self.agents:
                agent.turn()
            self.service.turn()
            mask = self.service.engine.mask
            if mask is not None:
                self.masks[mask.digest] = mask

    def accuracy(self) -> float:
        """Of the model that is served, on the test data."""
        metrics: Mapping[str, float] = self.judge.evaluate(self.service.engine.model.vector)
        return metrics["accuracy"]

    def journal(self) -> list[ModelUpdate]:
        """Every update that was folded, as it was sent."""
        records = self.service._store.records(0)
        return [wire.unpack_update(record.message) for record in records if record.refusal is None]

    def close(self) -> None:
        """Everything."""
        for agent in self.agents:
            agent.transport.close()
            agent._outbox.close()
            agent._events.close()
        self.service._transport.close()
        self.service._store.close()


def test_a_federation_learns_as_well_with_a_fifth_of_the_weights(
    tmp_path: Path, digits: tuple[list[LocalData], LocalData]
) -> None:
    """By schedule to 80 %, within a few points; no update holds a pruned coordinate, and the store says the same."""
    accuracies, sizes = [], []
    for name, prune in (("dense", PruneSettings()), ("pruned", PRUNE)):
        (tmp_path / name).mkdir()
        federation = Federation(tmp_path / name, digits, prune)
        try:
            federation.learn(VERSIONS)
            accuracies.append(federation.accuracy())
            updates = federation.journal()
            engine = federation.service.engine
        finally:
            federation.close()
        sizes.append(float(np.mean([len(update.payload) for update in updates[-40:]])))
    assert engine.mask is not None
    sent_pruned = 0
    for update in updates:
        mask = federation.masks[update.mask] if update.mask else None
        pipeline = parse_pipeline(update.codec)
        trainable = encoding.decode(engine.layout, pipeline, update.payload, mask).trainable
        assert trainable.indices is not None
        kept = engine.layout.trainable_size - (mask.count if mask is not None else 0)
        assert trainable.indices.size <= round(0.05 * kept)
        if mask is not None:
            sent_pruned += int(mask.pruned[trainable.indices].sum())
    exported = export_store(federation.store_path, tmp_path / "sparse.safetensors", sparse=True)
    _, vector = load_model(tmp_path / "sparse.safetensors")

    assert accuracies[0] > 0.8
    assert accuracies[1] > accuracies[0] - 0.03
    assert 0 == sent_pruned
    assert {engine.mask.digest} == {update.mask for update in updates[-4 * DEVICES :]}
    assert {b"", *federation.masks} == {update.mask for update in updates}
    assert int(0.8 * engine.layout.matrices_size) == engine.mask.count == np.count_nonzero(vector == 0)
    assert engine.state.vector.tobytes() == vector.tobytes()
    assert sizes[1] < 0.3 * sizes[0]
    assert exported.sparse_bytes < 0.3 * exported.dense_bytes
    assert {} == dict(engine.tally.refused)
