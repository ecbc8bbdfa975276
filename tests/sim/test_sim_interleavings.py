"""Nothing lost, nothing counted twice: aggregator, agents and broker in virtual time, in any order, dying anywhere."""

import logging
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedmq.aggregator.strategy import FoldSettings
from fedmq.edge_agent.events import NotTaken, Taken
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.update import take_back
from fedmq.edge_agent.upload import Upload
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from virtual_federation import LAYOUT, Federation

from fedmq.transport.base import PublishAccepted, PublishRefused
from fedmq.types import Receipt, Refusal, Rejection

DEVICES = 3
CODECS = ("float32", "topk(0.1) | float32 | rice", "topk(0.2) | int8 | rice")
#: The second refuses much: what is three versions old, and whoever has contributed to a version already.
FOLDS = (
    FoldSettings(strategy="fedbuff", buffer_size=2, max_staleness=3),
    FoldSettings(strategy="fedavg", buffer_size=2, max_staleness=2),
    FoldSettings(strategy="fedasync", momentum=0.5, max_staleness=1),
    FoldSettings(strategy="ca2fl", buffer_size=2, max_staleness=1, forget_versions=3, optimizer="yogi"),
    FoldSettings(strategy="fedfa", window=3, max_staleness=2),
    FoldSettings(strategy="fedasync", mixing=True, max_staleness=2, average=0.5),
    FoldSettings(robust="median", buffer_size=3, clip_quantile=0.5, max_staleness=3),
)
parties = st.integers(0, DEVICES)  # the last one is the aggregator
steps = st.integers(0, 25)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings say what is meant to happen."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@contextmanager
def federation(fold: FoldSettings, seed: int) -> Iterator[Federation]:
    """Three devices; at the end everything is delivered and accounted for."""
    with tempfile.TemporaryDirectory() as folder:
        found = Federation(Path(folder), devices=DEVICES, fold=fold, seed=seed)
        try:
            yield found
            found.drain()
            found.check()
        finally:
            found.close()


class Interleavings(RuleBasedStateMachine):
    """Whatever may happen, in any order."""

    @initialize(fold=st.sampled_from(FOLDS), seed=st.integers(0, 99))
    def begin(self, fold: FoldSettings, seed: int) -> None:
        self.context = federation(fold, seed)
        self.world = self.context.__enter__()
        self.world.all_turn(8)

    @rule(order=st.lists(parties, min_size=1, max_size=30))
    def work(self, order: list[int]) -> None:
        """Some take their turns."""
        for party in order:
            self.world.turn(party)

    @rule(times=st.integers(1, 12))
    def all_work(self, times: int) -> None:
        """Everybody does."""
        self.world.all_turn(times)

    @rule(seconds=st.sampled_from([0.3, 2.0, 6.0, 61.0, 86_400.0]))
    def wait(self, seconds: float) -> None:
        """Time passes, sometimes in a leap."""
        self.world.now += seconds

    @rule(party=parties, after=steps)
    def kill(self, party: int, after: int) -> None:
        """A process dies at some step, and is started again."""
        self.world.kill(party, after)

    @rule(party=parties)
    def cut(self, party: int) -> None:
        """A connection breaks."""
        self.world.broker.disconnect(self.world.client_id(party))

    @rule(party=parties)
    def block(self, party: int) -> None:
        """Somebody cannot connect."""
        self.world.broker.block(self.world.client_id(party))

    @rule(party=parties)
    def unblock(self, party: int) -> None:
        """And can again."""
        self.world.broker.unblock(self.world.client_id(party))

    @rule(forget=st.booleans())
    def stop_broker(self, forget: bool) -> None:
        """The broker dies, with or without a disk."""
        self.world.broker.stop(forget=forget)

    @rule()
    def start_broker(self) -> None:
        """And is back."""
        self.world.broker.start()

    @rule(party=st.integers(0, DEVICES - 1))
    def reimage(self, party: int) -> None:
        """A device loses its outbox."""
        self.world.reimage(party)

    @rule(codec=st.sampled_from(CODECS))
    def replan(self, codec: str) -> None:
        """The operator changes the plan."""
        self.world.restart(codec=codec)

    def teardown(self) -> None:
        """Everything that was finished is accounted for."""
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)


def test_no_interleaving_loses_or_doubles_an_update() -> None:
    """As hypothesis finds them, with the smallest that fails."""
    run_state_machine_as_test(
        Interleavings,
        settings=settings(max_examples=40, stateful_step_count=40, derandomize=True, deadline=None),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_long_life_with_many_faults_loses_and_doubles_nothing(seed: int) -> None:
    """Thousands of turns, a fault every few of them, through all kinds of folding."""
    chance = random.Random(seed)
    with federation(FOLDS[seed], seed) as world:
        for _ in range(300):
            world.now += chance.choice((0.0, 0.0, 0.5, 6.0))
            for _ in range(chance.randrange(25)):
                world.turn(chance.randrange(DEVICES + 1))
            fault = chance.random()
            if fault < 0.25:
                world.kill(chance.randrange(DEVICES + 1), chance.randrange(25))
            elif fault < 0.35:
                world.broker.disconnect(world.client_id(chance.randrange(DEVICES + 1)))
            elif fault < 0.38:
                world.broker.stop(forget=chance.random() < 0.5)
                world.all_turn(1)
                world.broker.start()
            elif fault < 0.39:
                world.reimage(chance.randrange(DEVICES))
            elif fault < 0.41:
                world.restart(codec=chance.choice(CODECS))

    folded = [record for record in world.journal.values() if record.refusal is None]

    assert len(folded) > 50  # else the faults left nothing to lose
    assert world.recoveries > 20


def long_life(seed: int) -> None:
    """Seeded faults in a federation that refuses little."""
    chance = random.Random(seed)
    with federation(FOLDS[0], seed) as world:
        for _ in range(60):
            world.now += 2.0
            world.all_turn(3)
            world.kill(chance.randrange(DEVICES + 1), chance.randrange(25))
            if chance.random() < 0.2:
                world.broker.stop(forget=True)
                world.all_turn(1)
                world.broker.start()


def test_an_agent_that_forgets_on_puback_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account can fail: law 4 broken, a broker that forgets loses updates."""
    take = Upload.take

    def forgetful(self: Upload, event: PublishAccepted | PublishRefused) -> Taken | NotTaken | None:
        outcome = take(self, event)
        if isinstance(outcome, Taken):
            self._outbox.forget(outcome.seq)
        return outcome

    monkeypatch.setattr(Upload, "take", forgetful)

    with pytest.raises(AssertionError, match="lost: d"):
        long_life(0)


def test_a_ledger_that_forgets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 3 broken: what is sent again is folded again."""
    monkeypatch.setattr(Receipt, "is_settled", lambda self, seq: False)

    with pytest.raises(AssertionError, match="doubled: d"):
        long_life(0)


def test_a_residual_that_takes_back_what_may_have_been_folded_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 8 broken: an agent that gives updates up by itself when it is started again counts some of them twice."""
    opened = Outbox.__init__
    stale = Refusal(reason=Rejection.STALE)

    def impatient(self: Outbox, path: Path, **bounds: int) -> None:
        opened(self, path, **bounds)
        for seq in self.pending():
            take_back(self, seq, stale, LAYOUT)

    monkeypatch.setattr(Outbox, "__init__", impatient)

    with pytest.raises(AssertionError, match="the mass of"):
        long_life(0)
