"""The ledger: what is settled stays settled, nothing else is, and no entry grows."""

from dataclasses import dataclass, field

from fedmq.aggregator.ledger import Ledger, LedgerView, fits, settle
from hypothesis import given
from hypothesis import strategies as st

from fedmq import wire
from fedmq.types import ClientId, Receipt, Refusal, Rejection, UpdateId
from fedmq.wire import MAX_RECEIPT_ENTRIES

STALE = Refusal(reason=Rejection.STALE, detail="old")
A = ClientId("a")


def empty() -> Receipt:
    """Of an outbox that nothing has been heard of."""
    return Receipt(client=A, epoch=1)


def test_updates_in_order_raise_the_high_water_mark() -> None:
    """The entry does not grow."""
    receipt = empty()
    for seq in range(1, 1001):
        receipt = settle(receipt, seq, seq, None)

    assert Receipt(client=A, epoch=1, high_water=1000) == receipt


def test_an_update_beyond_a_gap_is_kept_by_its_number_until_the_gap_closes() -> None:
    """Out of order, with the client still keeping number 1."""
    receipt = settle(settle(settle(empty(), 3, 1, None), 5, 1, None), 2, 1, None)
    closed = settle(receipt, 1, 1, None)

    assert (0, (2, 3, 5)) == (receipt.high_water, receipt.beyond)
    assert (3, (5,)) == (closed.high_water, closed.beyond)


def test_a_floor_settles_what_the_client_gave_up() -> None:
    """It was dropped by the client, so the ledger need not wait for it."""
    receipt = settle(settle(empty(), 3, 1, None), 9, 7, None)

    assert (6, (9,)) == (receipt.high_water, receipt.beyond)


def test_refusals_are_remembered_down_to_the_floor() -> None:
    """A client that has not seen its receipt yet must still learn that it was refused."""
    receipt = settle(settle(empty(), 1, 1, STALE), 2, 1, None)
    later = settle(receipt, 3, 3, None)

    assert STALE == receipt.refusal(1)
    assert receipt.refusal(2) is None
    assert () == later.refused


@dataclass(slots=True)
class _Outbox:
    """A client as it should be: at most 256 updates, forgotten one by one on the receipts it happens to see."""

    next_seq: int = 1
    pending: set[int] = field(default_factory=set)


@given(
    st.lists(
        st.tuples(st.sampled_from(["make", "send", "refuse", "receipt"]), st.integers(0, 10**6)), max_size=80
    )
)
def test_an_honest_clients_receipt_tells_all_it_needs(moves: list[tuple[str, int]]) -> None:
    """Whatever is lost and overtakes: each pending update is settled or not as it was judged, with its refusal."""
    outbox, receipt = _Outbox(), empty()
    judged: dict[int, Refusal | None] = {}
    for move, number in moves:
        pending = sorted(outbox.pending)
        match move:
            case "make":
                for _ in range(number % 40):
                    if (
                        len(outbox.pending) < MAX_RECEIPT_ENTRIES
                        and outbox.next_seq - min(outbox.pending, default=outbox.next_seq)
                        < MAX_RECEIPT_ENTRIES
                    ):
                        outbox.pending.add(outbox.next_seq)
                        outbox.next_seq += 1
            case "receipt":  # some of what is settled is forgotten: it saw an older receipt, perhaps
                settled = [seq for seq in pending if receipt.is_settled(seq)]
                outbox.pending -= set(settled[: number % 7])
            case _ if pending:
                seq, floor = pending[number % len(pending)], pending[0]
                if not receipt.is_settled(seq):
                    assert fits(seq, floor)
                    judged[seq] = STALE if move == "refuse" else None
                    receipt = settle(receipt, seq, floor, judged[seq])

        assert {seq: seq in judged for seq in outbox.pending} == {
            seq: receipt.is_settled(seq) for seq in outbox.pending
        }
        assert {seq: judged.get(seq) for seq in outbox.pending} == {
            seq: receipt.refusal(seq) for seq in outbox.pending
        }
    assert receipt == wire.unpack_receipt(wire.pack_receipt(receipt))


steps = st.tuples(
    st.integers(1, 700) | st.integers(1, 2**63 - 1),
    st.integers(1, 700) | st.integers(1, 2**63 - 1),
    st.booleans(),
)


@given(st.lists(steps, max_size=60), st.integers(0, 2000))
def test_a_hostile_clients_receipt_keeps_its_bound(moves: list[tuple[int, int, bool]], run: int) -> None:
    """Whatever numbers and floors it makes up, lists stay within what can be packed and read again."""
    receipt = empty()
    moves += [(seq, 1 + seq // 2, seq % 3 > 0) for seq in range(2, run, 2)]
    for seq, low, refused in moves:
        floor = min(low, seq)
        if receipt.is_settled(seq) or not fits(seq, floor):
            continue
        receipt = settle(receipt, seq, floor, STALE if refused else None)

        assert receipt.is_settled(seq)
        assert max(len(receipt.beyond), len(receipt.refused)) <= MAX_RECEIPT_ENTRIES
    assert receipt == wire.unpack_receipt(wire.pack_receipt(receipt))


def test_a_number_too_far_beyond_does_not_fit() -> None:
    """256 may be open at a time."""
    assert fits(256, 1)
    assert not fits(257, 1)
    assert fits(10_000, 9_745)
    assert not fits(10_001, 9_745)


def test_outboxes_of_one_client_are_kept_apart() -> None:
    """A device that was set up anew counts from 1 again."""
    old, new = settle(empty(), 1, 1, None), Receipt(client=A, epoch=2, high_water=5)
    ledger = Ledger([old])
    ledger.install({(A, 2): new})

    assert (old, new) == (ledger.get(A, 1), ledger.get(A, 2))
    assert Receipt(client=A, epoch=3) == ledger.get(A, 3)
    assert (A, 2) == ledger.latest(A)
    assert ("b", 0) == ledger.latest(ClientId("b"))
    assert 2 == len(ledger) == len(list(ledger))


def test_a_view_changes_nothing_until_it_is_installed() -> None:
    """It shows the ledger as it would be."""
    ledger = Ledger()
    view = LedgerView(ledger)
    view.settle(UpdateId(client=A, epoch=1, seq=1), 1, None)

    assert view.get(A, 1).is_settled(1)
    assert not ledger.get(A, 1).is_settled(1)
    ledger.install(view.changed)
    assert ledger.get(A, 1).is_settled(1)
