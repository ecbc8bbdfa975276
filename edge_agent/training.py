"""Training: one piece of local work at a time, in a thread of its own.

So receipts are taken and updates sent again while it lasts. The thread touches nothing but the trainer; what comes of
it waits in a queue until the agent's own thread takes it. A simulation in virtual time takes `at_once` instead of a
thread.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from fedmq.types import GlobalModel

from .trainer import Task, Trainer, TrainerError, TrainResult

#: Has some work done; returns what waits for its end.
Spawn: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]


def in_a_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Do the work in a thread of its own."""
    thread = threading.Thread(target=work, name="training", daemon=True)
    thread.start()
    return thread.join


def at_once(work: Callable[[], None]) -> Callable[[], None]:
    """Do the work here and now."""
    work()
    return lambda: None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """What came of one piece of work.

    Attributes:
        model: what it began with.
        outcome: what the trainer returned, or whatever it raised.
    """

    model: GlobalModel
    outcome: TrainResult | BaseException


class Training:
    """Runs a trainer.

    Args:
        wake: called when something has finished, from the training thread.
        pause: seconds to wait after each local epoch, as a slower device would take.
        spawn: has the work done.
    """

    def __init__(self, wake: Callable[[], None], pause: float = 0.0, *, spawn: Spawn = in_a_thread) -> None:
        self._wake, self._pause, self._spawn = wake, pause, spawn
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._join: Callable[[], None] = lambda: None

    @property
    def has_finished(self) -> bool:
        """Whether `take` has something to give."""
        return not self._finished.empty()

    def start(self, model: GlobalModel, trainer: Trainer, task: Task) -> None:
        """Begin a piece of work; the one before has finished."""
        self._join = self._spawn(partial(self._work, model, trainer, task))

    def take(self) -> Finished | None:
        """What has finished, or None."""
        return None if self._finished.empty() else self._finished.get()

    def stop(self) -> None:
        """Let the trainer stop soon. May be called from any thread."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until nothing is being worked on."""
        self._join()

    def _work(self, model: GlobalModel, trainer: Trainer, task: Task) -> None:
        outcome: TrainResult | BaseException
        try:
            returned: object = trainer.train(model.vector, task, self._stopping.is_set)
            if isinstance(returned, TrainResult):
                outcome = returned
                done = task.local_epochs if returned.epochs is None else returned.epochs
                self._stopping.wait(self._pause * done)
            else:
                outcome = TrainerError(f"the trainer returned {returned!r} instead of a TrainResult")
        except BaseException as error:  # noqa: BLE001 - whatever the user's trainer raises, the agent goes on
            outcome = error
        self._finished.put(Finished(model=model, outcome=outcome))
        self._wake()
