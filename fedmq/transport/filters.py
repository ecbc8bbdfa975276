"""Topic names and topic filters.

What lives here: MQTT's rules of what a topic and a filter may be, and which matches which (MQTT 5 section
4.7). What must not: fedmq's own topics, which are in `fedmq.topics`.
"""

from collections.abc import Iterator

from fedmq.errors import TransportError

_LONGEST = 65535  # MQTT 5 section 1.5.4: bytes of a string


def check_topic(topic: str) -> None:
    """Refuse what nobody can publish to.

    Raises:
        TransportError: empty, longer than 65,535 bytes, with a wildcard or a character that MQTT forbids.
    """
    _check_text("topic", topic)
    if "+" in topic or "#" in topic:
        raise TransportError(f"topic {topic!r} has a wildcard: publish to one topic, without + and #")


def check_filter(topic_filter: str) -> None:
    """Refuse what nobody can subscribe to.

    Raises:
        TransportError: empty, too long, with a character that MQTT forbids, or with a misplaced wildcard.
    """
    _check_text("topic filter", topic_filter)
    levels = topic_filter.split("/")
    for depth, level in enumerate(levels):
        if ("+" in level or "#" in level) and len(level) > 1:
            raise TransportError(f"topic filter {topic_filter!r}: a wildcard must stand alone in its level")
        if level == "#" and depth != len(levels) - 1:
            raise TransportError(f"topic filter {topic_filter!r}: # must be the last level")


def _check_text(what: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise TransportError(f"{what} {value!r} is not valid Unicode: {error.reason}") from error
    if not 0 < size <= _LONGEST:
        raise TransportError(f"{what} of {size} bytes: give 1 to {_LONGEST}")
    if "\0" in value:
        raise TransportError(f"{what} {value!r} has a null character, which MQTT forbids")


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a message published to `topic` goes to subscribers of `topic_filter`."""
    tree = FilterTree()
    tree.add(topic_filter, "")
    return any(True for _ in tree.subscribers(topic))


class _Node:
    """One level of the filters that begin alike."""

    __slots__ = ("children", "clients")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        # A dict as an ordered set: the order of delivery must not depend on hash seeds.
        self.clients: dict[str, None] = {}


class FilterTree:
    """Who subscribed to what: finds the subscribers of a topic without looking at the others.

    Each level of a filter is a level of the tree, so that a broker with thousands of sessions, each with
    topics of its own, looks at a handful of nodes per publish.
    """

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, topic_filter: str, client_id: str) -> None:
        """Remember that this client subscribed to this filter."""
        node = self._root
        for level in topic_filter.split("/"):
            node = node.children.setdefault(level, _Node())
        node.clients[client_id] = None

    def remove(self, topic_filter: str, client_id: str) -> None:
        """Forget it, and the nodes that nobody needs any more."""
        path = [self._root]
        levels = topic_filter.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        path[-1].clients.pop(client_id, None)
        for parent, level, child in reversed(list(zip(path, levels, path[1:], strict=False))):
            if child.clients or child.children:
                return
            del parent.children[level]

    def subscribers(self, topic: str) -> Iterator[str]:
        """The clients with a matching filter, each as often as it has one.

        A wildcard in the first level does not match topics that begin with $ (section 4.7.2).
        """
        nodes = [self._root]
        for depth, level in enumerate(topic.split("/")):
            wild = depth > 0 or not topic.startswith("$")
            if wild:
                yield from _below("#", nodes)
            keys = (level, "+") if wild else (level,)
            nodes = [node.children[key] for node in nodes for key in keys if key in node.children]
        for node in nodes:
            yield from node.clients
        yield from _below("#", nodes)  # `a/#` matches `a` as well (section 4.7.1.2)


def _below(level: str, nodes: list[_Node]) -> Iterator[str]:
    for node in nodes:
        if level in node.children:
            yield from node.children[level].clients
