"""EdgeSession: what an edge agent does next. No thread, socket, file or clock.

Theory of operation. The shell tells the session what happened (`handle`) and what time it is (`tick`), and carries out
the effects that it returns, in order. Two concerns live here, and they meet only in the outbox's room:

* the cycle: pull the newest model, train, upload, again. `TRANSITIONS` is the whole of it; a signal that has
  no entry for the present state changes nothing.
* delivery: every update in the outbox is sent, and sent again, until its receipt comes. PUBACK does not count
  (law 4).

The table in words:

    IDLE ─READY→ PULLING ─MODEL→ TRAINING ─TRAINED→ UPLOADING ─READY→ PULLING    round and round
    PULLING ─KNOWN→ WAITING ─MODEL→ TRAINING           a version counts once: until there is a newer one
    UPLOADING ─READY→ …                                 with the receipt, or when it takes too long
    UPLOADING ─FULL→ WAITING ─READY→ PULLING           until receipts have made room
    TRAINING ─FAILED→ SLEEPING ─RESTED→ IDLE           longer each time
    IDLE | UPLOADING | WAITING ─HELD→ SLEEPING          until the share of the work says that it is time
    PULLING | UPLOADING | WAITING ─BLOCKED→ IDLE       until what is missing is back
"""

import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, StrEnum, auto
from typing import Final

from .events import (
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
    ShareSeen,
    StopPulling,
    Taken,
    Train,
    Trained,
    TrainingFailed,
    Unlinked,
)


class State(StrEnum):
    """Where in its cycle an agent is."""

    IDLE = "idle"
    PULLING = "pulling"
    TRAINING = "training"
    UPLOADING = "uploading"
    WAITING = "waiting"
    SLEEPING = "sleeping"


class Signal(Enum):
    """What moves an agent from one state to another."""

    READY = auto()  # connection, plan, aggregator and room are there, the last update is delivered
    BLOCKED = auto()  # the connection, the plan or the aggregator went away
    FULL = auto()  # the outbox has no room
    MODEL = auto()  # a model to train from is in hand
    KNOWN = auto()  # the newest model is one that must not be trained on again
    TRAINED = auto()  # an update is in the outbox
    FAILED = auto()  # training failed
    RESTED = auto()  # the pause is over
    HELD = auto()  # all is there, but the share of the work says: not yet


TRANSITIONS: Final[Mapping[tuple[State, Signal], State]] = {
    (State.IDLE, Signal.READY): State.PULLING,
    (State.PULLING, Signal.MODEL): State.TRAINING,
    (State.PULLING, Signal.KNOWN): State.WAITING,
    (State.PULLING, Signal.BLOCKED): State.IDLE,
    (State.TRAINING, Signal.TRAINED): State.UPLOADING,
    (State.TRAINING, Signal.FAILED): State.SLEEPING,
    (State.UPLOADING, Signal.READY): State.PULLING,
    (State.UPLOADING, Signal.BLOCKED): State.IDLE,
    (State.UPLOADING, Signal.FULL): State.WAITING,
    (State.WAITING, Signal.MODEL): State.TRAINING,
    (State.WAITING, Signal.READY): State.PULLING,
    (State.WAITING, Signal.BLOCKED): State.IDLE,
    (State.SLEEPING, Signal.RESTED): State.IDLE,
    (State.IDLE, Signal.HELD): State.SLEEPING,
    (State.UPLOADING, Signal.HELD): State.SLEEPING,
    (State.WAITING, Signal.HELD): State.SLEEPING,
}

#: A retained receipt gets this long, after a connect, to make sending again unnecessary.
RECEIPT_GRACE: Final = 1.0
#: So long, after the broker has taken an update, the next pull waits for the receipt. The model that it then brings was
#: published after the update was folded, which makes updates less stale: what FedBuff's protocol presumes (Nguyen et
#: al. 2022, Algorithm 1). An aggregator that takes longer keeps nobody from training.
RECEIPT_WAIT: Final = 1.0
#: A pull that has brought nothing for this long is begun anew; the next one may take twice as long, so that a link on
#: which one chunk takes minutes gets it in the end.
PULL_SECONDS: Final = 30.0
MAX_PULL_SECONDS: Final = 3840.0
REST_SECONDS: Final = 5.0
MAX_REST_SECONDS: Final = 600.0
#: A plan's `resend_seconds` is taken within these bounds, whatever a peer wrote there.
MIN_RESEND_SECONDS: Final = 0.1
MAX_RESEND_SECONDS: Final = 86_400.0


class EdgeSession:
    """One agent's mind.

    Args:
        pending: what the outbox holds at the start.
        is_full: whether it takes no further update; the agent trains only when it does.
        draw: draws from [0, 1), for the share's jitter.
    """

    def __init__(
        self, *, pending: Iterable[int], is_full: bool, draw: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.state = State.IDLE
        self._is_full = is_full
        # When each update without a receipt is to be sent next; None while it is on its way to the broker.
        self._due: dict[int, float | None] = dict.fromkeys(pending, 0.0)
        self._refusals: dict[int, int] = {}
        self._linked = self._plan_usable = self._aggregator_online = False
        self.aggregator_boot = 0  # of its newest life that was seen
        self._draw, self._share = draw, ShareSeen(boot=0, wait=0.0, jitter=0.0)
        self._not_before = -math.inf  # the next pull
        self._once_per_version = False
        self._resend_seconds = 60.0
        self._trained_on: tuple[int, int] | None = None
        self._model: tuple[int, int] | None = None
        self._uploading = 0  # the newest update; sequence numbers begin with 1
        self._timer = 0.0
        self._pull_seconds = PULL_SECONDS
        self._failures = 0
        self.listening = False  # whether the model is subscribed to

    @property
    def _can_work(self) -> bool:
        return self._linked and self._plan_usable and self._aggregator_online

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take note of what happened.

        Args:
            event: what.
            now: seconds, monotonic.
        """
        signal: Signal | None = None
        match event:
            case Linked():
                self._linked = True
                self._reschedule(now + RECEIPT_GRACE)
            case Unlinked():
                self._linked = self._aggregator_online = self.listening = False
            case PlanSeen(usable=usable, once_per_version=once, resend_seconds=seconds):
                self._plan_usable, self._once_per_version = usable, once
                # the constant first: so NaN, too, becomes a bound
                self._resend_seconds = min(MAX_RESEND_SECONDS, max(MIN_RESEND_SECONDS, seconds))
            case AggregatorSeen(online=online, boot=boot):
                self._see_aggregator(online, boot, now)
            case ShareSeen():
                self._share = event
                if event.boot == self.aggregator_boot:
                    # a rest that goes on is no longer than it now asks for
                    self._not_before = min(self._not_before, now + event.wait + event.jitter)
                    if self.state is State.SLEEPING and not self._failures:
                        self._timer = min(self._timer, self._not_before)
            case PieceSeen():
                if self.state is State.PULLING:
                    self._timer = now + self._pull_seconds
            case ModelSeen(epoch=epoch, version=version):
                self._pull_seconds = PULL_SECONDS
                if self.listening:  # what was still on its way when the pull ended is not what we train on
                    self._model = epoch, version
                    known = self._once_per_version and self._model == self._trained_on
                    signal = Signal.KNOWN if known else Signal.MODEL
            case Trained(seq=seq, is_full=is_full):
                self._trained_on, self._failures = self._model, 0
                self._due[seq], self._uploading, self._is_full = now, seq, is_full
                signal = Signal.TRAINED
            case TrainingFailed():
                self._failures += 1
                signal = Signal.FAILED
            case Taken(seq=seq):
                if seq in self._due:
                    self._due[seq] = now + self._resend_seconds
                    self._wait_for_receipt(seq, now + RECEIPT_WAIT)
            case NotTaken(seq=seq):
                if seq in self._due:
                    times = self._refusals[seq] = self._refusals.get(seq, 0) + 1
                    self._due[seq] = now + min(2.0 ** min(times, 10), self._resend_seconds)
                    self._wait_for_receipt(seq, now)
            case Settled(seqs=seqs, is_full=is_full):
                self._is_full = is_full
                for seq in seqs:
                    self._due.pop(seq, None)
                    self._refusals.pop(seq, None)
        effects = self._move(signal, now) if signal else []
        return effects + self.tick(now)

    def tick(self, now: float) -> list[Effect]:
        """What is due, and what follows from how things stand."""
        effects: list[Effect] = []
        if self._linked and self._aggregator_online:
            for seq, due in sorted(self._due.items()):
                if due is not None and due <= now:
                    self._due[seq] = None
                    effects.append(Send(seq=seq))
        if self.state is State.SLEEPING and now >= self._timer:
            effects += self._move(Signal.RESTED, now)
        if not self._can_work:
            effects += self._move(Signal.BLOCKED, now)
        elif self._is_full:
            effects += self._move(Signal.FULL, now)
        elif self._is_free(now):
            share = self._share
            if self.state is State.UPLOADING and share.wait > 0 and share.boot == self.aggregator_boot:
                self._not_before = max(self._not_before, now + share.wait)
            effects += self._move(Signal.HELD if now < self._not_before else Signal.READY, now)
        elif self.state is State.PULLING and now >= self._timer:
            self._pull_seconds = min(2 * self._pull_seconds, MAX_PULL_SECONDS)
            self._timer = now + self._pull_seconds
            effects += [StopPulling(), Pull()]
        return effects

    def next_tick(self) -> float | None:
        """When `tick` should be called at the latest, None for whenever something happens."""
        times = [due for due in self._due.values() if due is not None] if self._aggregator_online else []
        if self.state in (State.PULLING, State.UPLOADING, State.SLEEPING) and self._timer < math.inf:
            times.append(self._timer)
        return min(times, default=None)

    def _is_free(self, now: float) -> bool:
        """Whether nothing is left to do before the next pull."""
        match self.state:
            case State.IDLE:
                return True
            case State.UPLOADING:
                return self._is_uploaded(now)
            case State.WAITING:
                return not self.listening
            case _:
                return False

    def _is_uploaded(self, now: float) -> bool:
        """Whether the newest update has its receipt, or has been waited for."""
        return self._uploading not in self._due or now >= self._timer

    def _wait_for_receipt(self, seq: int, until: float) -> None:
        """Wait no longer than this for the newest update's; when it is sent again, the wait does not begin anew."""
        if seq == self._uploading and self.state is State.UPLOADING:
            self._timer = min(self._timer, until)

    def _see_aggregator(self, online: bool, boot: int, now: float) -> None:
        if not online and self._aggregator_online and boot != self.aggregator_boot:
            return  # the late will of a former life
        if online and not (self._aggregator_online and boot == self.aggregator_boot):
            # all clients see it at this moment: let them not come at once
            jitter = self._share.jitter * self._draw() if self._share.jitter else 0.0
            self._not_before = max(self._not_before, now + jitter)
        self._aggregator_online = online
        if online and boot != self.aggregator_boot:
            self.aggregator_boot = boot
            self._reschedule(now + RECEIPT_GRACE)

    def _reschedule(self, when: float) -> None:
        for seq, due in self._due.items():
            if due is not None:  # the others are with the transport, which sends them again by itself
                self._due[seq] = when

    def _move(self, signal: Signal, now: float) -> list[Effect]:
        before = self.state
        after = TRANSITIONS.get((before, signal))
        if after is None:
            return []
        self.state = after
        effects: list[Effect] = []
        if self.listening and after not in (State.PULLING, State.WAITING):
            self.listening = False
            effects.append(StopPulling())
        match after:
            case State.PULLING:
                self._timer = now + self._pull_seconds
                self.listening = True
                effects.append(Pull())
            case State.TRAINING:
                effects.append(Train())
            case State.UPLOADING:
                self._timer = math.inf  # until the broker has it
            case State.SLEEPING if signal is Signal.HELD:
                self._timer = self._not_before
            case State.SLEEPING:
                self._timer = now + min(REST_SECONDS * 2.0 ** min(self._failures - 1, 10), MAX_REST_SECONDS)
        return effects
