"""The agent end to end: a broker in memory, a real aggregator, a clock that the test moves, and what can go wrong.

Training runs in its thread; `Federation.turn` waits for that thread, so everything happens in one order.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.agent import DISK_RETRY_SECONDS, Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.session import PULL_SECONDS, RECEIPT_GRACE, RECEIPT_WAIT, REST_SECONDS, State
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings, TrainerSettings
from fedmq.edge_agent.trainer import Task, TrainerFactory, TrainResult

from fedmq import wire
from fedmq.envelope import Kind
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import save_model
from fedmq.topics import Topics
from fedmq.transport.base import Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import ClientId, ParamVector, PresenceState, Receipt

FEATURES, HIDDEN, CLASSES, EXAMPLES = 6, 4, 3, 20
RESEND = 8.0
AGGREGATOR = "default-aggregator-0"
TOPICS = Topics("default")
MLP = ParamLayout(
    (
        Segment(name="hidden.weight", shape=(HIDDEN, FEATURES)),
        Segment(name="hidden.bias", shape=(HIDDEN,)),
        Segment(name="output.weight", shape=(CLASSES, HIDDEN)),
        Segment(name="output.bias", shape=(CLASSES,)),
    )
)
LARGE = ParamLayout((Segment(name="weight", shape=(25_000,)),))
PUBLISH = PublishSettings(
    min_interval=0.0,
    keyframe_codec="float16",
    frame_codec="topk(0.1) | float16 | rice",
    delta_codec="topk(0.1) | float16 | rice",
)
#: Each client counts once in a version, and a version takes two: one agent alone makes one update and waits.
ONE_EACH = FoldSettings(strategy="fedavg", buffer_size=2)
#: Every update is a version, and the agent trains as often as it can.
ON_AND_ON = FoldSettings(strategy="fedasync", learning_rate=1.0, staleness="constant")


class Stub:
    """A trainer whose every result is the base plus one vector; `on_train` may look on, or raise."""

    def __init__(self, layout: ParamLayout = MLP, on_train: Callable[[], None] = lambda: None) -> None:
        self.layout = layout
        self.delta = np.random.default_rng(1).normal(size=layout.size).astype(np.float32)
        self.on_train = on_train
        self.trained = 0

    def __call__(self, settings: Mapping[str, object], **own: object) -> "Stub":
        """Its own factory."""
        return self

    def initial(self) -> ParamVector:
        return np.zeros(self.layout.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        self.trained += 1
        self.on_train()
        return TrainResult(vector=base + self.delta, num_examples=EXAMPLES, local_steps=1)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        return {}


class Gated(Stub):
    """A trainer that begins, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__(on_train=self.wait)
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.has_begun.set()
        assert self.may_go_on.wait(10)


class Federation:
    """One broker, one aggregator, some agents, one thread, one clock."""

    def __init__(self, folder: Path, layout: ParamLayout = MLP, **broker: Any) -> None:
        self.folder = folder
        self.now = 1000.0
        self.broker = MemoryBroker(clock=self.clock, **broker)
        self.agents: list[Agent] = []
        self.outboxes: list[Outbox] = []
        self.service: Service | None = None
        initial = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
        save_model(folder / "model.safetensors", layout, initial)
        np.savez(
            folder / "data.npz",
            train_images=np.random.default_rng(2).integers(0, 256, (EXAMPLES, FEATURES), np.uint8),
            train_labels=np.arange(EXAMPLES) % CLASSES,
        )

    def clock(self) -> float:
        return self.now

    def connect(self, client_id: str, will: Will, expiry: int = 0) -> MemoryTransport:
        return MemoryTransport(
            self.broker, client_id, will=will, clean_start=expiry == 0, session_expiry=expiry
        )

    def serve(
        self, *, fold: FoldSettings = ONE_EACH, task: Mapping[str, Any] | None = None, **settings: Any
    ) -> Service:
        """Start the aggregator, or start it again over the same store."""
        if self.service is not None:
            self.service._transport.close()
            self.service._store.close()
        shape = (("features", FEATURES), ("hidden", HIDDEN), ("classes", CLASSES))
        options: dict[str, Any] = {"settings": shape, "resend_seconds": RESEND, **(task or {})}
        everything: dict[str, Any] = {
            "model": self.folder / "model.safetensors",
            "fold": fold,
            "task": TaskSettings(**options),
            "store": StoreSettings(path=self.folder / "store.db", batch_delay=0.0),
            "publish": PUBLISH,
            **settings,
        }
        service = Service(
            AggregatorSettings(**everything), Store(self.folder / "store.db"), self.connect, self.clock
        )
        service._transport.start()
        service.turn()  # publishes plan, model and birth
        self.service = service
        return service

    def join(
        self,
        factory: TrainerFactory | None = None,
        *,
        client: str = "device",
        folder: str | None = None,
        bounds: Mapping[str, int] | None = None,
        trainer: str = "",
    ) -> Agent:
        """Start an agent, on a new folder or on one that it had."""
        home = self.folder / (folder or client)
        outbox = Outbox(home / "outbox.db", **(bounds or {}))
        settings = AgentSettings(
            client=client,
            events=self.folder / f"{client}.jsonl",
            trainer=TrainerSettings(factory=trainer, settings=(("data", str(self.folder / "data.npz")),)),
            outbox=OutboxSettings(folder=home),
        )
        agent = Agent(settings, outbox, self.connect, factory, self.clock)
        agent.transport.start()
        self.agents.append(agent)
        self.outboxes.append(outbox)
        return agent

    def leave(self, agent: Agent) -> None:
        """End an agent's process without a word."""
        self.agents.remove(agent)
        self.broker.disconnect(agent.transport.client_id)  # type: ignore[attr-defined]
        agent.transport.close()
        agent._outbox.close()
        agent._events.close()

    def turn(self, *, serve: bool = True) -> None:
        """Let everybody do one thing, and training finish."""
        for agent in self.agents:
            agent.turn()
            agent._training.join()
        if serve and self.service is not None:
            self.service.turn()

    def until(self, condition: Callable[[], bool], *, serve: bool = True) -> None:
        """Take turns until something is so; the clock stands still."""
        for _ in range(2000):
            if condition():
                return
            self.turn(serve=serve)
        states = [(str(agent._session.state), agent._outbox.pending()) for agent in self.agents]
        raise AssertionError(f"it did not come to pass: {states}, folded {self.folded}")

    def settle(self, *, serve: bool = True) -> None:
        """Take enough turns that nothing more happens by itself."""
        for _ in range(60):
            self.turn(serve=serve)

    def while_training(self, agent: Agent, trainer: Gated, happens: Callable[[], object]) -> None:
        """Let something happen while an agent trains, and let the agent see it before the training ends."""
        while not trainer.has_begun.is_set():
            agent.turn()
        happens()
        for _ in range(20):
            agent.turn()
        trainer.may_go_on.set()
        agent._training.join()

    @property
    def folded(self) -> int:
        return 0 if self.service is None else self.service.engine.tally.folded

    @property
    def uploads_waiting(self) -> int:
        """Updates that the broker holds for the aggregator."""
        session = self.broker._sessions[AGGREGATOR]
        held = [*session.queue, *session.in_flight.values()]
        return sum("/update/" in message.topic for message in held)

    def close(self) -> None:
        for agent in list(self.agents):
            self.leave(agent)
        if self.service is not None:
            self.service._transport.close()
            self.service._store.close()


Found = Callable[..., Federation]


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Found]:
    """Founds federations; see `Federation`."""
    with contextlib.ExitStack() as stack:

        def make(layout: ParamLayout = MLP, **broker: Any) -> Federation:
            federation = Federation(tmp_path, layout, **broker)
            stack.callback(federation.close)
            return federation

        yield make


@pytest.fixture
def federation(found: Found) -> Federation:
    """Without an aggregator and without agents yet."""
    return found()


def residual(outbox: Outbox, layout: ParamLayout = MLP) -> ParamVector:
    """What stays behind."""
    found = outbox.residual(layout.fingerprint)
    assert found is not None
    return found


# The way it should go.


def test_an_agent_trains_uploads_and_forgets_on_the_receipt(federation: Federation) -> None:
    """Again and again, each time from a newer version."""
    federation.serve(fold=ON_AND_ON)
    agent = federation.join()
    federation.until(lambda: federation.folded >= 5)

    assert federation.service is not None
    assert federation.service.engine.state.version == federation.folded
    assert federation.service._chronicle.counters.duplicates == 0
    assert len(agent._outbox) <= 1


def test_a_version_is_trained_on_once_in_a_synchronous_federation(federation: Federation) -> None:
    """Two clients, three versions: six updates, and none too many."""
    service = federation.serve()
    first, second = Stub(), Stub()
    federation.join(first, client="first")
    federation.join(second, client="second")
    federation.until(lambda: service.engine.state.version == 3)
    federation.settle(serve=False)  # each makes its contribution to the fourth, and no more

    assert (4, 4) == (first.trained, second.trained)
    assert {} == dict(service.engine.tally.refused)


def test_a_large_dense_update_goes_in_chunks_and_is_folded(found: Found) -> None:
    """100 KB through a broker that takes 2 KB at a time, and every bit of it arrives."""
    federation = found(LARGE, maximum_packet_size=2048)
    service = federation.serve(
        fold=ON_AND_ON,
        task={"codec": "float32", "settings": ()},
        publish=replace(PUBLISH, chunk_bytes=1024),
    )
    stub = Stub(LARGE)
    agent = federation.join(stub)
    before = service.engine.model.vector.copy()
    federation.until(lambda: federation.folded == 1)

    np.testing.assert_allclose(stub.delta, service.engine.model.vector - before, atol=1e-5)
    assert agent.transport.traffic.packets_sent > 100


def test_a_download_that_takes_long_is_not_begun_anew(found: Found) -> None:
    """Each chunk shows that it lives, although all together take longer than a pull may be silent."""
    federation = found(LARGE)
    federation.serve(task={"settings": ()}, publish=replace(PUBLISH, chunk_bytes=8192))
    broker = federation.broker
    chunks = [(topic, kept.payload) for topic, kept in broker._retained.items() if "/object/" in topic]
    for topic, _ in chunks:
        broker.publish(topic, b"", retain=True, expiry=None)
    agent = federation.join(Stub(LARGE))
    federation.settle()
    sent = agent.transport.traffic.packets_sent
    for topic, payload in chunks[:-1]:
        federation.now += PULL_SECONDS - 1
        federation.settle()
        broker.publish(topic, payload, retain=False, expiry=None)
        federation.settle()
    # each chunk costs its acknowledgement and the end of its subscription, and nothing else was asked for
    assert sent + 2 * len(chunks[:-1]) == agent.transport.traffic.packets_sent
    broker.publish(*chunks[-1], retain=False, expiry=None)
    federation.until(lambda: federation.folded == 1)

    assert 7 == len(chunks)


# Refused.


def test_a_refused_update_returns_to_the_residual(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is lost, and the agent goes on."""
    federation.serve(admission=AdmissionSettings(max_examples=EXAMPLES - 1))
    stub = Stub()
    agent = federation.join(stub)
    federation.until(lambda: agent._session.state is State.WAITING)

    assert [] == agent._outbox.pending()
    assert 0 == federation.folded
    np.testing.assert_allclose(stub.delta, residual(agent._outbox), atol=1e-6)
    assert "its content returns to the residual: sample-count: 20 examples" in caplog.text


def test_an_update_refused_for_its_norm_does_not_return(federation: Federation) -> None:
    """It would poison every later one."""
    federation.serve(admission=AdmissionSettings(max_norm=0.001))
    agent = federation.join(Stub())
    federation.until(lambda: agent._session.state is State.WAITING)

    assert [] == agent._outbox.pending()
    assert not residual(agent._outbox).any()


def test_a_refusal_that_comes_before_the_plan_waits_for_it(federation: Federation) -> None:
    """Only the plan tells to which model the update's content belongs."""
    federation.serve(admission=AdmissionSettings(max_examples=1))
    stub = Stub()
    agent = federation.join(stub)
    federation.until(lambda: stub.trained == 1, serve=False)
    federation.until(lambda: federation.uploads_waiting == 1, serve=False)
    federation.leave(agent)
    assert federation.service is not None
    federation.service.turn()  # refuses it
    plan = wire.pack_plan(federation.service.plan)
    broker = federation.broker
    broker.publish(TOPICS.plan, b"", retain=True, expiry=None)  # the broker has lost it
    again = federation.join(broken)
    federation.settle(serve=False)
    assert [1] == again._outbox.pending()
    broker.publish(TOPICS.plan, plan, retain=True, expiry=None)
    federation.settle(serve=False)

    assert [] == again._outbox.pending()
    np.testing.assert_allclose(stub.delta, residual(again._outbox), atol=1e-6)


def test_a_receipt_of_a_former_life_settles_nothing(federation: Federation) -> None:
    """The device was set up anew, and counts from 1 again."""
    federation.serve()
    agent = federation.join(Stub())
    federation.until(lambda: len(agent._outbox) == 1, serve=False)
    for client, epoch in (("device", agent._outbox.epoch + 1), ("other", agent._outbox.epoch)):
        receipt = Receipt(client=ClientId(client), epoch=epoch, high_water=99)
        federation.broker.publish(
            TOPICS.receipt("device"), wire.pack_receipt(receipt), retain=True, expiry=None
        )
        federation.settle(serve=False)

    assert [1] == agent._outbox.pending()


# Away, lost, refused by the broker.


def test_uploads_are_held_while_the_aggregator_is_away(federation: Federation) -> None:
    """Nothing is published, nothing is forgotten, and it goes as soon as the aggregator is back."""
    federation.serve()
    trainer = Gated()
    agent = federation.join(trainer)
    federation.while_training(agent, trainer, lambda: federation.broker.block(AGGREGATOR))
    federation.until(lambda: len(agent._outbox) == 1)
    federation.now += 10 * RESEND
    federation.settle()

    assert agent._session.state is State.IDLE
    assert 0 == federation.uploads_waiting
    federation.broker.unblock(AGGREGATOR)
    federation.until(lambda: federation.folded == 1)
    federation.until(lambda: len(agent._outbox) == 0)


def test_an_update_that_the_broker_lost_is_sent_again_and_counted_once(federation: Federation) -> None:
    """The PUBACK came, the message never did (law 4)."""
    federation.serve()
    broker = federation.broker
    agent = federation.join(Stub(on_train=lambda: setattr(broker, "_session_queue", 0)))
    federation.until(lambda: any(letter.reason == "queue full" for letter in broker.dead_letters))
    federation.settle()
    broker._session_queue = 100
    federation.now += RESEND - 0.5
    federation.settle()
    assert (0, [1]) == (federation.folded, agent._outbox.pending())
    federation.now += 0.5
    federation.until(lambda: len(agent._outbox) == 0)

    assert federation.service is not None
    assert (1, 0) == (federation.folded, federation.service._chronicle.counters.duplicates)


def test_an_update_whose_receipt_was_lost_is_sent_again_and_counted_once(federation: Federation) -> None:
    """The duplicate gets the same receipt (law 3)."""
    service = federation.serve()
    agent = federation.join(Stub())
    federation.until(lambda: federation.uploads_waiting == 1, serve=False)
    federation.broker._session_queue = 0
    service.turn()  # folds; what it sends is lost
    federation.broker._session_queue = 100
    federation.settle()
    assert (1, [1]) == (federation.folded, agent._outbox.pending())
    federation.now += RESEND
    federation.until(lambda: len(agent._outbox) == 0)

    assert (1, 1) == (federation.folded, service._chronicle.counters.duplicates)


def test_a_broker_that_loses_everything_costs_nothing(federation: Federation) -> None:
    """Kill -9 without a disk: sessions, queues and retained messages are gone, the update is not."""
    federation.serve()
    agent = federation.join(Stub())
    federation.until(lambda: federation.uploads_waiting == 1, serve=False)
    federation.broker.stop(forget=True)
    federation.turn()
    federation.broker.start()
    federation.settle()
    federation.now += RESEND
    federation.until(lambda: len(agent._outbox) == 0)

    assert 1 == federation.folded


def test_a_connection_that_breaks_again_and_again_costs_nothing(federation: Federation) -> None:
    """At any point between two events."""
    federation.serve(fold=ON_AND_ON)
    federation.join(Stub())
    for turns in (1, 2, 3, 5, 8, 13, 21, 34):
        for _ in range(turns):
            federation.turn()
        federation.broker.disconnect("default-client-device")
        federation.turn()
        federation.now += RECEIPT_GRACE
    federation.until(lambda: federation.folded >= 5)

    assert federation.service is not None
    assert federation.service.engine.state.version == federation.folded


def test_an_update_that_nobody_takes_is_kept_and_retried(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """PUBACK 0x10: there is no subscription, so the message went nowhere."""
    federation.serve()
    updates = TOPICS.updates("0")
    agent = federation.join(Stub(on_train=lambda: federation.broker.unsubscribe(AGGREGATOR, updates)))
    federation.until(lambda: "No matching subscribers" in caplog.text)
    for wait in (2.0, 4.0):
        federation.settle()
        refusals = caplog.text.count("did not take update 1")
        federation.now += wait - 0.5
        federation.settle()
        assert refusals == caplog.text.count("did not take update 1")
        federation.now += 0.5
        federation.settle()
        assert refusals + 1 == caplog.text.count("did not take update 1")
    federation.broker.subscribe(AGGREGATOR, updates)
    federation.now += RESEND
    federation.until(lambda: len(agent._outbox) == 0)

    assert 1 == federation.folded


def test_a_second_agent_of_the_same_name_is_told_of(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """They throw each other out; the log says why."""
    federation.serve()
    federation.join(Stub(), folder="one")
    federation.join(Stub(), folder="two")
    federation.until(lambda: "another agent uses the client id device: give each" in caplog.text)


def test_connections_that_break_again_and_again_hint_at_a_second_agent(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Mosquitto does not say that another client took the id."""
    federation.serve()
    agent = federation.join(Stub())
    for count in (1, 2, 3):
        federation.until(lambda: agent._links._made_at is not None)
        federation.broker.disconnect("default-client-device")
        federation.until(lambda count=count: agent._links.short == count)

        assert ("perhaps another agent uses the client id device" in caplog.text) == (count == 3)


# Plans that this device cannot satisfy.


def broken(settings: Mapping[str, object], **own: object) -> Stub:
    """A factory with a mistake in it."""
    raise ZeroDivisionError("in the user's code")


def leaving(settings: Mapping[str, object], **own: object) -> Stub:
    """A factory that thinks it is a program."""
    raise SystemExit("usage: trainer …")


@pytest.mark.parametrize(
    ("trainer", "factory", "message"),
    [
        ("nonesuch", None, "one of mlp, torch-lenet, torch-mlp"),
        ("os:getcwd", None, "one of mlp, torch-lenet, torch-mlp"),
        ("mlp", broken, "trainer mlp cannot be made: ZeroDivisionError: in the user's code"),
        ("mlp", leaving, "SystemExit: usage"),
        ("mlp", Stub(ParamLayout((Segment(name="w", shape=(3,)),))), "another model than the plan: w [3]"),
    ],
)
def test_an_unusable_plan_is_refused_and_the_next_one_taken(
    federation: Federation,
    caplog: pytest.LogCaptureFixture,
    trainer: str,
    factory: TrainerFactory | None,
    message: str,
) -> None:
    """The log says what is missing, and the agent stays."""
    federation.serve(task={"trainer": trainer})
    agent = federation.join(factory)
    federation.settle()

    assert "this device cannot satisfy the plan" in caplog.text
    assert message in caplog.text
    assert agent._session.state is State.IDLE
    agent._factory = None if trainer != "mlp" else Stub()
    federation.serve(task={"trainer": "mlp", "local_epochs": 2})
    federation.until(lambda: federation.folded == 1)


def test_updates_are_delivered_although_the_new_plan_is_unusable(federation: Federation) -> None:
    """What was trained before wants its receipt, also when the trainer cannot be made any more."""
    federation.serve()
    agent = federation.join(Stub())
    federation.until(lambda: federation.uploads_waiting == 1, serve=False)
    federation.broker.stop(forget=True)
    federation.leave(agent)
    federation.broker.start()
    again = federation.join(broken)
    federation.settle()
    federation.now += RECEIPT_GRACE
    federation.until(lambda: federation.folded == 1)
    federation.until(lambda: len(again._outbox) == 0)


def test_a_changed_plan_is_followed_at_once(federation: Federation) -> None:
    """An agent that waits for a new version hears of it under the new plan, too."""
    federation.serve()
    stub = Stub()
    agent = federation.join(stub)
    federation.until(lambda: agent._session.state is State.WAITING)
    service = federation.serve(task={"local_epochs": 3})
    federation.settle()
    federation.join(Stub(), client="second")
    federation.until(lambda: service.engine.state.version == 1)
    federation.until(lambda: stub.trained == 2)

    assert federation.now < 1000.0 + PULL_SECONDS


def test_a_result_of_another_plan_is_thrown_away(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """The model changed while the device trained."""
    service = federation.serve()
    other = ParamLayout((Segment(name="w", shape=(3,)),))

    trainer = Gated()
    agent = federation.join(trainer)

    def change_the_plan() -> None:
        agent._factory = Stub(other)
        plan = wire.pack_plan(replace(service.plan, layout=other))
        federation.broker.publish(TOPICS.plan, plan, retain=True, expiry=None)

    federation.while_training(agent, trainer, change_the_plan)
    federation.until(lambda: "the plan changed during training" in caplog.text)

    assert agent._session.state is State.SLEEPING
    assert [] == agent._outbox.pending()


def test_what_is_no_plan_changes_nothing(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    """Nor what is no receipt and no birth: the agent says so and goes on."""
    federation.serve(fold=ON_AND_ON)
    federation.join(Stub())
    federation.until(lambda: federation.folded == 1)
    for topic in (TOPICS.plan, TOPICS.receipt("device"), TOPICS.aggregator("0"), TOPICS.model):
        federation.broker.publish(topic, b"\x01garbage", retain=False, expiry=None)
        federation.broker.publish(topic, b"", retain=False, expiry=None)
    federation.until(lambda: federation.folded == 4)

    assert 3 <= caplog.text.count("ignored a message on ")


# Full, restarted, failing.


@pytest.mark.parametrize("bounds", [{"max_updates": 2}, {"max_bytes": 100}])
def test_a_full_outbox_waits_and_then_goes_on(federation: Federation, bounds: Mapping[str, int]) -> None:
    """By number or by bytes; the next training begins with the receipt."""
    federation.serve(fold=ON_AND_ON)
    stub = Stub()
    agent = federation.join(stub, bounds=bounds)
    while not agent._outbox.is_full:  # no receipt comes
        federation.settle(serve=False)
        federation.now += RECEIPT_WAIT
    held = stub.trained
    federation.now += 5 * PULL_SECONDS
    federation.settle(serve=False)

    assert held == stub.trained == len(agent._outbox)
    federation.until(lambda: stub.trained > held + 1)


def test_an_agent_that_is_started_again_sends_what_has_no_receipt(federation: Federation) -> None:
    """From the same folder, under the same numbers."""
    federation.serve()
    trainer = Gated()
    agent = federation.join(trainer)
    federation.while_training(agent, trainer, lambda: federation.broker.block(AGGREGATOR))
    federation.until(lambda: len(agent._outbox) == 1)
    federation.leave(agent)
    federation.broker.unblock(AGGREGATOR)
    again = federation.join(Stub())
    assert [1] == again._outbox.pending()
    federation.settle()
    federation.now += RECEIPT_GRACE
    federation.until(lambda: 1 not in again._outbox.pending())

    assert federation.folded >= 1


def test_a_trainer_that_fails_is_rested_on_and_tried_again(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """A little longer each time; the log has the trainer's own traceback."""
    failures = iter([ValueError("no data today"), SystemExit(2)])

    def fail() -> None:
        if (error := next(failures, None)) is not None:
            raise error

    federation.serve()
    stub = Stub(on_train=fail)
    agent = federation.join(stub)
    for rest in (REST_SECONDS, 2 * REST_SECONDS):
        federation.until(lambda: agent._session.state is State.SLEEPING)
        federation.now += rest - 0.5
        federation.settle()
        assert agent._session.state is State.SLEEPING
        federation.now += 0.5
        federation.turn()
    federation.until(lambda: federation.folded == 1)

    assert 3 == stub.trained
    assert "ValueError: no data today" in caplog.text


def test_a_training_that_diverges_is_told_and_thrown_away(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """The real trainer with a learning rate beyond reason."""
    shape = (("features", FEATURES), ("hidden", HIDDEN), ("classes", CLASSES))
    federation.serve(
        task={"settings": (*shape, ("learning_rate", 1e38), ("batch_size", 2)), "local_epochs": 5}
    )
    agent = federation.join()
    federation.until(lambda: agent._session.state is State.SLEEPING)

    assert [] == agent._outbox.pending()
    assert "the training's result cannot be used and is thrown away: cannot encode nan" in caplog.text
    assert "check the training, the learning rate first" in caplog.text


def test_an_update_that_the_full_disk_does_not_take_is_written_later(
    found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in memory, and nothing is trained meanwhile."""
    federation = found(LARGE)
    federation.serve(task={"settings": ()})
    stub = Stub(LARGE)
    agent = federation.join(stub)
    agent._outbox._db.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead
    federation.until(lambda: "kept in memory until it can be written" in caplog.text)
    federation.now += DISK_RETRY_SECONDS - 0.5
    federation.settle()
    assert ([], 1) == (agent._outbox.pending(), stub.trained)
    assert 1 == caplog.text.count("disk is full")
    federation.now += 0.5
    federation.settle()
    assert 2 == caplog.text.count("disk is full")
    agent._outbox._db.execute("PRAGMA max_page_count = 1000000")
    federation.now += DISK_RETRY_SECONDS
    federation.until(lambda: federation.folded == 1)

    assert 1 == stub.trained


def test_a_receipt_that_the_disk_does_not_take_is_kept(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """The update stays until the outbox can be written; what was folded is not counted again."""
    federation.serve(fold=ON_AND_ON)
    stub = Stub()
    agent = federation.join(stub, bounds={"max_updates": 1})
    federation.until(lambda: federation.uploads_waiting == 1, serve=False)
    agent._outbox._db.execute("PRAGMA query_only = ON")
    federation.until(lambda: "The receipt is kept" in caplog.text)
    federation.settle()
    assert [1] == agent._outbox.pending()
    assert 1 == stub.trained
    agent._outbox._db.execute("PRAGMA query_only = OFF")
    federation.now += DISK_RETRY_SECONDS - 0.5
    federation.settle()
    assert [1] == agent._outbox.pending()
    federation.now += 0.5
    federation.until(lambda: stub.trained == 2)

    assert 1 == caplog.text.count("The receipt is kept")


def test_metrics_of_any_name_do_not_end_the_agent(federation: Federation) -> None:
    """The diary has fields of its own."""
    metrics = dict.fromkeys(["loss", "kind", "seq", "version", "client", "sent", "time", "self"], 0.5)

    class Measured(Stub):
        def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
            return replace(super().train(base, task, should_stop), metrics=metrics)

    federation.serve()
    federation.join(Measured())
    federation.until(lambda: federation.folded == 1)

    trained = [
        line for line in (federation.folder / "device.jsonl").read_text().splitlines() if "trained" in line
    ]
    assert 1 == len(trained)
    assert '"loss": 0.5' in trained[0]
    assert '"seq": 1' in trained[0]


# Everything at once.


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_and_nothing_is_counted_twice(found: Found, seed: int) -> None:
    """Promise 1: connections break, processes end, the broker forgets and doubles; each update is folded once."""
    federation = found(duplicate_rate=0.2, seed=seed)
    rng = random.Random(seed)
    service = federation.serve(fold=ON_AND_ON)
    agents = {client: federation.join(Stub(), client=client) for client in ("first", "second")}
    for _ in range(60):
        match rng.choice(
            ["agent", "aggregator", "broker", "forgetful broker", "link", "link", "time", "time"]
        ):
            case "agent":
                client = rng.choice(list(agents))
                federation.leave(agents[client])
                agents[client] = federation.join(Stub(), client=client)
            case "aggregator":
                service = federation.serve(fold=ON_AND_ON)
            case "broker" | "forgetful broker" as which:
                federation.broker.stop(forget=which == "forgetful broker")
                federation.turn()
                federation.broker.start()
            case "link":
                federation.broker.disconnect(
                    rng.choice([AGGREGATOR, *(f"default-client-{c}" for c in agents)])
                )
            case "time":
                federation.now += rng.choice([0.5, RECEIPT_GRACE, RESEND, PULL_SECONDS])
        for _ in range(rng.randrange(12)):
            federation.turn()

    def rest() -> None:
        raise InterruptedError("enough")

    for agent in agents.values():
        agent._trainer.on_train = rest  # type: ignore[union-attr]
    for _ in range(10):
        federation.settle()
        federation.now += RESEND

    made = {client: agent._outbox.next_seq - 1 for client, agent in agents.items()}
    assert [[], []] == [agent._outbox.pending() for agent in agents.values()]
    assert sum(made.values()) == service.engine.tally.folded > 10
    assert {} == dict(service.engine.tally.refused)


# The loop.


def test_run_ends_with_a_goodbye(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    """The presence says offline, the outbox is free for the next process, the training thread is gone."""
    caplog.set_level(logging.INFO)
    federation.serve()
    agent = federation.join(Stub(on_train=lambda: agent.stop()))
    federation.agents.clear()
    while agent._session.state is State.IDLE:
        agent.turn()
        assert federation.service is not None
        federation.service.turn()
    agent.run()

    message = federation.broker._retained[TOPICS.client("device")].payload
    presence = wire.unpack_presence(Kind.CLIENT, message)
    assert (PresenceState.OFFLINE, agent._outbox.epoch) == (presence.state, presence.epoch)
    assert not [thread for thread in threading.enumerate() if thread.name == "training"]
    Outbox(federation.folder / "device" / "outbox.db").close()


def test_a_name_that_cannot_stand_in_a_topic_is_refused(federation: Federation) -> None:
    """Before anything is opened or sent."""
    with pytest.raises(SettingError, match="setting client = 'pump/7'"):
        federation.join(client="pump/7")
