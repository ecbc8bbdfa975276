"""Numbers that stand for topics within one connection (MQTT 5 section 3.3.2.3.4).

What lives here: `TopicAliases`, which says how the next publish is to spell its topic. What must not: sockets and paho.

The broker forgets the numbers with the connection, and hangs up on one that it does not know. So whoever uses them
starts each connection with an empty table and sends nothing of an older connection as it was then.
"""

from collections import OrderedDict
from typing import Final

from fedmq.transport.packet_size import TOPIC_ALIAS_PROPERTY

#: What a client remembers at most, whatever the broker takes: topics with a number, and topics published to once.
LARGEST: Final = 64


class TopicAliases:
    """The numbers of one connection.

    A topic gets its number with the second publish: the number costs as much as three characters, and most topics
    that are published to once on a connection are not published to again. When all numbers are taken, the other
    topics go without.

    Args:
        maximum: the broker's Topic Alias Maximum; 0 means that it takes none.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = min(maximum, LARGEST)
        self._numbers: dict[str, int] = {}
        self._once: OrderedDict[str, None] = OrderedDict()

    def spell(self, topic: str) -> tuple[str, int | None]:
        """The topic name and the alias for the next publish to `topic`; the name is empty once the alias is known."""
        number = self._numbers.get(topic)
        if number is not None:
            return "", number
        if topic in self._once and len(self._numbers) < self._maximum:
            return topic, len(self._numbers) + 1
        return topic, None

    def sent(self, topic: str, alias: int | None) -> None:
        """A publish to `topic` was sent with what `spell` gave."""
        if alias is not None:
            self._once.pop(topic, None)
            self._numbers[topic] = alias
        elif self._maximum and len(topic.encode()) > TOPIC_ALIAS_PROPERTY:
            self._once[topic] = None
            if len(self._once) > LARGEST:
                self._once.popitem(last=False)
