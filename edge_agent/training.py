"""Training: one piece of local work at a time, in a thread of its own.

So receipts are taken and updates sent again while it lasts. The thread touches nothing but the trainer; what comes of
it waits in a queue until the agent's own thread takes it.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from fedmq.types import GlobalModel

from .trainer import Task, Trainer, TrainerError, TrainResult


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
    """

    def __init__(self, wake: Callable[[], None], pause: float = 0.0) -> None:
        self._wake, self._pause = wake, pause
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_finished(self) -> bool:
        """Whether `take` has something to give."""
        return not self._finished.empty()

    def start(self, model: GlobalModel, trainer: Trainer, task: Task) -> None:
        """Begin a piece of work; the one before has finished."""
        self._thread = threading.Thread(
            target=self._work, args=(model, trainer, task), name="training", daemon=True
        )
        self._thread.start()

    def take(self) -> Finished | None:
        """What has finished, or None."""
        return None if self._finished.empty() else self._finished.get()

    def stop(self) -> None:
        """Let the trainer stop soon. May be called from any thread."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until nothing is being worked on."""
        if self._thread is not None:
            self._thread.join()

    def _work(self, model: GlobalModel, trainer: Trainer, task: Task) -> None:
        outcome: TrainResult | BaseException
        try:
            returned: object = trainer.train(model.vector, task, self._stopping.is_set)
            if isinstance(returned, TrainResult):
                outcome = returned
                self._stopping.wait(self._pause * task.local_epochs)
            else:
                outcome = TrainerError(f"the trainer returned {returned!r} instead of a TrainResult")
        except BaseException as error:  # noqa: BLE001 - whatever the user's trainer raises, the agent goes on
            outcome = error
        self._finished.put(Finished(model=model, outcome=outcome))
        self._wake()
