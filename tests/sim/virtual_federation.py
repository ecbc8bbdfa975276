"""A whole federation in one thread and in virtual time, with an independent account of what became of each update.

Everything but the broker is what runs in production: `Service`, `Agent`, their files. Parties take turns when they are
told to, training happens within an agent's turn, and a fuse kills whoever runs at any labelled step: nothing that a
party does behind it reaches the disk or the broker. A killed party's files are copied as they lie there, and the
next life works on the copy, so that nothing is closed, flushed or rolled back that a SIGKILL would not.

The account is kept beside the code under test: `finished` is what was put into outboxes, `journal` what was made
durable, `reference` an engine that folds the journal and never dies.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.audit import verify
from fedmq.aggregator.decision import Record
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.state import pack_state, unpack_state
from fedmq.aggregator.store import Store
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings
from fedmq.edge_agent.trainer import Task, TrainResult
from fedmq.edge_agent.training import at_once

from fedmq import encoding, wire
from fedmq.codecs import pipeline_from_wire
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import save_model
from fedmq.transport.base import Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import ClientId, ParamVector, UpdateId

AGGREGATOR = "default-aggregator-0"
#: Without a sparse codec an update takes three chunks, so that chunks are in play, too.
LAYOUT = ParamLayout((Segment(name="w", shape=(400,)),))
CHUNK_BYTES = 1024
RESEND = 5.0
#: Deltas are about 1: float32 rounds the sums by far less, and a whole update is far more.
TOLERANCE = 1e-2


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Kills whoever runs at the n-th step from now on; a step begins and ends at each of the labelled methods."""

    def __init__(self) -> None:
        self.steps: int | None = None

    def burn(self) -> None:
        if self.steps is None:
            return
        if self.steps == 0:
            self.steps = None
            raise Killed
        self.steps -= 1


class Trainer:
    """Every result is the base plus a vector of its own; unwilling, it fails instead."""

    layout = LAYOUT

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.delta = np.zeros(LAYOUT.size, np.float32)
        self.willing = True

    def __call__(self, settings: Mapping[str, object], **own: object) -> "Trainer":
        return self

    def initial(self) -> ParamVector:
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        if not self.willing:
            raise RuntimeError("enough")
        self.delta = self._random.normal(size=LAYOUT.size).astype(np.float32)
        return TrainResult(vector=base + self.delta, num_examples=10, local_steps=1)

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        return {}


@dataclass(slots=True, kw_only=True, eq=False)
class Device:
    """A client through all of its lives.

    Attributes:
        name: its client id.
        trainer: survives, since it keeps the account of what it made.
        home: its folder; another one after each kill.
        agent: its present life.
        outbox: likewise.
        lives: how many there were.
        max_updates: the outbox's bound.
        trained_from: newest version that this life trained from.
    """

    name: ClientId
    trainer: Trainer
    home: Path
    agent: Agent = field(init=False)
    outbox: Outbox = field(init=False)
    lives: int = 0
    max_updates: int = 3
    trained_from: int = -1


class Federation:
    """One broker, one aggregator, some devices, one clock.

    Args:
        folder: for all files.
        devices: how many.
        fold: how updates are folded.
        seed: of everything random.
    """

    def __init__(
        self, folder: Path, *, devices: int, fold: FoldSettings, seed: int = 0, duplicate_rate: float = 0.2
    ) -> None:
        self.folder, self.now, self.fuse = folder, 1000.0, Fuse()
        self.finished: dict[UpdateId, ParamVector] = {}
        self.journal: dict[UpdateId, Record] = {}
        self.deleted: set[int] = set()
        self.recoveries = 0
        self.broker = MemoryBroker(
            clock=lambda: self.now,
            maximum_packet_size=CHUNK_BYTES + 300,
            duplicate_rate=duplicate_rate,
            seed=seed,
        )
        save_model(folder / "model.safetensors", LAYOUT, np.zeros(LAYOUT.size, np.float32))
        self.settings = AggregatorSettings(
            model=folder / "model.safetensors",
            fold=fold,
            task=TaskSettings(codec="topk(0.1) | float32 | rice", resend_seconds=RESEND),
            store=StoreSettings(
                path=folder / "0" / "store.db",
                batch_delay=0.0,
                batch_size=3,
                snapshot_records=4,
                keep_snapshots=2,
            ),
            publish=PublishSettings(
                min_interval=0.0,
                keyframe_codec="float32",
                frame_codec="topk(0.3) | float32 | rice",
                delta_codec="topk(0.5) | float16 | bitmap",
                frame_versions=2,
                max_frames=4,
                chunk_bytes=CHUNK_BYTES,
            ),
        )
        self.devices = [
            Device(name=ClientId(f"d{i}"), trainer=Trainer(1000 * seed + i), home=folder / f"d{i}-0")
            for i in range(devices)
        ]
        self.reference: Engine | None = None
        with _watched(self):
            self.serve()
            for device in self.devices:
                self.join(device)

    # Lives.

    def serve(self) -> None:
        """A new life of the aggregator, over the store as it lies there."""
        self.store = Store(self.settings.store.path)
        self.service = Service(self.settings, self.store, self._connect, lambda: self.now)
        if self.reference is None:
            self.reference = _copy(self.service.engine)
        self.service._transport.start()

    def join(self, device: Device) -> None:
        """A new life of a device, over its outbox as it lies there."""
        device.outbox = Outbox(device.home / "outbox.db", max_updates=device.max_updates)
        settings = AgentSettings(
            client=device.name,
            events=self.folder / f"{device.name}.jsonl",
            outbox=OutboxSettings(folder=device.home),
        )
        device.agent = Agent(
            settings, device.outbox, self._connect, device.trainer, lambda: self.now, spawn=at_once
        )
        device.trained_from = -1
        device.agent.transport.start()

    def _connect(self, client_id: str, will: Will, expiry: int = 0) -> MemoryTransport:
        return MemoryTransport(
            self.broker, client_id, will=will, clean_start=expiry == 0, session_expiry=expiry
        )

    # What they do.

    def turn(self, party: int) -> None:
        """Let one party do one thing: a device by its index, the aggregator by any other."""
        with _watched(self):
            if party < len(self.devices):
                self.devices[party].agent.turn()
            else:
                self.service.turn()

    def all_turn(self, times: int) -> None:
        """Let everybody do some things, in turn."""
        for _ in range(times):
            for party in range(len(self.devices) + 1):
                self.turn(party)

    # What is done to them.

    def client_id(self, party: int) -> str:
        """By which the broker knows a party."""
        return f"default-client-{self.devices[party].name}" if party < len(self.devices) else AGGREGATOR

    def kill(self, party: int, steps: int) -> None:
        """Kill a party `steps` steps from now, or when it has come no further in some turns."""
        self.fuse.steps = steps
        try:
            for _ in range(12):
                self.turn(party)
        except Killed:
            pass
        finally:
            self.fuse.steps = None
        if party < len(self.devices):
            self._replace(self.devices[party], self.devices[party].home)
        else:
            self.restart()

    def restart(self, codec: str | None = None) -> None:
        """Kill the aggregator where it stands, and start it again, perhaps with another plan."""
        self._end(self.service._transport)
        home = self.folder / str(self.recoveries + 1)
        path = _salvage(self.settings.store.path, home)
        self.store.close()
        self.service._events.close()
        shutil.rmtree(self.settings.store.path.parent)
        self.settings = replace(
            self.settings,
            task=replace(self.settings.task, codec=codec or self.settings.task.codec),
            store=replace(self.settings.store, path=path),
        )
        with _watched(self):
            self.serve()
        self.recoveries += 1
        assert self.reference is not None

        same = pack_state(self.reference) == pack_state(self.service.engine)
        assert same, "recovery is not the live state to the last bit"  # law 2

    def _replace(self, device: Device, source: Path | None) -> None:
        """A device dies, and its next life begins with the outbox that lies in a folder, or with none."""
        self._end(device.agent.transport)
        device.lives += 1
        home = self.folder / f"{device.name}-{device.lives}"
        epoch = device.outbox.epoch
        if source is not None:
            _salvage(source / "outbox.db", home)
        device.outbox.close()
        device.agent._events.close()
        shutil.rmtree(device.home)
        device.home = home
        with _watched(self):
            self.join(device)

        is_same = epoch == device.outbox.epoch
        assert is_same == (source is not None), "the numbers of two outboxes could be confused"

    def reimage(self, party: int) -> None:
        """A device loses all that it had."""
        self.deleted.add(self.devices[party].outbox.epoch)
        self._replace(self.devices[party], None)

    def back_up(self, party: int) -> Path:
        """Copy a device's outbox."""
        return _salvage(self.devices[party].home / "outbox.db", self.folder / "copy").parent

    def put_back(self, party: int, copy: Path) -> None:
        """A device's storage is replaced by an earlier copy of it."""
        self._replace(self.devices[party], copy)

    def _end(self, transport: Any) -> None:
        """The broker finds out that a party is gone, and publishes its will."""
        self.broker.disconnect(transport.client_id)
        transport.close()

    # The account.

    def note_put(self, outbox: Outbox, seq: int) -> None:
        """An update was finished."""
        device = next(device for device in self.devices if device.outbox is outbox)
        update = wire.unpack_update(outbox.get(seq).message)
        assert update.id not in self.finished, f"a number was used twice: {update.id}"
        self.finished[update.id] = device.trainer.delta.copy()

        assert device.trained_from <= update.base_version, "versions ran backwards"  # law 9
        device.trained_from = update.base_version

    def note_append(self, records: tuple[Record, ...]) -> None:
        """Records were made durable."""
        assert self.reference is not None
        for record in records:
            assert record.id in self.finished, f"never made: {record.id}"
            assert record.id not in self.journal, f"doubled: {record.id}"
            self.journal[record.id] = record
        self.reference.replay(replace(record, delta=None) for record in records)

    def drain(self) -> None:
        """Let everybody finish what there is, without further training."""
        self.broker.start()
        for party, device in enumerate(self.devices):
            device.trainer.willing = False
            self.broker.unblock(self.client_id(party))
        self.broker.unblock(AGGREGATOR)
        for _ in range(400):
            self.all_turn(4)
            if not any(map(len, (device.outbox for device in self.devices))):
                return
            self.now += 1.0
        waiting = {device.name: device.outbox.pending() for device in self.devices}
        raise AssertionError(f"they wait for ever: {waiting}")

    def check(self) -> None:
        """After `drain`: nothing lost, nothing counted twice, no mass lost, no damage."""
        wrong = [
            f"lost: {update_id}"
            for update_id in self.finished
            if update_id not in self.journal and update_id.epoch not in self.deleted
        ]
        for device in self.devices:
            made, folded = self.made_and_folded(device)
            left = device.outbox.residual(LAYOUT.fingerprint)
            kept = np.zeros_like(made) if left is None else left
            off = float(np.abs(made - folded - kept).max())
            if off > TOLERANCE:  # law 8
                wrong.append(f"the mass of {device.name} is off by {off}")
        wrong += verify(self.store).damage
        if wrong:
            raise AssertionError("; ".join(wrong))

    def made_and_folded(self, device: Device) -> tuple[ParamVector, ParamVector]:
        """The sum of what a device's present outbox was given, and of what the aggregator folded of it."""
        made, folded = (np.zeros(LAYOUT.size, np.float32) for _ in range(2))
        for update_id, delta in self.finished.items():
            if update_id.epoch != device.outbox.epoch:
                continue
            made += delta
            record = self.journal.get(update_id)
            if record is not None and record.refusal is None:
                update = wire.unpack_update(record.message)
                encoding.decode(LAYOUT, pipeline_from_wire(update.codec), update.payload).add_to(folded)
        return made, folded

    def close(self) -> None:
        for device in self.devices:
            device.outbox.close()
            device.agent._events.close()
        self.store.close()


#: Where a process may die: before and after each call of these.
_STEPS: tuple[tuple[type, str], ...] = (
    (Store, "append"),
    (Store, "save_snapshot"),
    (Engine, "commit"),
    (MemoryTransport, "publish"),
    (MemoryTransport, "_acknowledge"),
    (Outbox, "put"),
    (Outbox, "forget"),
    (Outbox, "give_up"),
)


@contextmanager
def _watched(federation: Federation) -> Iterator[None]:
    """While a party works, its steps burn the fuse, and what it makes durable goes into the account."""
    originals = [(owner, name, vars(owner)[name]) for owner, name in _STEPS]
    for owner, name, original in originals:
        setattr(owner, name, _step(federation, name, original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _step(federation: Federation, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def step(self: Any, *args: Any, **options: Any) -> Any:
        federation.fuse.burn()
        result = original(self, *args, **options)
        if name == "put":
            federation.note_put(self, result)
        elif name == "append":
            federation.note_append(args[0])
        federation.fuse.burn()
        return result

    return step


def _salvage(path: Path, home: Path) -> Path:
    """What a process leaves that is killed now: the file and its log, as they lie there."""
    home.mkdir()
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.copy(source, home / source.name)
    return home / path.name


def _copy(engine: Engine) -> Engine:
    return unpack_state(
        pack_state(engine), ledger=Ledger(), admission=AdmissionSettings(), max_update_bytes=10**6
    )
