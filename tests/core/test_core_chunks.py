"""Splitting and reassembling: any order, nothing trusted, and memory that comes back."""

import tracemalloc
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.chunks import PIECE_BYTES, Reassembler, checksum, split
from fedmq.errors import WireError

WHOLE = bytes(range(250)) * 2


def reassembler(
    *, max_message: int = 10_000, max_total: int = 20_000, max_partial: int = 8, ttl: float = 10
) -> Reassembler[str]:
    """One with small bounds."""
    return Reassembler(max_message=max_message, max_total=max_total, max_partial=max_partial, ttl=ttl)


def offer(
    target: Reassembler[str],
    index: int,
    pieces: list[bytes],
    *,
    key: str = "a",
    whole: bytes = WHOLE,
    now: float = 0,
) -> bytes | None:
    """One piece of `whole`, described rightly."""
    return target.add(
        key,
        index=index,
        count=len(pieces),
        size=len(whole),
        digest=checksum(whole),
        data=pieces[index],
        now=now,
    )


@given(st.binary(max_size=300), st.integers(1, 320))
def test_the_pieces_of_a_split_are_the_whole(data: bytes, chunk_bytes: int) -> None:
    """All but the last have the full size; the last has something in it, unless there is nothing."""
    pieces = split(data, chunk_bytes)

    assert data == b"".join(pieces)
    assert all(len(piece) == chunk_bytes for piece in pieces[:-1])
    assert min(len(data), 1) <= len(pieces[-1]) <= chunk_bytes


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_messages_arrive_whole_whatever_the_order_and_the_duplicates(
    wholes: list[bytes], chunk_bytes: int, random: Random
) -> None:
    """Several messages, their pieces shuffled together, some of them twice before the message is whole."""
    target = reassembler(max_total=1_000_000)
    split_up = [split(whole, chunk_bytes) for whole in wholes]
    order = [(number, index) for number, pieces in enumerate(split_up) for index in range(len(pieces))]
    random.shuffle(order)
    missing = [set(range(len(pieces))) for pieces in split_up]
    found: dict[int, bytes] = {}
    for number, index in order:
        missing[number].discard(index)
        again = 2 if missing[number] and random.random() < 0.3 else 1
        for _ in range(again):
            whole = offer(target, index, split_up[number], key=str(number), whole=wholes[number])
        if whole is not None:
            found[number] = whole

    assert dict(enumerate(wholes)) == found
    assert (0, 0) == (target.held, len(target))


def test_a_message_with_a_missing_piece_is_not_delivered() -> None:
    """However often the others come."""
    target, pieces = reassembler(), split(WHOLE, 100)
    results = [offer(target, index, pieces) for index in (0, 1, 2, 4, 0, 1, 2, 4)]

    assert [None] * 8 == results
    assert 400 + 4 * PIECE_BYTES == target.held
    assert WHOLE == offer(target, 3, pieces)
    assert 0 == target.held


def test_the_first_of_two_pieces_with_one_number_stays() -> None:
    """A later one changes nothing; the digest decides in the end."""
    target, pieces = reassembler(), split(WHOLE, 250)
    offer(target, 0, pieces)

    assert offer(target, 0, [b"x" * 250, b""]) is None
    assert WHOLE == offer(target, 1, pieces)


@pytest.mark.parametrize(
    ("count", "size", "digest"),
    [(3, 500, checksum(WHOLE)), (5, 499, checksum(WHOLE)), (5, 500, checksum(b""))],
    ids=["count", "size", "digest"],
)
def test_a_piece_that_contradicts_the_earlier_ones_is_refused(count: int, size: int, digest: bytes) -> None:
    """What is held already is left as it is: the caller decides what to drop."""
    target, pieces = reassembler(), split(WHOLE, 100)
    offer(target, 0, pieces)
    with pytest.raises(WireError, match="differ from the earlier pieces'"):
        target.add("a", index=1, count=count, size=size, digest=digest, data=pieces[1], now=0)

    assert 100 + PIECE_BYTES == target.held


@pytest.mark.parametrize(
    ("index", "count", "size", "data"),
    [
        (5, 5, 500, b"x"),
        (-1, 5, 500, b"x"),
        (0, 0, 500, b"x"),
        (0, 501, 500, b"x"),
        (0, 5, 10_001, b"x"),
        (0, 5, 500, b""),
        (0, 5, 500, b"x" * 501),
    ],
)
def test_a_piece_out_of_bounds_is_refused(index: int, count: int, size: int, data: bytes) -> None:
    """Index, count, size and data are checked against each other and the bound; nothing is kept."""
    target = reassembler()
    with pytest.raises(WireError, match=f"piece {index} of {count}, {len(data)} of {size} bytes"):
        target.add("a", index=index, count=count, size=size, digest=bytes(8), data=data, now=0)

    assert (0, 0) == (target.held, len(target))


def test_a_whole_of_another_digest_is_refused_and_forgotten() -> None:
    """The pieces fit each other but are not what they said."""
    target, pieces = reassembler(), split(WHOLE, 250)
    wrong = checksum(b"something else")
    target.add("a", index=0, count=2, size=500, digest=wrong, data=pieces[0], now=0)
    with pytest.raises(WireError, match="the whole does not match"):
        target.add("a", index=1, count=2, size=500, digest=wrong, data=pieces[1], now=0)

    assert (0, 0) == (target.held, len(target))


def test_pieces_that_add_up_to_less_than_announced_are_refused_and_forgotten() -> None:
    """All pieces are there, the size is not."""
    target = reassembler()
    with pytest.raises(WireError, match="the whole does not match"):
        target.add("a", index=0, count=1, size=500, digest=checksum(b"x"), data=b"x", now=0)

    assert (0, 0) == (target.held, len(target))


def test_pieces_that_add_up_to_more_than_announced_are_refused() -> None:
    """Before they are held."""
    target = reassembler()
    target.add("a", index=0, count=3, size=500, digest=bytes(8), data=b"x" * 400, now=0)
    with pytest.raises(WireError, match="exceed the announced 500 bytes"):
        target.add("a", index=1, count=3, size=500, digest=bytes(8), data=b"x" * 101, now=0)

    assert 400 + PIECE_BYTES == target.held


def test_all_messages_together_keep_within_the_bound() -> None:
    """A piece that would exceed it is refused; room that comes back can be used again."""
    target, pieces = reassembler(max_total=3 * (250 + PIECE_BYTES)), split(WHOLE, 250)
    for key in "abc":
        offer(target, 0, pieces, key=key)
    with pytest.raises(WireError, match=f"the unfinished messages exceed {3 * (250 + PIECE_BYTES)} bytes"):
        offer(target, 0, pieces, key="d")
    target.drop("b")

    assert offer(target, 0, pieces, key="d") is None


def test_only_so_many_messages_are_held_unfinished() -> None:
    """Also when they are small; one that is held already goes on."""
    target, pieces = reassembler(max_partial=2), split(WHOLE, 250)
    for key in "ab":
        offer(target, 0, pieces, key=key)
    with pytest.raises(WireError, match="2 unfinished messages are held already"):
        offer(target, 0, pieces, key="c")

    assert WHOLE == offer(target, 1, pieces, key="a")
    assert offer(target, 0, pieces, key="c") is None


def test_a_message_expires_when_no_new_piece_comes() -> None:
    """A new piece prolongs its life, a duplicate does not."""
    target, pieces = reassembler(ttl=10), split(WHOLE, 100)
    offer(target, 0, pieces, key="a", now=0)
    offer(target, 0, pieces, key="b", now=0)
    offer(target, 1, pieces, key="a", now=8)
    offer(target, 0, pieces, key="b", now=8)

    assert [] == target.expire(9.9)
    assert ["b"] == target.expire(10)
    assert "a" in target
    assert ["a"] == target.expire(18)
    assert (0, 0) == (target.held, len(target))


def test_dropping_what_is_not_there_does_nothing() -> None:
    """So that callers need not ask."""
    target = reassembler()
    target.drop("a")

    assert 0 == target.held


def test_the_bound_holds_for_the_memory_that_pieces_really_take() -> None:
    """Even when each carries two bytes, the worst there is."""
    target = reassembler(max_message=1_000_000, max_total=1_000_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for index in range(4_000):
        data = index.to_bytes(2, "big")
        target.add("a", index=index, count=500_000, size=1_000_000, digest=bytes(8), data=data, now=0)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert taken <= target.held
