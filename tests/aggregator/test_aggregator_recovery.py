"""Recovery from a real store: the same state, the same answers, and no guess when something is wrong."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.recovery import recover
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.state import pack_state
from fedmq.aggregator.store import ChunkChanges, Snapshot, Store
from fedmq.aggregator.strategy import FoldSettings

from fedmq import wire
from fedmq.errors import ModelFileError, SettingError, StoreError
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import save_model
from fedmq.types import ClientId

Message = Callable[..., bytes]


@pytest.fixture
def settings(tmp_path: Path, layout: ParamLayout) -> AggregatorSettings:
    """A store that is not there yet, and a model to start from."""
    model = tmp_path / "model.safetensors"
    save_model(model, layout, np.linspace(-1, 1, layout.size, dtype=np.float32))
    return AggregatorSettings(
        model=model,
        fold=FoldSettings(buffer_size=2),
        store=StoreSettings(path=tmp_path / "aggregator.db", keep_snapshots=3),
    )


class Life:
    """One life of an aggregator without its network."""

    def __init__(self, settings: AggregatorSettings) -> None:
        self.settings = settings
        self.store = Store(settings.store.path)
        try:
            self.engine: Engine = recover(settings, self.store)
        except BaseException:
            self.store.close()
            raise

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def take(self, messages: Sequence[bytes]) -> None:
        """Each in a transaction of its own."""
        for message in messages:
            client = wire.unpack_update(message).id.client
            decision = self.engine.offer([Arrival(client=client, message=message)])
            self.store.append(decision.records, decision.receipts, ChunkChanges(), 1.0)
            self.engine.commit(decision)

    def snapshot(self) -> None:
        """As the service takes it."""
        state = pack_state(self.engine)
        snapshot = Snapshot(position=self.engine.position, version=self.engine.state.version, state=state)
        self.store.save_snapshot(snapshot, created=1.0, keep=3, keep_records=100)

    def everything(self) -> tuple[bytes, set[bytes]]:
        """State and ledger to the last bit."""
        receipts = {wire.pack_receipt(receipt) for receipt in self.engine.ledger}
        return pack_state(self.engine), receipts


@pytest.fixture
def history(message: Message) -> list[bytes]:
    """Twelve updates of three clients, two of them refused, one a duplicate."""
    rng = np.random.default_rng(3)
    messages = [
        message(
            client,
            seq,
            delta=rng.standard_normal(22).astype(np.float32),
            examples=0 if seq == 3 and client != "c" else 5,
            codec="topk(0.3) | ternary | rice" if client == "b" else "float32",
        )
        for seq in range(1, 5)
        for client in "abc"
    ]
    return [*messages, messages[4]]


def as_sent_to(life: Life, messages: Sequence[bytes]) -> list[bytes]:
    """With the model epoch that a new store has drawn."""
    return [
        wire.pack_update(replace(wire.unpack_update(message), model_epoch=life.engine.epoch))
        for message in messages
    ]


def test_a_new_store_begins_from_the_model_file(settings: AggregatorSettings, layout: ParamLayout) -> None:
    """At version 0, in an epoch of its own, and durable at once."""
    with Life(settings) as first:
        before = first.everything()
    with Life(replace(settings, model=None)) as second:
        after = second.everything()

        assert before == after
        assert (
            np.linspace(-1, 1, layout.size, dtype=np.float32).tolist() == second.engine.state.vector.tolist()
        )
        assert (0, 0) == (second.engine.state.version, second.engine.position)
        assert 0 < second.engine.epoch < 2**63


@pytest.mark.parametrize("snapshot_at", [None, 0, 1, 5, 12])
def test_recovery_equals_live_at_every_cut(
    settings: AggregatorSettings, history: list[bytes], snapshot_at: int | None
) -> None:
    """The process dies after each transaction in turn, with the last snapshot anywhere before (law 2)."""
    with Life(settings) as live:
        history = as_sent_to(live, history)
    for cut, message in enumerate(history):
        with Life(settings) as live:
            live.take([message])
            if cut == snapshot_at:
                live.snapshot()
            expected = live.everything()
        with Life(settings) as recovered:
            assert expected == recovered.everything()
    with Life(
        replace(settings, store=replace(settings.store, path=settings.store.path.with_name("b.db")))
    ) as once:
        once.engine.epoch = live.engine.epoch
        once.take(history)

        assert once.everything() == expected


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """The journal behind the older one is still there."""
    with Life(settings) as live:
        history = as_sent_to(live, history)
        live.take(history[:4])
        live.snapshot()
        live.take(history[4:8])
        live.snapshot()
        live.take(history[8:])
        expected = live.everything()
        live.store._db.execute("UPDATE snapshot SET state = zeroblob(99) WHERE position = 8")
    with Life(settings) as recovered:
        assert expected == recovered.everything()


def test_without_an_intact_snapshot_nothing_is_begun_anew(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """Silently starting from the model file would throw a federation away."""
    with Life(settings) as live:
        live.take(as_sent_to(live, history))
        live.store._db.execute("UPDATE snapshot SET state = zeroblob(99)")
    with pytest.raises(
        StoreError, match=r"no intact snapshot is left: restore a backup, or start with a new"
    ):
        Life(settings)


def test_a_snapshot_of_another_schema_with_a_right_digest_is_of_no_use_either(
    settings: AggregatorSettings,
) -> None:
    """A store of a later release, for one."""
    with Life(settings) as live:
        snapshot = Snapshot(position=0, version=0, state=b"\x81\xa6schema\x02")
        live.store.save_snapshot(snapshot, created=1.0, keep=1, keep_records=0)
    with pytest.raises(StoreError, match="no intact snapshot is left"):
        Life(settings)


def test_a_journal_that_cannot_be_decoded_any_more_is_a_store_error(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """A damaged message, or the codec of a package that is gone: not an error of the network."""
    with Life(settings) as live:
        live.take(as_sent_to(live, history[:2]))
        live.store._db.execute("UPDATE message SET envelope = zeroblob(99) WHERE position = 2")
    with pytest.raises(StoreError, match="no intact snapshot is left"):
        Life(settings)


def test_changed_fold_settings_hold_from_the_restart_on(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """What is in the journal is folded with the rule of its time; later recoveries keep both apart."""
    changed = replace(settings, fold=FoldSettings(buffer_size=3, learning_rate=0.1, momentum=0.5))
    with Life(settings) as live:
        history = as_sent_to(live, history)
        live.take(history[:5])
        expected = live.engine.state.vector.copy(), live.engine.state.filled
    with Life(changed) as second:
        assert expected[0].tobytes() == second.engine.state.vector.tobytes()
        assert expected[1] == second.engine.state.filled == 1
        assert (3, 0.1) == (second.engine.rule.buffer_size, second.engine.rule.learning_rate)
        assert [0.0] * 22 == second.engine.state.momentum.tolist()
        second.take(history[5:])
        expected_2 = second.everything()
    with Life(changed) as third:
        assert expected_2 == third.everything()


def test_no_snapshot_from_before_a_changed_rule_is_recovered_from(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """Its journal would be folded with the old rule to the end, into another model than the live one."""
    changed = replace(settings, fold=FoldSettings(buffer_size=2, learning_rate=0.1))
    with Life(settings) as live:
        history = as_sent_to(live, history)
        live.take(history[:4])
        live.snapshot()
    with Life(changed) as second:
        second.take(history[4:])
        expected = second.everything()
    with Life(changed) as third:
        assert expected == third.everything()
        third.store._db.execute("UPDATE snapshot SET state = zeroblob(99) WHERE position = 4")
    with pytest.raises(StoreError, match="no intact snapshot is left"):
        Life(changed)


def test_momentum_that_is_switched_off_is_forgotten(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """Switched on again, it does not come back from long ago."""
    on = replace(settings, fold=FoldSettings(buffer_size=2, momentum=0.9))
    with Life(on) as live:
        live.take(as_sent_to(live, history[:4]))
        first = live.engine.state.momentum.tolist()
    with Life(settings) as second:
        sizes = [second.engine.state.momentum.size]
    with Life(on) as third:
        assert first != [0.0] * 22
        assert [0] == sizes
        assert [0.0] * 22 == third.engine.state.momentum.tolist()


def test_a_new_epoch_keeps_the_model_and_refuses_what_was_trained_in_the_old_one(
    settings: AggregatorSettings, history: list[bytes]
) -> None:
    """For a store restored from a backup, whose versions the edges have seen otherwise."""
    with Life(settings) as live:
        history = as_sent_to(live, history)
        live.take(history[:5])
        old, vector = live.engine.epoch, live.engine.state.vector.copy()
    with Life(replace(settings, store=replace(settings.store, new_epoch=True))) as second:
        second.take(history[5:6])

        assert old != second.engine.epoch
        assert vector.tobytes() == second.engine.state.vector.tobytes()
        assert 1 == second.engine.tally.refused["wrong-epoch"]
        expected = second.everything()
    with Life(settings) as third:
        assert expected == third.everything()


def test_admission_settings_are_those_of_today(settings: AggregatorSettings, history: list[bytes]) -> None:
    """They judge what is new; what was folded under others stays folded."""
    with Life(settings) as live:
        history = as_sent_to(live, history)
        live.take(history[:1])
    strict = replace(settings, admission=AdmissionSettings(max_norm=1e-9))
    with Life(strict) as second:
        second.take(history[1:2])

        assert (1, 1) == (second.engine.tally.folded, second.engine.tally.refused["norm"])
        assert second.engine.ledger.get(ClientId("a"), 7).refusal(1) is None


def test_a_new_store_without_a_model_says_what_to_give(settings: AggregatorSettings) -> None:
    """And leaves nothing that would be taken for a federation."""
    with pytest.raises(SettingError, match=r"setting model = None .* give --model"):
        Life(replace(settings, model=None))
    with pytest.raises(ModelFileError, match="cannot be read"):
        Life(replace(settings, model=settings.store.path.with_name("missing.safetensors")))
    Life(settings).store.close()


def test_a_model_file_of_another_shape_beside_a_store_is_a_mistake(
    settings: AggregatorSettings, tmp_path: Path
) -> None:
    """Of the same shape it is not used; if it is gone, it is not missed."""
    Life(settings).store.close()
    other = ParamLayout((Segment(name="w", shape=(5, 5)),))
    save_model(tmp_path / "other.safetensors", other, np.zeros(25, np.float32))
    with pytest.raises(
        SettingError, match=r"holds another model \(w \[4, 5\] .* here, w \[5, 5\] .* there\)"
    ):
        Life(replace(settings, model=tmp_path / "other.safetensors"))
    with Life(replace(settings, model=tmp_path / "gone.safetensors")) as again:
        assert 0 == again.engine.position
