"""What an outbox may meet in its life beside crashes: its bounds, a damaged update, a copy that is put back."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedmq.aggregator.strategy import FoldSettings
from fedmq.edge_agent.session import RECEIPT_WAIT
from virtual_federation import RESEND, Federation

FOLD = FoldSettings(strategy="fedasync", staleness="constant")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Federation]:
    """One device, whose connection and whose aggregator are well."""
    world = Federation(tmp_path, devices=1, fold=FOLD, duplicate_rate=0.0)
    yield world
    world.close()


def fill(world: Federation) -> list[int]:
    """Let the device train while the aggregator takes nothing."""
    world.all_turn(6)
    for _ in range(60):
        world.turn(0)
        world.now += RECEIPT_WAIT / 4
    return world.devices[0].outbox.pending()


def test_a_full_outbox_says_so_and_drops_nothing(world: Federation, caplog: pytest.LogCaptureFixture) -> None:
    """The agent trains no further, its log says why, and all goes on when the receipts come."""
    with caplog.at_level(logging.WARNING, "fedmq.edge_agent"):
        pending = fill(world)
    made = len(world.finished)
    for _ in range(60):
        world.turn(0)
        world.now += RESEND

    assert world.devices[0].max_updates == len(pending)
    assert made == len(world.finished)
    assert "the outbox is full: no training until 3 updates have receipts" in caplog.text
    world.all_turn(100)  # what was sent again and again comes first
    assert made < len(world.finished)
    world.drain()
    world.check()


def test_an_update_that_the_disk_has_damaged_does_not_block_the_others(
    world: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """It can never have a receipt: it is dropped once the aggregator says that it could not be read."""
    device = world.devices[0]
    pending = fill(world)
    world.broker.stop(forget=True)
    device.outbox._db.execute("UPDATE outbox SET message = zeroblob(50) WHERE seq = ?", (pending[1],))
    world.kill(0, 0)
    world.broker.start()
    with caplog.at_level(logging.ERROR, "fedmq.edge_agent"):
        for _ in range(20):
            world.all_turn(5)
            world.now += 1.0
    settled = {record.id.seq: record.refusal for record in world.journal.values()}
    diary = map(json.loads, (world.folder / "d0.jsonl").read_text().splitlines())
    dropped = [entry["seq"] for entry in diary if entry.get("refusal") == "unreadable"]

    assert pending[1] not in settled
    assert settled[pending[0]] is settled[pending[2]] is None
    assert [pending[1]] == dropped
    assert f"update {pending[1]} was damaged on the disk, and dropped: what it carried is lost" in caplog.text


def test_an_outbox_that_is_restored_from_a_copy_uses_no_number_twice(
    world: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the aggregator would take what is new for what it knows, and the agent would forget it."""
    device = world.devices[0]
    world.all_turn(12)
    copy, before = world.back_up(0), device.outbox.next_seq
    world.all_turn(60)
    newest = device.outbox.next_seq
    world.drain()
    device.trainer.willing = True
    world.put_back(0, copy)
    restored = device.outbox.next_seq
    with caplog.at_level(logging.ERROR, "fedmq.edge_agent"):
        for _ in range(20):
            world.all_turn(5)  # the account would not take a number twice
            world.now += 1.0
    world.drain()

    assert before == restored < newest < device.outbox.next_seq
    assert "was it restored from a copy?" in caplog.text
    assert set(world.finished) == set(world.journal)
