"""A visit: everything that a device and its broker exchange for one update, packet by packet. Pure.

The device connects, subscribes, takes the plan and the newest model, publishes one update, takes its receipt and says
goodbye. The counts are those of an `Agent` at a broker that keeps its word, to the byte.
"""

from collections.abc import Iterable

from fedmq.topics import Topics
from fedmq.transport import packet_size
from fedmq.transport.topic_alias import TopicAliases
from fedmq.types import ObjectRef

#: Reason code of a PUBACK: nobody has subscribed (MQTT 5 section 3.4.2.1).
_NO_SUBSCRIBERS = 0x10
_NO_PROPERTIES = 1
#: Session expiry and receive maximum, in a CONNECT.
_WISHES = 5 + 3


class Visit:
    """One device's exchange with the broker.

    Args:
        client: its client id in the federation.
        topics: of the federation.
        topic_aliases: how many the broker takes.

    Attributes:
        up: bytes towards the broker so far.
        down: bytes from the broker so far.
    """

    def __init__(self, client: str, topics: Topics, topic_aliases: int) -> None:
        self.up = self.down = 0
        self._client, self._topics = client, topics
        self._aliases = TopicAliases(topic_aliases)

    def begin(
        self, *, birth: int, will: int, plan: int, aggregator: int, receipt: int | None, shard: str
    ) -> None:
        """Connect, say hello, and take what lies on the subscribed topics.

        Args:
            birth: bytes of the device's birth.
            will: bytes of its will.
            plan: bytes of the plan.
            aggregator: bytes of the aggregator's birth.
            receipt: bytes of the device's last receipt; None when there was none.
            shard: the aggregator's.
        """
        topics, client = self._topics, self._client
        self.up += packet_size.connect(
            f"{topics.federation}-client-{client}",
            properties=_NO_PROPERTIES + _WISHES,
            will=packet_size.will(topics.client(client), will, properties=_NO_PROPERTIES),
        )
        self.down += packet_size.connack(properties=_NO_PROPERTIES)
        for topic, retained in (
            (topics.plan, plan),
            (topics.receipt(client), receipt),
            (topics.task(client), None),  # the work is not shared out here
            (topics.aggregator(shard), aggregator),
        ):
            self._subscribe(topic)
            if retained is not None:
                self._receive(topic, retained)
        self._publish(topics.client(client), birth, reason=_NO_SUBSCRIBERS)

    def pull(self, *, head: int, missing: Iterable[ObjectRef], chunk_bytes: int) -> None:
        """Take the newest model.

        Args:
            head: bytes of the head.
            missing: the objects that the device lacks.
            chunk_bytes: of each chunk but an object's last one.
        """
        self._subscribe(self._topics.model)
        self._receive(self._topics.model, head)
        for ref in missing:
            for index in range(ref.chunks):
                topic = self._topics.object(ref.id, index)
                self._subscribe(topic)
                self._receive(topic, min(chunk_bytes, ref.size - index * chunk_bytes))
                self._unsubscribe(topic)
        self._unsubscribe(self._topics.model)

    def send(self, *, update: int, shard: str) -> None:
        """Publish an update of so many bytes."""
        self._publish(self._topics.update(shard, self._client), update, reason=0)

    def end(self, *, goodbye: int, receipt: int) -> None:
        """Take a receipt, and say goodbye: each so many bytes."""
        topic = self._topics.client(self._client)
        self._receive(self._topics.receipt(self._client), receipt)
        self._aliases.sent(topic, None)  # with its birth, which another `Visit` may have counted
        self._publish(topic, goodbye, reason=_NO_SUBSCRIBERS)
        self.up += packet_size.disconnect(reason=0, properties=_NO_PROPERTIES)

    def _publish(self, topic: str, payload: int, *, reason: int) -> None:
        name, alias = self._aliases.spell(topic)
        self._aliases.sent(topic, alias)
        properties = _NO_PROPERTIES + (0 if alias is None else packet_size.TOPIC_ALIAS_PROPERTY)
        self.up += packet_size.publish(name, payload, properties=properties)
        self.down += packet_size.puback(reason=reason, properties=_NO_PROPERTIES)

    def _receive(self, topic: str, payload: int) -> None:
        self.down += packet_size.publish(topic, payload, properties=_NO_PROPERTIES)
        self.up += packet_size.puback(reason=0, properties=_NO_PROPERTIES)

    def _subscribe(self, topic: str) -> None:
        self.up += packet_size.subscribe(topic, properties=_NO_PROPERTIES)
        self.down += packet_size.suback(properties=_NO_PROPERTIES)

    def _unsubscribe(self, topic: str) -> None:
        self.up += packet_size.unsubscribe(topic, properties=_NO_PROPERTIES)
        self.down += packet_size.suback(properties=_NO_PROPERTIES)
