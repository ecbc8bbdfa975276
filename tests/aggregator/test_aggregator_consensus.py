"""The consensus: what folded updates have in common, and how far another one agrees with it."""

import numpy as np
import pytest
from fedmq.aggregator.consensus import Consensus, cosine
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector


def dense(*values: float) -> DecodedVector:
    """A decoded update without buffers."""
    trainable = SparseVector(length=len(values), indices=None, values=np.array(values, np.float32))
    return DecodedVector(trainable=trainable, buffers=np.zeros(0, np.float32))


def sparse(length: int, **values: float) -> DecodedVector:
    """One that has some coordinates: `sparse(5, _0=1, _3=-1)`."""
    trainable = SparseVector(
        length=length,
        indices=np.array([int(name[1:]) for name in values], np.int32),
        values=np.array(list(values.values()), np.float32),
    )
    return DecodedVector(trainable=trainable, buffers=np.zeros(0, np.float32))


def test_who_shouts_has_one_vote_like_all_others() -> None:
    """Two whispers are more than a shout against them."""
    consensus = Consensus(memory=0.99)
    for delta in (dense(1, 0), dense(-1000, 0), dense(2, 0)):
        consensus.note(delta)

    assert 3 == consensus.votes
    assert 1.0 == pytest.approx(consensus.agreement(dense(5, 0)))
    assert -1.0 == pytest.approx(consensus.agreement(dense(-1e-6, 0)))


def test_only_what_was_sent_is_compared() -> None:
    """A sparse update that has every sign right agrees completely, however few coordinates it has."""
    consensus = Consensus(memory=0.99)
    consensus.note(dense(1, 1, 1, 1, -1))

    assert 1.0 == pytest.approx(consensus.agreement(sparse(5, _1=2, _4=-2)))
    assert -1.0 == pytest.approx(consensus.agreement(sparse(5, _1=-2, _4=2)))
    assert 0.0 == pytest.approx(consensus.agreement(sparse(5, _0=2, _4=2)), abs=1e-6)


def test_old_votes_are_forgotten() -> None:
    """By the factor beta with each new one."""
    consensus = Consensus(memory=0.5)
    consensus.note(dense(1, 0))
    consensus.note(dense(0, 1))
    along = consensus.vector / np.linalg.norm(consensus.vector)

    assert [0.5, 1.0] == pytest.approx((along / along[1]).tolist())


def test_a_great_many_votes_overflow_nothing() -> None:
    """Votes grow instead of the past shrinking, and are scaled back in time."""
    consensus = Consensus(memory=0.5)
    for _ in range(500):
        consensus.note(dense(3, 4))

    assert np.isfinite(consensus.vector).all()
    assert 0 < consensus.length <= 1e6
    assert 1.0 == pytest.approx(consensus.agreement(dense(3, 4)))


@pytest.mark.parametrize("delta", [dense(0, 0), dense(1e-45, 0), dense(3e38, 3e38)])
def test_no_update_is_too_small_or_too_large_to_be_counted(delta: DecodedVector) -> None:
    """A vote is as long as any other; zeros have none."""
    consensus = Consensus(memory=0.99)
    consensus.note(dense(0, 1))
    consensus.note(delta)

    assert np.isfinite(consensus.vector).all()
    assert np.linalg.norm(consensus.vector) <= 2.1


def test_without_memory_nothing_is_kept() -> None:
    """It costs nothing where no rule asks for it."""
    consensus = Consensus()
    consensus.note(dense(1, 2))

    assert (0, 0) == (consensus.votes, consensus.vector.size)
    assert 0.0 == consensus.agreement(dense(1, 2))


@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), st.floats(0.125, 64))
@settings(max_examples=50)
def test_a_cosine_knows_no_lengths(values: list[float], factor: float) -> None:
    """From -1 to 1, the same for every multiple, the negative for the opposite."""
    reference = np.array([1, -2, 0.5], np.float32)
    found = cosine(dense(*values), reference)

    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert found == pytest.approx(cosine(dense(*(factor * v for v in values)), reference), abs=1e-5)
    assert -found == pytest.approx(cosine(dense(*(-v for v in values)), reference))
