"""A device that was away for a month: what it brings is refused, it is told so, its content returns, it goes on."""

import json
import logging
from pathlib import Path

import pytest
from fedmq.aggregator.strategy import FoldSettings
from fedmq.edge_agent.session import RECEIPT_WAIT
from virtual_federation import AGGREGATOR, Federation

from fedmq.types import Rejection

MONTH = 30 * 86_400.0
MAX_STALENESS = 4
AWAY, BUSY = 0, 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_device_that_was_away_for_a_month_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, restarted: bool
) -> None:
    """Its outbox is full, the broker has forgotten it, the model has moved on by many versions and keyframes."""
    fold = FoldSettings(strategy="fedasync", staleness="constant", max_staleness=MAX_STALENESS)
    world = Federation(tmp_path, devices=2, fold=fold, duplicate_rate=0.0)
    away = world.devices[AWAY]
    world.all_turn(5)
    world.broker.block(world.client_id(BUSY))
    for _ in range(40):  # the aggregator takes nothing meanwhile
        world.turn(AWAY)
        world.now += RECEIPT_WAIT / 4
    brought = away.outbox.pending()
    world.broker.block(AGGREGATOR)
    world.broker.stop(forget=True)
    world.broker.start()
    world.broker.block(world.client_id(AWAY))
    world.broker.unblock(world.client_id(BUSY))
    world.broker.unblock(AGGREGATOR)
    before = world.service.engine.state.version
    for _ in range(60):
        world.now += MONTH / 60
        world.all_turn(5)
    version = world.service.engine.state.version
    world.broker.block(world.client_id(BUSY))
    if restarted:
        world.kill(AWAY, 0)
    world.broker.unblock(world.client_id(AWAY))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fedmq.edge_agent"):
        for _ in range(12):
            world.now += 1.0
            world.all_turn(4)
    verdicts = [
        (record.id.seq, record.refusal.reason if record.refusal else None, record.base_version)
        for record in world.journal.values()
        if record.id.client == away.name
    ]
    diary = map(json.loads, (tmp_path / f"{away.name}.jsonl").read_text().splitlines())
    told = [entry["seq"] for entry in diary if entry["kind"] == "settled" and entry["refusal"] == "stale"]

    assert away.max_updates == len(brought)  # bounded by number: it had stopped training
    assert version > before + 5 * MAX_STALENESS
    assert [(seq, Rejection.STALE) for seq in brought] == [
        verdict[:2] for verdict in verdicts if verdict[0] in brought
    ]
    assert brought == told
    for seq in brought:
        assert f"update {seq} was refused, its content returns to the residual: stale: " in caplog.text
    later = [verdict for verdict in verdicts if verdict[0] > max(brought)]
    assert later
    assert all(reason is None and base >= version for _, reason, base in later)
    world.drain()
    world.check()  # the residual holds what was refused
    world.close()
