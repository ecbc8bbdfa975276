"""SIGKILL at every step of store, service, outbox and agent: what is there afterwards, and how it goes on."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import killed_process
import msgpack
import numpy as np
import pytest
from fedmq.aggregator.audit import verify
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.recovery import recover, restore
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import Store
from fedmq.edge_agent.outbox import Outbox
from killed_process import LAYOUT, UPDATES, World, aggregator_settings

from fedmq import encoding, wire
from fedmq.chunks import checksum, split
from fedmq.codecs import parse_pipeline
from fedmq.envelope import Kind, kind_of
from fedmq.modelfile import save_model
from fedmq.types import Chunk, ClientId, ModelUpdate, ModelVersion, Receipt, UpdateId

EPOCH = 7


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of recoveries have much to say."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """What each child begins with."""
    folder = tmp_path / "template"
    folder.mkdir()
    save_model(folder / "model.safetensors", LAYOUT, np.linspace(-1, 1, LAYOUT.size, dtype=np.float32))
    return folder


def killed_everywhere(scenario: str, root: Path) -> tuple[list[Path], Path, set[str]]:
    """The folders of the killed, in order; that of the one who came to the end; and the steps' labels."""
    worker = [sys.executable, "-W", "ignore", killed_process.__file__, scenario, str(root)]
    done = subprocess.run(worker, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    *killed, unharmed = sorted(
        (folder for folder in root.iterdir() if folder.name.isdecimal()), key=lambda folder: int(folder.name)
    )
    return killed, unharmed, {(folder / "label").read_text() for folder in killed}


def make_messages(model_epoch: int) -> tuple[list[tuple[str, bytes]], list[bytes]]:
    """What three clients send, and the whole updates in the order in which they are complete.

    One update is refused, one comes twice, one in chunks.
    """
    random = np.random.default_rng(5)
    pipeline = parse_pipeline(killed_process.CODEC)
    messages = []
    for seq in (1, 2, 3):
        for client in ("a", "b"):
            update = ModelUpdate(
                id=UpdateId(client=ClientId(client), epoch=EPOCH, seq=seq),
                floor=1,
                model_epoch=model_epoch,
                base_version=ModelVersion(0),
                fingerprint=LAYOUT.fingerprint,
                num_examples=0 if (client, seq) == ("b", 2) else 9,
                local_steps=1,
                codec=killed_process.CODEC,
                payload=encoding.encode(LAYOUT, pipeline, random.normal(size=40).astype(np.float32)),
            )
            messages.append((client, wire.pack_update(update)))
    whole = wire.pack_update(replace(update, id=UpdateId(client=ClientId("c"), epoch=EPOCH, seq=1)))
    pieces = split(whole, 80)
    chunks = [
        wire.pack_chunk(
            Chunk(
                id=UpdateId(client=ClientId("c"), epoch=EPOCH, seq=1),
                index=index,
                count=len(pieces),
                size=len(whole),
                digest=checksum(whole),
                data=piece,
            )
        )
        for index, piece in enumerate(pieces)
    ]
    sent = [
        *messages[:3],
        ("c", chunks[0]),
        messages[1],
        *messages[3:],
        *(("c", each) for each in chunks[1:]),
    ]
    return sent, [*(message for _, message in messages), whole]


def update_of(message: bytes) -> UpdateId:
    """The update that a message is, or is a chunk of."""
    is_chunk = kind_of(message) is Kind.CHUNK
    return wire.unpack_chunk(message).id if is_chunk else wire.unpack_update(message).id


def is_told(receipts: list[Receipt], message: bytes) -> bool:
    """Whether its client was told what became of the update that a message is of."""
    update = update_of(message)
    return any(receipt.client == update.client and receipt.is_settled(update.seq) for receipt in receipts)


def test_an_aggregator_killed_at_any_step_is_the_one_that_was_not(template: Path, tmp_path: Path) -> None:
    """What is there is a prefix of the history, to the bit, with all that anybody was told of; the end is the same."""
    settings = aggregator_settings(template)
    store = Store(settings.store.path)
    engine = recover(settings, store)
    messages, wholes = make_messages(engine.epoch)
    (template / "messages").write_bytes(msgpack.packb(messages))
    store.close()
    states = [pack_state(engine)]
    for whole in wholes:
        client = wire.unpack_update(whole).id.client
        engine.commit(engine.offer([Arrival(client=client, message=whole)]))
        if engine.position == len(states):
            states.append(pack_state(engine))
    killed, unharmed, labels = killed_everywhere("aggregator", tmp_path)
    seen = set()
    for folder in killed:
        log = killed_process.logged(folder)
        told = [wire.unpack_receipt(payload) for kind, payload in log if kind == killed_process.RECEIPT]
        store = Store(folder / "store.db")
        recovered = restore(store)
        assert recovered is not None
        seen.add(recovered.position)
        assert states[recovered.position] == pack_state(recovered), folder
        assert () == verify(store).damage, folder
        for receipt in told:
            known = recovered.ledger.get(receipt.client, receipt.epoch)
            assert receipt.high_water <= known.high_water, folder
            assert all(map(known.is_settled, receipt.beyond)), folder
        chunks = set(store.chunks())
        for message in [payload for kind, payload in log if kind == killed_process.ACKNOWLEDGED]:  # law 1
            assert message in chunks or recovered.is_settled(update_of(message)), folder
        store.close()
        world = World(folder)
        world.submit([(client, message) for client, message in messages if not is_told(told, message)])
        assert states[-1] == pack_state(world.service.engine), folder
        world.store.close()
    store = Store(unharmed / "store.db")
    last = restore(store)
    store.close()

    assert last is not None
    assert states[-1] == pack_state(last)
    assert len(states) - 1 == 7 == last.position
    assert {0, 7} < seen
    assert {"SQL COMMIT", "SQL DELETE", "SQL PRAGMA", "after Store.append", "after Engine.commit"} < labels
    assert {"after MemoryTransport._acknowledge", "after Outlet.send", "before Store.save_snapshot"} < labels


def test_an_aggregator_killed_during_its_first_start_begins_again(template: Path, tmp_path: Path) -> None:
    """Whatever is there of the file."""
    killed, _, labels = killed_everywhere("create", tmp_path)
    for folder in killed:
        store = Store(folder / "store.db")
        engine = recover(aggregator_settings(template), store)

        assert (0, 0) == (engine.position, engine.state.version), folder
        assert () == verify(store).damage, folder
        store.close()
    assert {"SQL CREATE", "SQL COMMIT", "SQL INSERT"} < labels


def test_an_agent_killed_at_any_step_loses_and_doubles_nothing(template: Path, tmp_path: Path) -> None:
    """Every update that came into the outbox is settled once, and the residual is what is left, whatever the step."""
    store = Store(template / "store.db")
    recover(aggregator_settings(template), store)
    store.close()
    killed, _, labels = killed_everywhere("agent", tmp_path)
    for folder in killed:
        made = dict(killed_process.logged(folder))
        outbox = Outbox(folder / "outbox.db")
        finished, pending = range(1, outbox.next_seq), outbox.pending()
        outbox.close()
        world = World(folder)
        agent, outbox = world.agent(lambda entry: None, updates=0)
        for _ in range(200):
            agent.turn()
            world.service.turn()
            if not len(outbox):
                break
            world.now += 0.5
        total = np.zeros(LAYOUT.size, np.float32)
        for seq in finished:
            total += np.frombuffer(made[seq], np.float32)
        records = list(world.store.records(0))
        for record in records:
            if record.refusal is None:
                update = wire.unpack_update(record.message)
                encoding.decode(LAYOUT, parse_pipeline(update.codec), update.payload).add_to(total, -1.0)
        left = outbox.residual(LAYOUT.fingerprint)
        outbox.close()
        world.store.close()

        assert list(finished) == sorted(record.id.seq for record in records), folder
        assert all((record.refusal is None) == bool(record.id.seq % 3) for record in records)
        assert set(pending) <= set(finished)
        assert bool(finished) == (left is not None)
        if left is not None:
            assert float(np.abs(total - left).max()) < 1e-4, folder
    assert UPDATES == len(finished)
    assert {
        "SQL COMMIT",
        "SQL DELETE",
        "after Outbox.put",
        "after Outbox.give_up",
        "before Upload.send",
    } < labels
    assert {
        "after Upload.send",
        "before Agent._settle",
        "before Outbox.forget",
        "after Outbox.forget",
    } < labels
