"""From an accepted message to the clients that want it: routing, staging, queues, flights, PUBACKs.

Pure, as `core` is, whose lower half this is: `core` decides what a client may do, and this decides who gets a
message, records that where there is a journal, and fills the channels.

Theory of operation with a journal. A publish that someone has to find again after a restart (it is retained,
or waits for a persistent session) is *staged*: who gets it is decided, its records are appended, and nothing
else happens. `commit` makes the records of the whole turn durable and then applies what was staged, in order.
If the disk refuses, everything recorded is refused: PUBACK 0x97 to a client of MQTT 5, silence to one of
3.1.1. From then on the journal is behind, and `maintain` tries, less and less often, to write the state anew.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from .channel import Channel
from .counters import Counters
from .errors import LogUnavailableError, ReasonCode
from .journal import Journal
from .packets import Subscription, Version
from .records import Record, RecordKind, done_record, message_record, queue_record, sent_record, snapshot
from .session import Delivery, Message, Session, delivery_for
from .settings import BrokerSettings
from .state import BrokerState
from .topics import ShareGroup

_RETRY_FIRST: Final = 1.0  # seconds until a journal that is behind is written anew; doubles up to the last
_RETRY_LAST: Final = 60.0

Target = tuple[Session, Delivery]


@dataclass(slots=True, kw_only=True)
class _Staged:
    """A publish that is applied when the records of its turn are durable."""

    message: Message
    targets: list[Target]
    origin: Channel | None
    packet_id: int | None
    cut: bool
    recorded: bool


class Dispatcher:
    """Carries messages from publishers to queues and from queues to channels.

    Attributes:
        dirty: the channels that have something to send or are to be closed, in order.
        log_error: why the journal took no more the last time; None while it is well.
    """

    def __init__(
        self, settings: BrokerSettings, state: BrokerState, counters: Counters, journal: Journal | None
    ) -> None:
        self.dirty: dict[Channel, None] = {}
        self.log_error: LogUnavailableError | None = None
        self._settings = settings
        self._state = state
        self._counters = counters
        self._journal = journal
        self._staged: list[_Staged] = []
        self._retry_at = 0.0
        self._retry_after = _RETRY_FIRST

    def record(self, record: Record, *, sync: bool = False) -> None:
        """Records something, where there is a journal."""
        if self._journal is not None:
            self._journal.append(record, sync=sync)

    # From a publish to its targets.

    def accept(
        self,
        message: Message,
        now: float,
        *,
        sender: str,
        origin: Channel | None = None,
        packet_id: int | None = None,
        cut: bool = False,
    ) -> None:
        """Takes a message on, at once or with the turn's commit.

        Args:
            message: what was published.
            now: the time.
            sender: its publisher's client identifier, for No Local.
            origin: the connection to acknowledge it to; None for a will.
            packet_id: what to acknowledge; None for QoS 0.
            cut: ends the publisher's connection in place of the acknowledgement.
        """
        journal = self._journal
        targets = self._route(message, sender)
        wanted = journal is not None and (
            message.retain or any(delivery.qos and session.persistent for session, delivery in targets)
        )
        if self._retained_full(message) or (wanted and journal is not None and journal.behind):
            self._refuse(origin, packet_id)
            return
        staged = _Staged(
            message=message,
            targets=targets,
            origin=origin,
            packet_id=packet_id,
            cut=cut,
            recorded=wanted,
        )
        if wanted:
            self._stage(staged)
        elif self._staged:
            self._staged.append(staged)  # not ahead of what the same client sent before
        else:
            self._apply(staged, now)

    def broadcast(self, message: Message, now: float) -> None:
        """Delivers a message of the broker's own, of QoS 0, past the journal and its order."""
        for session, delivery in self._route(message, ""):
            self.deliver(session, delivery, now)

    def _stage(self, staged: _Staged) -> None:
        message = staged.message
        self._state.last_number += 1
        message.number = self._state.last_number
        self.record(message_record(message), sync=message.qos > 0)
        for session, delivery in staged.targets:
            if delivery.qos and session.persistent:
                self.record(queue_record(session.client_id, delivery))
        if message.retain:
            self.record(Record(kind=RecordKind.RETAIN, number=message.number))
        self._staged.append(staged)

    def _retained_full(self, message: Message) -> bool:
        if not message.retain or not message.payload:
            return False
        old = self._state.retained.get(message.topic)
        if old is None and len(self._state.retained) >= self._settings.max_retained_messages:
            return True
        freed = 0 if old is None else old.size
        return self._state.retained_bytes - freed + message.size > self._settings.max_retained_bytes

    def _route(self, message: Message, sender: str) -> list[Target]:
        """Who gets a message: one copy for each client with its overlapping filters, one for each group."""
        found = self._state.subscriptions.match(message.topic)
        targets: list[Target] = []
        for client, subscriptions in found.plain:
            if client == sender:
                subscriptions = tuple(one for one in subscriptions if not one.no_local)
                if not subscriptions:
                    continue
            targets.append((self._state.sessions[client], delivery_for(message, subscriptions)))
        for group in found.groups:
            client, subscription = self._member(group)
            targets.append((self._state.sessions[client], delivery_for(message, (subscription,))))
        return targets

    def _member(self, group: ShareGroup) -> tuple[str, Subscription]:
        """The next member in turn: one that can take it now, else one that is connected, else anyone."""
        names = list(group.members)
        turns = [(group.turn + step) % len(names) for step in range(len(names))]

        def rank(turn: int) -> int:
            session = self._state.sessions[names[turn]]
            return 2 if session.channel is None else int(not session.has_room)

        turn = min(turns, key=rank)
        group.turn = (turn + 1) % len(names)
        return names[turn], group.members[names[turn]]

    def commit(self, now: float) -> None:
        """Makes the turn's records durable, applies or refuses what was staged, and answers.

        What was appended last, by applying, is written without waiting for the disk.
        """
        if self._journal is None:
            return
        written = self._write(now)
        staged, self._staged = self._staged, []
        for one in staged:
            if one.recorded and not written:
                one.message.number = 0
                self._refuse(one.origin, one.packet_id)
            else:
                self._apply(one, now)
        self._write(now)

    def _write(self, now: float) -> bool:
        if self._journal is None or self._journal.behind:
            return False
        try:
            self._journal.commit()
        except LogUnavailableError as error:
            self.log_error = error
            self._retry_at = now + self._retry_after
            return False
        return True

    def _apply(self, staged: _Staged, now: float) -> None:
        message = staged.message
        if message.retain:
            self._state.retain(message)
        lost = 0
        for session, delivery in staged.targets:
            if self._state.sessions.get(session.client_id) is session:
                recorded = staged.recorded and session.persistent
                lost += not self.deliver(session, delivery, now, recorded=recorded)
        if not staged.targets:
            reason = ReasonCode.NO_MATCHING_SUBSCRIBERS
        elif lost == len(staged.targets) and not message.retain:
            reason = ReasonCode.QUOTA_EXCEEDED
        else:
            reason = ReasonCode.SUCCESS
        if staged.cut and staged.origin is not None:
            staged.origin.close()
            self.dirty[staged.origin] = None
        else:
            self.answer(staged.origin, staged.packet_id, reason)

    def _refuse(self, origin: Channel | None, packet_id: int | None) -> None:
        """Turns a publish away; 3.1.1 has no word for it, so its client keeps it and offers it again."""
        self._counters.publishes_refused += 1
        if origin is not None and origin.version == Version.V5:
            self.answer(origin, packet_id, ReasonCode.QUOTA_EXCEEDED)

    def answer(self, channel: Channel | None, packet_id: int | None, reason: ReasonCode) -> None:
        """Acknowledges a publish, if it is one of QoS 1 and its client is still there."""
        if channel is not None and packet_id is not None:
            channel.acknowledge(packet_id, reason)
            self.dirty[channel] = None

    # From a queue to its client.

    def deliver(self, session: Session, delivery: Delivery, now: float, *, recorded: bool = False) -> bool:
        """Sends a message to a client or lets it wait; False when there is no room and it is dropped.

        QoS 0 waits only for a connected client that reads slowly, behind what waits already.
        """
        message = delivery.message
        channel = session.channel
        if not delivery.qos:
            if channel is None:
                return True
            if channel.ready and not session.queue:
                self._send(session, channel, delivery, now, dup=False)
                return True
        settings = self._settings
        if (
            len(session.queue) >= settings.max_queued_messages
            or session.queued_bytes + message.size > settings.max_queued_bytes
            or (
                not message.references and self._state.stored_bytes + message.size > settings.max_stored_bytes
            )
        ):
            self._counters.publishes_dropped += 1
            if recorded and delivery.qos:
                self.record(done_record(session.client_id, delivery))
            return False
        self._state.enqueue(session, delivery)
        if not recorded and delivery.qos and message.number and session.persistent:
            self.record(queue_record(session.client_id, delivery))
        self.pump(session, now)
        return True

    def pump(self, session: Session, now: float) -> None:
        """Sends what waits, as far as the window and the connection allow."""
        channel = session.channel
        if channel is None:
            return
        while channel.ready:
            if session.has_room and (again := session.take_redelivery()) is not None:
                self._send(session, channel, again, now, dup=True)
                continue
            if not session.queue or (session.queue[0].qos and not session.has_room):
                return
            delivery = session.take_queued()
            if delivery.message.expired(now):
                self._finish(session, delivery)
                continue
            if delivery.qos:
                session.begin(delivery)
                self._logged(session, delivery, sent_record)
            self._send(session, channel, delivery, now, dup=False)
            if not delivery.qos:
                self._state.release(delivery.message)

    def _send(self, session: Session, channel: Channel, delivery: Delivery, now: float, *, dup: bool) -> None:
        if channel.deliver(delivery, now, dup=dup):
            self._counters.publishes_sent += 1
            self.dirty[channel] = None
            return
        # Larger than the client takes: it counts as delivered (MQTT 5, section 3.1.2.11.4).
        self._counters.publishes_dropped += 1
        if delivery.qos:
            session.acknowledge(delivery.packet_id)
            self._finish(session, delivery)

    def acknowledged(self, session: Session, packet_id: int, now: float) -> None:
        """The client has a delivery; an identifier that is not in flight is an echo of the past."""
        delivery = session.acknowledge(packet_id)
        if delivery is not None:
            self._finish(session, delivery)
            self.pump(session, now)

    def _finish(self, session: Session, delivery: Delivery) -> None:
        """A delivery is over, one way or the other."""
        if delivery.qos:
            self._logged(session, delivery, done_record)
        self._state.release(delivery.message)

    def _logged(self, session: Session, delivery: Delivery, record: "_DeliveryRecord") -> None:
        if self._journal is not None and delivery.message.number and session.persistent:
            self._journal.append(record(session.client_id, delivery))

    # Upkeep.

    def sweep(self, now: float) -> None:
        """Removes what has expired, so that it takes no room that something fresh could have."""
        for session in self._state.sessions.values():
            for delivery in session.drop_queued(lambda one: one.message.expired(now)):
                self._finish(session, delivery)
        for message in list(self._state.retained.values()):
            if message.expired(now):
                self._state.forget_retained(message.topic)

    def maintain(self, now: float) -> None:
        """Writes the state anew when the journal is behind or mostly dead records."""
        journal = self._journal
        if journal is None or self._staged:
            return
        mostly_dead = journal.size > max(self._settings.log_compact_bytes, 2 * self._state.stored_bytes)
        if now < self._retry_at or not (journal.behind or mostly_dead):
            return
        try:
            journal.compact(snapshot(self._state, now))
        except LogUnavailableError as error:
            self.log_error = error
            self._retry_at = now + self._retry_after
            self._retry_after = min(2 * self._retry_after, _RETRY_LAST)
        else:
            self.log_error = None
            self._retry_at = now + _RETRY_FIRST
            self._retry_after = _RETRY_FIRST


class _DeliveryRecord(Protocol):
    def __call__(self, client: str, delivery: Delivery) -> Record: ...
