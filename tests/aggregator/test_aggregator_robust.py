"""The means that bear outliers, against direct transcriptions of their papers, and against liars."""

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pytest
from fedmq.aggregator import robust
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from fedmq.aggregator.robust import Contributions, combine, fewest, parse_robust
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.codecs import SparseVector
from fedmq.encoding import DecodedVector
from fedmq.types import Rejection

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
Doubles = NDArray[np.float64]
SIZE = 11


def contributions(
    rows: Doubles,
    *,
    scales: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    sparse: bool = False,
) -> Contributions:
    """Rows as they are when they were decoded: all but three scalars trainable."""
    deltas = []
    for row in rows.astype(np.float32):
        head = row[:-3]
        indices = np.flatnonzero(head).astype(np.int32) if sparse else None
        trainable = SparseVector(
            length=head.size, indices=indices, values=head if indices is None else head[indices]
        )
        deltas.append(DecodedVector(trainable=trainable, buffers=row[-3:]))
    return Contributions(
        deltas=deltas,
        scales=scales or [1.0] * len(rows),
        weights=weights or [1.0] * len(rows),
        size=rows.shape[1],
    )


def rows_of(number: int, seed: int) -> Doubles:
    """Random contributions, half of their coordinates zero."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((number, SIZE)) * rng.integers(0, 2, (number, SIZE))
    return rows.astype(np.float32).astype(np.float64)


def run(text: str, rows: Doubles, **more: object) -> NDArray[np.float32]:
    """What a mean makes of contributions."""
    chosen = parse_robust(text)
    assert chosen is not None
    return combine(chosen, contributions(rows, **more))  # type: ignore[arg-type]


def trimmed_mean(rows: Doubles, b: int) -> Doubles:
    """Yin et al., Definition 2."""
    return np.sort(rows, axis=0)[b : len(rows) - b].mean(axis=0)


def krum_order(rows: Doubles, f: int) -> list[int]:
    """Blanchard et al., section 4: by the sum of the n - f - 2 smallest squared distances to others."""
    n = len(rows)
    scores = [
        sum(sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(n) if j != i)[: n - f - 2])
        for i in range(n)
    ]
    return sorted(range(n), key=lambda i: scores[i])


def weiszfeld(rows: Doubles, weights: Doubles, steps: int) -> Doubles:
    """Pillutla et al., Algorithm 1, from the coordinate-wise median."""
    v = np.median(rows, axis=0)
    for _ in range(steps):
        beta = weights / np.maximum(1e-6, np.sqrt(((rows - v) ** 2).sum(axis=1)))
        v = (beta[:, None] * rows).sum(axis=0) / beta.sum()
    return v


@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_the_median_is_that_of_each_coordinate(number: int, seed: int, sparse: bool) -> None:
    """Of an even number the mean of the two in the middle."""
    rows = rows_of(number, seed)

    assert np.median(rows, axis=0) == pytest.approx(run("median", rows, sparse=sparse), rel=1e-6, abs=1e-7)


@given(st.integers(0, 2), st.integers(5, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_the_trimmed_mean_is_that_of_its_paper(b: int, number: int, seed: int, sparse: bool) -> None:
    """In each coordinate for itself."""
    rows = rows_of(number, seed)
    found = run(f"trimmed({b})", rows, sparse=sparse)

    assert trimmed_mean(rows, b) == pytest.approx(found, rel=1e-5, abs=1e-6)


@given(st.integers(1, 2), st.integers(7, 10), st.integers(1, 7), st.integers(0, 2**32 - 1), st.booleans())
def test_krum_is_that_of_its_paper(f: int, number: int, m: int, seed: int, sparse: bool) -> None:
    """The one with the best score, or the mean of the m best."""
    rows = rows_of(number, seed)
    order = krum_order(rows, f)

    assert rows[order[0]].astype(np.float32).tolist() == run(f"krum({f})", rows, sparse=sparse).tolist()
    expected = rows[order[:m]].mean(axis=0)
    assert expected == pytest.approx(run(f"multikrum({f}, {m})", rows, sparse=sparse), rel=1e-5, abs=1e-6)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_the_geometric_median_is_that_of_its_paper(number: int, steps: int, seed: int, sparse: bool) -> None:
    """With weights."""
    rows = rows_of(number, seed)
    weights = np.random.default_rng(seed).integers(1, 100, number).astype(np.float64)
    found = run(f"geometric({steps})", rows, weights=weights.tolist(), sparse=sparse)

    assert weiszfeld(rows, weights, steps) == pytest.approx(found, rel=1e-4, abs=1e-5)


EVERY = ["median", "trimmed(1)", "krum(1)", "multikrum(1, 3)", "geometric(8)"]


@pytest.mark.parametrize("text", EVERY)
def test_the_order_of_arrival_does_not_matter(text: str) -> None:
    """Up to rounding; a tie of Krum's, which goes to the first, aside."""
    rows = rows_of(5, seed=1)
    expected = run(text, rows)
    for order in list(permutations(range(5)))[::17]:
        assert expected == pytest.approx(run(text, rows[list(order)]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("text", EVERY)
def test_contributions_that_are_all_the_same_are_their_mean(text: str) -> None:
    """As is the plain average of them."""
    rows = np.repeat(rows_of(1, seed=2), 5, axis=0)

    assert rows[0] == pytest.approx(run(text, rows), rel=1e-6)


@pytest.mark.parametrize("text", ["trimmed(0)", "multikrum(1, 5)"])
def test_without_trimming_it_is_the_plain_average(text: str) -> None:
    """The dial turned all the way down."""
    rows = rows_of(5, seed=3)

    assert rows.mean(axis=0) == pytest.approx(run(text, rows), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("text", EVERY)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-1e30, -100.0, 100.0, 1e6, 1e30]))
def test_one_liar_of_five_does_not_lead_the_others_astray(text: str, seed: int, lie: float) -> None:
    """What comes out lies among the honest ones; the plain average would be a fifth of the lie away."""
    rng = np.random.default_rng(seed)
    rows = 1 + 0.1 * rng.standard_normal((5, SIZE))
    rows[rng.integers(5)] = lie
    found = run(text, rows.astype(np.float32).astype(np.float64))

    assert np.abs(found - 1).max() < 0.5


@pytest.mark.parametrize("text", EVERY)
def test_blocks_come_to_the_same_as_the_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the coordinates are cut, across the buffers too."""
    rows = rows_of(5, seed=4)
    whole = {sparse: run(text, rows, sparse=sparse) for sparse in (False, True)}
    for numbers in (5, 10, 20, 45):
        monkeypatch.setattr(robust, "_BLOCK_NUMBERS", numbers)
        for sparse in (False, True):
            assert whole[sparse] == pytest.approx(run(text, rows, sparse=sparse), rel=1e-6, abs=1e-7)


def test_scales_are_applied_before_anything_is_compared() -> None:
    """A discounted contribution is the smaller one."""
    rows = np.array([[1.0] * SIZE, [4.0] * SIZE, [3.0] * SIZE])

    assert [2.0] * SIZE == run("median", rows, scales=[1.0, 0.5, 1.0]).tolist()


def test_a_geometric_median_of_no_weight_at_all_is_zero() -> None:
    """Rather than a division by zero."""
    assert not run("geometric", rows_of(3, seed=5), weights=[0.0, 0.0, 0.0]).any()


def test_each_mean_says_how_many_it_needs() -> None:
    """As its paper does."""
    texts = ["median", "trimmed(2)", "krum(1)", "krum(3)", "multikrum(1, 9)", "geometric"]
    chosen = [parse_robust(text) for text in texts]

    assert [1, 5, 5, 9, 9, 1] == [fewest(one) for one in chosen if one is not None]
    assert parse_robust("none") is None


@pytest.mark.parametrize("codec", ["float32", "topk(0.5) | float32 | rice"])
@pytest.mark.parametrize("text", EVERY)
def test_a_version_is_a_step_along_the_robust_mean_of_its_buffer(
    new_engine: NewEngine, message: Message, text: str, codec: str
) -> None:
    """Through the engine, two versions; the kept updates go with the version."""
    engine = new_engine(buffer_size=5, robust=text, staleness="constant", learning_rate=0.5)
    expected, rng = np.zeros(22), np.random.default_rng(6)
    for version in range(2):
        rows = rng.standard_normal((5, 22)).astype(np.float32).astype(np.float64)
        for number, row in enumerate(rows):
            update = message(seq=5 * version + number + 1, base=version, delta=row, codec=codec)
            decision = engine.offer([Arrival(client="a", message=update)])
            (record,) = decision.records
            assert record.delta is not None
            rows[number] = record.delta.to_dense()
            engine.commit(decision)
            assert (number + 1) % 5 == len(engine.state.window) == engine.state.filled
        expected = expected + 0.5 * run(text, rows)

    assert 2 == engine.state.version
    assert 0 == engine.state.buffer.size
    assert expected == pytest.approx(engine.state.vector, rel=1e-5, abs=1e-6)


def test_an_update_larger_than_its_share_is_refused_and_the_bytes_stay_bounded(
    new_engine: NewEngine, message: Message
) -> None:
    """A buffer that could not fill would stop the federation, so each contribution has a share of its own."""
    engine = new_engine(buffer_size=5, robust="median", kept_bytes=5 * 1024)
    good, bad = message(), message(seq=2, payload=bytes(1025))
    decision = engine.offer([Arrival(client="a", message=good), Arrival(client="a", message=bad)])

    assert [None, Rejection.TOO_LARGE] == [r.refusal and r.refusal.reason for r in decision.records]
