"""What a device makes of its share of the work: how much, with which codec, and when it begins."""

from collections.abc import Callable

import numpy as np
import pytest
from fedmq.edge_agent.events import (
    AggregatorSeen,
    Effect,
    Event,
    Linked,
    ModelSeen,
    PlanSeen,
    Pull,
    Settled,
    ShareSeen,
    Taken,
    Trained,
    TrainingFailed,
    Unlinked,
)
from fedmq.edge_agent.session import RECEIPT_WAIT, REST_SECONDS, EdgeSession, State
from fedmq.edge_agent.settings import TrainerSettings
from fedmq.edge_agent.shares import Shares
from fedmq.edge_agent.trainer import Task, TrainResult

from fedmq import wire
from fedmq.envelope import MAX_INTEGER
from fedmq.errors import WireError
from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Plan
from fedmq.share import Share

BOOT = 7
TASK = Task(local_epochs=2, settings={}, seed=1)
PLAN = Plan(epoch=1, layout=ParamLayout((Segment(name="w", shape=(2,)),)), trainer="mlp", codec="float32")
RESULT = TrainResult(vector=np.zeros(2, np.float32), num_examples=3, local_steps=4, metrics={"loss": 0.5})


def asked(settings: TrainerSettings = TrainerSettings(), **share: object) -> Shares:  # noqa: B008 - frozen
    """A device that was asked for something by the aggregator's present life."""
    shares = Shares(settings)
    shares.take(wire.pack_share(Share(boot=BOOT, **share)))  # type: ignore[arg-type]
    return shares


def test_the_share_of_the_present_life_says_how_many_steps() -> None:
    """Within an epoch or beyond; the plan's epochs stand beside them for trainers that know no steps."""
    task = asked(local_steps=40).task(TASK, BOOT)

    assert (40, None, 2) == (task.steps, task.max_steps, task.local_epochs)


@pytest.mark.parametrize("boot", [0, BOOT + 1])
def test_the_share_of_another_life_says_nothing(boot: int) -> None:
    """An aggregator that is gone, or was started without allocation, misleads nobody."""
    shares = asked(local_steps=40, codec="int8")

    assert shares.task(TASK, boot) == TASK
    assert shares.plan(PLAN, boot) == PLAN
    assert shares.told(RESULT, 1.5, boot) is RESULT


def test_a_cleared_share_says_nothing() -> None:
    """An empty payload on its topic."""
    shares = asked(local_steps=40)

    assert ShareSeen(boot=0, wait=0.0, jitter=0.0) == shares.take(b"")
    assert shares.task(TASK, BOOT) == TASK


def test_damaged_bytes_change_nothing() -> None:
    """The share before stays."""
    shares = asked(local_steps=40)

    with pytest.raises(WireError):
        shares.take(b"\x01\x06nonsense")
    assert 40 == shares.task(TASK, BOOT).steps


def test_the_operators_bound_stands_beside_what_is_asked_for() -> None:
    """And where nothing is asked for, too."""
    bounded = TrainerSettings(max_steps=10)

    assert (40, 10) == ((task := asked(bounded, local_steps=40).task(TASK, BOOT)).steps, task.max_steps)
    assert (None, 10) == ((task := Shares(bounded).task(TASK, BOOT)).steps, task.max_steps)


def test_the_share_says_with_which_codec() -> None:
    """The rest of the plan stays."""
    plan = asked(codec="topk(0.5) | int8 | rice").plan(PLAN, BOOT)

    assert ("topk(0.5) | int8 | rice", PLAN.layout) == (plan.codec, plan.layout)


def test_a_codec_that_this_device_lacks_is_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The plan's is used, and the rest of the share counts."""
    shares = asked(codec="quantum | entangle", local_steps=5)

    assert shares.plan(PLAN, BOOT) == PLAN
    assert 5 == shares.task(TASK, BOOT).steps
    assert "the share's codec cannot be used" in caplog.text


def test_who_follows_a_share_tells_how_long_it_trained() -> None:
    """What the aggregator measures with; where nothing is allocated, updates are as they were."""
    assert {"loss": 0.5, "train_seconds": 1.5} == asked().told(RESULT, 1.5, BOOT).metrics
    assert Shares(TrainerSettings()).told(RESULT, 1.5, BOOT) is RESULT


def test_who_refuses_shares_says_so_in_its_updates() -> None:
    """Whatever comes."""
    shares = Shares(TrainerSettings(accept_shares=False))

    assert not shares.are_accepted
    assert {"loss": 0.5, "accepts_shares": 0.0} == shares.told(RESULT, 1.5, BOOT).metrics


def test_metrics_that_leave_no_room_stay_as_they_are() -> None:
    """An update with more could not be read."""
    full = TrainResult(
        vector=RESULT.vector,
        num_examples=3,
        local_steps=4,
        metrics={f"m{index}": 0.0 for index in range(wire.MAX_METRICS)},
    )

    assert asked().told(full, 1.5, BOOT) is full


@pytest.mark.parametrize(
    ("task", "steps", "epochs", "done"),
    [
        (TASK, 100, 1, False),
        (TASK, 100, 2, True),
        (Task(local_epochs=2, settings={}, seed=1, steps=40), 39, 9, False),
        (Task(local_epochs=2, settings={}, seed=1, steps=40), 40, 0, True),
        (Task(local_epochs=2, settings={}, seed=1, steps=40, max_steps=10), 10, 0, True),
        (Task(local_epochs=2, settings={}, seed=1, max_steps=10), 9, 2, True),
        (Task(local_epochs=2, settings={}, seed=1, max_steps=MAX_INTEGER), 100, 1, False),
    ],
)
def test_a_task_says_when_it_is_done(task: Task, steps: int, epochs: int, done: bool) -> None:
    """By epochs, or by steps instead; the bound holds for both."""
    assert done == task.is_done(steps, epochs)


class Device:
    """A session with a clock, in which nothing of the plan, the model or the outbox is missing."""

    def __init__(self, draw: Callable[[], float] = lambda: 0.5) -> None:
        self.now, self.seq = 100.0, 0
        self.session = EdgeSession(pending=(), is_full=False, draw=draw)

    def see(self, *events: Event) -> list[Effect]:
        return [effect for event in events for effect in self.session.handle(event, self.now)]

    def tick(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.session.tick(self.now)

    def join(self, boot: int = BOOT) -> list[Effect]:
        plan = PlanSeen(usable=True, once_per_version=False, resend_seconds=60.0)
        return self.see(Linked(), plan, AggregatorSeen(online=True, boot=boot))

    def deliver(self) -> list[Effect]:
        """Train, upload, get the receipt."""
        self.seq += 1
        self.see(
            ModelSeen(epoch=1, version=self.seq), Trained(seq=self.seq, is_full=False), Taken(seq=self.seq)
        )
        return self.see(Settled(seqs=(self.seq,), is_full=False))


def share(boot: int = BOOT, wait: float = 0.0, jitter: float = 0.0) -> ShareSeen:
    """What a device is told of a share."""
    return ShareSeen(boot=boot, wait=wait, jitter=jitter)


def test_a_device_rests_between_receipt_and_pull_as_it_is_asked_to() -> None:
    """For the wait alone: jitter is for those who come back."""
    device = Device()
    device.join()
    device.see(share(wait=10.0, jitter=4.0))

    assert Pull() not in device.deliver()
    assert State.SLEEPING is device.session.state
    assert device.now + 10.0 == device.session.next_tick()
    assert Pull() not in device.tick(9.9)
    assert [Pull()] == device.tick(0.2)


def test_jitter_alone_makes_nobody_rest_between_updates() -> None:
    """It is for the moments at which all come back."""
    device = Device()
    device.join()
    device.see(share(jitter=4.0))

    assert Pull() in device.deliver()


def test_a_device_that_gets_no_receipt_rests_from_when_it_has_waited_for_it() -> None:
    """A mute aggregator does not shorten the rest."""
    device = Device()
    device.join()
    device.see(share(wait=10.0))
    device.see(ModelSeen(epoch=1, version=1), Trained(seq=1, is_full=False), Taken(seq=1))
    device.tick(RECEIPT_WAIT)

    assert Pull() not in device.tick(9.9)
    assert [Pull()] == device.tick(0.2)


def test_the_rest_that_a_former_life_asked_for_is_not_taken() -> None:
    """Nor the one that the next life asks for, before it is there."""
    device = Device()
    device.join()
    device.see(share(boot=BOOT + 1, wait=10.0))

    assert Pull() in device.deliver()


@pytest.mark.parametrize("event", [AggregatorSeen(online=True, boot=BOOT + 1), Unlinked()])
def test_whoever_comes_back_draws_a_part_of_the_jitter_first(event: Event) -> None:
    """With the share of the life before: the new one does not know its clients yet."""
    device = Device(draw=lambda: 0.25)
    device.see(share(jitter=40.0))

    device.join()
    assert State.SLEEPING is device.session.state
    assert [Pull()] == device.tick(10.0)

    device.see(event)
    device.join(boot=BOOT + 1)
    device.see(Unlinked())
    assert Pull() not in device.join(boot=BOOT + 1)
    assert Pull() not in device.tick(9.9)
    assert [Pull()] == device.tick(0.2)


def test_a_device_that_is_at_work_when_the_aggregator_comes_back_is_not_held_up() -> None:
    """The jitter has passed by the time that it is finished."""
    device = Device()
    device.join()
    device.see(share(jitter=4.0), ModelSeen(epoch=1, version=1))
    device.see(AggregatorSeen(online=True, boot=BOOT + 1))
    device.now += 5.0

    assert Pull() in device.see(
        Trained(seq=1, is_full=False), Taken(seq=1), Settled(seqs=(1,), is_full=False)
    )


@pytest.mark.parametrize("new", [share(wait=1.0), share()])
def test_a_newer_share_shortens_the_rest(new: ShareSeen) -> None:
    """An aggregator that asked for too much can take it back."""
    device = Device()
    device.join()
    device.see(share(wait=1000.0))
    device.deliver()

    assert Pull() in [*device.see(new), *device.tick(1.1)]


def test_a_newer_share_does_not_shorten_the_rest_after_a_failure() -> None:
    """That one is for the trainer's sake."""
    device = Device()
    device.join()
    device.see(ModelSeen(epoch=1, version=1), TrainingFailed(), share(wait=0.1))

    assert Pull() not in device.tick(REST_SECONDS - 0.1)
    assert [Pull()] == device.tick(0.2)


def test_the_state_machine_holds_whenever_the_share_says_so() -> None:
    """Also when room in the outbox is all that was missing."""
    device = Device()
    device.join()
    device.see(ModelSeen(epoch=1, version=1), Trained(seq=1, is_full=True), Taken(seq=1))
    assert State.WAITING is device.session.state

    device.see(Unlinked(), share(boot=BOOT, jitter=8.0))
    device.join()
    device.see(Settled(seqs=(1,), is_full=False))
    assert State.SLEEPING is device.session.state
    assert [Pull()] == device.tick(4.0)
