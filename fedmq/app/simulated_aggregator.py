"""The simulated federation's other side: production's aggregator, and a broker, in virtual time."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from fedmq import wire
from fedmq.aggregator.deadline import NOBODY
from fedmq.aggregator.decision import Record
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Key
from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.store import ChunkChanges, Store
from fedmq.edge_agent.training import at_once
from fedmq.layout import ParamLayout
from fedmq.modelfile import save_model
from fedmq.plan import DEFAULT_CHUNK_BYTES, Scalar
from fedmq.topics import Topics
from fedmq.transport.base import Will
from fedmq.transport.memory import MemoryBroker
from fedmq.types import ModelHead, ObjectRef, ParamVector, Receipt

from .runlog import Fold, Publish, Refusal
from .scenario import LinkSettings, Scenario
from .simulated_link import VirtualTransport, VirtualWire
from .tutor import make_tutor
from .virtual_time import Agenda, Party

#: What happens at the aggregator.
News: TypeAlias = Fold | Refusal | Publish

#: Room for topic and header beside a chunk's bytes.
_PACKET_OVERHEAD: Final = 1024
#: Its turn comes after those of all devices.
_RANK: Final = 2**62


class SimulatedAggregator:
    """An aggregator at a broker of its own.

    Args:
        scenario: what is played.
        trainer_settings: what the plan tells the trainer.
        layout: the model's.
        vector: the first model.
        folder: for the store.
        agenda: virtual time.
        on_news: told what was folded, refused and published.
        on_turn: called after each turn in which something was folded or refused.
        on_publish: told of everything that is published.

    Attributes:
        broker: where devices connect.
        transport: the aggregator's own.
        settings: the aggregator's.
        topics: of the federation.

    Raises:
        FedmqError: a setting cannot be used.
    """

    def __init__(
        self,
        scenario: Scenario,
        trainer_settings: Mapping[str, Scalar],
        layout: ParamLayout,
        vector: ParamVector,
        *,
        folder: Path,
        agenda: Agenda,
        on_news: Callable[[News], None],
        on_turn: Callable[[], None] = lambda: None,
        on_publish: Callable[[str, bytes], None] = lambda topic, payload: None,
    ) -> None:
        model = folder / "initial.safetensors"
        save_model(model, layout, vector)
        self.settings = settings = _settings(scenario, trainer_settings, model, folder / "aggregator.db")
        self.topics = Topics(settings.federation)
        self.broker = MemoryBroker(
            clock=agenda.clock,
            maximum_packet_size=max(settings.publish.chunk_bytes, DEFAULT_CHUNK_BYTES) + _PACKET_OVERHEAD,
            topic_alias_maximum=scenario.topic_aliases,
        )
        self._agenda, self._on_news, self._on_turn = agenda, on_news, on_turn
        self._on_publish = on_publish
        self._objects: Collection[ObjectRef] = ()
        self._party = Party(agenda, _RANK, self._take_turns, delay=settings.store.batch_delay)
        self._store = _WatchedStore(settings.store.path)
        try:
            tutor = make_tutor(settings, at_once)
            self._service = Service(settings, self._store, self._connect, agenda.clock, tutor)
        except BaseException:
            self._store.close()
            raise
        self.transport.start()
        self._party.wake()

    @property
    def engine(self) -> Engine:
        """The state of the federation."""
        return self._service.engine

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    def _connect(self, client_id: str, will: Will, expiry: int) -> VirtualTransport:
        line = VirtualWire(self._agenda, LinkSettings(), self._party.wake)
        self.transport = VirtualTransport(self.broker, client_id, will, expiry, line)
        self.transport.published = self._note_publish
        return self.transport

    def _take_turns(self) -> float:
        return self.transport.exhaust(self._take_turn)

    def _take_turn(self) -> None:
        self._service.turn()
        if self._store.news:
            for record in self._store.take_news():
                if record.id.client != NOBODY:
                    self._on_news(self._settled(record))
            self._on_turn()

    def _settled(self, record: Record) -> News:
        now, client, seq = self._agenda.now, record.id.client, record.id.seq
        if record.refusal is not None:
            return Refusal(t=now, client=client, seq=seq, reason=str(record.refusal.reason))
        return Fold(
            t=now,
            client=client,
            seq=seq,
            base_version=record.base_version,
            version=record.version,
            staleness=record.staleness,
            bytes=len(record.message),
        )

    def _note_publish(self, topic: str, payload: bytes) -> None:
        self._on_publish(topic, payload)
        if topic != self.topics.model:
            return
        head = wire.unpack_head(payload)
        objects = head_objects(head)
        new = sum(ref.size for ref in objects if ref not in self._objects)
        self._objects = objects
        self._on_news(
            Publish(
                t=self._agenda.now,
                version=head.version,
                frame_bytes=0 if head.delta else new,
                delta_bytes=len(payload) + (new if head.delta else 0),
            )
        )


def head_objects(head: ModelHead) -> list[ObjectRef]:
    """The objects that a head names, each once: its frames, and its delta when that is not in the head itself."""
    refs = [frame.content for frame in head.frames]
    if head.delta is not None and isinstance(head.delta.content, ObjectRef):
        refs.append(head.delta.content)
    return list(dict.fromkeys(refs))


class _WatchedStore(Store):
    """Production's store, which tells what it has made durable."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.news: list[Record] = []

    def take_news(self) -> Iterable[Record]:
        """What was made durable since the last call."""
        news, self.news = self.news, []
        return news

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


def _settings(
    scenario: Scenario, trainer_settings: Mapping[str, Scalar], model: Path, store: Path
) -> AggregatorSettings:
    fold = scenario.fold
    if fold.strategy == "fedavg" and fold.buffer_size is None:
        fold = replace(fold, buffer_size=scenario.data.clients)
    return AggregatorSettings(
        model=model,
        task=replace(scenario.task, settings=tuple(trainer_settings.items())),
        fold=fold,
        admission=scenario.admission,
        trust=scenario.trust,
        reputation=scenario.reputation,
        prune=scenario.prune,
        allocate=scenario.allocate,
        publish=scenario.publish,
        store=replace(scenario.store, path=store),
    )
