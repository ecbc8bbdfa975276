"""A broker without a network: sessions, routing and faults, in one thread and by one clock.

What lives here: `MemoryBroker`, the broker's half of the honest fake. What must not: threads, sockets, and
any clock but the one that is passed in. How the fake works, and what makes it honest, is told in
`fedmq.transport.memory`, the client's half.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedmq.transport import packet_size
from fedmq.transport.base import Disconnected, Will
from fedmq.transport.filters import FilterTree, matches


class Link(Protocol):
    """The broker's view of a connected `MemoryTransport`."""

    client_id: str
    clean_start: bool
    session_expiry: float
    receive_maximum: int
    will: Will | None

    def connected(self, *, session_present: bool) -> None:
        """The broker took the connection."""

    def disconnected(self, event: Disconnected) -> None:
        """The connection is gone, and with it what had not been polled."""

    def deliver(self, packet_id: int, *, topic: str, payload: bytes, retained: bool, duplicate: bool) -> None:
        """A message for this client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message, or one subscriber's copy of it, that will never be delivered.

    Attributes:
        topic: where it was published.
        payload: its bytes.
        client_id: whose copy, or None when there was no subscriber at all.
        reason: "no subscriber", "expired", "queue full", "session ended" or "broker lost its state".
    """

    topic: str
    payload: bytes
    client_id: str | None
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class _Message:
    """One subscriber's copy of a message, or a retained one."""

    topic: str
    payload: bytes
    expires_at: float
    retained: bool = False
    duplicate: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Session:
    """What the broker keeps of a client while it is away."""

    client_id: str
    link: Link | None = None
    filters: dict[str, None] = field(default_factory=dict)
    queue: deque[_Message] = field(default_factory=deque)
    in_flight: dict[int, _Message] = field(default_factory=dict)
    last_packet_id: int = 0
    expires_at: float = math.inf


class MemoryBroker:
    """A broker without a network.

    Args:
        clock: seconds, for message and session expiry; never runs backwards.
        maximum_packet_size: largest PUBLISH in bytes.
        topic_alias_maximum: topics for which a client may send numbers on one connection; mosquitto takes 10.
        session_queue: messages kept for one session; the newest are dropped beyond it, as mosquitto does.
        duplicate_rate: share of deliveries that come twice although nothing broke.
        seed: of the generator that picks them.
        dead_letters_kept: how many of the latest dead letters to remember.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        maximum_packet_size: int = packet_size.LARGEST_PACKET,
        topic_alias_maximum: int = 0,
        session_queue: int = 100_000,
        duplicate_rate: float = 0.0,
        seed: int = 0,
        dead_letters_kept: int = 1024,
    ) -> None:
        self.maximum_packet_size = maximum_packet_size
        self.topic_alias_maximum = topic_alias_maximum
        self.dead_letters: deque[DeadLetter] = deque(maxlen=dead_letters_kept)
        self._clock = clock
        self._session_queue = session_queue
        self._duplicate_rate = duplicate_rate
        self._random = random.Random(seed)
        self._sessions: dict[str, _Session] = {}
        self._subscriptions = FilterTree()
        self._retained: dict[str, _Message] = {}
        self._blocked: set[str] = set()
        self._running = True

    # What tests and the simulator do to it.

    def disconnect(self, client_id: str) -> None:
        """Cut a client's connection without a goodbye: its will is published. It may connect again."""
        session = self._sessions.get(client_id)
        if session is not None and session.link is not None:
            self._unlink(session, "connection lost", with_will=True)

    def block(self, client_id: str) -> None:
        """Cut a client off and let it connect no more until `unblock`."""
        self._blocked.add(client_id)
        self.disconnect(client_id)

    def unblock(self, client_id: str) -> None:
        """Let a client connect again."""
        self._blocked.discard(client_id)

    def stop(self, *, forget: bool) -> None:
        """Kill the broker: all connections break, no will is sent.

        Args:
            forget: lose sessions and retained messages, as a broker without a disk does.
        """
        self._running = False
        for session in list(self._sessions.values()):
            if session.link is not None:
                self._unlink(session, "broker stopped", with_will=False)
        if forget:
            for session in list(self._sessions.values()):
                self._end(session, "broker lost its state")
            self._retained.clear()

    def start(self) -> None:
        """Let clients connect again after `stop`."""
        self._running = True

    # What they may ask.

    def retained(self, topic: str) -> bytes | None:
        """What is retained on a topic."""
        message = self._retained.get(topic)
        return None if message is None or self._clock() >= message.expires_at else message.payload

    def pending(self, client_id: str) -> int:
        """How many messages wait for this client or for its acknowledgement."""
        session = self._sessions.get(client_id)
        return 0 if session is None else len(session.queue) + len(session.in_flight)

    @property
    def drained(self) -> bool:
        """Whether nobody who is connected has a message waiting or unacknowledged."""
        return not any(
            session.queue or session.in_flight
            for session in self._sessions.values()
            if session.link is not None
        )

    # What transports call.

    def connect(self, link: Link) -> bool:
        """Take a connection, ending an older one of the same client id; False when it cannot be had now."""
        if not self._running or link.client_id in self._blocked:
            return False
        session = self._alive(link.client_id)
        if session is not None and session.link is not None:
            self._unlink(session, "Session taken over", with_will=True, taken_over=True)
            session = self._alive(link.client_id)
        if session is not None and link.clean_start:
            self._end(session, "session ended")
            session = None
        session_present = session is not None
        if session is None:
            session = self._sessions[link.client_id] = _Session(client_id=link.client_id)
        session.link, session.last_packet_id, session.expires_at = link, 0, math.inf
        link.connected(session_present=session_present)
        self._deliver(session)
        return True

    def leave(self, client_id: str) -> None:
        """End a connection with a goodbye: no will."""
        session = self._sessions[client_id]
        self._unlink(session, "closed", with_will=False)

    def publish(self, topic: str, payload: bytes, *, retain: bool, expiry: float | None) -> bool:
        """Route a message; whether anybody has subscribed to it."""
        expires_at = math.inf if expiry is None else self._clock() + expiry
        if retain and payload:
            self._retained[topic] = _Message(
                topic=topic, payload=payload, expires_at=expires_at, retained=True
            )
        elif retain:
            self._retained.pop(topic, None)
        found = False
        for client_id in dict.fromkeys(self._subscriptions.subscribers(topic)):
            session = self._alive(client_id)
            if session is not None:
                found = True
                self._queue(session, _Message(topic=topic, payload=payload, expires_at=expires_at))
        if not found and not retain:
            self._bury(topic, payload, None, "no subscriber")
        return found

    def subscribe(self, client_id: str, topic_filter: str) -> str | None:
        """Subscribe a connected client and send it what is retained; the reason when that is refused."""
        if topic_filter.startswith("$share/"):
            return "Shared Subscriptions not supported"
        session = self._sessions[client_id]
        session.filters[topic_filter] = None
        self._subscriptions.add(topic_filter, client_id)
        for message in self._retained_on(topic_filter):
            self._queue(session, replace(message))
        return None

    def unsubscribe(self, client_id: str, topic_filter: str) -> None:
        """Forget a connected client's subscription."""
        self._sessions[client_id].filters.pop(topic_filter, None)
        self._subscriptions.remove(topic_filter, client_id)

    def acknowledge(self, client_id: str, packet_id: int) -> bool:
        """Forget a delivered message; False when it had been acknowledged before."""
        session = self._sessions[client_id]
        if session.in_flight.pop(packet_id, None) is None:
            return False
        self._deliver(session)
        return True

    # How it works.

    def _retained_on(self, topic_filter: str) -> list[_Message]:
        if "+" not in topic_filter and "#" not in topic_filter:  # one topic: most filters, and many topics
            return [self._retained[topic_filter]] if topic_filter in self._retained else []
        return [message for message in self._retained.values() if matches(topic_filter, message.topic)]

    def _alive(self, client_id: str) -> _Session | None:
        session = self._sessions.get(client_id)
        if session is not None and self._clock() >= session.expires_at:
            self._end(session, "session ended")
            return None
        return session

    def _unlink(self, session: _Session, reason: str, *, with_will: bool, taken_over: bool = False) -> None:
        link = session.link
        if link is None:
            return
        session.link = None
        session.expires_at = self._clock() + link.session_expiry
        for message in reversed(session.in_flight.values()):
            message.duplicate = True
            session.queue.appendleft(message)
        session.in_flight.clear()
        link.disconnected(Disconnected(reason=reason, taken_over=taken_over))
        if with_will and link.will is not None:
            self.publish(link.will.topic, link.will.payload, retain=link.will.retain, expiry=None)
        self._alive(session.client_id)  # an expiry of 0 ends the session with its connection

    def _end(self, session: _Session, reason: str) -> None:
        del self._sessions[session.client_id]
        for topic_filter in session.filters:
            self._subscriptions.remove(topic_filter, session.client_id)
        for message in session.queue:
            self._bury(message.topic, message.payload, session.client_id, reason)

    def _queue(self, session: _Session, message: _Message) -> None:
        if len(session.queue) >= self._session_queue:
            self._bury(message.topic, message.payload, session.client_id, "queue full")
            return
        session.queue.append(message)
        self._deliver(session)

    def _deliver(self, session: _Session) -> None:
        while session.link and session.queue and len(session.in_flight) < session.link.receive_maximum:
            message = session.queue.popleft()
            if self._clock() >= message.expires_at:
                self._bury(message.topic, message.payload, session.client_id, "expired")
                continue
            session.last_packet_id += 1
            session.in_flight[session.last_packet_id] = message
            for _ in range(2 if self._random.random() < self._duplicate_rate else 1):
                session.link.deliver(
                    session.last_packet_id,
                    topic=message.topic,
                    payload=message.payload,
                    retained=message.retained,
                    duplicate=message.duplicate,
                )

    def _bury(self, topic: str, payload: bytes, client_id: str | None, reason: str) -> None:
        self.dead_letters.append(DeadLetter(topic=topic, payload=payload, client_id=client_id, reason=reason))
