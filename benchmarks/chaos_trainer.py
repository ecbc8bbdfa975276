"""The campaign's trainer: each piece of work adds exactly 1 to the one parameter that is this agent's own.

All numbers that occur are multiples of a quarter below 2^22, so float32 adds them without rounding: at the end the
model itself says how many updates of each agent were folded, whatever journal and ledger say.

It keeps a diary of its own, beside everything that fedmq writes, one line for each event:

    start                   a process made its trainer
    begin                   a piece of work begins: the result before it was accepted
    end MARK DIGEST         a result, on disk before it is returned; DIGEST is of the model it was trained from

MARK is unlike any other of the campaign, whatever is killed: it counts the lines. It travels as the number of
examples, which the journal keeps for refused updates, too.
"""

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from fedmq.edge_agent.trainer import Task, TrainingStoppedError, TrainResult

from fedmq import encoding
from fedmq.layout import ParamLayout, Segment
from fedmq.plan import Scalar
from fedmq.types import ParamVector

LAYOUT: Final = ParamLayout((Segment(name="counts", shape=(2000,)),))
#: Room for so many marks of each agent.
MARKS: Final = 10**9
_LONGEST_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One result that a trainer returned.

    Attributes:
        mark: its number.
        digest: of the model it was trained from.
        accepted: whether the same process went on to the next piece of work, which it does only when the
            result is in the outbox.
    """

    mark: int
    digest: bytes
    accepted: bool


class CountingTrainer:
    """Adds 1 to one parameter.

    Args:
        agent: which agent, which is also which parameter.
        diary: the file of its own diary.
        drain: while this file exists, no work is done.
    """

    layout = LAYOUT

    def __init__(self, agent: int, diary: Path, drain: Path) -> None:
        self._agent, self._drain = agent, drain
        self._results = len(read_diary(diary))
        self._diary = os.open(diary, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._write("start")

    def _write(self, line: str) -> None:
        os.write(self._diary, f"{line}\n".encode())

    def initial(self) -> ParamVector:
        """Zeros."""
        return np.zeros(LAYOUT.size, np.float32)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """Take a while, then count."""
        self._write("begin")
        until = time.monotonic() + random.Random(task.seed).uniform(0.0, _LONGEST_SECONDS)
        while self._drain.exists() or time.monotonic() < until:
            if should_stop():
                raise TrainingStoppedError("stopped")
            time.sleep(_LOOK_SECONDS)
        self._results += 1
        mark = self._agent * MARKS + self._results
        vector = base.copy()
        vector[self._agent] += 1
        self._write(f"end {mark} {encoding.digest(base).hex()}")
        os.fsync(self._diary)
        return TrainResult(vector=vector, num_examples=mark, local_steps=1, metrics={"mark": float(mark)})

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """No evaluation."""
        return {}


def counting_trainer(
    settings: Mapping[str, Scalar], *, agent: int, diary: str, drain: str
) -> CountingTrainer:
    """The factory that the agents are told."""
    return CountingTrainer(agent, Path(diary), Path(drain))


def read_diary(path: Path) -> list[Result]:
    """The results that a diary tells of; none when there is no diary yet."""
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    following = [*lines[1:], ["nothing"]]
    return [
        Result(mark=int(line[1]), digest=bytes.fromhex(line[2]), accepted=after[0] == "begin")
        for line, after in zip(lines, following, strict=True)
        if line[0] == "end"
    ]
