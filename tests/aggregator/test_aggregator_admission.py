"""The checks, each alone and all in their order."""

from dataclasses import replace

import numpy as np
import pytest
from fedmq.aggregator.admission import AdmissionSettings, Conditions, judge_content, judge_header

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector
from fedmq.layout import ParamLayout
from fedmq.types import ClientId, ModelUpdate, ModelVersion, Refusal, Rejection, UpdateId

R = Rejection


@pytest.fixture
def conditions(layout: ParamLayout) -> Conditions:
    """A model at version 10 that takes updates of up to five versions ago."""
    return Conditions(
        settings=AdmissionSettings(max_examples=100, max_norm=5.0),
        model_epoch=0xA,
        layout=layout,
        version=10,
        max_staleness=5,
        contributors=frozenset({"twice"}),
    )


@pytest.fixture
def update(layout: ParamLayout) -> ModelUpdate:
    """One that all header checks pass."""
    return ModelUpdate(
        id=UpdateId(client=ClientId("once"), epoch=1, seq=1),
        floor=1,
        model_epoch=0xA,
        base_version=ModelVersion(8),
        fingerprint=layout.fingerprint,
        num_examples=50,
        local_steps=1,
        codec="float32",
        payload=b"",
    )


def delta(*values: float, buffers: tuple[float, ...] = (0, 0)) -> DecodedVector:
    """A decoded update."""
    trainable = SparseVector(length=len(values), indices=None, values=np.array(values, np.float32))
    return DecodedVector(trainable=trainable, buffers=np.array(buffers, np.float32))


def test_an_update_that_satisfies_everything_is_admitted(update: ModelUpdate, conditions: Conditions) -> None:
    """At both ends of every range."""
    for change in (
        {"base_version": 10},
        {"base_version": 5},
        {"num_examples": 1},
        {"num_examples": 100},
    ):
        assert judge_header(replace(update, **change), conditions) is None  # type: ignore[arg-type]
    assert judge_content(delta(3, 4), conditions) is None
    assert judge_content(delta(0), conditions) is None


HEADER = [
    ({"model_epoch": 0xB}, R.WRONG_EPOCH, "trained in model epoch b, this is a"),
    ({"fingerprint": b"\0" * 8}, R.WRONG_LAYOUT, "layout 0000000000000000, the model's is "),
    ({"base_version": 11}, R.FUTURE_VERSION, "trained from version 11, the model is at 10"),
    ({"base_version": 4}, R.STALE, "6 versions old, at most 5 are allowed"),
    ({"num_examples": 0}, R.SAMPLE_COUNT, "0 examples, 1 to 100 are allowed"),
    ({"num_examples": 101}, R.SAMPLE_COUNT, "101 examples, 1 to 100 are allowed"),
    (
        {"id": UpdateId(client=ClientId("twice"), epoch=1, seq=1)},
        R.ALREADY_CONTRIBUTED,
        "to version 10: each client counts once",
    ),
]


@pytest.mark.parametrize(("change", "reason", "detail"), HEADER)
def test_a_header_is_refused_with_the_facts(
    update: ModelUpdate, conditions: Conditions, change: dict[str, object], reason: Rejection, detail: str
) -> None:
    """What was found, and what would have been allowed."""
    refusal = judge_header(replace(update, **change), conditions)  # type: ignore[arg-type]

    assert refusal is not None
    assert reason is refusal.reason
    assert detail in refusal.detail


def test_the_first_check_that_fails_decides(update: ModelUpdate, conditions: Conditions) -> None:
    """An update that is wrong in every way is refused for one reason after the other, as each is put right."""
    wrong = replace(
        update,
        id=UpdateId(client=ClientId("twice"), epoch=1, seq=1),
        model_epoch=0xB,
        fingerprint=b"\0" * 8,
        base_version=ModelVersion(11),
        num_examples=0,
    )
    put_right: list[dict[str, object]] = [
        {},
        {"model_epoch": 0xA},
        {"fingerprint": update.fingerprint},
        {"base_version": ModelVersion(0)},
        {"base_version": ModelVersion(10)},
        {"num_examples": 1},
        {"id": update.id},
    ]
    found = []
    for change in put_right:
        wrong = replace(wrong, **change)  # type: ignore[arg-type]
        refusal = judge_header(wrong, conditions)
        found.append(refusal and refusal.reason)

    assert [
        R.WRONG_EPOCH,
        R.WRONG_LAYOUT,
        R.FUTURE_VERSION,
        R.STALE,
        R.SAMPLE_COUNT,
        R.ALREADY_CONTRIBUTED,
        None,
    ] == found


CONTENT = [
    (delta(1, np.nan), R.NOT_FINITE, "the delta holds an infinite value or NaN"),
    (delta(1, np.inf), R.NOT_FINITE, "the delta holds an infinite value or NaN"),
    (delta(1, buffers=(-np.inf, 0)), R.NOT_FINITE, "the delta holds an infinite value or NaN"),
    (delta(4, 4), R.NORM, "the delta's norm is 5.65685, at most 5 is allowed"),
    (delta(3e38, 3e38), R.NORM, "the delta's norm is 4.24264e+38, at most 5 is allowed"),
    (delta(3, buffers=(0, 3e38)), R.NORM, "the delta's norm is 3e+38, at most 5 is allowed"),
]


@pytest.mark.parametrize(("decoded", "reason", "detail"), CONTENT)
def test_a_content_is_refused_with_the_facts(
    conditions: Conditions, decoded: DecodedVector, reason: Rejection, detail: str
) -> None:
    """Not finite comes first: the norm of such a vector says nothing. Buffers count like the rest."""
    assert Refusal(reason=reason, detail=detail) == judge_content(decoded, conditions)
