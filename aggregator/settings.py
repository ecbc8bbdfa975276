"""The aggregator's settings; `fedmq aggregator --help` and `docs/operations.md` list them."""

from dataclasses import dataclass, field
from pathlib import Path

from fedmq.connection import ConnectionSettings
from fedmq.settings import setting

from .admission import AdmissionSettings
from .allocation import AllocationSettings
from .ledger import DEFAULT_KEEP_EPOCHS
from .pruning import PruneSettings
from .publisher import PublishSettings
from .reputation import ReputationSettings
from .strategy import FoldSettings
from .tasks import TaskSettings
from .trust import TrustSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What is kept on disk, and how often it is made durable."""

    path: Path = setting(Path("aggregator.db"), help="the store: journal, ledger and snapshots in one file")
    new_epoch: bool = setting(
        False, help="give this once after restoring an older store: clients then accept its older version"
    )
    batch_size: int = setting(64, help="messages in one transaction at most", low=1, high=10_000)
    batch_delay: float = setting(
        0.01, help="seconds to wait for more messages for a transaction", low=0, high=10
    )
    snapshot_records: int = setting(2000, help="journal records between snapshots", low=1)
    keep_snapshots: int = setting(3, help="snapshots kept; each can be recovered from", low=1)
    keep_records: int = setting(
        100_000, help="journal records kept for audit behind the newest snapshot", low=0
    )
    keep_epochs: int = setting(
        DEFAULT_KEEP_EPOCHS,
        help="outboxes of one client that are remembered; a device that lost its own counts as a new one",
        low=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorSettings:
    """Everything that an aggregator can be told."""

    federation: str = setting("default", help="name of the federation; part of every topic")
    shard: str = setting("0", help="name of this aggregator's share of the clients; part of the update topic")
    model: Path | None = setting(None, help="safetensors file to start from; needed once, for a new store")
    events: Path | None = setting(None, help="file to append a diary to, one JSON object a line")
    stats_interval: float = setting(2.0, help="seconds between statistics on the stats topic", low=0.1)
    spool_bytes: int = setting(268_435_456, help="bytes held for updates that arrive in chunks", low=1024)
    broker: ConnectionSettings = field(default_factory=ConnectionSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    fold: FoldSettings = field(default_factory=FoldSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
    reputation: ReputationSettings = field(default_factory=ReputationSettings)
    allocate: AllocationSettings = field(default_factory=AllocationSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
