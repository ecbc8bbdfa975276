"""A simulated device: production's agent in virtual time, its lives, and what they took.

Its training is real, and happens at the moment at which it would be finished; what is drawn from a distribution is
only how long that takes.
"""

import shutil
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, OutboxSettings, TrainerSettings
from fedmq.edge_agent.trainer import Task
from fedmq.transport.base import Traffic, Will
from fedmq.transport.memory import MemoryBroker

from .attack import FACTORY, parse_attack
from .availability import periods
from .distribution import parse_distribution
from .scenario import DeviceClass, LinkSettings, Scenario
from .simulated_link import VirtualTransport, VirtualWire
from .simulation_result import ClientResult
from .virtual_time import Agenda, Party

#: As a run's log calls them.
_AWAY: Final = "away"
_SHOWN_STATES: Final = {"idle": "waiting"}
#: Of the built-in trainers, where the plan names none.
DEFAULT_BATCH_SIZE: Final = 32


class Life:
    """A device from power on to power off: an agent over the outbox as it lies there.

    Args:
        settings: the agent's.
        rank: among the parties.
        agenda: virtual time.
        broker: where it connects.
        link: how.
        work_seconds: draws how long a piece of work takes, from what is asked for.
        on_state: told of each state that the agent enters.
    """

    def __init__(
        self,
        settings: AgentSettings,
        rank: int,
        agenda: Agenda,
        broker: MemoryBroker,
        link: LinkSettings,
        work_seconds: Callable[[Task | None], float],
        on_state: Callable[[str], None],
    ) -> None:
        self.began, self.finished = agenda.now, 0
        self._agenda, self._broker, self._link = agenda, broker, link
        self._work_seconds, self._on_state = work_seconds, on_state
        self._worked = 0.0
        self._working_since: float | None = None
        self._state = ""
        self._party = Party(agenda, rank, self._turn)
        self._outbox = Outbox(
            settings.outbox.folder / "outbox.db",
            max_updates=settings.outbox.max_updates,
            max_bytes=settings.outbox.max_bytes,
        )
        self._agent = Agent(
            settings, self._outbox, self._connect, clock=agenda.clock, spawn=self._work_in_virtual_time
        )
        self.transport.start()
        self._party.wake()

    @property
    def training_seconds(self) -> float:
        """For how long it has trained until now."""
        since = self._working_since
        return self._worked + (0.0 if since is None else self._agenda.now - since)

    def end(self) -> None:
        """The power is cut."""
        self._worked, self._working_since = self.training_seconds, None
        self._party.leave()
        self._broker.disconnect(self.transport.client_id)
        self.transport.close()
        self._outbox.close()

    def _connect(self, client_id: str, will: Will) -> VirtualTransport:
        wire = VirtualWire(self._agenda, self._link, self._party.wake)
        self.transport = VirtualTransport(self._broker, client_id, will, 0, wire)
        return self.transport

    def _turn(self) -> float:
        patience = self.transport.exhaust(self._agent.turn)
        state = str(self._agent.state)
        if state != self._state:
            self._state = state
            self._on_state(_SHOWN_STATES.get(state, state))
        return patience

    def _work_in_virtual_time(self, work: Callable[[], None]) -> Callable[[], None]:
        """Have the work done when its time is over, unless the power is cut before."""
        since = self._working_since = self._agenda.now

        def finish() -> None:
            if self._working_since != since:
                return
            self._worked, self._working_since = self.training_seconds, None
            self.finished += 1
            work()
            self._party.wake()

        self._agenda.at(since + self._work_seconds(self._agent.task), finish)
        return lambda: None


class SimulatedDevice:
    """One device through all of its lives.

    Args:
        index: its number; of devices whose turn is at the same moment, the lower comes first.
        client: its client id.
        kind: what it is like.
        scenario: what is played.
        data: the file that its trainer reads.
        folder: for its outbox.
        agenda: virtual time.
        broker: where it connects.
        on_state: told of each state that it enters, with its client id.

    Attributes:
        folded: its updates that were folded.
        refused: its updates that were refused.
    """

    def __init__(
        self,
        *,
        index: int,
        client: str,
        kind: DeviceClass,
        scenario: Scenario,
        data: Path,
        folder: Path,
        agenda: Agenda,
        broker: MemoryBroker,
        on_state: Callable[[str, str], None],
    ) -> None:
        self.folded = self.refused = 0
        self._index, self._client, self._kind = index, client, kind
        self._agenda, self._broker, self._on_state = agenda, broker, on_state
        self._settings = AgentSettings(
            client=client,
            trainer=_trainer(kind, scenario, data),
            outbox=OutboxSettings(folder=folder / client),
        )
        self._durations, coming = (np.random.default_rng([scenario.seed, index, use]) for use in range(2))
        self._periods, self._fate = periods(kind.availability, coming), coming
        self._local_epochs, self._data = scenario.task.local_epochs, data
        self._epoch_seconds = parse_distribution("epoch_seconds", kind.epoch_seconds).draw(self._durations)
        self._jitter = parse_distribution("jitter", kind.jitter)
        self._life: Life | None = None
        self._traffic = Traffic()  # of the lives that have ended
        self._trained = self._lives = self._reimaged = 0
        self._present = self._training = 0.0
        self._await_next_period()

    @property
    def traffic(self) -> Traffic:
        """What its connections have carried until now."""
        return self._traffic if self._life is None else _sum(self._traffic, self._life.transport.traffic)

    def close(self) -> ClientResult:
        """Switch it off, and tell what became of it."""
        if self._life is not None:
            self._end(self._life)
        energy, traffic = self._kind.energy, self._traffic
        return ClientResult(
            client=self._client,
            kind=self._kind.name,
            trained=self._trained,
            folded=self.folded,
            refused=self.refused,
            uplink_bytes=traffic.bytes_sent,
            downlink_bytes=traffic.bytes_received,
            present_seconds=self._present,
            training_seconds=self._training,
            joules=energy.idle_watts * (self._present - self._training)
            + energy.train_watts * self._training
            + energy.joules_per_byte * (traffic.bytes_sent + traffic.bytes_received),
            lives=self._lives,
            reimaged=self._reimaged,
        )

    def _await_next_period(self) -> None:
        period = next(self._periods, None)
        if period is not None:
            comes, goes = period
            self._agenda.at(comes, lambda: self._come(goes))

    def _come(self, goes: float) -> None:
        if self._lives and self._fate.random() < self._kind.availability.reimaged:
            self._reimaged += 1
            shutil.rmtree(self._settings.outbox.folder)
        self._lives += 1
        self._life = Life(
            self._settings,
            self._index,
            self._agenda,
            self._broker,
            self._kind.link,
            self._work_seconds,
            lambda state: self._on_state(self._client, state),
        )
        self._agenda.at(goes, self._go)

    def _work_seconds(self, task: Task | None) -> float:
        """How long it works on what it is asked for: an epoch's time, in proportion to epochs or steps."""
        epochs = float(self._local_epochs)
        if task is not None and task.steps is not None:
            batch = int(task.settings.get("batch_size", DEFAULT_BATCH_SIZE))
            epochs = task.steps / -(-self._examples // batch)
        return epochs * self._epoch_seconds * self._jitter.draw(self._durations)

    @cached_property
    def _examples(self) -> int:
        """How many its trainer learns from."""
        with np.load(self._data) as arrays:
            return max(len(arrays["train_labels"]), 1)

    def _go(self) -> None:
        if self._life is not None:
            self._end(self._life)
            self._on_state(self._client, _AWAY)
            self._await_next_period()

    def _end(self, life: Life) -> None:
        life.end()
        self._traffic = _sum(self._traffic, life.transport.traffic)
        self._present += self._agenda.now - life.began
        self._training += life.training_seconds
        self._trained += life.finished
        self._life = None


def _trainer(kind: DeviceClass, scenario: Scenario, data: Path) -> TrainerSettings:
    """What the device's operator says of its trainer: who attacks has one of its own around the plan's."""
    if parse_attack(kind.attack) is None:
        return TrainerSettings(seed=scenario.seed, settings=(("data", str(data)),))
    false = (("data", str(data)), ("attack", kind.attack), ("trainer", scenario.task.trainer))
    return TrainerSettings(seed=scenario.seed, factory=FACTORY, settings=false)


def _sum(one: Traffic, other: Traffic) -> Traffic:
    """What two lives of a device moved together."""
    return Traffic(
        **{
            entry.name: getattr(one, entry.name) + getattr(other, entry.name)
            for entry in fields(Traffic)
            if entry.name != "measured"
        }
    )
