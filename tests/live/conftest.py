"""A federation over real MQTT in which everything can be counted, twice over.

Each device's trainer adds 1 to that device's own parameter, the codecs lose nothing and each fold is a version. So the
model itself says how many updates of each device it holds, and the journal has to say the same.
"""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq.aggregator.audit import verify
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.recovery import restore
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import JournalEntry, Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.broker import Mosquitto, MosquittoMissingError
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.session import State
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings
from fedmq.edge_agent.trainer import Task, TrainResult

from fedmq.connection import ConnectionSettings
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import save_model
from fedmq.transport.base import Connected, Delivery, PublishAccepted, Will
from fedmq.transport.mqtt import MqttTransport
from fedmq.types import ParamVector

PATIENCE = 60.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass within {PATIENCE:g} s: {what}"
        time.sleep(0.005)  # between two looks: files and other processes tell nobody when they change


class Counting:
    """A trainer that adds 1 to its device's parameter, as often as it may."""

    def __init__(self, layout: ParamLayout, device: int) -> None:
        self.layout, self.device = layout, device
        self.finished = self.allowed = 0
        self._turns = threading.Semaphore(0)

    def __call__(self, settings: Mapping[str, object], **own: object) -> "Counting":
        """Its own factory."""
        return self

    def allow(self, times: int) -> None:
        """Let it train so many times more."""
        self.allowed += times
        for _ in range(times):
            self._turns.release()

    def initial(self) -> ParamVector:
        return np.zeros(self.layout.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        while not self._turns.acquire(timeout=0.05):
            if should_stop():
                raise InterruptedError("the agent was stopped")
        vector = base.copy()
        vector[self.device] += 1
        self.finished += 1
        return TrainResult(vector=vector, num_examples=1, local_steps=1)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        return {}


@dataclass(slots=True, kw_only=True, eq=False)
class Device:
    """One agent in a thread of its own."""

    agent: Agent
    trainer: Counting
    thread: threading.Thread

    @property
    def pending(self) -> int:
        """Updates without a receipt."""
        return len(self.agent._outbox)

    @property
    def is_uploaded(self) -> bool:
        """Whether the broker has acknowledged all that is in the outbox."""
        times = self.agent._session._due
        return len(times) == self.pending and None not in times.values()

    def stop(self) -> None:
        self.agent.stop()
        self.thread.join()


class Federation:
    """An aggregator and devices of one store, each connected to a port that the test names.

    Args:
        folder: for everything.
        port: of the broker, or of a proxy before it.
        size: parameters of the model.
    """

    def __init__(self, folder: Path, port: int, size: int = 8) -> None:
        self.folder, self.port = folder, port
        self.layout = ParamLayout((Segment(name="w", shape=(size,)),))
        self.devices: dict[int, Device] = {}
        self.finished: Counter[int] = Counter()
        self.service: Service | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.settings = AggregatorSettings(
            model=folder / "model.safetensors",
            fold=FoldSettings(
                buffer_size=1, staleness="constant", learning_rate=1.0, max_staleness=1_000_000
            ),
            publish=PublishSettings(
                min_interval=0.0,
                keyframe_codec="float32",
                frame_codec="topk(1.0) | float32 | bitmap",
                delta_codec="topk(1.0) | float32 | bitmap",
            ),
            task=TaskSettings(codec="topk(0.5) | float32 | rice", resend_seconds=0.5),
            store=StoreSettings(path=folder / "aggregator.db"),
            stats_interval=0.1,
        )
        save_model(folder / "model.safetensors", self.layout, np.zeros(size, np.float32))

    def connection(self, port: int | None = None) -> ConnectionSettings:
        return ConnectionSettings(
            host="127.0.0.1", port=port or self.port, reconnect_min=0.02, reconnect_max=0.1
        )

    def serve(self, *, port: int | None = None, **changes: Any) -> Service:
        """Start the aggregator in a thread, on the store that is there."""
        self.settings = replace(self.settings, **changes)
        broker = self.connection(port)

        def connect(client_id: str, will: Will, expiry: int) -> MqttTransport:
            return MqttTransport(
                broker.mqtt(client_id=client_id, will=will, session_expiry=expiry, max_queued=4096)
            )

        self.service = Service(self.settings, Store(self.settings.store.path), connect)
        self._thread = threading.Thread(target=self.service.run, name="aggregator")
        self._thread.start()
        return self.service

    @property
    def log(self) -> Path:
        """Of the aggregator that is a process."""
        return self.folder / "aggregator.log"

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the aggregator as a process, for signals, and for a look at its memory."""
        settings, broker = self.settings, self.connection()
        options = {
            "model": settings.model,
            "store-path": settings.store.path,
            "broker-port": broker.port,
            "broker-reconnect-min": broker.reconnect_min,
            "broker-reconnect-max": broker.reconnect_max,
            "fold-buffer-size": settings.fold.buffer_size,
            "fold-staleness": settings.fold.staleness,
            "fold-learning-rate": settings.fold.learning_rate,
            "fold-max-staleness": settings.fold.max_staleness,
            "publish-min-interval": settings.publish.min_interval,
            "publish-keyframe-codec": settings.publish.keyframe_codec,
            "publish-frame-codec": settings.publish.frame_codec,
            "publish-delta-codec": settings.publish.delta_codec,
            "task-codec": settings.task.codec,
            "task-resend-seconds": settings.task.resend_seconds,
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        log = self.log
        lives = log.read_text().count("serving") if log.exists() else 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedmq.app", "aggregator", *flags, *arguments],
                stdout=output,
                stderr=output,
            )
        wait_for(lambda: log.read_text().count("serving") > lives, "the aggregator is up")
        return self.process

    def join(self, number: int, *, port: int | None = None, allowed: int = 0, **outbox: int) -> Device:
        """Start a device, or start it again with the outbox that it had."""
        home = self.folder / f"device-{number}"
        trainer = Counting(self.layout, number)
        trainer.allow(allowed)
        broker = self.connection(port)
        settings = AgentSettings(
            client=f"device-{number}", outbox=OutboxSettings(folder=home), events=home / "diary.jsonl"
        )
        agent = Agent(
            settings,
            Outbox(home / "outbox.db", **outbox),
            lambda client_id, will: MqttTransport(broker.mqtt(client_id=client_id, will=will)),
            trainer,
        )
        thread = threading.Thread(target=agent.run, name=f"device-{number}")
        device = self.devices[number] = Device(agent=agent, trainer=trainer, thread=thread)
        thread.start()
        return device

    def leave(self, number: int) -> None:
        """End a device; its outbox stays."""
        device = self.devices.pop(number)
        device.stop()
        self.finished[number] += device.trainer.finished

    def journal(self) -> list[JournalEntry]:
        """What the store says, while the aggregator works on it."""
        store = Store(self.settings.store.path, read_only=True)
        try:
            return list(store.journal())
        finally:
            store.close()

    def train(self, times: int) -> None:
        """Let each device make so many updates more."""
        for device in self.devices.values():
            device.trainer.allow(times)

    def until_settled(self) -> None:
        """Wait until each device has trained as often as it may, and has a receipt for all of it."""

        def is_settled() -> bool:
            if any(device.pending for device in self.devices.values()):
                return False
            rows = Counter(entry.client for entry in self.journal())
            return all(
                rows[f"device-{number}"] >= self.finished[number] + device.trainer.allowed
                for number, device in self.devices.items()
            )

        wait_for(is_settled, "every update has its receipt")

    def until_training(self) -> None:
        """Wait until each device has begun another training, for which it only needs to be allowed."""
        ready = State.TRAINING
        wait_for(lambda: all(d.agent._session.state is ready for d in self.devices.values()), "all train")

    def audit(self) -> None:
        """End everything, and compare what was finished with what was folded, in journal and in model."""
        self.close()
        store = Store(self.settings.store.path)
        try:
            entries, engine, findings = list(store.journal()), restore(store), verify(store)
        finally:
            store.close()
        expected = {f"device-{number}": count for number, count in self.finished.items() if count}

        assert sum(expected.values()) > 0
        assert expected == dict(Counter(entry.client for entry in entries if not entry.reason))
        assert len(entries) == len({(entry.client, entry.epoch, entry.seq) for entry in entries})
        assert findings.damage == ()
        assert engine is not None
        counted = [self.finished[number] for number in range(self.layout.size)]
        assert counted == engine.state.vector.tolist()

    def stop_serving(self) -> None:
        """End the aggregator in good order."""
        if self.service is not None and self._thread is not None:
            self.service.stop()
            self._thread.join()
            self.service = self._thread = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def until(self, condition: Callable[[], object], what: str) -> None:
        """See `wait_for`."""
        wait_for(condition, what)

    def bystander(self, client_id: str, *, session_expiry: int = 0) -> MqttTransport:
        """A client that belongs to nobody, connected."""
        transport = MqttTransport(self.connection().mqtt(client_id=client_id, session_expiry=session_expiry))
        transport.start()
        event = transport.poll(PATIENCE)
        assert isinstance(event, Connected), event
        return transport

    def retained(self, topic: str) -> bytes | None:
        """What lies on a topic now; None when nothing does."""
        transport = self.bystander("look")
        try:
            transport.subscribe(topic)
            transport.subscribe("look/end")
            transport.publish("look/end", b"")  # comes back behind whatever is retained
            while (event := transport.poll(PATIENCE)) is not None:
                if isinstance(event, Delivery):
                    return event.payload if event.topic == topic else None
        finally:
            transport.close()
        raise AssertionError("the broker does not answer")

    def clear(self, topic: str) -> None:
        """Remove what is retained on a topic."""
        transport = self.bystander("clear")
        transport.publish(topic, b"", retain=True)
        assert isinstance(transport.poll(PATIENCE), PublishAccepted)
        transport.close()

    def close(self) -> None:
        for number in list(self.devices):
            self.leave(number)
        self.stop_serving()


@pytest.fixture
def new_federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    """Makes federations, and ends what is left of them."""
    made: list[Federation] = []

    def make(port: int, size: int = 8) -> Federation:
        made.append(Federation(tmp_path, port, size))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


@pytest.fixture
def new_mosquitto() -> Iterator[Callable[..., Mosquitto]]:
    """Makes mosquittos, started, and ends them."""
    made: list[Mosquitto] = []

    def make(config: str | None = None, port: int = 0) -> Mosquitto:
        try:
            made.append(Mosquitto(config, port=port))
        except MosquittoMissingError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        return made[-1].start()

    yield make
    for broker in made:
        broker.close()
