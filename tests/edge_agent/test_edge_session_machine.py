"""The session against everything that can happen to it, in any order and at any time."""

import random

from fedmq.edge_agent.events import (
    AggregatorSeen,
    Effect,
    Event,
    Linked,
    ModelSeen,
    NotTaken,
    PieceSeen,
    PlanSeen,
    Pull,
    Send,
    Settled,
    StopPulling,
    Taken,
    Train,
    Trained,
    TrainingFailed,
    Unlinked,
)
from fedmq.edge_agent.session import EdgeSession, State
from hypothesis import given, settings
from hypothesis import strategies as st

CAPACITY = 3
RESEND = 60.0


class Device:
    """A shell that believes nothing: it keeps its own books and holds every effect against them."""

    def __init__(self, pending: int, rng: random.Random) -> None:
        self.rng = rng
        self.now = 100.0
        self.pending = set(range(1, pending + 1))
        self.on_its_way: set[int] = set()
        self.next_seq = pending + 1
        self.linked = self.online = self.usable = self.once = self.listening = False
        self.boot = 1
        self.newest = (1, 1)
        self.in_hand: tuple[int, int] | None = None
        self.training_on: tuple[int, int] | None = None
        self.trained_on: set[tuple[int, int]] = set()
        self.session = EdgeSession(pending=self.pending, is_full=self.is_full)

    @property
    def is_full(self) -> bool:
        return len(self.pending) >= CAPACITY

    def tell(self, event: Event) -> None:
        self.carry_out(self.session.handle(event, self.now))

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(seq=seq):
                    assert self.linked
                    assert self.online, "sent while the aggregator is away"
                    assert seq in self.pending - self.on_its_way, "sent twice at a time, or after its receipt"
                    self.on_its_way.add(seq)
                case Pull():
                    assert not self.listening, "pulled twice"
                    assert self.linked
                    assert self.usable
                    assert self.online
                    self.listening = True
                case StopPulling():
                    assert self.listening, "stopped what was not begun"
                    self.listening = False
                case Train():
                    assert self.in_hand is not None, "trained without a model"
                    assert self.training_on is None, "trained twice at a time"
                    assert not self.is_full, "trained without room"
                    assert not (self.once and self.in_hand in self.trained_on), "trained twice on a version"
                    self.training_on = self.in_hand

    # What can happen. What cannot happen now does nothing.

    def link(self) -> None:
        if not self.linked:
            self.linked = True
            self.tell(Linked())

    def unlink(self) -> None:
        self.linked = self.online = self.listening = False
        self.tell(Unlinked())

    def plan(self) -> None:
        if self.linked:
            self.usable, self.once = self.rng.random() < 0.8, self.rng.random() < 0.5
            self.tell(PlanSeen(usable=self.usable, once_per_version=self.once, resend_seconds=RESEND))

    def aggregator_comes(self) -> None:
        if self.linked and not self.online:
            self.online = True
            self.tell(AggregatorSeen(online=True, boot=self.boot))

    def aggregator_goes(self) -> None:
        if not self.linked:
            return
        if self.rng.random() < 0.5:  # its former life's will comes late
            self.boot += 1
            self.online = True
            self.tell(AggregatorSeen(online=True, boot=self.boot))
            self.tell(AggregatorSeen(online=False, boot=self.boot - 1))
        else:
            self.online = False
            self.tell(AggregatorSeen(online=False, boot=self.boot))

    def model(self) -> None:
        """Also when nobody listens any more: it was on its way."""
        if not self.linked:
            return
        epoch, version = self.newest
        self.newest = self.rng.choice([self.newest, (epoch, version + 1), (epoch + 1, 1)])
        wanted = self.listening
        if wanted:
            self.in_hand = self.newest
        self.tell(PieceSeen())
        self.tell(ModelSeen(epoch=self.newest[0], version=self.newest[1]))
        if wanted and self.newest not in self.trained_on:
            assert self.newest == self.training_on, "a new version was not trained on"

    def training_ends(self, failure: float = 0.4) -> None:
        if self.training_on is None:
            return
        if self.rng.random() >= failure:
            self.trained_on.add(self.training_on)
            self.training_on = None
            self.pending.add(self.next_seq)
            self.next_seq += 1
            self.tell(Trained(seq=self.next_seq - 1, is_full=self.is_full))
        else:
            self.training_on = None
            self.tell(TrainingFailed())

    def everything_arrives(self) -> None:
        """As it mostly does in life."""
        self.training_ends(failure=0.0)
        for seq in sorted(self.on_its_way):
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq))

    def outcome(self) -> None:
        if self.on_its_way:
            seq = self.rng.choice(sorted(self.on_its_way))
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq) if self.rng.random() < 0.5 else NotTaken(seq=seq))

    def receipt(self) -> None:
        """Also before the PUBACK."""
        if self.linked and self.pending:
            self.settle(set(self.rng.sample(sorted(self.pending), self.rng.randint(1, len(self.pending)))))

    def settle(self, seqs: set[int]) -> None:
        self.pending -= seqs
        self.on_its_way -= seqs
        self.tell(Settled(seqs=tuple(seqs), is_full=self.is_full))

    def time_passes(self) -> None:
        self.wait(self.rng.choice([0.5, 1.0, 5.0, 30.0, 61.0, 1000.0]))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.session.tick(self.now))

    # What must hold.

    def check(self) -> None:
        """After each step."""
        assert self.listening == self.session.listening
        assert (self.training_on is not None) == (self.session.state is State.TRAINING)
        if self.listening:
            assert self.session.state in (State.PULLING, State.WAITING)
        if self.linked and self.online and self.pending - self.on_its_way:
            due = self.session.next_tick()
            assert due is not None, "the shell would sleep for ever"
            assert due <= self.now + RESEND
        self.wait(0.0)
        due = self.session.next_tick()
        assert due is None or due > self.now, "the shell would spin"

    def end(self) -> None:
        """Everything is sent, again without a receipt, and the agent works: nothing is forgotten or stuck."""
        self.link()
        self.usable, self.once = True, False
        self.tell(PlanSeen(usable=True, once_per_version=False, resend_seconds=RESEND))
        self.aggregator_comes()
        for _ in range(2):
            self.wait(RESEND)
            assert self.pending == self.on_its_way
            for seq in sorted(self.on_its_way):
                self.on_its_way.discard(seq)
                self.tell(Taken(seq=seq))
        self.settle(set(self.pending))
        self.wait(1000.0)
        assert self.training_on is not None or self.listening


#: What can happen, and how often. Drawn evenly, a connection would hardly ever live long enough to train.
WEIGHTS = {
    Device.model: 8,
    Device.training_ends: 5,
    Device.everything_arrives: 5,
    Device.outcome: 4,
    Device.receipt: 4,
    Device.time_passes: 4,
    Device.link: 3,
    Device.unlink: 1,
    Device.plan: 2,
    Device.aggregator_comes: 3,
    Device.aggregator_goes: 1,
}


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), length=st.integers(30, 150), pending=st.integers(0, CAPACITY))
def test_whatever_happens_nothing_is_forgotten_and_nothing_is_stuck(
    seed: int, length: int, pending: int
) -> None:
    """The session's effects and the device's own books agree after each of many steps."""
    device = Device(pending, random.Random(seed))
    for happen in device.rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length):
        happen(device)
        device.check()

    device.end()
