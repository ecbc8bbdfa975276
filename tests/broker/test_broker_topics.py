"""Topic matching, the subscription trie and the topic tree."""

import pytest
from fedmq.broker.errors import ProtocolError
from fedmq.broker.packets import Subscription
from fedmq.broker.topics import SubscriptionTrie, TopicTree, check_filter, check_topic, matches
from hypothesis import given
from hypothesis import strategies as st

MATCHING = [  # MQTT 5, section 4.7: its own examples
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/#", "sport", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("#", "$SYS/x", False),
    ("+/monitor/Clients", "$SYS/monitor/Clients", False),
    ("$SYS/#", "$SYS/x", True),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    ("accounts", "ACCOUNTS", False),
]


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), MATCHING)
def test_filters_match_as_in_the_specification(topic_filter, topic, expected):
    """The examples of section 4.7."""
    assert expected == matches(topic_filter, topic)


levels = st.sampled_from(["a", "b", "", "$x"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
filters = (
    st.lists(levels | st.just("+"), min_size=1, max_size=4)
    .flatmap(lambda parts: st.sampled_from(["/".join(parts), "/".join([*parts, "#"])]))
    .filter(bool)
) | st.just("#")


@given(present=st.lists(filters, max_size=8), removed=st.lists(filters, max_size=4), topic=topics)
def test_the_trie_finds_what_plain_matching_finds(present, removed, topic):
    """Also after removals, and after a match has been remembered."""
    trie = SubscriptionTrie()
    for topic_filter in present:
        trie.add(f"client {topic_filter}", Subscription(filter=topic_filter))
    trie.match(topic)
    left = set(present)
    for topic_filter in removed:
        assert (topic_filter in left) == trie.remove(f"client {topic_filter}", topic_filter)
        left.discard(topic_filter)

    found = {
        subscription.filter for _, subscriptions in trie.match(topic).plain for subscription in subscriptions
    }

    assert {one for one in left if matches(one, topic)} == found
    assert len(left) == trie.count


@given(present=st.lists(topics, max_size=10), removed=st.lists(topics, max_size=5), topic_filter=filters)
def test_the_topic_tree_finds_what_plain_matching_finds(present, removed, topic_filter):
    """Every topic once, also after removals."""
    tree: TopicTree[str] = TopicTree()
    for topic in present:
        tree.set(topic, topic)
    left = set(present)
    for topic in removed:
        assert (topic if topic in left else None) == tree.remove(topic)
        left.discard(topic)

    found = tree.find(topic_filter)

    assert sorted(topic for topic in left if matches(topic_filter, topic)) == sorted(found)
    assert len(left) == len(tree)


def test_empty_branches_are_removed_with_what_they_held():
    """A broker whose clients come and go does not grow."""
    trie, tree = SubscriptionTrie(), TopicTree[int]()
    for index in range(100):
        trie.add("c", Subscription(filter=f"a/{index}/+"))
        trie.add("c", Subscription(filter=f"$share/g/b/{index}"))
        tree.set(f"a/{index}/x", index)
    for index in range(100):
        trie.remove("c", f"a/{index}/+")
        trie.remove("c", f"$share/g/b/{index}")
        tree.remove(f"a/{index}/x")

    assert trie._root.empty
    assert tree._root.children == {}


def test_shared_subscriptions_are_groups_of_their_own():
    """Members of one group on one filter are found together, apart from plain subscribers."""
    trie = SubscriptionTrie()
    for client in ("one", "two"):
        trie.add(client, Subscription(filter="$share/g/a/+"))
    trie.add("three", Subscription(filter="$share/h/a/#"))
    trie.add("plain", Subscription(filter="a/b"))

    found = trie.match("a/b")

    assert [client for client, _ in found.plain] == ["plain"]
    assert sorted(list(group.members) for group in found.groups) == [["one", "two"], ["three"]]


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a#"])
def test_topics_with_wildcards_are_refused(topic):
    """They cannot be published to."""
    with pytest.raises(ProtocolError):
        check_topic(topic)


@pytest.mark.parametrize(
    "topic_filter", ["", "a+", "a/#/b", "#a", "$share/g", "$share//a", "$share/g+/a", "$share/g/"]
)
def test_filters_that_mean_nothing_are_refused(topic_filter):
    """Wildcards stand alone in a level, and `#` only at the end."""
    with pytest.raises(ProtocolError):
        check_filter(topic_filter)


def test_a_topic_of_many_levels_needs_no_recursion():
    """Thirty thousand levels are matched, stored and removed like three."""
    deep = "/".join("a" * 30_000)
    trie, tree = SubscriptionTrie(), TopicTree[int]()
    trie.add("c", Subscription(filter=deep))
    tree.set(deep, 1)

    assert len(trie.match(deep).plain) == 1
    assert tree.find("a/#") == [1]
