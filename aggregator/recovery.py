"""Recovery: an engine from whatever the store holds.

Snapshot plus journal tail gives the bit-identical state (law 2). The tail is folded with the rule that it was folded
with; only then does a changed setting take effect. A snapshot whose digest does not match is passed over
for the one before.
"""

import logging
import secrets
import time
from dataclasses import replace

from fedmq.errors import SettingError, StoreError
from fedmq.modelfile import load_model
from fedmq.plan import DEFAULT_MAX_UPDATE_BYTES

from . import pruning, strategy
from .admission import AdmissionSettings
from .consensus import Consensus
from .engine import Engine
from .ledger import DEFAULT_KEEP_EPOCHS, Ledger
from .reputation import Reputation
from .settings import AggregatorSettings
from .state import pack_state, unpack_state
from .store import Snapshot, Store
from .strategy import Rule, make_rule
from .trust import make_trust

log = logging.getLogger(__name__)


def recover(settings: AggregatorSettings, store: Store) -> Engine:
    """The engine as it was when the last decision became durable; a new one for an empty store.

    Raises:
        StoreError: no snapshot with its journal tail is intact.
        SettingError: the store is empty and there is no model to start from, or the model differs from the
            store's.
        ModelFileError: the model file cannot be read.
    """
    rule = replace(make_rule(settings.fold), pruning=pruning.make_pruning(settings.prune))
    engine = restore(
        store,
        admission=settings.admission,
        max_update_bytes=settings.task.max_update_bytes,
        keep_epochs=settings.store.keep_epochs,
    )
    if engine is None:
        engine = _begin(settings, rule)
        _adopt_trust(settings, engine)
        _save(settings, store, engine, keep=1)
        return engine
    _check_model(settings, engine)
    pruning.check(rule.pruning, engine.layout)
    if settings.store.new_epoch:
        engine.epoch = _draw_epoch()
        log.warning("a new model epoch begins at version %d", engine.state.version)
        _save(settings, store, engine, keep=1)
    is_new_rule = engine.rule != rule
    if is_new_rule:
        log.info("the fold settings changed: %s", rule)
        engine.rule = rule
    if _adopt_trust(settings, engine) or is_new_rule:
        # Older snapshots go: from them, the records behind this one would be folded with the old rule.
        _save(settings, store, engine, keep=1)
    return engine


def restore(
    store: Store,
    *,
    admission: AdmissionSettings | None = None,
    max_update_bytes: int = DEFAULT_MAX_UPDATE_BYTES,
    keep_epochs: int = DEFAULT_KEEP_EPOCHS,
) -> Engine | None:
    """The engine as it was when the last decision became durable; None for an empty store. Changes nothing.

    Raises:
        StoreError: no snapshot with its journal tail is intact.
    """
    ledger = Ledger(store.receipts(), keep_epochs=keep_epochs)
    tried = 0
    for snapshot in store.snapshots():
        try:
            engine = unpack_state(
                snapshot.state,
                ledger=ledger,
                admission=admission or AdmissionSettings(),
                max_update_bytes=max_update_bytes,
            )
            replayed = engine.replay(store.records(engine.position))
        except StoreError as error:
            log.error("the snapshot at record %d is of no use: %s", snapshot.position, error)
            tried += 1
            continue
        log.info("recovered version %d: %d records behind the snapshot", engine.state.version, replayed)
        return engine
    if tried or store.has_history():
        raise StoreError(
            f"{store.path}: no intact snapshot is left: restore a backup, or start with a new store path"
        )
    return None


def _begin(settings: AggregatorSettings, rule: Rule) -> Engine:
    if settings.model is None:
        raise SettingError("model", None, "a new store needs a safetensors file to start from: give --model")
    layout, vector = load_model(settings.model)
    pruning.check(rule.pruning, layout)
    log.info("a new federation of %d parameters from %s", layout.size, settings.model)
    return Engine(
        epoch=_draw_epoch(),
        layout=layout,
        rule=rule,
        state=strategy.init(rule, vector),
        ledger=Ledger(keep_epochs=settings.store.keep_epochs),
        admission=settings.admission,
        max_update_bytes=settings.task.max_update_bytes,
    )


def _adopt_trust(settings: AggregatorSettings, engine: Engine) -> bool:
    """Let consensus and reputation follow the settings; returns whether they were others.

    A changed memory begins a new consensus. Standings stay under changed limits, and go when nobody is judged.

    Raises:
        SettingError: a setting of `trust` cannot be used, or the rule of folding would wait for the refused for ever.
    """
    trust = make_trust(settings.trust)
    if engine.rule.synchronous and engine.rule.deadline is None and (trust or settings.reputation.least):
        raise SettingError(
            "fold.deadline",
            None,
            "fedavg waits for every client, and one that trust or reputation refuses never contributes: set a deadline",
        )
    memory = trust.memory if trust is not None else 0.0
    changed = engine.consensus.memory != memory or engine.reputation.settings != settings.reputation
    if engine.consensus.memory != memory:
        engine.consensus = Consensus(memory=memory)
    standings = engine.reputation.standings if settings.reputation.least else {}
    engine.reputation = Reputation(settings=settings.reputation, standings=standings)
    return changed


def _draw_epoch() -> int:
    return secrets.randbits(31) + 1  # in every update: 5 bytes, not 9


def _check_model(settings: AggregatorSettings, engine: Engine) -> None:
    """A model file beside a store with history is not used; but one of another shape is a mistake."""
    if settings.model is None or not settings.model.exists():
        return
    layout, _ = load_model(settings.model)
    if layout.fingerprint != engine.layout.fingerprint:
        raise SettingError(
            "model",
            str(settings.model),
            f"the store {settings.store.path} holds another model ({engine.layout.difference(layout)}): give this "
            "model a store of its own",
        )


def _save(settings: AggregatorSettings, store: Store, engine: Engine, *, keep: int) -> None:
    store.save_snapshot(
        Snapshot(position=engine.position, version=engine.state.version, state=pack_state(engine)),
        created=time.time(),
        keep=keep,
        keep_records=settings.store.keep_records,
    )
