"""Admission: may this update be folded? Two ordered tuples of pure checks, cheap ones first.

A check takes the facts and returns a `Refusal` or None. The first refusal stands. The header is judged before
anything is decoded, so that a wrong update costs next to nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedmq.encoding import DecodedVector
from fedmq.layout import ParamLayout
from fedmq.settings import setting
from fedmq.types import ModelUpdate, Refusal, Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """What an update must satisfy."""

    max_examples: int = setting(10_000_000, help="largest number of examples an update may claim", low=1)
    max_norm: float = setting(
        1000.0, help="largest Euclidean norm of a decoded delta; larger ones are refused", low=0
    )
    max_rate: float = setting(
        1000.0,
        help="updates of one client per second; more are dropped, and their client sends them again",
        low=0.01,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What an update is judged against.

    Attributes:
        settings: the operator's bounds.
        model_epoch: the aggregator's.
        layout: the model's.
        version: the model's version at the moment the update would be folded.
        max_staleness: older updates are refused.
        contributors: clients that may not contribute again to this version (synchronous rule).
        max_payload: larger payloads, in bytes, are refused by a rule that keeps them; None when it does not.
        masks: digests of the masks that an update may be encoded under; the empty one stands for none.
    """

    settings: AdmissionSettings
    model_epoch: int
    layout: ParamLayout
    version: int
    max_staleness: int
    contributors: frozenset[str] = frozenset()
    max_payload: int | None = None
    masks: frozenset[bytes] = frozenset({b""})


HeaderCheck = Callable[[ModelUpdate, Conditions], Refusal | None]
ContentCheck = Callable[[DecodedVector, Conditions], Refusal | None]


def _epoch(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    if update.model_epoch == conditions.model_epoch:
        return None
    return Refusal(
        reason=Rejection.WRONG_EPOCH,
        detail=f"trained in model epoch {update.model_epoch:x}, this is {conditions.model_epoch:x}",
    )


def _layout(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    if update.fingerprint == conditions.layout.fingerprint:
        return None
    ours = conditions.layout.fingerprint.hex()
    return Refusal(
        reason=Rejection.WRONG_LAYOUT, detail=f"layout {update.fingerprint.hex()}, the model's is {ours}"
    )


def _mask(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    if update.mask in conditions.masks:
        return None
    return Refusal(
        reason=Rejection.UNKNOWN_MASK,
        detail=f"mask {update.mask.hex()}: pruning has gone on since, or elsewhere",
    )


def _future(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    if update.base_version <= conditions.version:
        return None
    return Refusal(
        reason=Rejection.FUTURE_VERSION,
        detail=f"trained from version {update.base_version}, the model is at {conditions.version}",
    )


def _stale(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    staleness = conditions.version - update.base_version
    if staleness <= conditions.max_staleness:
        return None
    return Refusal(
        reason=Rejection.STALE,
        detail=f"{staleness} versions old, at most {conditions.max_staleness} are allowed",
    )


def _examples(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    high = conditions.settings.max_examples
    if 1 <= update.num_examples <= high:
        return None
    return Refusal(
        reason=Rejection.SAMPLE_COUNT, detail=f"{update.num_examples} examples, 1 to {high} are allowed"
    )


def _kept(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    size, high = len(update.payload), conditions.max_payload
    if high is None or size <= high:
        return None
    return Refusal(
        reason=Rejection.TOO_LARGE,
        detail=f"a payload of {size} bytes, at most {high} are kept for each contribution (fold.kept_bytes)",
    )


def _contributed(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    if update.id.client not in conditions.contributors:
        return None
    return Refusal(
        reason=Rejection.ALREADY_CONTRIBUTED,
        detail=f"to version {conditions.version}: each client counts once",
    )


def _finite(delta: DecodedVector, conditions: Conditions) -> Refusal | None:
    if delta.is_finite():
        return None
    return Refusal(reason=Rejection.NOT_FINITE, detail="the delta holds an infinite value or NaN")


def _norm(delta: DecodedVector, conditions: Conditions) -> Refusal | None:
    norm, high = delta.norm(), conditions.settings.max_norm
    if math.isfinite(norm) and norm <= high:
        return None
    return Refusal(reason=Rejection.NORM, detail=f"the delta's norm is {norm:g}, at most {high:g} is allowed")


HEADER_CHECKS: Final[tuple[HeaderCheck, ...]] = (
    _epoch, _layout, _future, _stale, _mask, _examples, _kept, _contributed
)  # fmt: skip
CONTENT_CHECKS: Final[tuple[ContentCheck, ...]] = (_finite, _norm)


def judge_header(update: ModelUpdate, conditions: Conditions) -> Refusal | None:
    """The first refusal of the header checks, or None."""
    return next(filter(None, (check(update, conditions) for check in HEADER_CHECKS)), None)


def judge_content(delta: DecodedVector, conditions: Conditions) -> Refusal | None:
    """The first refusal of the content checks, or None."""
    return next(filter(None, (check(delta, conditions) for check in CONTENT_CHECKS)), None)
