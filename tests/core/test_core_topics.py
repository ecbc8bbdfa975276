"""The topic tree is what the protocol says, and names that do not survive every broker are refused."""

import pytest

from fedmq.errors import SettingError
from fedmq.topics import Topics, check_name, is_name, last_level
from fedmq.transport.filters import check_filter, check_topic, matches


def test_the_tree_is_that_of_the_protocol() -> None:
    """A client in another language is written from these."""
    topics = Topics("mill")

    assert [
        "fedmq/v1/mill/plan",
        "fedmq/v1/mill/model",
        "fedmq/v1/mill/object/00ff/3",
        "fedmq/v1/mill/update/0/press-07",
        "fedmq/v1/mill/receipt/press-07",
        "fedmq/v1/mill/task/press-07",
        "fedmq/v1/mill/client/press-07",
        "fedmq/v1/mill/aggregator/0",
        "fedmq/v1/mill/stats/aggregator",
    ] == [
        topics.plan,
        topics.model,
        topics.object("00ff", 3),
        topics.update("0", "press-07"),
        topics.receipt("press-07"),
        topics.task("press-07"),
        topics.client("press-07"),
        topics.aggregator("0"),
        topics.stats("aggregator"),
    ]


def test_filters_match_their_topics_and_no_others() -> None:
    """The updates of one shard are not those of another."""
    topics = Topics("mill")
    for topic_filter, inside, outside in (
        (topics.updates("0"), topics.update("0", "a"), topics.update("1", "a")),
        (topics.clients, topics.client("a"), topics.receipt("a")),
        (topics.all_stats, topics.stats("x"), topics.plan),
    ):
        check_filter(topic_filter)
        check_topic(inside)

        assert matches(topic_filter, inside)
        assert not matches(topic_filter, outside)
        assert not matches(topic_filter, inside.replace("mill", "other"))


def test_the_last_level_is_the_client_of_an_update() -> None:
    """The broker's access rules bind it to whoever is connected."""
    assert "a" == last_level(Topics("mill").update("0", "a"))


@pytest.mark.parametrize("name", ["a", "A-Z_0", "x" * 64])
def test_a_name_may_hold_letters_digits_underscore_and_hyphen(name: str) -> None:
    """One to 64 of them."""
    assert is_name(name)
    assert name == check_name("client", name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a.b", "a b", "+", "#", "ä", "a\n", "a\0", "$SYS"])
def test_any_other_name_is_refused(name: str) -> None:
    """With the name of the setting; NATS, for one, would map the dot to two slashes."""
    assert not is_name(name)
    with pytest.raises(SettingError, match=r"setting client = .* 1 to 64 of the characters"):
        check_name("client", name)
    with pytest.raises(SettingError, match="setting federation = "):
        Topics(name)
