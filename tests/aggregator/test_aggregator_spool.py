"""The spool: chunks in any order become arrivals, what is durable is what is held, and nobody gets too much."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.spool import _PARTIALS, Spool
from fedmq.aggregator.store import ChunkChanges

from fedmq import wire
from fedmq.chunks import PIECE_BYTES, checksum, split
from fedmq.errors import StoreError
from fedmq.types import Chunk, ClientId, Refusal, Rejection, UpdateId

Message = Callable[..., bytes]


def new_spool(
    *,
    settled: set[UpdateId] | None = None,
    max_update_bytes: int = 5_000,
    max_bytes: int = 50_000,
    ttl: float = 60,
) -> Spool:
    """One that takes some updates for settled."""
    known = settled if settled is not None else set()
    return Spool(
        is_settled=known.__contains__, max_update_bytes=max_update_bytes, max_bytes=max_bytes, ttl=ttl
    )


def update_id(seq: int = 1, client: str = "a") -> UpdateId:
    """Of epoch 7."""
    return UpdateId(client=ClientId(client), epoch=7, seq=seq)


def cut(message: bytes, chunk_bytes: int, update: UpdateId | None = None) -> list[bytes]:
    """A message as an agent cuts it."""
    pieces = split(message, chunk_bytes)
    return [
        wire.pack_chunk(
            Chunk(
                id=update or update_id(),
                index=index,
                count=len(pieces),
                size=len(message),
                digest=checksum(message),
                data=piece,
            )
        )
        for index, piece in enumerate(pieces)
    ]


def test_a_whole_message_passes_through(message: Message) -> None:
    """Readable or not: the engine judges."""
    spool = new_spool()
    for data in (message(), b"", b"nonsense", message()[:-1]):
        assert Arrival(client="a", message=data) == spool.take("a", data, 0.0)
    assert ChunkChanges() == spool.take_changes()


def test_chunks_in_any_order_become_one_arrival(message: Message) -> None:
    """Those that came before are durable until the last, then dropped."""
    spool, whole = new_spool(), message()
    chunks = cut(whole, 30)
    for index in (3, 0, 2, 4):
        assert spool.take("a", chunks[index], 0.0) is None
    held = spool.take_changes()
    arrival = spool.take("a", chunks[1], 0.0)

    assert 5 == len(chunks)
    assert ((), {(update_id(), i, chunks[i]) for i in (0, 2, 3, 4)}) == (held.dropped, set(held.added))
    assert Arrival(client="a", message=whole) == arrival
    assert ChunkChanges(dropped=(update_id(),)) == spool.take_changes()


def test_an_update_that_is_whole_within_one_batch_leaves_no_chunk_to_write(message: Message) -> None:
    """Its record carries everything."""
    spool = new_spool()
    for chunk in cut(message(), 40):
        spool.take("a", chunk, 0.0)

    assert ChunkChanges(dropped=(update_id(),)) == spool.take_changes()


def test_durable_chunks_survive_a_restart(message: Message) -> None:
    """A new process goes on where the old one was."""
    old, whole = new_spool(), message()
    chunks = cut(whole, 30)
    for chunk in chunks[:3]:
        old.take("a", chunk, 0.0)
    stored = [envelope for _, _, envelope in old.take_changes().added]
    new = new_spool()
    new.restore(stored, 0.0)

    assert new.take("a", chunks[3], 0.0) is None
    assert Arrival(client="a", message=whole) == new.take("a", chunks[4], 0.0)


def test_a_restart_with_narrower_bounds_drops_what_does_not_fit(message: Message) -> None:
    """And what lies in the store of it; its client sends it again."""
    spool = new_spool(max_update_bytes=50)
    spool.restore(cut(message(), 40)[:3], 0.0)

    assert ChunkChanges(dropped=(update_id(),)) == spool.take_changes()
    assert {} == dict(spool._partials)


def test_a_damaged_chunk_in_the_store_is_reported(message: Message) -> None:
    """Like all else that is damaged in it."""
    with pytest.raises(StoreError, match="a chunk in the store is damaged"):
        new_spool().restore([cut(message(), 40)[0][:-1]], 0.0)


def test_a_chunk_of_a_settled_update_is_a_duplicate(message: Message) -> None:
    """It is not kept again."""
    spool = new_spool(settled={update_id()})

    assert Arrival(client="a", message=b"", id=update_id()) == spool.take("a", cut(message(), 40)[0], 0.0)
    assert ChunkChanges() == spool.take_changes()


def test_a_late_chunk_of_an_update_of_the_same_batch_is_a_duplicate(message: Message) -> None:
    """It is not settled yet when its last chunk comes twice, but it will be."""
    spool = new_spool()
    chunks = cut(message(), 40)
    arrivals = [spool.take("a", chunk, 0.0) for chunk in (*chunks, chunks[-1])]

    assert Arrival(client="a", message=b"", id=update_id()) == arrivals[-1]
    assert ChunkChanges(dropped=(update_id(),)) == spool.take_changes()
    assert {} == dict(spool._partials)


def test_a_chunk_that_names_another_client_is_foreign(message: Message) -> None:
    """The topic counts: the broker's access rules bind it to the sender."""
    arrival = new_spool().take("b", cut(message(), 40)[0], 0.0)
    detail = "the chunk names a, it came on the topic of b"
    refusal = Refusal(reason=Rejection.FOREIGN_CLIENT, detail=detail)

    assert Arrival(client="b", message=b"", refusal=refusal) == arrival


def test_an_update_announced_too_large_is_refused_at_its_first_chunk() -> None:
    """By its number, so that its client gives it up."""
    arrival = new_spool().take("a", cut(bytes(6_000), 100)[0], 0.0)
    detail = "6000 bytes announced, at most 5000 are allowed"
    refusal = Refusal(reason=Rejection.TOO_LARGE, detail=detail)

    assert Arrival(client="a", message=b"", id=update_id(), refusal=refusal) == arrival


def test_a_client_has_four_unfinished_updates_at_most(message: Message) -> None:
    """Another client is not concerned, and there is room again when one is whole."""
    spool = new_spool()
    chunks = {seq: cut(message(seq=seq), 80, update_id(seq)) for seq in range(1, 6)}
    first = [spool.take("a", chunks[seq][0], 0.0) for seq in range(1, 6)]
    other = spool.take("b", cut(message("b"), 80, update_id(1, "b"))[0], 0.0)
    for chunk in chunks[1][1:]:
        spool.take("a", chunk, 0.0)

    assert [None] * 4 == first[:4]
    assert first[4] is not None
    assert Refusal(reason=Rejection.QUOTA, detail="4 updates are unfinished already") == first[4].refusal
    assert other is None
    assert spool.take("a", chunks[5][0], 0.0) is None


def test_an_update_cut_anew_begins_anew(message: Message) -> None:
    """The plan's chunk_bytes changed: old pieces are dropped at the contradiction, new ones are durable."""
    spool, whole = new_spool(), message()
    old, new = cut(whole, 40), cut(whole, 60)
    spool.take("a", old[0], 0.0)
    contradiction = spool.take("a", new[0], 0.0)
    for chunk in new[:2]:
        spool.take("a", chunk, 0.0)
    changes = spool.take_changes()

    assert contradiction is not None
    assert contradiction.refusal is not None
    assert Rejection.UNREADABLE is contradiction.refusal.reason
    assert (
        ChunkChanges(dropped=(update_id(),), added=tuple((update_id(), i, new[i]) for i in (0, 1))) == changes
    )
    assert Arrival(client="a", message=whole) == spool.take("a", new[2], 0.0)


def test_pieces_that_do_not_make_the_announced_whole_are_dropped(message: Message) -> None:
    """With a notice; the client sends them all again."""
    spool, whole = new_spool(), message()
    chunks = cut(whole, 100)
    damaged = replace(wire.unpack_chunk(chunks[1]), data=b"x" * (len(whole) - 100))
    spool.take("a", chunks[0], 0.0)
    spool.take_changes()
    arrival = spool.take("a", wire.pack_chunk(damaged), 0.0)

    assert arrival is not None
    assert (
        Refusal(reason=Rejection.UNREADABLE, detail="chunk: the whole does not match its size and digest")
        == arrival.refusal
    )
    assert ChunkChanges(dropped=(update_id(),)) == spool.take_changes()


def test_what_waits_too_long_is_given_up_in_the_store_too(message: Message) -> None:
    """And no longer counts for its client."""
    spool = new_spool(ttl=60)
    spool.take("a", cut(message(), 40)[0], 0.0)
    spool.take_changes()
    spool.expire(59.9)
    before = spool.take_changes()
    spool.expire(60.0)

    assert ChunkChanges() == before
    assert ChunkChanges(dropped=(update_id(),)) == spool.take_changes()
    assert {} == dict(spool._partials)


def test_all_clients_together_keep_within_the_memory(message: Message) -> None:
    """What exceeds it is dropped with a notice, and only that."""
    spool = new_spool(max_bytes=3 * (100 + PIECE_BYTES))
    firsts = {client: cut(message(client), 100, update_id(1, client)) for client in "abcd"}
    arrivals = {client: spool.take(client, chunks[0], 0.0) for client, chunks in firsts.items()}

    assert [None] * 3 == [arrivals[client] for client in "abc"]
    assert arrivals["d"] is not None
    assert arrivals["d"].refusal is not None
    assert f"would exceed {3 * (100 + PIECE_BYTES)} bytes" in arrivals["d"].refusal.detail
    assert {(update_id(1, client), 0) for client in "abc"} == {
        (update, piece) for update, piece, _ in spool.take_changes().added
    }


def test_who_holds_most_gives_way(message: Message) -> None:
    """Its oldest unfinished update goes, in the store too, when another client needs the room."""
    spool = new_spool(max_bytes=3 * (100 + PIECE_BYTES))
    for seq in (1, 2, 3):
        spool.take("a", cut(message(seq=seq), 100, update_id(seq))[0], 0.0)
    durable = spool.take_changes()
    newcomer = cut(message("b"), 100, update_id(1, "b"))
    arrival = spool.take("b", newcomer[0], 0.0)

    assert 3 == len(durable.added)
    assert arrival is None
    assert (
        ChunkChanges(dropped=(update_id(1),), added=((update_id(1, "b"), 0, newcomer[0]),))
        == spool.take_changes()
    )
    assert {update_id(2): None, update_id(3): None} == spool._partials["a"]


def test_who_holds_most_cannot_make_others_give_way(message: Message) -> None:
    """Nor can it have more by asking again."""
    spool = new_spool(max_bytes=4 * (100 + PIECE_BYTES))
    spool.take("b", cut(message("b"), 100, update_id(1, "b"))[0], 0.0)
    for seq in (1, 2, 3):
        spool.take("a", cut(message(seq=seq), 100, update_id(seq))[0], 0.0)
    spool.take_changes()
    arrivals = [spool.take("a", cut(message(seq=4), 100, update_id(4))[0], 0.0) for _ in range(5)]

    assert [Rejection.QUOTA] * 5 == [arrival.refusal.reason for arrival in arrivals]  # type: ignore[union-attr]
    assert ChunkChanges() == spool.take_changes()
    assert update_id(1, "b") in spool._reassembler


def test_the_number_of_unfinished_updates_is_bounded_and_shared(message: Message) -> None:
    """Many names with one chunk each shut out one more, unless somebody holds more than it."""
    spool = new_spool(max_bytes=1_000_000)
    tiny = replace(wire.unpack_chunk(cut(message(), 30)[0]), data=b"x")
    for number in range(_PARTIALS):
        data = b"x" * (PIECE_BYTES + 50 if number == 7 else 1)
        chunk = replace(tiny, id=update_id(1, f"c{number}"), size=1000, data=data)
        assert spool.take(f"c{number}", wire.pack_chunk(chunk), 0.0) is None
    more = [replace(tiny, id=update_id(1, name), size=1000) for name in ("x", "y")]
    arrivals = [spool.take(chunk.id.client, wire.pack_chunk(chunk), 0.0) for chunk in more]

    assert _PARTIALS == len(spool._reassembler)
    assert update_id(1, "c7") not in spool._reassembler
    assert arrivals[0] is None
    assert arrivals[1] is not None


def test_a_chunk_that_comes_again_and_again_is_written_once(message: Message) -> None:
    """To the store, too."""
    spool = new_spool()
    chunk = cut(message(), 40)[0]
    for _ in range(5):
        spool.take("a", chunk, 0.0)

    assert ((update_id(), 0, chunk),) == spool.take_changes().added
