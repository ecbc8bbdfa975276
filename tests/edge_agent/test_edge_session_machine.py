"""The session against everything that can happen to it, in any order and at any time."""

from collections.abc import Callable
from functools import partial

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
from hypothesis import given, settings
from hypothesis import strategies as st

CAPACITY = 3
RESEND = 60.0


class Device:
    """A shell that believes nothing: it keeps its own books and holds every effect against them."""

    def __init__(self, pending: int) -> None:
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

    def plan(self, usable: bool, once: bool) -> None:
        if self.linked:
            self.usable, self.once = usable, once
            self.tell(PlanSeen(usable=usable, once_per_version=once, resend_seconds=RESEND))

    def aggregator_comes(self) -> None:
        if self.linked and not self.online:
            self.online = True
            self.tell(AggregatorSeen(online=True, boot=self.boot))

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

    def everything_arrives(self) -> None:
        """What is rare by chance is the rule in life."""
        self.training_ends(succeeds=True)
        for seq in sorted(self.on_its_way):
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq))

    def outcome(self, which: int, taken: bool) -> None:
        if self.on_its_way:
            seq = sorted(self.on_its_way)[which % len(self.on_its_way)]
            self.on_its_way.discard(seq)
            self.tell(Taken(seq=seq) if taken else NotTaken(seq=seq))

    def receipt(self, which: set[int]) -> None:
        """Also before the PUBACK."""
        seqs = {seq for seq in self.pending if seq % CAPACITY in which}
        if self.linked and seqs:
            self.pending -= seqs
            self.on_its_way -= seqs
            self.tell(Settled(seqs=tuple(seqs), is_full=self.is_full))

    def time_passes(self, seconds: float) -> None:
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
        self.time_passes(0.0)
        due = self.session.next_tick()
        assert due is None or due > self.now, "the shell would spin"

    def end(self) -> None:
        """Everything is sent, again without a receipt, and the agent works: nothing is forgotten or stuck."""
        self.link()
        self.plan(usable=True, once=False)
        self.aggregator_comes()
        for _ in range(2):
            self.time_passes(RESEND)
            assert self.pending == self.on_its_way
            for _ in range(len(self.on_its_way)):
                self.outcome(which=0, taken=True)
        self.receipt(which=set(range(CAPACITY)))
        self.time_passes(1000.0)
        assert self.training_on is not None or self.listening


Step = Callable[[Device], None]


def step(method: Callable[..., None], **arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Step]:
    """A call of one of the device's methods."""
    return st.fixed_dictionaries(arguments).map(lambda drawn: partial(method, **drawn))


AT_WORK: st.SearchStrategy[Step] = st.one_of(
    step(Device.model, step=st.sampled_from(["same", "version", "epoch"])),
    step(Device.training_ends, succeeds=st.booleans()),
    step(Device.everything_arrives),
    step(Device.outcome, which=st.integers(0, CAPACITY), taken=st.booleans()),
    step(Device.receipt, which=st.sets(st.integers(0, CAPACITY - 1))),
    step(Device.time_passes, seconds=st.sampled_from([0.5, 1.0, 5.0, 30.0, 61.0, 1000.0])),
)
DISTURBED: st.SearchStrategy[Step] = st.one_of(
    step(Device.link),
    step(Device.unlink),
    step(Device.plan, usable=st.booleans(), once=st.booleans()),
    step(Device.aggregator_comes),
    step(Device.aggregator_goes, is_restarted=st.booleans()),
)


@settings(max_examples=150)
@given(
    pending=st.integers(0, CAPACITY),
    once=st.booleans(),
    story=st.lists(st.one_of(AT_WORK, AT_WORK, AT_WORK, DISTURBED), min_size=30, max_size=50),
)
def test_whatever_happens_nothing_is_forgotten_and_nothing_is_stuck(
    pending: int, once: bool, story: list[Step]
) -> None:
    """The session's effects and the device's own books agree after each of many steps."""
    device = Device(pending)
    device.link()
    device.plan(usable=True, once=once)
    device.aggregator_comes()
    for happen in story:
        happen(device)
        device.check()

    device.end()
