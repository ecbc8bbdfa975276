"""Topics, filters and the tree that finds subscribers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.transport.filters import FilterTree, matches


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b", "A/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("+/+", "/a", True),
        ("+", "/a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/broker", False),
        ("+/broker", "$SYS/broker", False),
        ("$SYS/#", "$SYS/broker", True),
        ("$SYS/+", "$SYS/broker", True),
        ("a/+/c/#", "a/$b/c", True),
    ],
)
def test_filters_match_as_section_4_7_says(topic_filter: str, topic: str, expected: bool) -> None:
    """The examples of the specification among them."""
    assert matches(topic_filter, topic) is expected


_LEVELS = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4)
_TOPICS = _LEVELS.map("/".join).filter(bool)
_FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.sampled_from(["a", "b", "", "+"]), min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
).filter(bool)


def plainly(topic_filter: str, topic: str) -> bool:
    """The rules once more, without a tree."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(a in ("+", b) for a, b in zip(wanted, levels, strict=True))


@given(st.dictionaries(st.integers(0, 9).map(str), st.tuples(_FILTERS, st.booleans())), _TOPICS)
def test_the_tree_finds_those_that_match_and_that_have_not_left(
    subscriptions: dict[str, tuple[str, bool]], topic: str
) -> None:
    """Whoever else came and went."""
    tree = FilterTree()
    for client, (topic_filter, _) in subscriptions.items():
        tree.add(topic_filter, client)
    for client, (topic_filter, leaves) in subscriptions.items():
        if leaves:
            tree.remove(topic_filter, client)
    expected = {
        client
        for client, (topic_filter, leaves) in subscriptions.items()
        if not leaves and plainly(topic_filter, topic)
    }

    assert sorted(expected) == sorted(tree.subscribers(topic))


def test_removing_what_is_not_there_changes_nothing() -> None:
    """A filter that nobody has, and one that another client has."""
    tree = FilterTree()
    tree.add("a/b", "x")
    tree.remove("a/c", "x")
    tree.remove("a/b", "y")
    tree.remove("a", "x")

    assert list(tree.subscribers("a/b")) == ["x"]
