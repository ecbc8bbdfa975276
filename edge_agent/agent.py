"""The agent: the shell around `EdgeSession`, with the clock, the disk, the socket and the training thread.

One thread owns everything but the training itself (see `training`): it takes events from the transport, asks the
session what to do, and does it. No peer, trainer or disk ends it: what a peer sends wrong is ignored, what a trainer
does wrong is rested on, and what the disk refuses waits in memory until the disk takes it. A few lines over 350,
since each of these events ends here.
"""

import logging
import math
import random
import secrets
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from fedmq import __version__, wire
from fedmq.codecs import pipeline_from_wire
from fedmq.envelope import Kind
from fedmq.errors import CodecError, FedmqError, StoreError, TransportError, WireError
from fedmq.eventlog import EventLog
from fedmq.layout import ParamLayout
from fedmq.mask import Mask
from fedmq.plan import Plan
from fedmq.topics import Topics, check_name
from fedmq.transport.base import (
    Connected,
    Delivery,
    Disconnected,
    PublishAccepted,
    PublishRefused,
    SubscriptionRefused,
    Transport,
    Will,
)
from fedmq.types import ClientId, GlobalModel, Presence, PresenceState, Receipt

from . import events
from .download import Download
from .frames import FrameCache
from .links import Links
from .outbox import Outbox
from .session import EdgeSession, State
from .settings import AgentSettings
from .shares import Shares
from .trainer import (
    Task,
    Trainer,
    TrainerError,
    TrainerFactory,
    TrainResult,
    make_trainer,
    plain_metrics,
    plan_mask,
)
from .training import Spawn, Training, in_a_thread
from .update import put_update, settle
from .upload import Upload

log = logging.getLogger(__name__)

#: After how long a disk that refused a write is tried again.
DISK_RETRY_SECONDS: Final = 5.0


class Agent:
    """One edge agent.

    Args:
        settings: what the device's operator says.
        outbox: open; the agent closes it.
        connect: makes the transport from the client id and the will.
        factory: makes the trainer; None looks it up by `settings.trainer.factory` or the plan's name.
        clock: monotonic seconds.
        spawn: has the training done.

    Attributes:
        task: the newest piece of work, None before the first one.
    """

    def __init__(
        self,
        settings: AgentSettings,
        outbox: Outbox,
        connect: Callable[[str, Will], Transport],
        factory: TrainerFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
        spawn: Spawn = in_a_thread,
    ) -> None:
        check_name("client", settings.client)
        self._settings, self._outbox, self._clock, self._factory = settings, outbox, clock, factory
        self._topics = Topics(settings.federation)
        self._client = ClientId(settings.client)
        self._events = EventLog(settings.events)
        self._boot = secrets.randbits(62) + 1
        will = Will(topic=self._topics.client(settings.client), payload=self._presence(PresenceState.OFFLINE))
        self.transport = connect(f"{settings.federation}-client-{settings.client}", will)
        draw = random.Random(f"{settings.trainer.seed}/{settings.client}/{outbox.next_seq}").random
        self._session = EdgeSession(pending=outbox.pending(), is_full=outbox.is_full, draw=draw)
        self._cache = FrameCache(settings.outbox.folder)
        topic = self._topics.update(settings.shard, self._client)
        self._upload = Upload(self.transport, topic, outbox, self._client)
        self._download: Download | None = None
        # The plan that this device satisfies; the layout is of the newest one, satisfied or not.
        self._plan: Plan | None = None
        self._plan_message = b""
        self._mask: Mask | None = None
        self._layout: ParamLayout | None = None
        self._trainer: Trainer | None = None
        self._model: GlobalModel | None = None
        self._shares = Shares(settings.trainer)
        self.task: Task | None = None
        self._began_training = 0.0
        self._training = Training(self.transport.wake, settings.trainer.pause, spawn=spawn)
        # What the disk did not take yet: a result and its base, a receipt (which may also wait for a plan).
        self._unsaved: tuple[TrainResult, GlobalModel] | None = None
        self._receipt: Receipt | None = None
        self._retry_at = math.inf
        self._links = Links()
        self._stopping = False

    @property
    def state(self) -> State:
        """Where in its cycle it is."""
        return self._session.state

    def stop(self) -> None:
        """Let `run` end soon. The one method that other threads and signals may call."""
        self._stopping = True
        self._training.stop()
        self.transport.wake()

    def run(self) -> None:
        """Work until `stop`, then say goodbye and close everything. The outbox keeps what has no receipt."""
        self.transport.start()
        self._note_state()
        try:
            while not self._stopping:
                self.turn()
            self._announce(PresenceState.OFFLINE)
        finally:
            self._training.stop()
            self._training.join()
            self.transport.close()
            self._outbox.close()
            if self._unsaved is not None:
                log.error("an update that the disk did not take is lost with this process")
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
                elif self._links.broken(self._clock()):
                    log.error(
                        "connections break soon: perhaps another agent uses the client id %s", self._client
                    )
                if self._download is not None:
                    self._download.reset()
                self._do(events.Unlinked())
            case Delivery():
                self._take(event)
                event.ack()
            case PublishAccepted() | PublishRefused():
                outcome = self._upload.take(event)
                if outcome is not None:
                    self._do(outcome)
            case SubscriptionRefused(topic_filter=topic_filter, reason=reason):
                log.error("the broker refuses the subscription to %s: %s", topic_filter, reason)
            case None:
                self._retry()
                self._take_result()
                self._carry_out(self._session.tick(self._clock()))
        if self._session.state is not before:
            self._note_state()

    def _patience(self) -> float:
        """Seconds until something is due although nothing happens."""
        if self._training.has_finished:
            return 0.0
        ticks = self._session.next_tick()
        due = self._retry_at if ticks is None else min(self._retry_at, ticks)
        return min(max(due - self._clock(), 0.0), 60.0)

    def _greet(self) -> None:
        log.info("connected to the broker")
        self._links.made(self._clock())
        topics = self._topics
        shares = (topics.task(self._client),) if self._shares.are_accepted else ()
        aggregator = topics.aggregator(self._settings.shard)
        for topic in (topics.plan, topics.receipt(self._client), *shares, aggregator):
            self.transport.subscribe(topic)
        self._announce(PresenceState.ONLINE)
        self._do(events.Linked())

    def _take(self, delivery: Delivery) -> None:
        topics, payload = self._topics, delivery.payload
        try:
            if delivery.topic == topics.task(self._client):
                self._do(self._shares.take(payload))
                return
            if not payload:
                return  # a cleared topic
            if delivery.topic == topics.plan:
                self._take_plan(payload)
            elif delivery.topic == topics.receipt(self._client):
                self._take_receipt(payload)
            elif delivery.topic == topics.aggregator(self._settings.shard):
                presence = wire.unpack_presence(Kind.AGGREGATOR, payload)
                online = presence.state is PresenceState.ONLINE
                self._do(events.AggregatorSeen(online=online, boot=presence.boot))
            elif self._download is not None and self._download.take(delivery):
                self._do(events.PieceSeen())
        except WireError as error:
            log.warning("ignored a message on %s: %s", delivery.topic, error)

    def _take_plan(self, payload: bytes) -> None:
        if payload == self._plan_message:
            return
        plan = wire.unpack_plan(payload)
        if plan.has_only_another_mask(self._plan):  # what was trained under the one before is still of use
            self._mask = plan_mask(plan)
            self._plan, self._plan_message = plan, payload
            return
        self._layout, self._upload.chunk_bytes = plan.layout, plan.chunk_bytes
        self._see_plan(plan, usable=False)  # ends what goes on under the plan before
        self._plan, self._plan_message, self._download = None, b"", None
        try:
            self._adopt(plan)
        except FedmqError as error:
            log.error("this device cannot satisfy the plan: %s", error)
        else:
            self._plan_message = payload
            self._see_plan(plan, usable=True)
        self._settle()

    def _see_plan(self, plan: Plan, *, usable: bool) -> None:
        self._do(
            events.PlanSeen(
                usable=usable, once_per_version=plan.wait_for_new_version, resend_seconds=plan.resend_seconds
            )
        )

    def _adopt(self, plan: Plan) -> None:
        pipeline_from_wire(plan.codec)
        own = self._settings.trainer
        self._trainer = make_trainer(plan, own.factory, own.settings, self._factory)
        self._mask = plan_mask(plan)
        self._plan = plan
        self._download = Download(self.transport, self._topics, plan.layout, self._cache, self._on_model)

    def _on_model(self, model: GlobalModel) -> None:
        self._model = model
        self._do(events.ModelSeen(epoch=model.epoch, version=model.version))

    def _take_receipt(self, payload: bytes) -> None:
        self._receipt = wire.unpack_receipt(payload)
        if (notice := self._receipt.notice) is not None:
            log.warning("the aggregator dropped a message of ours: %s", notice)
        self._settle()

    def _settle(self) -> None:
        """Let go of what the newest receipt settles, as far as the disk allows."""
        receipt, layout = self._receipt, self._layout
        if receipt is None or layout is None:
            return  # without a plan nobody knows where a refused update's content belongs
        settled = []
        try:
            if receipt.client == self._client:
                for seq, refusal in settle(self._outbox, receipt, layout):
                    settled.append(seq)
                    self._note("settled", seq=seq, refusal=str(refusal.reason) if refusal else "")
            self._receipt = None
        except StoreError as error:
            log.error("%s The receipt is kept until the outbox can be written; trying again.", error)
            self._retry_at = self._clock() + DISK_RETRY_SECONDS
        if settled:
            self._do(events.Settled(seqs=tuple(settled), is_full=self._outbox.is_full))

    def _retry(self) -> None:
        """Do what the disk refused, once it has been left alone for a while."""
        if self._clock() < self._retry_at:
            return
        self._retry_at = math.inf
        if self._unsaved is not None:
            self._save(*self._unsaved)
        self._settle()

    def _do(self, event: events.Event) -> None:
        self._carry_out(self._session.handle(event, self._clock()))

    def _carry_out(self, effects: list[events.Effect]) -> None:
        waiting = deque(effects)
        while waiting:
            event = self._act(waiting.popleft())
            if event is not None:
                waiting += self._session.handle(event, self._clock())

    def _act(self, effect: events.Effect) -> events.Event | None:
        match effect:
            case events.Pull():
                if self._download is not None:
                    self._download.start()
                return None
            case events.StopPulling():
                if self._download is not None:
                    self._download.stop()
                return None
            case events.Train():
                return self._train()
            case events.Send(seq=seq):
                return self._upload.send(seq)

    def _train(self) -> events.TrainingFailed | None:
        model, plan, trainer = self._model, self._plan, self._trainer
        if model is None or plan is None or trainer is None:
            return events.TrainingFailed()
        seed = zlib.crc32(f"{self._settings.trainer.seed}/{self._client}/{self._outbox.next_seq}".encode())
        mask, settings = self._mask, dict(plan.trainer_settings)
        task = Task(local_epochs=plan.local_epochs, settings=settings, seed=seed, mask=mask)
        self.task = task = self._shares.task(task, self._session.aggregator_boot)
        self._began_training = self._clock()
        base = model if mask is None else replace(model, vector=mask.applied(model.vector))
        self._training.start(base, trainer, task)
        return None

    def _take_result(self) -> None:
        finished = self._training.take()
        if finished is None:
            return
        if isinstance(finished.outcome, TrainResult):
            seconds = self._clock() - self._began_training
            self._save(
                self._shares.told(finished.outcome, seconds, self._session.aggregator_boot), finished.model
            )
        elif not self._stopping:
            log.error("training failed; trying again later", exc_info=finished.outcome)
            self._do(events.TrainingFailed())

    def _save(self, result: TrainResult, model: GlobalModel) -> None:
        """Put an update into the outbox, or keep it in memory until the disk takes it."""
        self._unsaved, plan = None, self._plan
        if plan is None or plan.layout.fingerprint != model.layout.fingerprint:
            log.warning("the plan changed during training; the result is thrown away")
            self._do(events.TrainingFailed())
            return
        try:
            asked = self._shares.plan(plan, self._session.aggregator_boot)
            seq = put_update(self._outbox, self._client, asked, model, result, self._mask)
        except (CodecError, TrainerError) as error:
            log.error("the training's result cannot be used and is thrown away: %s", error)
            self._do(events.TrainingFailed())
        except StoreError as error:
            log.error("%s The update is kept in memory until it can be written; trying again.", error)
            self._unsaved, self._retry_at = (result, model), self._clock() + DISK_RETRY_SECONDS
        else:
            self._note("trained", **plain_metrics(result.metrics), seq=seq, version=model.version)
            self._do(events.Trained(seq=seq, is_full=self._outbox.is_full))

    def _announce(self, state: PresenceState) -> None:
        try:
            self.transport.publish(self._topics.client(self._client), self._presence(state), retain=True)
        except TransportError as error:
            log.error("this device's presence was not published: %s", error)

    def _presence(self, state: PresenceState) -> bytes:
        presence = Presence(
            state=state, boot=self._boot, epoch=self._outbox.epoch, software=f"fedmq {__version__}"
        )
        return wire.pack_presence(Kind.CLIENT, presence)

    def _note_state(self) -> None:
        if self._session.state is State.WAITING and self._outbox.is_full:
            log.warning("the outbox is full: no training until %d updates have receipts", len(self._outbox))
        self._note("state", state=str(self._session.state))

    def _note(self, kind: str, **fields: str | int | float) -> None:
        traffic = self.transport.traffic
        self._events.write(
            kind,
            client=self._client,
            sent=traffic.bytes_sent,
            received=traffic.bytes_received,
            payload_sent=traffic.payload_sent,
            payload_received=traffic.payload_received,
            topic_sent=traffic.topic_sent,
            topic_received=traffic.topic_received,
            measured=traffic.measured,
            **fields,
        )
