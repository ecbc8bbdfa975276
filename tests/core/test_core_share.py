"""Shares of the work survive their bytes, and nothing out of bounds is one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq import wire
from fedmq.envelope import Kind, pack
from fedmq.errors import WireError
from fedmq.share import MAX_JITTER_SECONDS, MAX_LOCAL_STEPS, MAX_WAIT_SECONDS, Share

shares = st.builds(
    Share,
    boot=st.integers(1, 2**63 - 1),
    local_steps=st.integers(0, MAX_LOCAL_STEPS),
    codec=st.text(max_size=wire.MAX_CODEC),
    wait=st.floats(0, MAX_WAIT_SECONDS),
    jitter=st.floats(0, MAX_JITTER_SECONDS),
)


@given(shares)
def test_a_share_survives_its_bytes(share: Share) -> None:
    """Field by field."""
    assert share == wire.unpack_share(wire.pack_share(share))


def test_what_is_the_plans_takes_no_bytes() -> None:
    """Only whose share it is remains."""
    assert pack(Kind.TASK, {"b": 7}) == wire.pack_share(Share(boot=7))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"b": 0},
        {"b": True},
        {"b": 7, "k": -1},
        {"b": 7, "k": MAX_LOCAL_STEPS + 1},
        {"b": 7, "k": 1.0},
        {"b": 7, "q": "x" * (wire.MAX_CODEC + 1)},
        {"b": 7, "q": b"topk"},
        {"b": 7, "w": 1},
        {"b": 7, "w": -0.1},
        {"b": 7, "w": MAX_WAIT_SECONDS * 1.01},
        {"b": 7, "w": math.nan},
        {"b": 7, "w": math.inf},
        {"b": 7, "j": -math.inf},
        {"b": 7, "j": math.nan},
        {"b": 7, "j": MAX_JITTER_SECONDS * 1.01},
    ],
)
def test_what_is_out_of_bounds_is_no_share(body: dict[str, object]) -> None:
    """No number puts a device to sleep for ever, or to work for ever."""
    with pytest.raises(WireError):
        wire.unpack_share(pack(Kind.TASK, body))
