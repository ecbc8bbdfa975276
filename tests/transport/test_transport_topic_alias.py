"""Topic aliases: a broker that follows the specification always understands them."""

from hypothesis import given
from hypothesis import strategies as st

from fedmq.transport.topic_alias import LARGEST, TopicAliases

topics = st.lists(
    st.sampled_from([f"some/topic/{number}" for number in range(8)] + ["a", "abc", "abcd", "ü"])
)


def spellings(aliases: TopicAliases, *published: str) -> list[tuple[str, int | None]]:
    """How each publish spells its topic."""
    spelled = []
    for topic in published:
        spelled.append(aliases.spell(topic))
        aliases.sent(topic, spelled[-1][1])
    return spelled


@given(maximum=st.integers(0, 12), published=topics)
def test_the_broker_always_knows_the_topic(maximum: int, published: list[str]) -> None:
    """It learns a number with its topic, and is never told one above its maximum (section 3.3.2.3.4)."""
    known: dict[int, str] = {}
    for topic, (name, alias) in zip(published, spellings(TopicAliases(maximum), *published), strict=True):
        if alias is not None:
            assert 1 <= alias <= maximum
            if name:
                assert alias not in known
                known[alias] = name
        assert topic == (known[alias] if not name and alias is not None else name)


@given(maximum=st.integers(0, 12), published=topics)
def test_aliases_never_cost_much(maximum: int, published: list[str]) -> None:
    """At worst three bytes for each topic: with its second publish, if there is no third."""
    plain = sum(len(topic.encode()) for topic in published)
    spelled = spellings(TopicAliases(maximum), *published)
    cost = sum(len(name.encode()) + 3 * (alias is not None) for name, alias in spelled)

    assert cost <= plain + 3 * len(set(published))


def test_the_second_publish_brings_the_number_and_the_third_needs_no_topic() -> None:
    """Whoever publishes once to a topic pays nothing."""
    expected = [("a/topic", None), ("another", None), ("a/topic", 1), ("", 1), ("", 1)]

    assert spellings(TopicAliases(10), "a/topic", "another", "a/topic", "a/topic", "a/topic") == expected


def test_a_publish_that_was_not_sent_teaches_nothing() -> None:
    """The broker has not seen it."""
    aliases = TopicAliases(10)
    spellings(aliases, "a/topic")

    assert aliases.spell("a/topic") == aliases.spell("a/topic") == ("a/topic", 1)


def test_when_the_numbers_are_used_up_the_others_go_without() -> None:
    """First come, first served."""
    assert spellings(TopicAliases(1), *["first"] * 3, *["other"] * 3) == [
        ("first", None), ("first", 1), ("", 1), ("other", None), ("other", None), ("other", None),
    ]  # fmt: skip


def test_a_broker_that_takes_none_gets_none() -> None:
    """MQTT 5 without the property, and MQTT 3.1.1."""
    assert spellings(TopicAliases(0), *["a/topic"] * 3) == [("a/topic", None)] * 3


def test_what_is_remembered_is_bounded() -> None:
    """However many topics there are, and however many numbers the broker would take."""
    aliases = TopicAliases(65_535)
    many = [f"topic/{number}" for number in range(5 * LARGEST)]
    spellings(aliases, *many)
    spellings(aliases, *(topic for topic in many for _ in range(2)))

    assert len(aliases._once) <= LARGEST
    assert len(aliases._numbers) <= LARGEST
