"""What a simulation came to. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedmq.layout import ParamLayout
from fedmq.types import ParamVector

from .fairness import worst_decile
from .runlog import Evaluation
from .scenario import Scenario

#: Evaluations that the final accuracy is the mean of: single ones scatter by a point.
_FINAL: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResult:
    """What became of one device.

    Attributes:
        client: its client id.
        kind: the name of its class.
        trained: updates that it finished.
        folded: those that were folded.
        refused: those that were refused.
        uplink_bytes: what it sent, as MQTT packets.
        downlink_bytes: what it received, likewise.
        present_seconds: virtual seconds for which it was there.
        training_seconds: virtual seconds for which it trained, also for what was lost.
        joules: what it drew.
        lives: how often it came.
        reimaged: how often it came back without its outbox.
        accuracy: of the final model on the test data, weighted by the labels of the client's own (see `fairness`);
            None when that cannot be said.
    """

    client: str
    kind: str
    trained: int
    folded: int
    refused: int
    uplink_bytes: int
    downlink_bytes: int
    present_seconds: float
    training_seconds: float
    joules: float
    lives: int
    reimaged: int
    accuracy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """What a simulation came to.

    Attributes:
        scenario: what was played.
        layout: the model's.
        vector: the aggregator's model at the end, float32, shape (layout.size,).
        evaluations: the accuracy over virtual time, with the updates folded and the bytes of all devices until then.
        seconds: virtual seconds that passed.
        versions: the model's version at the end.
        updates: updates folded.
        staleness: how often each staleness was folded.
        refusals: updates refused, by reason.
        clients: what became of each device.
        cpu_seconds: processor time that the simulation took.
    """

    scenario: Scenario
    layout: ParamLayout
    vector: ParamVector = field(repr=False)
    evaluations: tuple[Evaluation, ...] = field(repr=False)
    seconds: float
    versions: int
    updates: int
    staleness: Mapping[int, int]
    refusals: Mapping[str, int]
    clients: tuple[ClientResult, ...] = field(repr=False)
    cpu_seconds: float

    def reached(self, accuracy: float) -> Evaluation | None:
        """The first evaluation that reaches an accuracy: its `t`, `folded`, `uplink_bytes`, `downlink_bytes`."""
        return next((event for event in self.evaluations if event.accuracy >= accuracy), None)

    @property
    def final_accuracy(self) -> float | None:
        """Mean of the last five evaluations; None when there was none."""
        last = [event.accuracy for event in self.evaluations[-_FINAL:]]
        return sum(last) / len(last) if last else None

    @property
    def worst_decile(self) -> float | None:
        """Mean accuracy of the worst tenth of the clients, at least one; None when there is none."""
        return worst_decile([client.accuracy for client in self.clients if client.accuracy is not None])

    @property
    def mean_staleness(self) -> float | None:
        """Mean over the folded updates; None when there was none."""
        return (
            sum(age * count for age, count in self.staleness.items()) / self.updates if self.updates else None
        )

    @property
    def uplink_bytes(self) -> int:
        """What all devices sent, as MQTT packets."""
        return sum(client.uplink_bytes for client in self.clients)

    @property
    def downlink_bytes(self) -> int:
        """What all devices received, as MQTT packets."""
        return sum(client.downlink_bytes for client in self.clients)

    @property
    def joules(self) -> float:
        """What all devices drew."""
        return sum(client.joules for client in self.clients)
