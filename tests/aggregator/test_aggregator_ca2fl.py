"""CA2FL against a float64 transcription of its paper's algorithm, and who is in the mean.

All through the engine, with the wire's own messages, so that what is remembered has really been encoded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import numpy as np
import pytest
from fedmq.aggregator import ca2fl
from fedmq.aggregator.decision import Arrival
from fedmq.aggregator.engine import Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmq.codecs import parse_pipeline
from fedmq.encoding import decode, encode
from fedmq.layout import ParamLayout

Message = Callable[..., bytes]
NewEngine = Callable[..., Engine]
Doubles = NDArray[np.float64]
SIZE = 22
#: Algorithm 2 as it is written.
PAPER: Final = {"strategy": "ca2fl", "memory": 1, "calibration": 1.0, "staleness": "constant"}


def vector(rng: np.random.Generator) -> Doubles:
    """A delta that float32 holds exactly."""
    return rng.standard_normal(SIZE).astype(np.float32).astype(np.float64)


@dataclass
class Feed:
    """Sends updates to an engine one by one, each from the newest version unless it is told how many before."""

    engine: Engine
    message: Message
    seqs: dict[tuple[str, int], int] = field(default_factory=dict)

    def arrival(
        self, client: str, delta: Doubles, *, behind: int = 0, epoch: int = 7, codec: str = "float32"
    ) -> Arrival:
        seq = self.seqs[client, epoch] = self.seqs.get((client, epoch), 0) + 1
        base = max(self.engine.state.version - behind, 0)
        data = self.message(client, seq, base=base, delta=delta, epoch=epoch, codec=codec)
        return Arrival(client=client, message=data)

    def __call__(self, client: str, delta: Doubles, **how: object) -> None:
        decision = self.engine.offer([self.arrival(client, delta, **how)])  # type: ignore[arg-type]
        assert [record.refusal for record in decision.records] == [None]
        self.engine.commit(decision)


def close(expected: Doubles, found: NDArray[np.float32]) -> bool:
    """Equal but for the rounding of float32."""
    return bool(np.allclose(expected, found, rtol=1e-5, atol=1e-5))


def remembered(engine: Engine) -> dict[str, Doubles]:
    """Each client's h_i, decoded."""
    found = {}
    for client, updates in engine.state.cache.items():
        deltas = [
            np.float32(kept.scale / len(updates))
            * decode(engine.layout, engine.pipeline(kept.codec), kept.payload).to_dense()
            for kept in updates
        ]
        found[client] = sum((delta.astype(np.float64) for delta in deltas), np.zeros(SIZE))
    return found


def held(engine: Engine) -> int:
    """Bytes of the updates that are remembered."""
    return sum(kept.nbytes for updates in engine.state.cache.values() for kept in updates)


def test_ca2fl_is_algorithm_2_of_its_paper(new_engine: NewEngine, message: Message) -> None:
    """V = (1/K) sum (Delta_i - h_i) + h, w <- w + eta v, h_i <- Delta_i, h = (1/n) sum h_i; n clients known."""
    n, k, eta = 6, 3, 0.7
    rng, random = np.random.default_rng(1), Random(1)
    engine = new_engine(**PAPER, buffer_size=k, learning_rate=eta, clients=n)
    feed = Feed(engine, message)
    w, h_i, h = np.zeros(SIZE), np.zeros((n, SIZE)), np.zeros(SIZE)
    for _ in range(20):
        buffer = [(i, vector(rng)) for i in random.sample(range(n), k)]
        v = sum((delta - h_i[i] for i, delta in buffer), np.zeros(SIZE)) / k + h
        w = w + eta * v
        for i, delta in buffer:
            h_i[i] = delta
            feed(f"c{i}", delta, behind=random.randrange(4))
        h = h_i.mean(axis=0)

    assert 20 == engine.state.version
    assert close(w, engine.state.vector)
    assert close(h, engine.state.mean)


def test_of_unknown_clients_one_that_is_not_remembered_counts_at_the_mean(
    new_engine: NewEngine, message: Message
) -> None:
    """The same formula, with h for the h_i of a newcomer and n the clients that are remembered."""
    k = 2
    rng, random = np.random.default_rng(2), Random(2)
    engine = new_engine(**PAPER, buffer_size=k)
    feed = Feed(engine, message)
    w, h = np.zeros(SIZE), np.zeros(SIZE)
    h_i: dict[str, Doubles] = {}
    for _ in range(20):
        buffer = [(name, vector(rng)) for name in random.sample("abcdef", k)]
        w = w + sum((delta - h_i.get(name, h) for name, delta in buffer), np.zeros(SIZE)) / k + h
        for name, delta in buffer:
            h_i[name] = delta
            feed(name, delta)
        h = np.mean(list(h_i.values()), axis=0)

    assert close(w, engine.state.vector)
    assert set("abcdef") == engine.state.cache.keys()


def test_with_a_memory_what_is_taken_away_is_the_mean_of_a_clients_last_updates(
    new_engine: NewEngine, message: Message
) -> None:
    """The same formula, with the mean of as many updates as there are, three at most, for h_i."""
    k, memory = 3, 3
    rng, random = np.random.default_rng(12), Random(12)
    engine = new_engine(
        strategy="ca2fl", calibration=1.0, staleness="constant", memory=memory, buffer_size=k, clients=5
    )
    feed = Feed(engine, message)
    w, h = np.zeros(SIZE), np.zeros(SIZE)
    past: dict[str, list[Doubles]] = {name: [] for name in "abcde"}
    for _ in range(25):
        buffer = [(name, vector(rng)) for name in random.sample("abcde", k)]
        usual = {name: np.mean(past[name], axis=0) if past[name] else np.zeros(SIZE) for name, _ in buffer}
        w = w + sum((delta - usual[name] for name, delta in buffer), np.zeros(SIZE)) / k + h
        for name, delta in buffer:
            past[name] = [*past[name], delta][-memory:]
            feed(name, delta)
        h = sum((np.mean(deltas, axis=0) for deltas in past.values() if deltas), np.zeros(SIZE)) / 5

    assert close(w, engine.state.vector)
    assert close(h, engine.state.mean)
    assert {memory} == {len(updates) for updates in engine.state.cache.values()}


def test_clients_that_say_the_same_in_turns_are_steadied_by_a_memory(
    new_engine: NewEngine, message: Message
) -> None:
    """Sparse updates hold other coordinates each time: with their mean the model wanders less around its way."""
    swing = {}
    for memory in (1, 4):
        engine = new_engine(
            strategy="ca2fl", calibration=1.0, staleness="constant", memory=memory, buffer_size=1, clients=2
        )
        feed = Feed(engine, message)
        steps = []
        for number in range(48):
            before = engine.state.vector.copy()
            delta = np.zeros(SIZE)
            delta[number // 2 % 4] = 4.0
            feed("ab"[number % 2], delta)
            steps.append(engine.state.vector - before)
        swing[memory] = float(np.std(steps[24:], axis=0)[:4].mean())

    assert swing[4] < 0.75 * swing[1]


def test_between_clients_that_take_turns_nothing_is_corrected(
    new_engine: NewEngine, message: Message
) -> None:
    """The measured beta is 0, and what is left is FedBuff."""
    rng = np.random.default_rng(13)
    engines = [new_engine(strategy=name, buffer_size=1) for name in ("ca2fl", "fedbuff")]
    feeds = [Feed(engine, message) for engine in engines]
    for number in range(12):
        delta = vector(rng)
        for feed in feeds:
            feed("abc"[number % 3], delta)
    calibrated, plain = engines

    assert 0.0 == ca2fl.beta(calibrated.state, calibrated.rule)
    assert (3.0, 9.0) == (calibrated.state.gap, calibrated.state.gap_square)
    assert plain.state.vector.tolist() == calibrated.state.vector.tolist()


def test_between_clients_that_come_at_random_the_correction_is_whole(
    new_engine: NewEngine, message: Message
) -> None:
    """And beta is what the variance of their gaps says before that: gaps of 1 and 3 have 1/4 of the mean's square."""
    engine = new_engine(strategy="ca2fl", buffer_size=1)
    feed, random = Feed(engine, message), Random(14)
    assert 0.0 == ca2fl.beta(engine.state, engine.rule)
    engine.state.gap, engine.state.gap_square = 2.0, 5.0
    assert 0.5 == ca2fl.beta(engine.state, engine.rule)
    for _ in range(120):
        feed(random.choice("abcdef"), np.ones(SIZE))

    assert 1.0 == ca2fl.beta(engine.state, engine.rule)
    assert 0.25 == ca2fl.beta(engine.state, new_engine(strategy="ca2fl", calibration=0.25).rule)


def test_a_staleness_weight_shrinks_the_step_as_it_does_without_a_correction(
    new_engine: NewEngine, message: Message
) -> None:
    """s(tau) stands before Delta_i - h_i + h."""
    engine = new_engine(strategy="ca2fl", memory=1, calibration=1.0, buffer_size=1)
    feed = Feed(engine, message)
    one, two = vector(np.random.default_rng(3)), vector(np.random.default_rng(4))
    feed("a", one)
    for _ in range(3):
        feed("a", one)
    before = engine.state.vector.astype(np.float64)
    feed("a", two, behind=3)

    assert close(before + (two - one + one) / 2, engine.state.vector)
    assert close(two, engine.state.mean)


@given(st.permutations("abcd"), st.integers(0, 2**32 - 1))
def test_the_first_version_is_the_plain_average_in_any_order(
    new_engine: NewEngine, message: Message, order: list[str], seed: int
) -> None:
    """Nothing is remembered yet, and nobody is late."""
    rng = np.random.default_rng(seed)
    deltas = {client: vector(rng) for client in "abcd"}
    engine = new_engine(**PAPER, buffer_size=4)
    feed = Feed(engine, message)
    for client in order:
        feed(client, deltas[client])

    assert close(np.mean(list(deltas.values()), axis=0), engine.state.vector)


def test_the_second_update_of_a_client_in_one_version_replaces_its_first(
    new_engine: NewEngine, message: Message
) -> None:
    """(first − h) + (second − first): the client counts once, with what is newest."""
    rng = np.random.default_rng(5)
    old, first, second, other = (vector(rng) for _ in range(4))
    engine = new_engine(**PAPER, buffer_size=1)
    feed = Feed(engine, message)
    feed("a", old)
    engine.rule = new_engine(**PAPER, buffer_size=3).rule
    for client, delta in (("a", first), ("b", other), ("a", second)):
        feed(client, delta)
    # b is a newcomer and stands at the mean, which is a's old update
    v = ((second - old) + (other - old)) / 3 + old

    assert close(old + v, engine.state.vector)
    assert close((second + other) / 2, engine.state.mean)


@pytest.mark.parametrize("codec", ["topk(0.3) | ternary | rice", "int8", "float16"])
def test_what_is_remembered_is_what_was_decoded(new_engine: NewEngine, message: Message, codec: str) -> None:
    """Not what the client computed before its codec."""
    engine = new_engine(**PAPER, buffer_size=1)
    delta = vector(np.random.default_rng(6))
    Feed(engine, message)("a", delta, codec=codec)
    pipeline = parse_pipeline(codec)
    sent = decode(engine.layout, pipeline, encode(engine.layout, pipeline, delta.astype(np.float32)))

    assert sent.to_dense().tolist() == engine.state.mean.tolist()
    assert sent.to_dense().tolist() == engine.state.vector.tolist()


def test_a_client_that_was_not_heard_for_long_leaves_the_mean(
    new_engine: NewEngine, message: Message
) -> None:
    """After `forget_versions` versions of silence, and it is the others' mean then, to the last bit."""
    rng = np.random.default_rng(7)
    engine = new_engine(**PAPER, buffer_size=1, forget_versions=3)
    feed = Feed(engine, message)
    feed("gone", vector(rng))
    found = []
    for _ in range(4):
        delta = vector(rng)
        feed("stays", delta)
        found.append(list(engine.state.cache))

    assert [["gone", "stays"]] * 3 + [["stays"]] == found
    assert delta.astype(np.float32).tolist() == engine.state.mean.tolist()


def test_a_device_that_was_made_anew_does_not_bring_its_former_self_back(
    new_engine: NewEngine, message: Message
) -> None:
    """Its outbox has another epoch: the old h_i leaves the mean, and it joins as a newcomer, at the mean."""
    rng = np.random.default_rng(8)
    former, other, anew = (vector(rng) for _ in range(3))
    engine = new_engine(**PAPER, buffer_size=1)
    feed = Feed(engine, message)
    feed("a", former)
    feed("b", other)
    before = engine.state.vector.astype(np.float64)
    feed("a", anew, epoch=8)

    assert close(before + anew, engine.state.vector)
    assert close((other + anew) / 2, engine.state.mean)


def test_beyond_its_bytes_the_cache_forgets_who_was_silent_for_longest(
    new_engine: NewEngine, message: Message
) -> None:
    """And the mean is that of those who are left."""
    rng = np.random.default_rng(9)
    engine = new_engine(**PAPER, buffer_size=1, kept_bytes=4096)
    feed = Feed(engine, message)
    deltas = {f"c{number}": vector(rng) for number in range(20)}
    for client, delta in deltas.items():
        feed(client, delta)
        assert engine.state.kept_bytes == held(engine) <= 4096
    left = list(engine.state.cache)

    assert list(deltas)[-len(left) :] == left
    assert 4 < len(left) < 10
    assert close(np.mean([deltas[client] for client in left], axis=0), engine.state.mean)


def test_an_update_that_is_larger_than_the_cache_is_folded_and_not_remembered(
    new_engine: NewEngine, message: Message
) -> None:
    """Its client leaves the mean."""
    engine = new_engine(**PAPER, buffer_size=1, kept_bytes=4096)
    feed = Feed(engine, message)
    delta = vector(np.random.default_rng(10))
    feed("a", delta)
    engine.rule = replace(engine.rule, cache_bytes=100)
    feed("a", delta)

    assert ({}, 0) == (engine.state.cache, engine.state.kept_bytes)
    assert not engine.state.total.any()
    assert not engine.state.mean.any()


def test_a_late_update_renews_what_is_remembered_and_fills_nothing(
    new_engine: NewEngine, message: Message
) -> None:
    """It is folded, as its receipt says, but takes no part in the step; in one batch as one by one."""
    rng = np.random.default_rng(11)
    deltas = [vector(rng) for _ in range(6)]
    alone, at_once = (new_engine(**PAPER, buffer_size=2, max_staleness=1) for _ in range(2))
    feed = Feed(alone, message)
    for delta in deltas:
        feed("a", delta)
    version, filled, buffer = alone.state.version, alone.state.filled, alone.state.buffer.copy()
    feed("late", deltas[0], behind=2)

    assert (3, 0) == (version, filled) == (alone.state.version, alone.state.filled)
    assert buffer.tolist() == alone.state.buffer.tolist()
    assert close(deltas[0] + deltas[-1], alone.state.total.astype(np.float32))
    assert 7 == alone.tally.folded

    batch = [
        Arrival(client=client, message=message(client, seq, base=base, delta=deltas[seq - 1]))
        for client, seq, base in [("a", 1, 0), ("a", 2, 0), ("a", 3, 1), ("a", 4, 1), ("late", 1, 0), ("a", 5, 2),
                                  ("a", 6, 2), ("late", 2, 3)]
    ]  # fmt: skip
    decision = at_once.offer(batch)
    at_once.commit(decision)

    assert [0, 0, 1, 1, 2, 2, 2, 3] == [record.version for record in decision.records]
    assert (3, 1) == (at_once.state.version, at_once.state.filled)


steps = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3), st.sampled_from([7, 7, 7, 8]), st.booleans()),
    min_size=1,
    max_size=60,
)


@given(steps, st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_the_sum_is_always_that_of_those_who_are_remembered(
    new_engine: NewEngine,
    message: Message,
    history: Iterable[tuple[str, int, int, bool]],
    memory: int,
    seed: int,
) -> None:
    """Whoever comes, goes, is late, sends sparsely or is made anew: off by rounding of the 53rd bit at most."""
    rng = np.random.default_rng(seed)
    engine = new_engine(
        strategy="ca2fl",
        memory=memory,
        buffer_size=2,
        forget_versions=4,
        max_staleness=1,
        kept_bytes=4096,
        clip_quantile=0.5,
    )
    feed = Feed(engine, message)
    largest, count = 1.0, 0
    for client, behind, epoch, sparse in history:
        scale = 10.0 ** rng.integers(-3, 2)
        codec = "topk(0.3) | ternary | rice" if sparse else "float32"
        feed(client, scale * vector(rng), behind=behind, epoch=epoch, codec=codec)
        largest, count = max(largest, float(np.abs(engine.state.total).max())), count + 2 * memory
        exact = sum(remembered(engine).values(), np.zeros(SIZE))

        assert np.abs(exact - engine.state.total).max() <= 2 * count * 2.0**-53 * largest * 9


def test_clients_that_send_more_often_do_not_count_more(new_engine: NewEngine, message: Message) -> None:
    """The bias that FedBuff has and CA2FL takes away: one client sends nine of ten updates."""
    fast, slow = np.ones(SIZE), -np.ones(SIZE)
    moved = {}
    for strategy in ("fedbuff", "ca2fl"):
        engine = new_engine(strategy=strategy, buffer_size=5, learning_rate=1.0)
        feed = Feed(engine, message)
        for number in range(200):
            feed("slow" if number % 10 == 9 else "fast", slow if number % 10 == 9 else fast)
        moved[strategy] = float(engine.state.vector.mean()) / engine.state.version

    assert moved["fedbuff"] == pytest.approx(0.8, abs=0.01)
    assert moved["ca2fl"] == pytest.approx(0.0, abs=0.1)


def test_the_cost_of_a_client_is_its_message_and_little_more(
    new_engine: NewEngine, message: Message, layout: ParamLayout
) -> None:
    """The payload, its pipeline's text, its name, and the objects around them."""
    engine = new_engine(**PAPER, buffer_size=1)
    Feed(engine, message)("a", np.ones(SIZE))
    ((kept,),) = engine.state.cache.values()

    assert layout.size * 4 == len(kept.payload)
    assert len(kept.payload) + len("float32") + len("a") + 400 == kept.nbytes == engine.state.kept_bytes
    assert remembered(engine).keys() == {"a"}
