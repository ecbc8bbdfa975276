"""The edge agent's and the evaluator's settings; `fedmq agent --help` and `docs/operations.md` list them."""

from dataclasses import dataclass, field
from pathlib import Path

from fedmq.connection import ConnectionSettings
from fedmq.settings import Table, setting
from fedmq.wire import MAX_RECEIPT_ENTRIES


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """What learns on this device."""

    factory: str = setting(
        "", help="package.module:function that makes the trainer; when empty, the one that the plan names"
    )
    settings: Table = setting((), help="what this device tells the trainer, as name=value,…")
    pause: float = setting(
        0.0, help="seconds to pause after each local epoch: imitates a slower device", low=0
    )
    seed: int = setting(0, help="seed of the local shuffling", low=0)
    max_steps: int | None = setting(
        None,
        help="optimiser steps of one update at most, whatever the aggregator asks; none if not given",
        low=1,
    )
    accept_shares: bool = setting(
        True, help="whether the aggregator may ask for other steps, codec and rests than the plan's"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """What is kept until it has a receipt."""

    folder: Path = setting(Path("agent-state"), help="folder of the outbox and the cached frames")
    max_updates: int = setting(
        16,
        help="updates without a receipt, after which the agent trains no further",
        low=1,
        high=MAX_RECEIPT_ENTRIES,
    )
    max_bytes: int = setting(67_108_864, help="bytes of them, likewise", low=1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Everything that an edge agent can be told."""

    client: str = setting(help="this device's name, unlike any other's in the federation")
    federation: str = setting("default", help="name of the federation; part of every topic")
    shard: str = setting("0", help="the aggregator that takes this device's updates")
    events: Path | None = setting(None, help="file to append a diary to, one JSON object a line")
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    broker: ConnectionSettings = field(default_factory=ConnectionSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSettings:
    """Everything that an evaluator can be told."""

    name: str = setting("evaluator", help="this evaluator's name; part of its stats topic")
    federation: str = setting("default", help="name of the federation; part of every topic")
    folder: Path | None = setting(None, help="folder for the cached frames")
    events: Path | None = setting(None, help="file to append a diary to, one JSON object a line")
    min_interval: float = setting(0.0, help="seconds between evaluations at least", low=0)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    broker: ConnectionSettings = field(default_factory=ConnectionSettings)
