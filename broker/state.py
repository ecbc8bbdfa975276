"""Everything a broker remembers: sessions, subscriptions, retained messages, and how much room they take.

This is what the log restores. Here live the changes of that state and its bookkeeping; what to change, and
what to tell whom, is decided in `core`.

A message that waits for ten clients is held ten times and stored once: it counts in `stored_bytes` from the
first `hold` to the last `release`.
"""

from collections.abc import Iterator

from .packets import Subscription
from .session import Delivery, Message, Session
from .topics import SubscriptionTrie, TopicTree


class BrokerState:
    """The sessions, the subscriptions and the retained messages of one broker."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.subscriptions = SubscriptionTrie()
        self.retained: TopicTree[Message] = TopicTree()
        self.retained_bytes = 0
        self.stored_messages = 0
        self.stored_bytes = 0
        self.last_number = 0  # of a message in the log

    def open_session(self, client_id: str, user: str | None) -> Session:
        """A new session; there must be none of this name."""
        session = self.sessions[client_id] = Session(client_id, user)
        return session

    def end_session(self, session: Session) -> list[Delivery]:
        """Removes a session with its subscriptions and returns what had still waited for it."""
        del self.sessions[session.client_id]
        for topic_filter in session.subscriptions:
            self.subscriptions.remove(session.client_id, topic_filter)
        session.subscriptions.clear()
        left = session.clear()
        for delivery in left:
            self.release(delivery.message)
        return left

    def subscribe(self, session: Session, subscription: Subscription) -> bool:
        """Adds or replaces a subscription; True when it is new."""
        session.subscriptions[subscription.filter] = subscription
        return self.subscriptions.add(session.client_id, subscription)

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """Removes a subscription; False when there was none."""
        session.subscriptions.pop(topic_filter, None)
        return self.subscriptions.remove(session.client_id, topic_filter)

    def enqueue(self, session: Session, delivery: Delivery) -> None:
        """Lets a delivery of QoS 1 wait for a client."""
        session.enqueue(delivery)
        self.hold(delivery.message)

    def hold(self, message: Message) -> None:
        """Counts one more place that keeps a message."""
        if not message.references:
            self.stored_messages += 1
            self.stored_bytes += message.size
        message.references += 1

    def release(self, message: Message) -> None:
        """Counts one place less."""
        message.references -= 1
        if not message.references:
            self.stored_messages -= 1
            self.stored_bytes -= message.size

    def retain(self, message: Message) -> None:
        """Makes a message its topic's retained one; an empty payload only removes the old one."""
        if not message.payload:
            self.forget_retained(message.topic)
            return
        self.hold(message)
        self.retained_bytes += message.size
        old = self.retained.set(message.topic, message)
        if old is not None:
            self._unretain(old)

    def forget_retained(self, topic: str) -> None:
        """Removes a topic's retained message, if there is one."""
        old = self.retained.remove(topic)
        if old is not None:
            self._unretain(old)

    def _unretain(self, message: Message) -> None:
        self.retained_bytes -= message.size
        self.release(message)

    def retained_matching(self, topic_filter: str, now: float) -> Iterator[Message]:
        """The retained messages whose topics match a filter; those whose time has passed are removed."""
        for message in self.retained.find(topic_filter):
            if message.expired(now):
                self.forget_retained(message.topic)
            else:
                yield message
