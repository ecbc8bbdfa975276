"""Plan: what the aggregator asks of every client.

Retained on its topic, so that a device that appears next month knows at once what to do. No code travels: the
plan names a trainer and its settings; a device runs what is installed on it and refuses a plan that it cannot
satisfy, saying why.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

from .layout import ParamLayout
from .mask import EncodedMask

#: What a trainer's setting may be.
Scalar: TypeAlias = str | int | float | bool

#: Defaults and bounds; each is a setting of the aggregator.
DEFAULT_CHUNK_BYTES = 256 * 1024
DEFAULT_MAX_UPDATE_BYTES = 64 * 1024 * 1024

#: How many settings a plan carries for its trainer, and how many characters the name of one may have.
MAX_TRAINER_SETTINGS = 64
MAX_SETTING_NAME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One federation's task.

    Attributes:
        epoch: the model epoch it belongs to.
        layout: the model's shared tensors.
        trainer: the name of the trainer, which a device looks up among those installed on it.
        trainer_settings: what the trainer is told, for instance `learning_rate`, `batch_size`.
        local_epochs: passes over the local data per update.
        codec: the pipeline for updates, as its line of text.
        chunk_bytes: largest payload of one publish.
        max_update_bytes: largest update message, all chunks together.
        max_staleness: updates older than this many versions are refused.
        wait_for_new_version: a client trains once on each version (synchronous FedAvg), instead of going on
            with the newest it can get.
        resend_seconds: after how long without a receipt a client sends an update again.
        clip_norm: a longer delta is shortened to this Euclidean norm before the residual is added; 0 for none.
        mask: the coordinates that are pruned: kept at zero, neither trained nor sent; None for none.
    """

    epoch: int
    layout: ParamLayout
    trainer: str
    trainer_settings: tuple[tuple[str, Scalar], ...] = ()
    local_epochs: int = 1
    codec: str = "topk(0.005) | ternary | rice"
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    max_update_bytes: int = DEFAULT_MAX_UPDATE_BYTES
    max_staleness: int = 100
    wait_for_new_version: bool = False
    resend_seconds: float = 60.0
    clip_norm: float = 0.0
    mask: EncodedMask | None = None

    def has_only_another_mask(self, other: "Plan | None") -> bool:
        """Whether the other plan asks for the same, but for what is pruned: no reason to begin anything anew."""
        return other is not None and replace(self, mask=None) == replace(other, mask=None)
