"""Very many devices whose training is synthetic: their messages are an agent's, and the aggregator is production's."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings
from fedmq.edge_agent.trainer import Task, TrainResult
from fedmq.edge_agent.training import at_once

from fedmq import wire
from fedmq.app.load_simulation import LoadSample, simulate_load
from fedmq.app.scenario import (
    AvailabilitySettings,
    DataSettings,
    DeviceClass,
    LinkSettings,
    Scenario,
    StopSettings,
    SyntheticSettings,
)
from fedmq.app.simulated_aggregator import SimulatedAggregator, head_objects
from fedmq.app.virtual_time import Agenda
from fedmq.app.visit import Visit
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.transport.memory import MemoryTransport

LAYOUT = ParamLayout((Segment(name="w", shape=(3000,)),))
LOAD = Scenario(
    training="synthetic",
    seed=5,
    data=DataSettings(clients=300),
    synthetic=SyntheticSettings(parameters=2000, payloads=8, sample=60),
    fold=FoldSettings(strategy="fedbuff", buffer_size=10),
    publish=PublishSettings(min_interval=5.0),
    devices=(
        DeviceClass(
            name="quick",
            share=2,
            epoch_seconds="lognormal(10, 0.5)",
            link=LinkSettings(up=1e4, down=1e5, latency=0.05),
            availability=AvailabilitySettings(joins="uniform(0, 300)", away="exponential(300)"),
        ),
        DeviceClass(
            name="rare",
            epoch_seconds="100",
            availability=AvailabilitySettings(joins="uniform(0, 900)", away="exponential(2000)"),
        ),
    ),
    stop=StopSettings(seconds=900),
)


class Trainer:
    """Adds a little to everything, and then waits for the power to be cut."""

    layout = LAYOUT

    def __init__(self) -> None:
        self.left = 1

    def initial(self) -> np.ndarray:
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: np.ndarray, task: Task, should_stop: object) -> TrainResult:
        if not self.left:
            raise RuntimeError("enough")
        self.left -= 1
        return TrainResult(vector=base + 0.01, num_examples=10, local_steps=1)

    def evaluate(self, vector: np.ndarray) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("topic_aliases", [0, 10])
@pytest.mark.parametrize("chunk_bytes", [4096, 262_144])
def test_a_visit_takes_the_bytes_that_an_agent_takes(
    tmp_path: Path, chunk_bytes: int, topic_aliases: int
) -> None:
    """One that comes, learns once, and goes when it has its receipt; to the byte, with and without chunks."""
    agenda = Agenda()
    scenario = Scenario(
        topic_aliases=topic_aliases,
        task=TaskSettings(codec="topk(0.1) | float32 | rice"),
        fold=FoldSettings(strategy="fedbuff", buffer_size=5),
        publish=PublishSettings(keyframe_codec="float32", chunk_bytes=chunk_bytes, min_interval=0.0),
    )
    federation = SimulatedAggregator(
        scenario,
        {},
        LAYOUT,
        np.zeros(LAYOUT.size, np.float32),
        folder=tmp_path,
        agenda=agenda,
        on_news=lambda event: None,
    )
    while federation.broker.retained(federation.topics.aggregator("0")) is None:
        agenda.step()
    trainer = Trainer()
    outbox = Outbox(tmp_path / "outbox.db")
    agent = Agent(
        AgentSettings(client="agent-00", outbox=OutboxSettings(folder=tmp_path)),
        outbox,
        lambda client_id, will: MemoryTransport(
            federation.broker, client_id, will=will, clean_start=True, session_expiry=0
        ),
        lambda settings: trainer,
        agenda.clock,
        spawn=at_once,
    )
    broker, topics = federation.broker, federation.topics
    payloads = {
        name: broker.retained(topic)
        for name, topic in (
            ("plan", topics.plan),
            ("head", topics.model),
            ("aggregator", topics.aggregator("0")),
        )
    }
    agent.transport.start()
    while not outbox.next_seq > 1:
        agent.turn()
    message = outbox.get(1).message
    birth = broker.retained(topics.client("agent-00"))
    while len(outbox):
        agent.turn()
        agenda.step()
    # The session wants to learn on: it has asked for the model again, which a visit does not.
    again = Visit("agent-00", topics, topic_aliases)
    again.pull(head=len(payloads["head"] or b""), missing=[], chunk_bytes=chunk_bytes)
    agent._announce(wire.PresenceState.OFFLINE)
    for _ in range(4):
        agent.turn()
    agent.transport.close()
    outbox.close()
    federation.close()
    goodbye = broker.retained(topics.client("agent-00"))
    receipt = broker.retained(topics.receipt("agent-00"))
    assert all(found is not None for found in (*payloads.values(), birth, goodbye, receipt))
    visit = Visit("agent-00", topics, topic_aliases)
    visit.begin(
        birth=len(birth or b""),
        will=len(goodbye or b""),
        plan=len(payloads["plan"] or b""),
        aggregator=len(payloads["aggregator"] or b""),
        receipt=None,
        shard="0",
    )
    objects = head_objects(wire.unpack_head(payloads["head"] or b""))
    visit.pull(head=len(payloads["head"] or b""), missing=objects, chunk_bytes=chunk_bytes)
    visit.send(update=len(message), shard="0")
    visit.end(goodbye=len(goodbye or b""), receipt=len(receipt or b""))
    traffic = agent.transport.traffic

    assert (visit.up + again.up, visit.down + again.down) == (traffic.bytes_sent, traffic.bytes_received)


def test_a_load_is_played_the_same_way_every_time() -> None:
    """Samples, staleness and bytes; another seed gives others."""
    seen: list[LoadSample] = []
    one, other = simulate_load(LOAD, observe=seen.append), simulate_load(LOAD)
    third = simulate_load(replace(LOAD, seed=6))

    assert one.samples == other.samples == tuple(seen)
    assert one.staleness == other.staleness
    assert one.kinds == other.kinds
    assert one.samples != third.samples


def test_what_was_sent_is_folded_or_refused() -> None:
    """Whoever is not in the middle of a visit has had an answer."""
    result = simulate_load(LOAD)
    last = result.samples[-1]

    assert last.visits == last.present + result.updates + sum(result.refusals.values())
    assert result.updates == sum(result.staleness.values()) == last.updates > 300
    assert result.versions == result.updates // 10 == last.version
    assert [60.0 * n for n in range(1, 16)] == [sample.t for sample in result.samples[:15]]
    for before, after in pairwise(result.samples):
        assert before.visits <= after.visits
        assert before.uplink_bytes <= after.uplink_bytes
    assert 0 < result.peak_rate < 10
    assert 100 < last.uplink_bytes / last.visits < 5000


def test_each_kind_of_device_comes_as_often_as_it_should() -> None:
    """A visit every 320 seconds or so, and one that takes a hundred seconds every 2,100."""
    result = simulate_load(LOAD)
    quick, rare = result.kinds

    assert 200 * 900 / 320 * 0.6 < quick.visits < 200 * 900 / 320 * 1.2
    assert 90 < rare.visits < 160
    assert rare.training_seconds == 100.0 * rare.visits
    assert rare.present_seconds == pytest.approx(rare.training_seconds, rel=0.35)


def test_it_stops_after_so_many_updates() -> None:
    """Or versions."""
    by_updates = simulate_load(replace(LOAD, stop=StopSettings(updates=50)))
    by_versions = simulate_load(replace(LOAD, stop=StopSettings(versions=3)))

    assert 50 <= by_updates.updates < 60
    assert 3 == by_versions.versions


def test_what_cannot_be_played_is_said() -> None:
    """FedAvg waits, which these devices do not; and they send their updates whole."""
    with pytest.raises(SettingError, match=r"fold\.strategy.*fedbuff or fedasync"):
        simulate_load(replace(LOAD, fold=FoldSettings(strategy="fedavg")))
    with pytest.raises(SettingError, match=r"publish\.chunk_bytes.*whole"):
        simulate_load(
            replace(LOAD, task=TaskSettings(codec="float32"), publish=replace(LOAD.publish, chunk_bytes=4096))
        )
