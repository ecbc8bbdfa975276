"""Upload: whole or in chunks, and what becomes of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.spool import Spool
from fedmq.edge_agent.events import NotTaken, Taken
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.upload import MIN_CHUNK_BYTES, WINDOW, Upload

from fedmq import wire
from fedmq.chunks import Reassembler
from fedmq.envelope import Kind, kind_of
from fedmq.errors import PacketTooLargeError, TransportError
from fedmq.transport.base import PublishAccepted, PublishRefused, PublishToken
from fedmq.transport.memory import MemoryBroker, MemoryTransport
from fedmq.types import ClientId, UpdateId

Record = tuple[PublishToken, bytes]


class Recorder(MemoryTransport):
    """Keeps what is published, and leaves the outcomes to the test."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker(clock=lambda: 0.0), "device")
        self.published: list[Record] = []
        self.error: TransportError | None = None

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry: float | None = None
    ) -> PublishToken:
        assert (topic, retain, expiry) == ("updates", False, None)
        if self.error is not None:
            raise self.error
        token = PublishToken(len(self.published) + 1)
        self.published.append((token, payload))
        return token


class Device:
    """An upload with an outbox behind it."""

    def __init__(self, folder: Path) -> None:
        self.transport = Recorder()
        self.outbox = Outbox(folder / "outbox.db")
        self.upload = Upload(self.transport, "updates", self.outbox, ClientId("device"))

    def put(self, size: int) -> bytes:
        message = np.random.default_rng(size).bytes(size)
        self.outbox.put(message, residual=np.zeros(1, np.float32), fingerprint=b"", created=0.0)
        return message

    def accept(self, token: int) -> Taken | NotTaken | None:
        return self.upload.take(PublishAccepted(token=PublishToken(token)))

    def refuse(self, token: int) -> Taken | NotTaken | None:
        return self.upload.take(PublishRefused(token=PublishToken(token), reason="Quota exceeded"))

    def accept_all(self) -> list[Taken | NotTaken]:
        """Accept whatever is published until nothing more is."""
        outcomes, token = [], 0
        while token < len(self.transport.published):
            token += 1
            outcomes.append(self.accept(token))
        return [outcome for outcome in outcomes if outcome is not None]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """With an empty outbox."""
    return Device(tmp_path)


def test_a_small_update_goes_as_it_is(device: Device) -> None:
    """One publish, and it is taken when the broker says so."""
    message = device.put(1000)

    assert device.upload.send(1) is None
    assert [(1, message)] == device.transport.published
    assert Taken(seq=1) == device.accept(1)


def test_a_large_update_goes_in_chunks_that_make_it_whole_again(device: Device) -> None:
    """Each within the plan's bytes, and taken only when the broker has them all."""
    message = device.put(100_000)
    device.upload.chunk_bytes = 4096
    assert device.upload.send(1) is None
    outcomes = device.accept_all()

    whole = None
    reassembler: Reassembler[UpdateId] = Reassembler(max_message=10**6, max_total=10**6)
    for _, packet in device.transport.published:
        assert len(packet) <= 4096
        chunk = wire.unpack_chunk(packet)
        assert UpdateId(client=ClientId("device"), epoch=device.outbox.epoch, seq=1) == chunk.id
        assert whole is None
        whole = reassembler.add(
            chunk.id,
            index=chunk.index,
            count=chunk.count,
            size=chunk.size,
            digest=chunk.digest,
            data=chunk.data,
            now=0.0,
        )
    assert message == whole
    assert [Taken(seq=1)] == outcomes


def test_an_update_of_exactly_one_chunk_is_not_cut(device: Device) -> None:
    """One byte more is."""
    device.put(4096)
    device.put(4097)
    device.upload.chunk_bytes = 4096
    device.upload.send(1)
    assert 1 == len(device.transport.published)
    device.upload.send(2)

    kinds = [kind_of(packet) for _, packet in device.transport.published[1:]]
    assert [Kind.CHUNK, Kind.CHUNK] == kinds


def test_few_chunks_are_on_their_way_at_a_time(device: Device) -> None:
    """Neither memory nor the transport's queue grows with the update."""
    device.put(1_000_000)
    device.upload.chunk_bytes = 4096
    device.upload.send(1)

    assert WINDOW == len(device.transport.published)
    for token in range(1, 10):
        device.accept(token)
        assert WINDOW + token == len(device.transport.published)
    assert [Taken(seq=1)] == device.accept_all()


@pytest.mark.parametrize("chunk_bytes", [1, 255, 256, 257, MIN_CHUNK_BYTES])
def test_a_plan_cannot_have_an_update_cut_to_shreds(device: Device, chunk_bytes: int) -> None:
    """There is a smallest chunk, whatever a peer wrote into the plan."""
    device.put(20_000)
    device.upload.chunk_bytes = chunk_bytes
    device.upload.send(1)

    assert [Taken(seq=1)] == device.accept_all()
    assert 27 == len(device.transport.published)


def test_updates_do_not_wait_for_each_other(device: Device) -> None:
    """Two on their way, taken in the order of their outcomes."""
    device.put(10)
    device.put(20)
    device.upload.send(1)
    device.upload.send(2)

    assert [Taken(seq=2), Taken(seq=1)] == [device.accept(2), device.accept(1)]


LARGE = 50 * 4096  # more chunks than may be on their way at a time


def order(device: Device) -> list[int]:
    """Whose chunks were published, in their order; each update once as long as no other comes between."""
    seqs = [wire.unpack_chunk(packet).id.seq for _, packet in device.transport.published]
    return [seq for seq, before in zip(seqs, [None, *seqs], strict=False) if seq != before]


def test_large_updates_go_one_after_the_other(device: Device) -> None:
    """After a reconnect all are due at once; the aggregator keeps few unfinished ones of a client."""
    device.upload.chunk_bytes = 4096
    for seq in range(1, 8):
        device.put(LARGE)
        assert device.upload.send(seq) is None
    outcomes = device.accept_all()

    assert list(range(1, 8)) == order(device)
    assert [Taken(seq=seq) for seq in range(1, 8)] == outcomes


def test_the_aggregator_keeps_up_with_all_large_updates_of_an_outbox(device: Device) -> None:
    """The counterpart itself takes what comes, however the broker's acknowledgements lag."""
    device.upload.chunk_bytes = 4096
    spool = Spool(is_settled=lambda update_id: False, max_update_bytes=10**6, max_bytes=10**7)
    messages = [device.put(LARGE + seq) for seq in range(1, 8)]
    for seq in range(1, 8):
        device.upload.send(seq)
    device.accept_all()
    arrivals = [spool.take("device", packet, 0.0) for _, packet in device.transport.published]

    assert messages == [arrival.message for arrival in arrivals if arrival is not None]


def test_a_small_update_does_not_wait_for_a_large_one(device: Device) -> None:
    """It needs no room at the aggregator."""
    device.upload.chunk_bytes = 4096
    messages = [device.put(size) for size in (LARGE, LARGE + 1, 1000)]
    for seq in (1, 2, 3):
        device.upload.send(seq)

    assert (WINDOW + 1, messages[2]) == device.transport.published[-1]
    assert [Taken(seq=3), Taken(seq=1), Taken(seq=2)] == device.accept_all()


def test_a_large_update_that_fails_lets_the_next_have_its_turn(device: Device) -> None:
    """The outcomes of its other chunks are still to come."""
    device.upload.chunk_bytes = 4096
    for seq in (1, 2):
        device.put(LARGE)
        device.upload.send(seq)

    assert NotTaken(seq=1) == device.refuse(1)
    assert [1] == order(device)
    assert device.accept(2) is None
    assert [1, 2] == order(device)


def test_an_update_that_cannot_be_sent_when_its_turn_comes_is_not_taken(device: Device) -> None:
    """One failure at a time, and the last one is sent when the transport works again."""
    device.upload.chunk_bytes = 4096
    for seq in (1, 2, 3):
        device.put(LARGE)
        device.upload.send(seq)
    device.refuse(1)
    device.transport.error = TransportError("1024 publishes already wait")
    failed = device.accept(2)
    device.transport.error = None

    assert NotTaken(seq=2) == failed
    assert device.accept(3) is None
    assert [1, 3] == order(device)


def test_an_update_that_is_settled_while_it_waits_is_not_sent(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """By a receipt for an earlier attempt."""
    device.upload.chunk_bytes = 4096
    for seq in (1, 2, 3):
        device.put(LARGE)
        device.upload.send(seq)
    device.outbox.forget(2)

    assert [Taken(seq=1), Taken(seq=3)] == device.accept_all()
    assert [1, 3] == order(device)
    assert "" == caplog.text


def test_a_refused_chunk_ends_the_attempt(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Once: the outcomes of the other chunks change nothing, not even for the next attempt."""
    device.put(10_000)
    device.upload.chunk_bytes = 4096
    device.upload.send(1)
    assert device.accept(1) is None

    assert NotTaken(seq=1) == device.refuse(2)
    assert device.refuse(3) is None
    assert "the broker did not take update 1: Quota exceeded" in caplog.text
    device.upload.send(1)
    assert [4, 5, 6] == [token for token, _ in device.transport.published[3:]]
    assert [None, None, Taken(seq=1)] == [device.accept(token) for token in (4, 5, 6)]


def test_a_late_acknowledgement_of_an_attempt_given_up_changes_nothing(device: Device) -> None:
    """Chunk 3 of the first attempt is not chunk 3 of the second."""
    device.put(10_000)
    device.upload.chunk_bytes = 4096
    device.upload.send(1)
    device.refuse(1)
    device.upload.send(1)

    assert device.accept(2) is None
    assert device.accept(3) is None
    assert [None, None, Taken(seq=1)] == [device.accept(token) for token in (4, 5, 6)]


def test_the_outcome_of_another_publish_is_nobody_s(device: Device) -> None:
    """The agent's presence, for instance."""
    assert device.accept(99) is None
    assert device.refuse(99) is None


@pytest.mark.parametrize(
    "error", [TransportError("1024 publishes already wait"), PacketTooLargeError("updates", 5000, 4096)]
)
def test_what_the_transport_refuses_is_not_taken(
    device: Device, caplog: pytest.LogCaptureFixture, error: TransportError
) -> None:
    """The log has the transport's own words."""
    device.put(10)
    device.transport.error = error

    assert NotTaken(seq=1) == device.upload.send(1)
    assert str(error) in caplog.text


def test_a_transport_that_refuses_in_the_middle_ends_the_attempt(device: Device) -> None:
    """What is on its way of it is forgotten."""
    device.put(1_000_000)
    device.upload.chunk_bytes = 4096
    device.upload.send(1)
    device.transport.error = TransportError("closed")

    assert NotTaken(seq=1) == device.accept(1)
    assert device.accept(2) is None


def unreadable(outbox: Outbox) -> None:
    """A disk that fails."""
    outbox._db.execute("DROP TABLE outbox")


@pytest.mark.parametrize("damage", [unreadable, lambda outbox: outbox.forget(1)])
def test_an_update_that_cannot_be_read_is_not_taken(
    device: Device, caplog: pytest.LogCaptureFixture, damage: Callable[[Outbox], None]
) -> None:
    """The agent goes on; the log names the file."""
    device.put(10)
    damage(device.outbox)

    assert NotTaken(seq=1) == device.upload.send(1)
    assert "outbox.db" in caplog.text
