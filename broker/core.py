"""The broker's decisions about clients: who is let in, what each packet does, what is due by time.

Pure: no socket, no thread, no clock. A shell opens a `Channel` per connection, feeds packets in with the time
(`now`, seconds since 1970, never going back), calls `commit` when a turn of its loop is over, and then writes
what `take_dirty` names. `tick` does what is due, and `next_due` says when something is. What becomes of an
accepted message is decided in `dispatch`.

This module is above the house's 350 lines: connecting, leaving, being taken over and timing out change the
same few values of a session, and each part would have to be handed the whole of them.
"""

import heapq
import hmac
import itertools
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final, assert_never

from .channel import Channel
from .counters import Counters, sys_values
from .dispatch import Dispatcher
from .errors import ProtocolError, ReasonCode
from .faults import Fault, FaultAction, FaultPlan
from .journal import Journal
from .packets import (
    PINGRESP,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
)
from .properties import Properties
from .records import Record, RecordKind, session_record, subscribe_record, unsubscribe_record
from .session import NEVER, Delivery, Message, Session, message_of_will
from .settings import BrokerSettings
from .state import BrokerState
from .topics import split_share

_KEEP_ALIVE_GRACE: Final = 1.5  # MQTT 5, section 3.1.2.10
_TICK: Final = 1.0  # seconds between looks at what has no timer of its own
_SWEEP: Final = 30.0  # seconds between looks at every message that waits


class BrokerCore:
    """One broker without its sockets.

    Args:
        settings: the bounds.
        now: the time of the start.
        state: what a log has restored; None to start empty.
        journal: where to record; None to keep everything in memory only.
        faults: what to do to publishes on purpose.
        new_id: makes the identifiers of clients that bring none.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        now: float,
        *,
        state: BrokerState | None = None,
        journal: Journal | None = None,
        faults: FaultPlan | None = None,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.settings = settings
        self.state = state or BrokerState()
        self.counters = Counters()
        self.channels: set[Channel] = set()
        self.dispatcher = Dispatcher(settings, self.state, self.counters, journal)
        self._faults = faults
        self._new_id = new_id
        self._started = now
        self._next_tick = now
        self._next_sweep = now + _SWEEP
        self._reordered: list[Callable[[float], None]] = []
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        if settings.sys_interval:
            self._at(now, self._publish_sys)

    # Connections, as the shell sees them.

    def open(self, now: float) -> Channel:
        """A new connection; nothing is known of its client yet."""
        channel = Channel(now, self.settings.write_buffer)
        self.channels.add(channel)
        return channel

    def lost(self, channel: Channel, now: float) -> None:
        """The connection is gone; its client's will is due unless it said goodbye."""
        channel.closing = True
        self.channels.discard(channel)
        self.dispatcher.dirty.pop(channel, None)
        self._detach(channel, now)

    def failed(self, channel: Channel, error: ProtocolError, now: float) -> None:
        """The client broke the protocol: it is told why, if it can be, and its connection ends."""
        if channel.version is None and error.reason_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
            channel.version = Version.V311  # the one CONNACK that every version can read
            channel.send(Connack(reason=error.reason_code))
        self._drop(channel, error.reason_code, now)

    def receive(self, channel: Channel, packet: Packet, now: float) -> None:
        """Handles one packet.

        Raises:
            ProtocolError: the client must not have sent it; hand it to `failed`.
        """
        if channel.closing:
            return
        self.counters.packets_received += 1
        session = channel.session
        if session is None:
            if not isinstance(packet, Connect):
                raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "the first packet is not a CONNECT")
            self.dispatcher.commit(now)
            self._connect(channel, packet, now)
            return
        match packet:
            case Publish():
                self._publish(channel, session, packet, now)
            case Puback():
                self.dispatcher.acknowledged(session, packet.packet_id, now)
            case Pingreq():
                channel.write(PINGRESP)
                self.dispatcher.dirty[channel] = None
            case Subscribe():
                self.dispatcher.commit(now)
                self._subscribe(channel, session, packet, now)
            case Unsubscribe():
                self.dispatcher.commit(now)
                self._unsubscribe(channel, session, packet)
            case Disconnect():
                self.dispatcher.commit(now)
                self._disconnect(channel, session, packet, now)
            case _:
                name = type(packet).__name__.upper()
                raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"a client must not send {name}")

    def writable(self, channel: Channel, now: float) -> None:
        """There is room to send to this connection: its deliveries go on."""
        if channel.session is not None:
            self.dispatcher.pump(channel.session, now)

    def take_dirty(self) -> list[Channel]:
        """The connections that have something to send or are to be closed, each named once."""
        dirty = list(self.dispatcher.dirty)
        self.dispatcher.dirty.clear()
        return dirty

    def disconnect(self, client_id: str, now: float) -> bool:
        """Cuts a client's connection as a bad network would; False when it has none."""
        session = self.state.sessions.get(client_id)
        if session is None or session.channel is None:
            return False
        self._drop(session.channel, None, now)
        return True

    def shut_down(self, now: float) -> None:
        """Says goodbye to everybody; wills without a delay are published."""
        for channel in list(self.channels):
            self._drop(channel, ReasonCode.SERVER_SHUTTING_DOWN, now)
        self.dispatcher.commit(now)

    # CONNECT, DISCONNECT, takeover.

    def _refuse(self, channel: Channel, reason: ReasonCode) -> None:
        channel.send(Connack(reason=reason))
        channel.close()
        self.dispatcher.dirty[channel] = None

    def _admit(self, packet: Connect) -> ReasonCode | None:
        """Why a client is not let in, or None."""
        users = self.settings.users
        existing = self.state.sessions.get(packet.client_id)
        if packet.properties.authentication_method is not None:
            return ReasonCode.BAD_AUTHENTICATION_METHOD
        if users is not None:
            known = users.get(packet.username or "")
            same = hmac.compare_digest((known or "").encode(), packet.password or b"")
            if known is None or not same:
                return ReasonCode.BAD_USER_NAME_OR_PASSWORD
            if existing is not None and existing.user != packet.username:
                return ReasonCode.NOT_AUTHORIZED
        if packet.will is not None:
            if packet.will.qos > 1:
                return ReasonCode.QOS_NOT_SUPPORTED
            refusal = self._topic_refusal(packet.will.topic)
            if refusal is not None:
                return refusal
        if not packet.client_id and not packet.clean_start and packet.version == Version.V311:
            return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
        taken_over = existing is not None and existing.channel is not None
        if self.counters.connected >= self.settings.max_clients and not taken_over:
            return ReasonCode.QUOTA_EXCEEDED
        if existing is None and len(self.state.sessions) >= self.settings.max_sessions:
            return ReasonCode.QUOTA_EXCEEDED
        return None

    def _connect(self, channel: Channel, packet: Connect, now: float) -> None:
        channel.version = packet.version
        refusal = self._admit(packet)
        if refusal is not None:
            self._refuse(channel, refusal)
            return
        client_id = packet.client_id or self._new_id()
        old = self.state.sessions.get(client_id)
        if old is not None and old.channel is not None:
            self._drop(old.channel, ReasonCode.SESSION_TAKEN_OVER, now)
        session = self.state.sessions.get(client_id)  # the old one may have ended with its connection
        if session is not None and (packet.clean_start or session.expired(now)):
            self._end(session, now)
            session = None
        present = session is not None
        user = packet.username if self.settings.users is not None else None
        if session is None:
            session = self.state.open_session(client_id, user)
        properties = packet.properties
        if packet.version == Version.V5:
            asked = properties.session_expiry or 0
        else:
            asked = 0 if packet.clean_start else self.settings.max_session_expiry
        session.expiry = min(asked, self.settings.max_session_expiry)
        session.will = packet.will
        session.attach(channel, properties.receive_maximum or self.settings.default_window)
        channel.session = session
        channel.keep_alive = packet.keep_alive * _KEEP_ALIVE_GRACE
        channel.max_packet = properties.maximum_packet_size or channel.max_packet
        self.counters.connected += 1
        self.counters.maximum = max(self.counters.maximum, self.counters.connected)
        if session.persistent:
            self.dispatcher.record(session_record(session, now), sync=True)
        elif present:
            self.dispatcher.record(Record(kind=RecordKind.SESSION_END, client=client_id), sync=True)
        channel.send(
            Connack(
                session_present=present,
                properties=Properties(
                    receive_maximum=self.settings.receive_maximum,
                    maximum_qos=1,
                    maximum_packet_size=self.settings.max_packet,
                    topic_alias_maximum=self.settings.topic_aliases,
                    session_expiry=None if session.expiry == asked else session.expiry,
                    assigned_client_id=None if packet.client_id else client_id,
                ),
            )
        )
        self.dispatcher.dirty[channel] = None
        self.dispatcher.pump(session, now)

    def _disconnect(self, channel: Channel, session: Session, packet: Disconnect, now: float) -> None:
        expiry = packet.properties.session_expiry
        if expiry is not None:
            if expiry and not session.expiry:
                raise ProtocolError(
                    ReasonCode.PROTOCOL_ERROR,
                    f"DISCONNECT sets a session expiry of {expiry} where there was none",
                )
            if session.persistent and not expiry:
                self.dispatcher.record(Record(kind=RecordKind.SESSION_END, client=session.client_id))
            session.expiry = min(expiry, self.settings.max_session_expiry)
        if packet.reason != ReasonCode.DISCONNECT_WITH_WILL:
            session.will = None
        self._drop(channel, None, now)

    def _drop(self, channel: Channel, reason: ReasonCode | None, now: float) -> None:
        """Ends a connection from our side."""
        channel.close(reason)
        self.dispatcher.dirty[channel] = None
        self._detach(channel, now)

    def _detach(self, channel: Channel, now: float) -> None:
        """Separates a session from its connection, once."""
        session, channel.session = channel.session, None
        if session is None:
            return
        session.channel = None
        for delivery in session.drop_queued(lambda delivery: not delivery.qos):
            self.state.release(delivery.message)
        self.counters.connected -= 1
        if session.will is not None:
            delay = min(session.will.properties.will_delay or 0, session.expiry)
            session.will_due = now + delay
            self._publish_will(session, now)
        if not session.persistent:
            self._end(session, now)
            return
        session.expires_at = None if session.expiry == NEVER else now + session.expiry
        self.dispatcher.record(session_record(session, now))

    def _publish_will(self, session: Session, now: float) -> None:
        """Publishes a will that is due; nothing when its client came back or it has been published."""
        if session.will is None or session.will_due is None or session.will_due > now:
            return
        will, session.will, session.will_due = session.will, None, None
        self.dispatcher.accept(message_of_will(will, now), now, sender=session.client_id)

    def _end(self, session: Session, now: float) -> None:
        """Ends a session; a will that still waits is published now (MQTT 5, section 3.1.3.2.2)."""
        if session.will is not None and session.will_due is not None:
            session.will_due = now
            self._publish_will(session, now)
        if session.persistent:
            self.dispatcher.record(Record(kind=RecordKind.SESSION_END, client=session.client_id))
        self.state.end_session(session)

    # PUBLISH.

    def _topic_refusal(self, topic: str) -> ReasonCode | None:
        """Why clients may not publish to a topic, or None; what begins with `$` is the broker's own."""
        if topic.startswith("$"):
            return ReasonCode.NOT_AUTHORIZED
        if topic.count("/") >= self.settings.max_topic_levels:
            return ReasonCode.TOPIC_NAME_INVALID
        return None

    def _resolve(self, channel: Channel, topic: str, alias: int) -> str:
        """The topic of a publish with an alias, which it gives to the alias when it has one."""
        if alias > self.settings.topic_aliases:
            raise ProtocolError(
                ReasonCode.TOPIC_ALIAS_INVALID,
                f"topic alias {alias}, up to {self.settings.topic_aliases} are taken",
            )
        if topic:
            channel.aliases[alias] = topic
        elif alias not in channel.aliases:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"topic alias {alias} stands for no topic yet")
        return channel.aliases[alias]

    def _publish(self, channel: Channel, session: Session, packet: Publish, now: float) -> None:
        if packet.qos > 1:
            raise ProtocolError(ReasonCode.QOS_NOT_SUPPORTED, "a PUBLISH of QoS 2, which is not offered")
        properties = packet.properties
        if properties.topic_alias is not None:
            packet = replace(packet, topic=self._resolve(channel, packet.topic, properties.topic_alias))
        if properties.subscription_ids:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "a client's PUBLISH with a subscription identifier"
            )
        if packet.qos:
            channel.unacknowledged += 1
            if channel.version == Version.V5 and channel.unacknowledged > self.settings.receive_maximum:
                raise ProtocolError(
                    ReasonCode.RECEIVE_MAXIMUM_EXCEEDED,
                    f"more than {self.settings.receive_maximum} publishes without waiting for a PUBACK",
                )
        self.counters.publishes_received += 1
        refusal = self._topic_refusal(packet.topic)
        if refusal is not None:
            self.counters.publishes_refused += 1
            self.dispatcher.answer(channel, packet.packet_id, refusal)
            return
        fault = self._faults.decide(session.client_id, packet.topic) if self._faults is not None else None
        if fault is None:
            self._offer(packet, channel, session.client_id, now)
        else:
            self._strike(fault, packet, channel, session.client_id, now)
        if self._reordered and (fault is None or fault.action is not FaultAction.REORDER):
            self._release_reordered(now)

    def _offer(
        self, packet: Publish, channel: Channel, client: str, now: float, *, cut: bool = False
    ) -> None:
        """Hands a publish to the dispatcher."""
        expiry = packet.properties.message_expiry
        message = Message(
            packet.topic,
            packet.payload,
            qos=packet.qos,
            retain=packet.retain,
            properties=packet.properties,
            expires_at=None if expiry is None else now + expiry,
        )
        self.dispatcher.accept(
            message, now, sender=client, origin=channel, packet_id=packet.packet_id, cut=cut
        )

    def _strike(self, fault: Fault, packet: Publish, channel: Channel, client: str, now: float) -> None:
        """Carries a fault out."""
        match fault.action:
            case FaultAction.LOSE_BEFORE_PUBACK:
                return
            case FaultAction.LOSE_AFTER_PUBACK:
                self.dispatcher.answer(channel, packet.packet_id, ReasonCode.SUCCESS)
            case FaultAction.DUPLICATE:
                self._offer(packet, channel, client, now)
                self._offer(replace(packet, packet_id=None), channel, client, now)
            case FaultAction.REORDER:
                self._reordered.append(lambda then: self._offer(packet, channel, client, then))
                self._at(now + fault.seconds, self._release_reordered)
            case FaultAction.DELAY:
                self._at(now + fault.seconds, lambda then: self._offer(packet, channel, client, then))
            case FaultAction.DISCONNECT_BEFORE:
                self._drop(channel, None, now)
            case FaultAction.DISCONNECT_AFTER:
                self._offer(packet, channel, client, now, cut=True)
            case _:
                assert_never(fault.action)

    def _release_reordered(self, now: float) -> None:
        waiting, self._reordered = self._reordered, []
        for offer in waiting:
            offer(now)

    # SUBSCRIBE, UNSUBSCRIBE.

    def _subscribe(self, channel: Channel, session: Session, packet: Subscribe, now: float) -> None:
        reasons: list[int] = []
        retained: list[tuple[Subscription, str]] = []
        for asked in packet.subscriptions:
            subscription = replace(asked, qos=min(asked.qos, 1))
            group, plain = split_share(subscription.filter)
            if plain.count("/") >= self.settings.max_topic_levels:
                reasons.append(ReasonCode.TOPIC_FILTER_INVALID)
                continue
            known = subscription.filter in session.subscriptions
            if not known and len(session.subscriptions) >= self.settings.max_subscriptions:
                reasons.append(ReasonCode.QUOTA_EXCEEDED)
                continue
            new = self.state.subscribe(session, subscription)
            if session.persistent:
                self.dispatcher.record(subscribe_record(session.client_id, subscription), sync=True)
            reasons.append(subscription.qos)
            handling = subscription.retain_handling
            if group is None and (handling == 0 or (handling == 1 and new)):
                retained.append((subscription, plain))
        channel.send(Suback(packet_id=packet.packet_id, reasons=tuple(reasons)))
        self.dispatcher.dirty[channel] = None
        for subscription, plain in retained:
            for message in self.state.retained_matching(plain, now):
                delivery = Delivery(
                    message,
                    qos=min(message.qos, subscription.qos),
                    retain=True,
                    identifiers=(subscription.identifier,) if subscription.identifier else (),
                )
                self.dispatcher.deliver(session, delivery, now)

    def _unsubscribe(self, channel: Channel, session: Session, packet: Unsubscribe) -> None:
        reasons: list[int] = []
        for topic_filter in packet.filters:
            found = self.state.unsubscribe(session, topic_filter)
            if found and session.persistent:
                self.dispatcher.record(unsubscribe_record(session.client_id, topic_filter), sync=True)
            reasons.append(ReasonCode.SUCCESS if found else ReasonCode.NO_SUBSCRIPTION_EXISTED)
        channel.send(Unsuback(packet_id=packet.packet_id, reasons=tuple(reasons)))
        self.dispatcher.dirty[channel] = None

    # Time.

    def commit(self, now: float) -> None:
        """Ends a turn: what was accepted becomes durable, then it is delivered and acknowledged."""
        self.dispatcher.commit(now)

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._order), action))

    def next_due(self) -> float:
        """When `tick` has to be called next."""
        return min(self._next_tick, self._timers[0][0]) if self._timers else self._next_tick

    def tick(self, now: float) -> None:
        """Does what is due: timers; each second keep-alives, wills, session expiry and the log's upkeep."""
        while self._timers and self._timers[0][0] <= now:
            _, _, action = heapq.heappop(self._timers)
            action(now)
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK
        for channel in list(self.channels):
            if channel.version is None:
                if now - channel.opened > self.settings.connect_timeout:
                    self._drop(channel, None, now)
            elif channel.keep_alive and now - channel.last_seen > channel.keep_alive:
                self._drop(channel, ReasonCode.KEEP_ALIVE_TIMEOUT, now)
        for session in list(self.state.sessions.values()):
            self._publish_will(session, now)
            if session.expired(now):
                self.counters.expired_sessions += 1
                self._end(session, now)
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP
            self.dispatcher.sweep(now)
        self.dispatcher.commit(now)
        self.dispatcher.maintain(now)

    def _publish_sys(self, now: float) -> None:
        for topic, text in sys_values(self.counters, self.state, now - self._started):
            message = Message(topic, text.encode(), qos=0, retain=True)
            self.state.retain(message)
            self.dispatcher.broadcast(message, now)
        self._at(now + self.settings.sys_interval, self._publish_sys)
