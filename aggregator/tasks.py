"""What the clients are asked to do: the plan, from the operator's settings and the rule of folding."""

from dataclasses import dataclass

from fedmq.layout import ParamLayout
from fedmq.mask import Mask
from fedmq.plan import DEFAULT_MAX_UPDATE_BYTES, Plan
from fedmq.settings import Table, setting

from .rule import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What the plan asks of the clients."""

    trainer: str = setting("mlp", help="name of the trainer that devices look up among those they have")
    settings: Table = setting((), help="what the trainer is told, as name=value,…")
    local_epochs: int = setting(1, help="passes over the local data for each update", low=1, high=10_000)
    codec: str = setting("topk(0.005) | ternary | rice", help="pipeline of updates")
    max_update_bytes: int = setting(
        DEFAULT_MAX_UPDATE_BYTES, help="largest update, all chunks together, in bytes", low=1024
    )
    resend_seconds: float = setting(
        60.0, help="seconds without a receipt after which a client sends an update again", low=0.1
    )
    clip_norm: float = setting(
        0.0,
        help="Euclidean norm that a client shortens its delta to, before error feedback; 0 for none",
        low=0,
    )


def make_plan(
    task: TaskSettings,
    rule: Rule,
    *,
    epoch: int,
    layout: ParamLayout,
    chunk_bytes: int,
    mask: Mask | None = None,
) -> Plan:
    """The plan that is published.

    Args:
        task: what the operator says.
        rule: how updates are folded; a synchronous one lets clients train once on each version.
        epoch: the model epoch.
        layout: the model's.
        chunk_bytes: largest payload of one publish.
        mask: what is pruned.
    """
    return Plan(
        epoch=epoch,
        layout=layout,
        trainer=task.trainer,
        trainer_settings=task.settings,
        local_epochs=task.local_epochs,
        codec=task.codec,
        chunk_bytes=chunk_bytes,
        max_update_bytes=task.max_update_bytes,
        max_staleness=rule.oldest_admitted,
        wait_for_new_version=rule.synchronous,
        resend_seconds=float(task.resend_seconds),  # the wire knows integers from floats
        clip_norm=float(task.clip_norm),
        mask=mask.encoded if mask is not None else None,
    )
