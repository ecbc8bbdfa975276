"""One small model and its updates, for all tests of the aggregator. Factories only: nothing is shared."""

from collections.abc import Callable

import numpy as np
import pytest
from fedmq.aggregator import strategy
from fedmq.aggregator.admission import AdmissionSettings
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.ledger import Ledger
from fedmq.aggregator.strategy import FoldSettings, make_rule

from fedmq.codecs import parse_pipeline
from fedmq.encoding import encode
from fedmq.layout import ParamLayout, Segment, SegmentKind
from fedmq.types import ClientId, ModelUpdate, ModelVersion, UpdateId
from fedmq.wire import pack_update

MODEL_EPOCH = 0xE90C


@pytest.fixture(scope="session")
def layout() -> ParamLayout:
    """Twenty trainable parameters and two buffer scalars."""
    return ParamLayout(
        (
            Segment(name="w", shape=(4, 5)),
            Segment(name="mean", shape=(2,), kind=SegmentKind.BUFFER),
        )
    )


@pytest.fixture(scope="session")
def message(layout: ParamLayout) -> Callable[..., bytes]:
    """Makes an update's message; everything has a default that is admitted."""

    def make(
        client: str = "a",
        seq: int = 1,
        *,
        epoch: int = 7,
        floor: int | None = None,
        base: int = 0,
        delta: float | np.ndarray = 0.5,
        examples: int = 10,
        codec: str = "float32",
        model_epoch: int = MODEL_EPOCH,
        fingerprint: bytes = layout.fingerprint,
        payload: bytes | None = None,
    ) -> bytes:
        vector = np.broadcast_to(np.asarray(delta, np.float32), layout.size)
        update = ModelUpdate(
            id=UpdateId(client=ClientId(client), epoch=epoch, seq=seq),
            floor=seq if floor is None else floor,
            model_epoch=model_epoch,
            base_version=ModelVersion(base),
            fingerprint=fingerprint,
            num_examples=examples,
            local_steps=1,
            codec=codec,
            payload=encode(layout, parse_pipeline(codec), vector.copy()) if payload is None else payload,
        )
        return pack_update(update)

    return make


@pytest.fixture(scope="session")
def new_engine(layout: ParamLayout) -> Callable[..., Engine]:
    """Makes an engine that starts from zeros; arguments are those of `FoldSettings`."""

    def make(
        *,
        admission: AdmissionSettings | None = None,
        max_update_bytes: int = 100_000,
        **fold: object,
    ) -> Engine:
        rule = make_rule(FoldSettings(**fold))  # type: ignore[arg-type]
        return Engine(
            epoch=MODEL_EPOCH,
            layout=layout,
            rule=rule,
            state=strategy.init(rule, np.zeros(layout.size, np.float32)),
            ledger=Ledger(),
            admission=admission or AdmissionSettings(),
            max_update_bytes=max_update_bytes,
        )

    return make
