"""The agent: the shell around `EdgeSession`, with the clock, the disk, the socket and the training thread.

The main thread owns everything but the training itself: it takes events from the transport, asks the session what
to do, and does it. Training runs in a thread of its own, so that receipts are taken and updates sent again while it
lasts; its result comes back through a queue.
"""

import logging
import queue
import secrets
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fedmq import __version__, wire
from fedmq.chunks import checksum, split
from fedmq.codecs import Pipeline, parse_pipeline, pipeline_from_wire
from fedmq.envelope import Kind
from fedmq.errors import CodecError, FedmqError, StoreError, TransportError, WireError
from fedmq.eventlog import EventLog
from fedmq.plan import Plan
from fedmq.topics import Topics, check_name
from fedmq.transport.base import (
    Connected,
    Delivery,
    Disconnected,
    PublishAccepted,
    PublishRefused,
    PublishToken,
    SubscriptionRefused,
    Transport,
    Will,
)
from fedmq.types import (
    Chunk,
    ClientId,
    GlobalModel,
    ModelUpdate,
    ParamVector,
    Presence,
    PresenceState,
    UpdateId,
)

from . import session
from .download import Download
from .feedback import encode_with_feedback, give_back
from .frames import FrameCache
from .outbox import Outbox
from .session import EdgeSession
from .settings import AgentSettings
from .trainer import Task, Trainer, TrainerFactory, TrainingStoppedError, TrainResult, find_factory

log = logging.getLogger(__name__)

_DISK_RETRY_SECONDS: Final = 5.0
#: Room for an update's header and envelope beside a chunk's data.
_CHUNK_HEADER_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Finished:
    """What the training thread brings back."""

    model: GlobalModel
    result: TrainResult | None = None
    error: BaseException | None = field(default=None)


class Agent:
    """One edge agent.

    Args:
        settings: what the device's operator says.
        outbox: open; the agent closes it.
        connect: makes the transport from the client id and the will.
        factory: makes the trainer; None looks it up by `settings.trainer.factory` or the plan's name.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: AgentSettings,
        outbox: Outbox,
        connect: Callable[[str, Will], Transport],
        factory: TrainerFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_name("client", settings.client)
        self._settings, self._outbox, self._clock, self._factory = settings, outbox, clock, factory
        self._topics = Topics(settings.federation)
        self._client = ClientId(settings.client)
        self._events = EventLog(settings.events)
        self._boot = secrets.randbits(62) + 1
        will = Will(topic=self._topics.client(settings.client), payload=self._presence(PresenceState.OFFLINE))
        self.transport = connect(f"{settings.federation}-client-{settings.client}", will)
        self._session = EdgeSession(pending=outbox.pending(), max_pending=settings.outbox.max_updates)
        self._cache = FrameCache(settings.outbox.folder)
        self._plan: Plan | None = None
        self._plan_message = b""
        self._trainer: Trainer | None = None
        self._download: Download | None = None
        self._model: GlobalModel | None = None
        self._sending: dict[PublishToken, int] = {}
        self._finished: queue.SimpleQueue[_Finished] = queue.SimpleQueue()
        self._unsaved: _Finished | None = None
        self._retry_at = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Let `run` end soon. The one method that other threads and signals may call."""
        self._stopping.set()
        self.transport.wake()

    def run(self) -> None:
        """Work until `stop`, then say goodbye and close everything. The outbox keeps what has no receipt."""
        self.transport.start()
        self._note_state()
        try:
            while not self._stopping.is_set():
                self.turn()
            self._publish(
                self._topics.client(self._client), self._presence(PresenceState.OFFLINE), retain=True
            )
        finally:
            self._stopping.set()
            if self._thread is not None:
                self._thread.join()
            self.transport.close()
            self._outbox.close()
            self._note("away")
            self._events.close()

    def turn(self) -> None:
        """Wait for something to happen, and deal with it."""
        event = self.transport.poll(self._patience())
        before = self._session.state
        match event:
            case Connected():
                self._greet()
            case Disconnected(reason=reason, taken_over=taken_over):
                log.warning("no connection to the broker: %s", reason)
                if taken_over:
                    log.error("another agent uses the client id %s: give each device its own", self._client)
                if self._download is not None:
                    self._download.reset()
                self._do(session.Unlinked())
            case Delivery():
                self._take(event)
                event.ack()
            case PublishAccepted(token=token):
                self._outcome(token, None)
            case PublishRefused(token=token, reason=reason):
                self._outcome(token, reason)
            case SubscriptionRefused(topic_filter=topic_filter, reason=reason):
                log.error("the broker refuses the subscription to %s: %s", topic_filter, reason)
            case None:
                self._take_result()
                self._carry_out(self._session.tick(self._clock()))
        if self._session.state is not before:
            self._note_state()

    def _patience(self) -> float:
        """Seconds until something is due although nothing happens."""
        if not self._finished.empty():
            return 0.0
        due = self._session.next_tick()
        if self._unsaved is not None:
            due = min(self._retry_at, due) if due is not None else self._retry_at
        return 60.0 if due is None else min(max(due - self._clock(), 0.0), 60.0)

    def _greet(self) -> None:
        topics = self._topics
        for topic in (
            topics.plan,
            topics.receipt(self._client),
            topics.aggregator(self._settings.shard),
        ):
            self.transport.subscribe(topic)
        self._publish(topics.client(self._client), self._presence(PresenceState.ONLINE), retain=True)
        self._do(session.Linked())

    def _take(self, delivery: Delivery) -> None:
        topics, payload = self._topics, delivery.payload
        if not payload:
            return  # a cleared topic
        try:
            if delivery.topic == topics.plan:
                self._take_plan(payload)
            elif delivery.topic == topics.receipt(self._client):
                self._take_receipt(payload)
            elif delivery.topic == topics.aggregator(self._settings.shard):
                presence = wire.unpack_presence(Kind.AGGREGATOR, payload)
                online = presence.state is PresenceState.ONLINE
                self._do(session.AggregatorSeen(online=online, boot=presence.boot))
            elif self._download is not None:
                self._download.take(delivery)
        except WireError as error:
            log.warning("ignored a message on %s: %s", delivery.topic, error)

    def _take_plan(self, payload: bytes) -> None:
        if payload == self._plan_message and self._plan is not None:
            return
        plan = wire.unpack_plan(payload)
        usable = False
        try:
            self._adopt(plan)
            usable = True
            self._plan_message = payload
        except FedmqError as error:
            log.error("this device cannot satisfy the plan: %s", error)
        self._do(
            session.PlanSeen(
                usable=usable, once_per_version=plan.wait_for_new_version, resend_seconds=plan.resend_seconds
            )
        )

    def _adopt(self, plan: Plan) -> None:
        """Make the plan ours, or raise and keep none."""
        self._plan, self._plan_message, self._download = None, b"", None
        pipeline_from_wire(plan.codec)
        name = self._settings.trainer.factory or plan.trainer
        factory = self._factory or find_factory(name)
        trainer = factory(dict(plan.trainer_settings), **dict(self._settings.trainer.settings))
        difference = trainer.layout.difference(plan.layout)
        if difference:
            raise TransportError(f"trainer {name} has another model than the plan: {difference}")
        self._trainer, self._plan = trainer, plan
        self._download = Download(self.transport, self._topics, plan.layout, self._cache, self._on_model)

    def _on_model(self, model: GlobalModel) -> None:
        self._model = model
        self._do(session.ModelSeen(epoch=model.epoch, version=model.version))

    def _take_receipt(self, payload: bytes) -> None:
        receipt = wire.unpack_receipt(payload)
        if receipt.notice is not None:
            log.warning("the aggregator dropped a message of ours: %s", receipt.notice)
        if receipt.epoch != self._outbox.epoch:
            return  # of this device's former life
        settled = [seq for seq in self._outbox.pending() if receipt.is_settled(seq)]
        for seq in settled:
            refusal = receipt.refusal(seq)
            if refusal is None:
                self._outbox.forget(seq)
            else:
                log.warning("update %d was refused: %s", seq, refusal)
                self._give_up(seq)
            self._note("settled", seq=seq, refusal=str(refusal.reason) if refusal else "")
        if settled:
            self._do(session.Settled(seqs=tuple(settled)))

    def _give_up(self, seq: int) -> None:
        """Drop a refused update; what it carried returns to the residual, if that is of the same layout."""
        update = wire.unpack_update(self._outbox.get(seq).message)
        residual = self._outbox.residual(update.fingerprint)
        if self._plan is None or self._plan.layout.fingerprint != update.fingerprint or residual is None:
            log.warning("update %d belongs to another model; what it carried is dropped", seq)
            self._outbox.forget(seq)
            return
        returned = give_back(self._plan.layout, pipeline_from_wire, update.codec, update.payload, residual)
        self._outbox.give_up(seq, residual=returned, fingerprint=update.fingerprint)

    def _do(self, event: session.Event) -> None:
        self._carry_out(self._session.handle(event, self._clock()))

    def _carry_out(self, effects: list[session.Effect]) -> None:
        for effect in effects:
            match effect:
                case session.Pull():
                    if self._download is not None:
                        self._download.start()
                case session.StopPulling():
                    if self._download is not None:
                        self._download.stop()
                case session.Train():
                    self._train()
                case session.Send(seq=seq):
                    self._send(seq)

    def _train(self) -> None:
        model, plan, trainer = self._model, self._plan, self._trainer
        if model is None or plan is None or trainer is None:
            self._do(session.TrainingFailed())
            return
        seed = zlib.crc32(f"{self._settings.trainer.seed}/{self._client}/{self._outbox.next_seq}".encode())
        task = Task(local_epochs=plan.local_epochs, settings=dict(plan.trainer_settings), seed=seed)
        self._thread = threading.Thread(
            target=self._train_in_thread, args=(model, trainer, task), name="training", daemon=True
        )
        self._thread.start()

    def _train_in_thread(self, model: GlobalModel, trainer: Trainer, task: Task) -> None:
        try:
            result = trainer.train(model.vector, task, self._stopping.is_set)
            if self._settings.trainer.pause:
                self._stopping.wait(self._settings.trainer.pause * task.local_epochs)
            finished = _Finished(model=model, result=result)
        except Exception as error:  # noqa: BLE001 - whatever the user's trainer raises must not end the agent
            finished = _Finished(model=model, error=error)
        self._finished.put(finished)
        self.transport.wake()

    def _take_result(self) -> None:
        if self._unsaved is not None and self._clock() >= self._retry_at:
            self._save(self._unsaved)
        if self._finished.empty():
            return
        finished = self._finished.get()
        if finished.error is None:
            self._save(finished)
        elif not isinstance(finished.error, TrainingStoppedError):
            log.error("training failed; trying again later", exc_info=finished.error)
            self._do(session.TrainingFailed())

    def _save(self, finished: _Finished) -> None:
        """Put an update into the outbox, or keep it in memory until the disk takes it."""
        plan, result = self._plan, finished.result
        if plan is None or result is None or plan.layout.fingerprint != finished.model.layout.fingerprint:
            self._unsaved = None
            log.warning("the plan changed during training; the result is thrown away")
            self._do(session.TrainingFailed())
            return
        try:
            seq = self._put(plan, finished.model, result)
        except CodecError as error:
            self._unsaved = None
            log.error("training diverged; the result is thrown away: %s", error)
            self._do(session.TrainingFailed())
        except StoreError as error:
            log.error("%s The update is kept in memory until it can be written; trying again.", error)
            self._unsaved, self._retry_at = finished, self._clock() + _DISK_RETRY_SECONDS
        else:
            self._unsaved = None
            self._note("trained", seq=seq, version=finished.model.version, **dict(result.metrics))
            self._do(session.Trained(seq=seq))

    def _put(self, plan: Plan, model: GlobalModel, result: TrainResult) -> int:
        layout, outbox = plan.layout, self._outbox
        pipeline: Pipeline = parse_pipeline(plan.codec)
        delta: ParamVector = result.vector - model.vector
        residual = outbox.residual(layout.fingerprint)
        encoded = encode_with_feedback(layout, pipeline, delta, residual)
        seq = outbox.next_seq
        update = ModelUpdate(
            id=UpdateId(client=self._client, epoch=outbox.epoch, seq=seq),
            floor=outbox.floor,
            model_epoch=model.epoch,
            base_version=model.version,
            fingerprint=layout.fingerprint,
            num_examples=result.num_examples,
            local_steps=result.local_steps,
            codec=plan.codec,
            payload=encoded.payload,
            metrics=tuple((name, float(value)) for name, value in result.metrics.items()),
        )
        message = wire.pack_update(update)
        if len(message) > plan.max_update_bytes:
            raise CodecError(
                f"codec {plan.codec} makes an update of {len(message)} bytes, the plan allows {plan.max_update_bytes}"
            )
        return outbox.put(
            message, residual=encoded.residual, fingerprint=layout.fingerprint, created=time.time()
        )

    def _send(self, seq: int) -> None:
        if seq not in self._outbox or self._plan is None:
            self._do(session.NotTaken(seq=seq))
            return
        message = self._outbox.get(seq).message
        topic = self._topics.update(self._settings.shard, self._client)
        packets = [message]
        if len(message) > self._plan.chunk_bytes:
            packets = self._chunks(seq, message, self._plan.chunk_bytes)
        tokens = [self._publish(topic, packet) for packet in packets]
        for token in tokens:
            if token is not None:
                self._sending[token] = seq
        if None in tokens:
            self._forget_tokens(seq)
            self._do(session.NotTaken(seq=seq))

    def _chunks(self, seq: int, message: bytes, chunk_bytes: int) -> list[bytes]:
        pieces = split(message, max(chunk_bytes - _CHUNK_HEADER_BYTES, 1))
        update_id = UpdateId(client=self._client, epoch=self._outbox.epoch, seq=seq)
        return [
            wire.pack_chunk(
                Chunk(
                    id=update_id,
                    index=index,
                    count=len(pieces),
                    size=len(message),
                    digest=checksum(message),
                    data=piece,
                )
            )
            for index, piece in enumerate(pieces)
        ]

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> PublishToken | None:
        try:
            return self.transport.publish(topic, payload, retain=retain)
        except TransportError as error:
            log.error("not published to %s: %s", topic, error)
            return None

    def _outcome(self, token: PublishToken, refusal: str | None) -> None:
        seq = self._sending.pop(token, None)
        if seq is None:
            return
        if refusal is not None:
            log.warning("the broker did not take update %d: %s", seq, refusal)
            self._forget_tokens(seq)
            self._do(session.NotTaken(seq=seq))
        elif seq not in self._sending.values():
            self._do(session.Taken(seq=seq))

    def _forget_tokens(self, seq: int) -> None:
        self._sending = {token: other for token, other in self._sending.items() if other != seq}

    def _presence(self, state: PresenceState) -> bytes:
        presence = Presence(
            state=state, boot=self._boot, epoch=self._outbox.epoch, software=f"fedmq {__version__}"
        )
        return wire.pack_presence(Kind.CLIENT, presence)

    def _note_state(self) -> None:
        self._note("state", state=str(self._session.state))

    def _note(self, kind: str, **fields: str | int | float) -> None:
        traffic = self.transport.traffic
        self._events.write(
            kind, client=self._client, sent=traffic.bytes_sent, received=traffic.bytes_received, **fields
        )
