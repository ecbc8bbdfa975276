"""The session against everything that can happen to it, in any order and at any time."""

from fedmq.edge_agent.session import (
    AggregatorSeen,
    EdgeSession,
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
    State,
    StopPulling,
    Taken,
    Train,
    Trained,
    TrainingFailed,
    Unlinked,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

CAPACITY = 3
RESEND = 60.0


class Device(RuleBasedStateMachine):
    """A shell that believes nothing: it keeps its own books and holds every effect against them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.pending: set[int] = set()
        self.on_its_way: set[int] = set()
        self.next_seq = 1
        self.linked = self.online = self.usable = self.once = self.listening = False
        self.boot = 1
        self.newest = (1, 1)
        self.in_hand: tuple[int, int] | None = None
        self.training_on: tuple[int, int] | None = None
        self.trained_on: set[tuple[int, int]] = set()

    @initialize(pending=st.integers(0, CAPACITY), at_work=st.booleans(), once=st.booleans())
    def begin(self, pending: int, at_work: bool, once: bool) -> None:
        self.pending = set(range(1, pending + 1))
        self.next_seq = pending + 1
        self.session = EdgeSession(pending=self.pending, is_full=self.is_full)
        if at_work:
            self.link()
            self.plan(usable=True, once=once)
            self.aggregator_comes()

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

    # Rules that cannot apply do nothing: preconditions would make most of what hypothesis draws invalid.

    @rule()
    def link(self) -> None:
        if not self.linked:
            self.linked = True
            self.tell(Linked())

    @rule()
    def unlink(self) -> None:
        self.linked = self.online = self.listening = False
        self.tell(Unlinked())

    @rule(usable=st.booleans(), once=st.booleans())
    def plan(self, usable: bool, once: bool) -> None:
        if self.linked:
            self.usable, self.once = usable, once
            self.tell(PlanSeen(usable=usable, once_per_version=once, resend_seconds=RESEND))

    @rule()
    def aggregator_comes(self) -> None:
        if self.linked and not self.online:
            self.online = True
            self.tell(AggregatorSeen(online=True, boot=self.boot))

    @rule(is_restarted=st.booleans())
    def aggregator_goes(self, is_restarted: bool) -> None:
        if not self.linked:
            return
        if is_restarted:  # its former life's will comes late
            self.boot += 1
            self.online = True
            self.tell(AggregatorSeen(online=True, boot=self.boot))
            self.tell(AggregatorSeen(online=False, boot=self.boot - 1))
        else:
            self.online = False
            self.tell(AggregatorSeen(online=False, boot=self.boot))

    @rule(step=st.sampled_from(["same", "version", "epoch"]))
    def model(self, step: str) -> None:
        """Also when nobody listens any more: it was on its way."""
        if not self.linked:
            return
        epoch, version = self.newest
        self.newest = {"same": self.newest, "version": (epoch, version + 1), "epoch": (epoch + 1, 1)}[step]
        wanted = self.listening
        if wanted:
            self.in_hand = self.newest
        self.tell(PieceSeen())
        self.tell(ModelSeen(epoch=self.newest[0], version=self.newest[1]))
        if wanted and self.newest not in self.trained_on:
            assert self.newest == self.training_on, "a new version was not trained on"

    @rule(succeeds=st.booleans())
    def training_ends(self, succeeds: bool) -> None:
        if self.training_on is None:
            return
        if succeeds:
            self.trained_on.add(self.training_on)
            self.training_on = None
            self.pending.add(self.next_seq)
            self.next_seq += 1
            self.tell(Trained(seq=self.next_seq - 1, is_full=self.is_full))
        else:
            self.training_on = None
            self.tell(TrainingFailed())

    @rule()
    def everything_arrives(self) -> None:
        """What is rare by chance is the rule in life."""
        self.training_ends(succeeds=True)
        for seq in sorted(self.on_its_way):
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq))

    @rule(data=st.data(), taken=st.booleans())
    def outcome(self, data: st.DataObject, taken: bool) -> None:
        if self.on_its_way:
            seq = data.draw(st.sampled_from(sorted(self.on_its_way)))
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq) if taken else NotTaken(seq=seq))

    @rule(data=st.data())
    def receipt(self, data: st.DataObject) -> None:
        """Also before the PUBACK."""
        if self.linked and self.pending:
            seqs = data.draw(st.sets(st.sampled_from(sorted(self.pending)), min_size=1))
            self.pending -= seqs
            self.on_its_way -= seqs
            self.tell(Settled(seqs=tuple(seqs), is_full=self.is_full))

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0, 61.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.session.tick(self.now))

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "session"):
            return
        assert self.listening == self.session.listening
        assert (self.training_on is not None) == (self.session.state is State.TRAINING)
        if self.listening:
            assert self.session.state in (State.PULLING, State.WAITING)

    @invariant()
    def what_waits_has_a_time(self) -> None:
        """Otherwise the shell would sleep for ever."""
        if hasattr(self, "session") and self.linked and self.online and self.pending - self.on_its_way:
            due = self.session.next_tick()
            assert due is not None
            assert due <= self.now + RESEND

    @invariant()
    def a_tick_that_is_due_does_something(self) -> None:
        """Otherwise the shell would spin. Each tick moves what it returns to a later time."""
        if hasattr(self, "session"):
            self.carry_out(self.session.tick(self.now))
            due = self.session.next_tick()
            assert due is None or due > self.now

    def teardown(self) -> None:
        """In the end everything is sent, and the agent works again: nothing was forgotten, nothing is stuck."""
        if not hasattr(self, "session"):
            return
        self.link()
        self.plan(usable=True, once=False)
        self.aggregator_comes()
        self.time_passes(RESEND)
        assert self.pending == self.on_its_way
        for seq in sorted(self.on_its_way):
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq))
        self.time_passes(RESEND)
        assert self.pending == self.on_its_way
        if self.pending:
            self.tell(Settled(seqs=tuple(sorted(self.pending)), is_full=False))
            self.pending, self.on_its_way = set(), set()
        self.time_passes(1000.0)
        assert self.training_on is not None or self.listening


Device.TestCase.settings = settings(max_examples=200, stateful_step_count=30, derandomize=True, deadline=None)
TestDevice = Device.TestCase
TestDevice.__doc__ = (
    """Whatever happens, the books agree after each step and nothing is forgotten in the end."""
)
