"""A process that is killed, by SIGKILL, at each of its steps in turn.

Run as a script with the name of a scenario and a folder. For n = 0, 1, 2, … it forks a child that plays the scenario in
`folder/n` and kills itself at its n-th step, until a child comes to its end unharmed. Steps are the boundaries of SQL
statements, which SQLite itself reports, and begin and end of the labelled methods, which are wrapped here: nothing of
this is in the code under test. What the child was told of, or made, it writes to a log that survives it.
"""

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.outlet import Outlet
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.recovery import recover
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings
from fedmq.edge_agent.trainer import Task, TrainResult
from fedmq.edge_agent.training import at_once
from fedmq.edge_agent.upload import Upload

from fedmq.layout import ParamLayout, Segment
from fedmq.topics import Topics
from fedmq.transport.base import Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import ParamVector

LAYOUT = ParamLayout((Segment(name="w", shape=(40,)),))
CODEC = "topk(0.2) | float32 | rice"
TOPICS = Topics("default")
#: What survives a child: pairs of a number and bytes.
Log = Callable[[list[Any]], object]
RECEIPT, ACKNOWLEDGED = range(2)
UPDATES = 4


def aggregator_settings(folder: Path) -> AggregatorSettings:
    """Snapshots and pruning happen every few records."""
    return AggregatorSettings(
        model=folder / "model.safetensors",
        fold=FoldSettings(strategy="fedbuff", buffer_size=2, momentum=0.5),
        task=TaskSettings(codec=CODEC, resend_seconds=5.0),
        store=StoreSettings(
            path=folder / "store.db",
            batch_delay=0.0,
            batch_size=3,
            snapshot_records=3,
            keep_snapshots=2,
            keep_records=2,
        ),
        publish=PublishSettings(min_interval=0.0),
        admission=AdmissionSettings(max_examples=100),
    )


class Witness(MemoryBroker):
    """A broker that writes down at once what it was told: receipts, and which messages were acknowledged."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        super().__init__(clock=clock)
        self._log = log

    def publish(self, topic: str, payload: bytes, *, retain: bool, expiry: float | None) -> bool:
        if topic.startswith(TOPICS.receipt("a")[:-1]):
            self._log([RECEIPT, payload])
        return super().publish(topic, payload, retain=retain, expiry=expiry)

    def acknowledge(self, client_id: str, packet_id: int) -> bool:
        message = self._sessions[client_id].in_flight.get(packet_id)
        if message is not None and message.topic.startswith(TOPICS.update("0", "a")[:-1]):
            self._log([ACKNOWLEDGED, message.payload])
        return super().acknowledge(client_id, packet_id)


class World:
    """A broker that dies with the process, an aggregator, and a clock."""

    def __init__(self, folder: Path, log: Log = lambda entry: None) -> None:
        self.now, self.folder = 1000.0, folder
        self.broker = Witness(log, self.clock)
        self.store = Store(folder / "store.db")
        self.service = Service(aggregator_settings(folder), self.store, self.connect, self.clock)
        self.service._transport.start()
        self.service.turn()  # subscribes

    def clock(self) -> float:
        return self.now

    def connect(self, client_id: str, will: Will | None = None, expiry: int = 0) -> MemoryTransport:
        return MemoryTransport(
            self.broker, client_id, will=will, clean_start=expiry == 0, session_expiry=expiry
        )

    def agent(self, log: Log, updates: int) -> tuple[Agent, Outbox]:
        """A device, over the outbox that is there, that makes updates up to a number."""
        outbox = Outbox(self.folder / "outbox.db", max_updates=2)
        trainer = Trainer(log, outbox, updates)
        settings = AgentSettings(client="d", outbox=OutboxSettings(folder=self.folder))
        agent = Agent(settings, outbox, self.connect, trainer, self.clock, spawn=at_once)
        agent.transport.start()
        return agent, outbox

    def submit(self, messages: list[tuple[str, bytes]]) -> None:
        """Clients that send two at a time."""
        clients = self.connect("clients")
        clients.start()
        for start in range(0, len(messages), 2):
            for client, message in messages[start : start + 2]:
                clients.publish(TOPICS.update("0", client), message)
            for _ in range(4):
                self.service.turn()
            while not self.broker.drained:
                self.service.turn()


class Trainer:
    """Makes some updates, every third of which claims too many examples and is refused; each goes to the log first."""

    layout = LAYOUT

    def __init__(self, log: Log, outbox: Outbox, updates: int) -> None:
        self._log, self._outbox, self._updates = log, outbox, updates

    def __call__(self, settings: Mapping[str, object], **own: object) -> "Trainer":
        return self

    def initial(self) -> ParamVector:
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        seq = self._outbox.next_seq
        if seq > self._updates:
            raise RuntimeError("enough")
        delta = np.random.default_rng(task.seed).normal(size=LAYOUT.size).astype(np.float32)
        self._log([seq, delta.tobytes()])
        return TrainResult(vector=base + delta, num_examples=5 if seq % 3 else 5000, local_steps=1)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        return {}


def play_create(folder: Path, log: Log) -> None:
    """The first start of an aggregator: the file, its tables, the first snapshot."""
    store = Store(folder / "store.db")
    recover(aggregator_settings(folder), store)
    store.close()


def play_aggregator(folder: Path, log: Log) -> None:
    """Updates of several clients, folded, refused, in chunks, twice; snapshots, pruning, and a goodbye."""
    world = World(folder, log)
    world.submit(msgpack.unpackb((folder / "messages").read_bytes()))
    world.service._leave()
    world.store.close()


def play_agent(folder: Path, log: Log) -> None:
    """Some updates from training to the receipt."""
    world = World(folder)
    agent, outbox = world.agent(log, UPDATES)
    for _ in range(400):
        agent.turn()
        world.service.turn()
        if outbox.next_seq > UPDATES and not len(outbox):
            return
    raise AssertionError(f"it did not end: {outbox.pending()}, {agent._session.state}")


#: For each scenario what it plays, which file's SQL statements are its steps, and which methods.
Methods = tuple[tuple[type, str], ...]
SCENARIOS: dict[str, tuple[Callable[[Path, Log], None], str, Methods]] = {
    "create": (play_create, "store.db", ((Store, "save_snapshot"),)),
    "aggregator": (
        play_aggregator,
        "store.db",
        (
            (Store, "append"),
            (Store, "save_snapshot"),
            (Engine, "offer"),
            (Engine, "commit"),
            (MemoryTransport, "_acknowledge"),
            (Outlet, "send"),
            (Outlet, "flush"),
        ),
    ),
    "agent": (
        play_agent,
        "outbox.db",
        (
            (Outbox, "put"),
            (Outbox, "forget"),
            (Outbox, "give_up"),
            (Upload, "send"),
            (Upload, "take"),
            (Agent, "_settle"),
        ),
    ),
}


class Steps:
    """Counts them, and kills the process at one."""

    def __init__(self, fatal: int, folder: Path) -> None:
        self._left, self._folder = fatal, folder

    def pass_by(self, label: str) -> None:
        if self._left == 0:
            (self._folder / "label").write_text(label)
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def wrap(self, owner: type, name: str) -> None:
        original = vars(owner)[name]

        @wraps(original)
        def step(*args: Any, **options: Any) -> Any:
            self.pass_by(f"before {owner.__name__}.{name}")
            result = original(*args, **options)
            self.pass_by(f"after {owner.__name__}.{name}")
            return result

        setattr(owner, name, step)

    def trace(self, file: str) -> None:
        connect = sqlite3.connect

        def traced(path: object, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(str(path), **options)
            if str(path).endswith(file):
                connection.set_trace_callback(lambda sql: self.pass_by(f"SQL {sql.split()[0]}"))
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]


def play(scenario: str, folder: Path, fatal: int) -> None:
    """In a child: to the end, or to the fatal step."""
    run, file, methods = SCENARIOS[scenario]
    steps = Steps(fatal, folder)
    steps.trace(file)
    for owner, name in methods:
        steps.wrap(owner, name)
    with (folder / "log").open("ab", buffering=0) as stream:
        run(folder, lambda entry: stream.write(msgpack.packb(entry)))


def main(scenario: str, root: Path) -> None:
    """Every step of a scenario, each in a copy of `root/template`."""
    for fatal in count():
        folder = root / str(fatal)
        shutil.copytree(root / "template", folder)
        child = os.fork()
        if not child:
            play(scenario, folder, fatal)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, f"the child failed at step {fatal}"
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


def logged(folder: Path) -> list[tuple[int, bytes]]:
    """What a child wrote to its log."""
    path = folder / "log"
    entries = msgpack.Unpacker(BytesIO(path.read_bytes())) if path.exists() else []
    return [(number, payload) for number, payload in entries]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
