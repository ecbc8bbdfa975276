"""Topic names and topic filters: validity, matching, and the two trees (MQTT 5, section 4.7).

Here live the subscription trie (from a topic to the subscriptions that match it, with shared subscriptions)
and the topic tree (from a filter to the topics that match it, for retained messages). Who is behind a
client identifier is nobody's business here.

A filter that begins with a wildcard does not match a topic that begins with `$` (section 4.7.2).
Walks are loops over a stack, never recursion: a hostile topic may have thousands of levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from .errors import ProtocolError, ReasonCode
from .packets import Subscription

T = TypeVar("T")
SHARE: Final = "$share/"
_MAX_CACHED_TOPICS: Final = 4096  # matches kept between changes of the subscriptions


def check_topic(topic: str) -> None:
    """Raises `ProtocolError` unless `topic` can be published to: not empty, no wildcards."""
    if not topic or "+" in topic or "#" in topic:
        raise ProtocolError(ReasonCode.TOPIC_NAME_INVALID, f"{topic[:80]!r} is not a topic name")


def check_filter(topic_filter: str) -> None:
    """Raises `ProtocolError` unless `topic_filter` is a filter: wildcards alone in a level, `#` only last."""
    plain = topic_filter
    if topic_filter.startswith(SHARE):
        group, slash, plain = topic_filter[len(SHARE) :].partition("/")
        if not group or not slash or "+" in group or "#" in group:
            raise ProtocolError(
                ReasonCode.TOPIC_FILTER_INVALID, f"{topic_filter[:80]!r} is not $share/<group>/<filter>"
            )
    if plain and "#" not in plain and "+" not in plain:
        return
    levels = plain.split("/")
    alone = all(level in ("+", "#") or ("+" not in level and "#" not in level) for level in levels)
    if not plain or not alone or "#" in levels[:-1]:
        raise ProtocolError(ReasonCode.TOPIC_FILTER_INVALID, f"{topic_filter[:80]!r} is not a topic filter")


def split_share(topic_filter: str) -> tuple[str | None, str]:
    """The group of a shared subscription, or None, and the filter without it."""
    if not topic_filter.startswith(SHARE):
        return None, topic_filter
    group, _, plain = topic_filter[len(SHARE) :].partition("/")
    return group, plain


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a valid filter (not a shared one) matches a topic name."""
    if topic[0] == "$" and topic_filter[0] in "+#":
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or (level != "+" and level != levels[index]):
            return False
    return len(wanted) == len(levels)


class ShareGroup:
    """The members of one `$share/<group>/<filter>`, and whose turn it is."""

    __slots__ = ("members", "turn")

    def __init__(self) -> None:
        self.members: dict[str, Subscription] = {}
        self.turn = 0


class _SubscriptionNode:
    __slots__ = ("children", "groups", "plain")

    def __init__(self) -> None:
        self.children: dict[str, _SubscriptionNode] = {}
        self.plain: dict[str, Subscription] = {}
        self.groups: dict[str, ShareGroup] = {}

    @property
    def empty(self) -> bool:
        return not (self.children or self.plain or self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """What matches one topic: each client with its subscriptions, and the groups of which one member counts."""

    plain: tuple[tuple[str, tuple[Subscription, ...]], ...]
    groups: tuple[ShareGroup, ...]


class SubscriptionTrie:
    """All subscriptions of a broker, by filter."""

    def __init__(self) -> None:
        self._root = _SubscriptionNode()
        self._cache: dict[str, Matches] = {}
        self.count = 0

    def add(self, client: str, subscription: Subscription) -> bool:
        """Adds or replaces a client's subscription; True when it is new."""
        self._cache.clear()
        group, plain = split_share(subscription.filter)
        node = self._root
        for level in plain.split("/"):
            node = node.children.setdefault(level, _SubscriptionNode())
        holder = node.plain if group is None else node.groups.setdefault(group, ShareGroup()).members
        new = client not in holder
        holder[client] = subscription
        self.count += new
        return new

    def remove(self, client: str, topic_filter: str) -> bool:
        """Removes a client's subscription with the branches it leaves bare; False when there is none."""
        group, plain = split_share(topic_filter)
        path = [self._root]
        levels = plain.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return False
            path.append(child)
        node = path[-1]
        if group is None:
            found = node.plain.pop(client, None) is not None
        else:
            share = node.groups.get(group)
            found = share is not None and share.members.pop(client, None) is not None
            if share is not None and not share.members:
                del node.groups[group]
        if found:
            self._cache.clear()
            self.count -= 1
            for parent, level, child in zip(path[-2::-1], levels[::-1], path[:0:-1], strict=True):
                if not child.empty:
                    break
                del parent.children[level]
        return found

    def match(self, topic: str) -> Matches:
        """The subscriptions that match a topic name."""
        found = self._cache.get(topic)
        if found is None:
            if len(self._cache) >= _MAX_CACHED_TOPICS:
                self._cache.clear()
            found = self._cache[topic] = self._walk(topic)
        return found

    def _walk(self, topic: str) -> Matches:
        levels = topic.split("/")
        nodes: list[_SubscriptionNode] = []
        stack = [(self._root, 0)]
        while stack:
            node, depth = stack.pop()
            wildcards = depth > 0 or not topic.startswith("$")
            if wildcards and (rest := node.children.get("#")) is not None:
                nodes.append(rest)
            if depth == len(levels):
                nodes.append(node)
                continue
            if (child := node.children.get(levels[depth])) is not None:
                stack.append((child, depth + 1))
            if wildcards and (child := node.children.get("+")) is not None:
                stack.append((child, depth + 1))
        by_client: dict[str, list[Subscription]] = {}
        for node in nodes:
            for client, subscription in node.plain.items():
                by_client.setdefault(client, []).append(subscription)
        return Matches(
            plain=tuple((client, tuple(found)) for client, found in by_client.items()),
            groups=tuple(group for node in nodes for group in node.groups.values()),
        )


class _TopicNode(Generic[T]):
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _TopicNode[T]] = {}
        self.value: T | None = None


class TopicTree(Generic[T]):
    """One value per topic, looked up by topic or by filter."""

    def __init__(self) -> None:
        self._root: _TopicNode[T] = _TopicNode()
        self._values: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, topic: str) -> T | None:
        """The value of a topic, if it has one."""
        return self._values.get(topic)

    def values(self) -> Iterator[T]:
        """All values, in the order in which their topics first appeared."""
        return iter(self._values.values())

    def set(self, topic: str, value: T) -> T | None:
        """Sets a topic's value and returns the one it replaces."""
        node = self._root
        for level in topic.split("/"):
            node = node.children.setdefault(level, _TopicNode())
        node.value = value
        old = self._values.get(topic)
        self._values[topic] = value
        return old

    def remove(self, topic: str) -> T | None:
        """Removes a topic's value, with the branches it leaves bare, and returns it."""
        old = self._values.pop(topic, None)
        if old is None:
            return None
        path = [self._root]
        levels = topic.split("/")
        for level in levels:
            path.append(path[-1].children[level])
        path[-1].value = None
        for parent, level, child in zip(path[-2::-1], levels[::-1], path[:0:-1], strict=True):
            if child.children or child.value is not None:
                break
            del parent.children[level]
        return old

    def find(self, topic_filter: str) -> list[T]:
        """The values of all topics that match a filter (not a shared one)."""
        if "+" not in topic_filter and "#" not in topic_filter:
            value = self._values.get(topic_filter)
            return [] if value is None else [value]
        levels = topic_filter.split("/")
        found: list[T] = []
        stack = [(self._root, 0)]
        while stack:
            node, depth = stack.pop()
            if depth == len(levels):
                if node.value is not None:
                    found.append(node.value)
                continue
            level = levels[depth]
            if level == "#":
                if node.value is not None:
                    found.append(node.value)
                stack.extend((child, depth) for child in self._below(node, depth))
            elif level == "+":
                stack.extend((child, depth + 1) for child in self._below(node, depth))
            elif (child := node.children.get(level)) is not None:
                stack.append((child, depth + 1))
        return found

    def _below(self, node: _TopicNode[T], depth: int) -> list[_TopicNode[T]]:
        """The children that a wildcard at this depth may enter."""
        if node is not self._root or depth:
            return list(node.children.values())
        return [child for name, child in node.children.items() if not name.startswith("$")]
