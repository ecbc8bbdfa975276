"""A crowd: very many devices of which nothing is kept but what tells one from the other.

Each visits, sends one update that nobody learned, waits for its receipt, goes, and comes again. Its messages are real,
and so is the aggregator that takes them; its agent is not there. A few numbers in arrays are all that a device takes.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq import __version__, encoding, wire
from fedmq.codecs import parse_pipeline
from fedmq.envelope import Kind
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout
from fedmq.topics import last_level
from fedmq.types import ClientId, ModelUpdate, ModelVersion, ObjectRef, Presence, PresenceState, UpdateId

from .availability import window
from .distribution import Distribution, parse_distribution
from .scenario import Scenario, client_name
from .simulated_aggregator import SimulatedAggregator, head_objects
from .virtual_time import Agenda
from .visit import Visit

#: An outbox epoch as large as those that are drawn, so that it takes as many bytes; a device adds its number.
_FIRST_EPOCH: Final = 2**61
_DRAWN_AT_ONCE: Final = 4096
_PULL, _SEND = 0, 1
#: Half a round trip each: CONNECT and CONNACK, SUBSCRIBE and the plan, SUBSCRIBE of the model.
_LATENCIES_TO_HEAD: Final = 5


@dataclass(slots=True, kw_only=True)
class KindTotals:
    """What the devices of one kind did.

    Attributes:
        visits: begun.
        uplink_bytes: sent, as MQTT packets.
        downlink_bytes: received, likewise.
        present_seconds: from coming to going; of visits that have ended.
        training_seconds: of training that has ended.
    """

    visits: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    present_seconds: float = 0.0
    training_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Published:
    """The newest head, and what a device lacks by the head that it saw last."""

    number: int = -1
    payload: bytes = field(default=b"", repr=False)
    version: int = 0
    objects: list[ObjectRef] = field(default_factory=list)
    missing: dict[int, list[ObjectRef]] = field(default_factory=dict)


class Crowd:
    """All devices of a scenario.

    Args:
        scenario: what they are like.
        layout: the model's.
        agenda: virtual time.
        aggregator: where they send their updates.

    Attributes:
        totals: one for each kind of device.

    Raises:
        SettingError: an update is larger than one publish.
    """

    def __init__(
        self, scenario: Scenario, layout: ParamLayout, agenda: Agenda, aggregator: SimulatedAggregator
    ) -> None:
        self._scenario, self._layout, self._agenda, self._aggregator = scenario, layout, agenda, aggregator
        self._broker, self._topics = aggregator.broker, aggregator.topics
        self._shard, self._chunk_bytes = aggregator.settings.shard, aggregator.settings.publish.chunk_bytes
        self._payloads = _payloads(scenario, layout)
        if (size := max(map(len, self._payloads))) > self._chunk_bytes - 1024:
            raise SettingError(
                "publish.chunk_bytes",
                self._chunk_bytes,
                f"synthetic updates travel whole: they take {size} bytes",
            )
        self._birth, self._goodbye = map(_presence_bytes, (PresenceState.ONLINE, PresenceState.OFFLINE))
        self.totals = [KindTotals() for _ in scenario.devices]
        count, random = scenario.data.clients, np.random.default_rng([scenario.seed, 2])
        self._kind = np.repeat(np.arange(len(scenario.devices), dtype=np.uint16), scenario.counts())
        self._seconds = np.empty(count, np.float32)
        self._shift = random.uniform(-0.5, 0.5, count).astype(np.float32)
        self._seq = np.zeros(count, np.uint32)
        self._base = np.zeros(count, np.uint32)
        self._seen = np.full(count, -1, np.int32)  # the number of the head that it saw last
        self._came = np.zeros(count)  # when its present visit began, or its next one will
        self._heads: list[list[ObjectRef]] = []
        self._newest = _Published()
        self._away = [
            _draws(random, parse_distribution("away", k.availability.away)) for k in scenario.devices
        ]
        self._jitter = [_draws(random, parse_distribution("jitter", k.jitter)) for k in scenario.devices]
        self._choice = _choices(random, len(self._payloads))
        self._queue: list[tuple[float, int]] = []
        self._receipts: dict[int, int] = {}  # bytes of each, by device
        self._ended = 0
        for number, kind in enumerate(scenario.devices):
            mine = np.flatnonzero(self._kind == number)
            seconds = parse_distribution("epoch_seconds", kind.epoch_seconds)
            self._seconds[mine] = scenario.task.local_epochs * seconds.draw_many(random, len(mine))
            joins = parse_distribution("joins", kind.availability.joins).draw_many(random, len(mine))
            for device, time in zip(mine.tolist(), joins.tolist(), strict=True):
                self._come(device, time)

    @property
    def next_time(self) -> float:
        """When the next device does something; infinity when all wait for receipts."""
        return self._queue[0][0] if self._queue else math.inf

    @property
    def is_ready(self) -> bool:
        """Whether there is a model to begin with."""
        return self._newest.number >= 0

    @property
    def present(self) -> int:
        """How many have begun a visit and wait for its end."""
        return sum(kind.visits for kind in self.totals) - self._ended

    def step(self) -> None:
        """Let the next device do what it is about to do."""
        time, code = heapq.heappop(self._queue)
        self._agenda.advance(time)
        device, stage = divmod(code, 2)
        if stage == _PULL:
            self._pull(device)
        else:
            self._send(device)

    def take_publish(self, topic: str, payload: bytes) -> None:
        """The aggregator has published something: a head, or somebody's receipt."""
        if topic == self._topics.model:
            head = wire.unpack_head(payload)
            self._heads.append([frame.content for frame in head.frames])
            self._newest = _Published(
                number=len(self._heads) - 1, payload=payload, version=head.version, objects=head_objects(head)
            )
            return
        client = last_level(topic)
        if topic == self._topics.receipt(client):
            self._receipts[int(client.rpartition("-")[2])] = len(payload)

    def take_receipts(self) -> None:
        """Let those go whose receipts were published since the last call."""
        receipts, self._receipts = self._receipts, {}
        # The order in which a batch's receipts are sent is any; durations are drawn in this one.
        for device in sorted(receipts):
            self._settle(device, receipts[device])

    def _come(self, device: int, time: float) -> None:
        """Let a device come, when the day allows it: the next thing it does is to read the head."""
        kind = self._scenario.devices[self._kind[device]]
        comes, _ = window(kind.availability, float(self._shift[device]), time)
        self._came[device] = comes
        reads = comes + _LATENCIES_TO_HEAD * kind.link.latency
        heapq.heappush(self._queue, (reads, 2 * device + _PULL))

    def _pull(self, device: int) -> None:
        number = int(self._kind[device])
        kind, totals, newest = self._scenario.devices[number], self.totals[number], self._newest
        client = client_name(device)
        visit = Visit(client, self._topics, self._scenario.topic_aliases)
        visit.begin(
            birth=self._birth,
            will=self._goodbye,
            plan=self._retained(self._topics.plan) or 0,
            aggregator=self._retained(self._topics.aggregator(self._shard)) or 0,
            receipt=self._retained(self._topics.receipt(client)),
            shard=self._shard,
        )
        missing = self._missing(device)
        visit.pull(head=len(newest.payload), missing=missing, chunk_bytes=self._chunk_bytes)
        self._seen[device], self._base[device] = newest.number, newest.version
        self._note(totals, visit)
        totals.visits += 1
        training = float(self._seconds[device]) * next(self._jitter[number])
        totals.training_seconds += training
        # The head's way here, and there and back again for the objects that it names.
        latencies = (3 if missing else 1) * kind.link.latency
        sends = self._agenda.now + latencies + _seconds(visit.down, kind.link.down) + training
        size = len(self._payloads[0])
        arrives = sends + kind.link.latency + _seconds(size, kind.link.up)
        heapq.heappush(self._queue, (arrives, 2 * device + _SEND))

    def _send(self, device: int) -> None:
        """An update is at the broker."""
        client, seq = client_name(device), int(self._seq[device]) + 1
        self._seq[device] = seq
        engine, task = self._aggregator.engine, self._scenario.task
        message = wire.pack_update(
            ModelUpdate(
                id=UpdateId(client=ClientId(client), epoch=_FIRST_EPOCH + device, seq=seq),
                floor=seq,
                model_epoch=engine.epoch,
                base_version=ModelVersion(int(self._base[device])),
                fingerprint=self._layout.fingerprint,
                num_examples=1000,
                local_steps=32,
                codec=task.codec,
                payload=self._payloads[next(self._choice)],
                metrics=(("loss", 1.0),),
            )
        )
        visit = Visit(client, self._topics, 0)
        visit.send(update=len(message), shard=self._shard)
        self._note(self.totals[self._kind[device]], visit)
        self._broker.publish(self._topics.update(self._shard, client), message, retain=False, expiry=None)

    def _settle(self, device: int, receipt: int) -> None:
        """A device has its receipt, and goes."""
        number = int(self._kind[device])
        kind, totals = self._scenario.devices[number], self.totals[number]
        topic_aliases = self._scenario.topic_aliases
        visit = Visit(client_name(device), self._topics, topic_aliases)
        visit.end(goodbye=self._goodbye, receipt=receipt)
        self._note(totals, visit)
        self._ended += 1
        goes = self._agenda.now + kind.link.latency
        totals.present_seconds += goes - float(self._came[device])
        self._come(device, goes + next(self._away[number]))

    def _missing(self, device: int) -> list[ObjectRef]:
        """The objects that a device lacks: it has kept the frames of the head that it saw last."""
        newest, seen = self._newest, int(self._seen[device])
        found = newest.missing.get(seen)
        if found is None:
            kept = self._heads[seen] if seen >= 0 else []
            found = newest.missing[seen] = [ref for ref in newest.objects if ref not in kept]
        return found

    def _retained(self, topic: str) -> int | None:
        payload = self._broker.retained(topic)
        return None if payload is None else len(payload)

    @staticmethod
    def _note(totals: KindTotals, visit: Visit) -> None:
        totals.uplink_bytes += visit.up
        totals.downlink_bytes += visit.down


def _payloads(scenario: Scenario, layout: ParamLayout) -> list[bytes]:
    """Updates as the codec makes them of differences with heavy tails, as those of networks are."""
    random = np.random.default_rng([scenario.seed, 3])
    pipeline = parse_pipeline(scenario.task.codec)
    return [
        encoding.encode(layout, pipeline, (0.001 * random.standard_t(3, layout.size)).astype(np.float32))
        for _ in range(scenario.synthetic.payloads)
    ]


def _presence_bytes(state: PresenceState) -> int:
    """What a device's birth or goodbye takes."""
    presence = Presence(state=state, boot=_FIRST_EPOCH, epoch=_FIRST_EPOCH, software=f"fedmq {__version__}")
    return len(wire.pack_presence(Kind.CLIENT, presence))


def _draws(random: np.random.Generator, distribution: Distribution) -> Iterator[float]:
    while True:
        yield from distribution.draw_many(random, _DRAWN_AT_ONCE).tolist()


def _choices(random: np.random.Generator, count: int) -> Iterator[int]:
    while True:
        drawn: NDArray[np.int64] = random.integers(count, size=_DRAWN_AT_ONCE)
        yield from drawn.tolist()


def _seconds(size: int, rate: float | None) -> float:
    return size / rate if rate else 0.0
