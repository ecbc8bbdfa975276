"""The service: the aggregator's shell, with its only clock, file and socket.

One thread, one loop: take what the transport has, let the engine decide, make the decision durable, commit it,
acknowledge, send receipts, publish. A failing disk stops the loop at the first of these steps: nothing is
acknowledged, the broker's window fills, and the same batch is tried again until the disk takes it. A few lines over
350: what has a place of its own has a module, and this is the order in which their turns come.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from fedmq import __version__, wire
from fedmq.envelope import Kind
from fedmq.errors import SettingError, StoreError
from fedmq.eventlog import EventLog
from fedmq.plan import Plan
from fedmq.topics import Topics, check_name, is_name, last_level
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
from fedmq.types import ClientId, Presence, PresenceState, Refusal, Rejection

from .allocation import Allocation
from .chronicle import Chronicle
from .deadline import NOBODY, Deadline, deadline_arrival
from .decision import Arrival, Decision
from .engine import Engine
from .guard import Guard, Tutor
from .outlet import Outlet
from .pace import Pace
from .publisher import Publisher, codec_setting
from .recovery import recover
from .settings import AggregatorSettings
from .shelf import Shelf
from .spool import Spool
from .state import pack_state
from .store import ChunkChanges, Snapshot, Store
from .tasks import make_plan

log = logging.getLogger(__name__)

#: Days that the broker keeps updates for an aggregator that is away.
SESSION_EXPIRY: Final = 7 * 24 * 3600
_RETRY_SECONDS: Final = 1.0
#: The plan is not published again more often, so that two who disagree do not fill the broker with it.
PLAN_SECONDS: Final = 10.0
_NOBODY_LISTENS: Final = "No matching subscribers"
#: After a publish that took t seconds there is none for 4 t, so that encoding a large model takes at most a fifth of
#: the time; but not for longer than half a minute, for t may be that of a process that was halted meanwhile.
_PUBLISH_REST: Final = 4.0
_MOST_REST: Final = 30.0


def presence(epoch: int, boot: int, state: PresenceState) -> bytes:
    """The aggregator's birth, goodbye or will."""
    return wire.pack_presence(
        Kind.AGGREGATOR, Presence(state=state, boot=boot, epoch=epoch, software=f"fedmq {__version__}")
    )


class Service:
    """One aggregator.

    Args:
        settings: what the operator says.
        store: open; the service closes it.
        connect: makes the transport from the client id, the will and the session expiry in seconds.
        clock: monotonic seconds.
        tutor: learns from data that the operator trusts; needed by the rules of `trust` that compare with it.

    Raises:
        StoreError: the store is damaged.
        SettingError, ModelFileError: a setting cannot be used, there is no model to start from, or it contradicts
            the store.
    """

    def __init__(
        self,
        settings: AggregatorSettings,
        store: Store,
        connect: Callable[[str, Will, int], Transport],
        clock: Callable[[], float] = time.monotonic,
        tutor: Tutor | None = None,
    ) -> None:
        self._settings, self._store, self._clock = settings, store, clock
        self._topics = Topics(settings.federation)
        check_name("shard", settings.shard)
        self._publisher = Publisher(settings.publish)
        codec_setting("task.codec", settings.task.codec)
        self.engine: Engine = recover(settings, store)
        self._guard = Guard(settings.trust, self.engine, tutor)
        self._deadline = Deadline(self.engine.rule.deadline)
        self._shelf = Shelf(store, self._publisher, self.engine.model)
        self._spool = Spool(
            is_settled=self.engine.is_settled,
            max_update_bytes=settings.task.max_update_bytes,
            max_bytes=settings.spool_bytes,
        )
        self._spool.restore(store.chunks(), clock())
        self._events = EventLog(settings.events)
        self._boot = secrets.randbits(62) + 1
        self._presence_topic = self._topics.aggregator(settings.shard)
        self._own_topics = self._presence_topic, self._topics.model, self._topics.plan
        self._birth = presence(self.engine.epoch, self._boot, PresenceState.ONLINE)
        will = Will(
            topic=self._presence_topic,
            payload=presence(self.engine.epoch, self._boot, PresenceState.OFFLINE),
        )
        self._transport = connect(f"{settings.federation}-aggregator-{settings.shard}", will, SESSION_EXPIRY)
        self._allocation = Allocation(settings.allocate, self._boot)
        if self._allocation.is_on and self.engine.rule.synchronous:
            raise SettingError("allocate.policy", settings.allocate.policy, "with fedavg, none is allowed")
        self._chronicle = Chronicle(self._events)
        self._pace = Pace(settings.admission.max_rate)
        self._pending: deque[Delivery] = deque()
        self._outlet = Outlet(
            self._transport, self._topics, self._publisher, lambda key: self.engine.ledger.get(*key)
        )
        self._planned_mask = self.engine.mask
        self._connected = self._plan_lost = False
        self._stopping = False
        self._publish_due = self._stats_at = self._plan_at = -1e9
        self._snapshot_position = self.engine.position

    def stop(self) -> None:
        """Let `run` end after the batch at hand. The one method that other threads and signals may call."""
        self._stopping = True
        self._transport.wake()

    def run(self) -> None:
        """Serve until `stop`, then take a snapshot, say goodbye and close everything."""
        self._transport.start()
        state = self.engine.state
        log.info("serving %s from version %d", self._settings.federation, state.version)
        self._events.write("aggregator", state="up", version=state.version)
        try:
            while not self._stopping:
                self.turn()
            self._leave()
        finally:
            self._transport.close()
            self._store.close()
            self._events.write("aggregator", state="down", version=self.engine.state.version)
            self._events.close()

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        now = self._clock()
        self._gather(now)
        if self._pending or not self._deadline.left(self.engine.state, self._clock()):
            self._process()
        now = self._clock()
        self._guard.refresh()
        self._spool.expire(now)
        self._chronicle.catch_up(now)
        if self._connected:
            self._outlet.send_receipts()
            self._restore_plan(now)
            self._outlet.flush()
            self._publish(now)
            if now - self._stats_at >= self._settings.stats_interval:
                self._stats_at = now
                self._publish_stats()

    def _gather(self, now: float) -> None:
        """Take events until a batch is full, or has waited long enough, or there is something else to do."""
        store = self._settings.store
        deadline = now + self._idle(now)
        while len(self._pending) < store.batch_size and not self._stopping:
            remaining = deadline - self._clock()
            event = self._transport.poll(max(remaining, 0.0))
            if event is None:
                return
            match event:
                case Delivery(topic=topic) if topic in self._own_topics:
                    self._hear(event)
                case Delivery():
                    if not self._pending:
                        deadline = min(deadline, self._clock() + store.batch_delay)
                    self._pending.append(event)
                case Connected():
                    self._greet()
                case Disconnected(reason=reason, taken_over=taken_over):
                    self._connected = False
                    self._allocation.doubt()
                    self._pending.clear()  # the broker sends them again; acks of this connection are void
                    log.warning("no connection to the broker: %s", reason)
                    if taken_over:
                        log.error(
                            "another client uses this aggregator's client id: is a second aggregator running "
                            "for federation %s, shard %s?",
                            self._settings.federation,
                            self._settings.shard,
                        )
                case PublishAccepted(token=token) | PublishRefused(token=token, reason=_):
                    self._outlet.settle(token)
                    if self._outlet.is_busy:
                        deadline = now  # there is room again: take what is here, then go on sending
                    if isinstance(event, PublishRefused) and event.reason != _NOBODY_LISTENS:
                        log.error("the broker refused a publish: %s", event.reason)
                case SubscriptionRefused(topic_filter=topic_filter, reason=reason):
                    log.error("the broker refuses the subscription to %s: %s", topic_filter, reason)

    def _idle(self, now: float) -> float:
        """Seconds until something is due although nothing arrives."""
        if not self._connected:
            return 1.0
        due = self._stats_at + self._settings.stats_interval
        if self.engine.state.version > self._outlet.version and not self._outlet.is_busy:
            due = min(due, self._publish_due)
        due = min(due, now + self._deadline.left(self.engine.state, now))
        if self._outlet.owes:
            due = now
        return min(max(due - now, 0.0), 1.0)

    def _process(self) -> None:
        """Decide, persist, commit, acknowledge: in this order (law 1)."""
        batch = list(self._pending)
        now = self._clock()
        arrivals = []
        for delivery in batch:
            client = last_level(delivery.topic)
            if is_name(client) and (arrival := self._spool.take(client, delivery.payload, now)):
                arrivals.append(arrival if self._pace.admits(client, now) else self._too_fast(client))
        if not self._deadline.left(self.engine.state, now):
            arrivals.append(deadline_arrival(self.engine.state.version))
        decision = self.engine.offer(arrivals)
        changes = self._spool.take_changes()
        if decision.records or changes.added or changes.dropped:
            self._persist(decision, changes)
        self.engine.commit(decision)
        for delivery in batch:
            delivery.ack()
        self._pending.clear()
        self._outlet.owe(decision.answers)
        self._outlet.owe_shares(self._allocation.note(decision.records, now))
        for client, refusal in decision.dropped:
            self._outlet.owe_notice(self.engine.ledger.latest(ClientId(client)), client, refusal)
        self._chronicle.note(batch, decision, now)
        for record in decision.records:
            if record.refusal is None and record.id.client != NOBODY:
                self._publisher.absence.note(record.id.client, record.base_version)
        if self.engine.position - self._snapshot_position >= self._settings.store.snapshot_records:
            self._snapshot()

    def _too_fast(self, client: str) -> Arrival:
        detail = f"more than {self._settings.admission.max_rate:g} updates a second"
        return Arrival(client=client, message=b"", refusal=Refusal(reason=Rejection.QUOTA, detail=detail))

    def _persist(self, decision: Decision, changes: ChunkChanges) -> None:
        while True:
            try:
                self._store.append(
                    decision.records, decision.receipts, changes, time.time(), decision.forgotten
                )
                return
            except StoreError as error:
                log.error("%s Nothing is acknowledged until it works; trying again.", error)
                if self._stopping:
                    raise
                time.sleep(_RETRY_SECONDS)

    def _snapshot(self) -> None:
        engine, settings = self.engine, self._settings.store
        snapshot = Snapshot(position=engine.position, version=engine.state.version, state=pack_state(engine))
        try:
            self._store.save_snapshot(
                snapshot,
                created=time.time(),
                keep=settings.keep_snapshots,
                keep_records=settings.keep_records,
            )
        except StoreError as error:  # the journal still has everything; the next one will do
            log.error("no snapshot was taken: %s", error)
            return
        self._snapshot_position = engine.position

    def _greet(self) -> None:
        """After each connect: the broker may have lost what it kept, so everything is published again."""
        log.info("connected to the broker")
        self._connected = True
        topics, shard, outlet = self._topics, self._settings.shard, self._outlet
        outlet.restart()
        # First the subscription: an agent that finds a model must find someone listening.
        for topic in (topics.updates(shard), *self._own_topics):
            self._transport.subscribe(topic)
        self._queue_plan(self._clock())
        outlet.queue_frames()
        self._queue_model()
        outlet.queue(self._presence_topic, self._birth)
        outlet.flush()

    def _hear(self, delivery: Delivery) -> None:
        """What lies on our own retained topics: a former life's model, its will which came late, another's plan."""
        delivery.ack()
        if delivery.topic == self._topics.plan:
            self._plan_lost = delivery.payload != wire.pack_plan(self.plan)
        elif delivery.topic == self._topics.model:
            self._transport.unsubscribe(delivery.topic)
            if delivery.payload:
                self._outlet.adopt(delivery.payload)
        elif delivery.payload != self._birth:
            self._outlet.queue(self._presence_topic, self._birth)
            self._outlet.flush()

    @property
    def plan(self) -> Plan:
        """What the clients are asked to do."""
        engine, settings = self.engine, self._settings
        return make_plan(
            settings.task,
            engine.rule,
            epoch=engine.epoch,
            layout=engine.layout,
            chunk_bytes=settings.publish.chunk_bytes,
            mask=engine.mask,
        )

    def _queue_plan(self, now: float) -> None:
        self._plan_lost, self._plan_at, self._planned_mask = False, now, self.engine.mask
        self._outlet.queue(self._topics.plan, wire.pack_plan(self.plan))

    def _restore_plan(self, now: float) -> None:
        if self._plan_lost and now - self._plan_at >= PLAN_SECONDS:
            log.warning("the plan was cleared or replaced; it is published again. A second aggregator?")
            self._queue_plan(now)

    def _publish(self, now: float) -> None:
        """Publish the newest version, unless the one before is still on its way or was a moment ago."""
        if self._outlet.is_busy or self.engine.state.version <= self._outlet.version:
            return
        if now < self._publish_due:
            return
        if self.engine.mask is not self._planned_mask:
            self._queue_plan(now)
        self._queue_model()
        self._outlet.flush()

    def _queue_model(self) -> None:
        began = self._clock()
        published = self._outlet.queue_model(self.engine.model)
        self._chronicle.counters.versions_published += 1
        self._events.write("publish", **asdict(published))
        self._shelf.save()
        ended = self._clock()
        rest = min(_PUBLISH_REST * (ended - began), _MOST_REST)
        self._publish_due = max(began + self._settings.publish.min_interval, ended + rest)

    def _publish_stats(self) -> None:
        self._outlet.send_stats(
            self._chronicle.counters.summary(self.engine, self._settings.fold.strategy, time.time())
        )

    def _leave(self) -> None:
        self._snapshot()
        if self._connected:
            self._outlet.send_receipts()
            self._publish_stats()
            self._outlet.send(
                self._presence_topic,
                presence(self.engine.epoch, self._boot, PresenceState.OFFLINE),
            )
        log.info("stopped at version %d", self.engine.state.version)
