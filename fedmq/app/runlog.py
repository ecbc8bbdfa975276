"""The log of a run: `metrics.jsonl`, one JSON object a line, read into events.

`recorder` writes it; `report` sums it up and `plots` draws it. Unknown fields are ignored, everything else is
checked: a log that was tampered with or cut in the middle is an error that names the line.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

from fedmq.errors import DataError

LOG_NAME: Final = "metrics.jsonl"
AGENT_STATES: Final = ("training", "uploading", "pulling", "waiting", "sleeping", "away")
AGGREGATOR_STATES: Final = ("up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A version's accuracy on the test data; the counts are cumulative, bytes are everything inside TCP."""

    t: float
    version: int
    accuracy: float
    loss: float
    folded: int
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """An update was folded into the model: `bytes` is its envelope, `payload` what the codec made of it."""

    t: float
    client: str
    seq: int
    base_version: int
    version: int
    staleness: int
    bytes: int
    payload: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An update was refused."""

    t: float
    client: str
    seq: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """A model version was published."""

    t: float
    version: int
    frame_bytes: int
    delta_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """An agent entered a state, one of `AGENT_STATES`."""

    t: float
    client: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorState:
    """The aggregator came up or went down."""

    t: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTraffic:
    """What one agent's connections carried since the run began; see `fedmq.transport.base.Traffic` for the words.

    The parts are None when the agent told only the whole. The last one of a client counts.
    """

    t: float
    client: str
    sent: int
    received: int
    payload_sent: int | None = None
    payload_received: int | None = None
    topic_sent: int | None = None
    topic_received: int | None = None
    measured: bool | None = None


Event: TypeAlias = Evaluation | Fold | Refusal | Publish | AgentState | AggregatorState | ClientTraffic

_EVENTS: Final[Mapping[str, type[Event]]] = {
    "evaluation": Evaluation,
    "fold": Fold,
    "refusal": Refusal,
    "publish": Publish,
    "agent": AgentState,
    "aggregator": AggregatorState,
    "traffic": ClientTraffic,
}
_TYPES: Final[Mapping[object, str]] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """The events of a run in the order of their time.

    Attributes:
        events: all of them.
        cut_off: whether the last line was left out because the writer was killed in the middle of it.
    """

    events: tuple[Event, ...]
    cut_off: bool

    @property
    def seconds(self) -> float:
        """The time of the last event, in seconds since the start; 0 for an empty log."""
        return self.events[-1].t if self.events else 0.0

    @property
    def evaluations(self) -> list[Evaluation]:
        """The accuracy over time."""
        return [event for event in self.events if isinstance(event, Evaluation)]

    @property
    def folds(self) -> list[Fold]:
        """Every update that was folded."""
        return [event for event in self.events if isinstance(event, Fold)]

    @property
    def traffic(self) -> dict[str, ClientTraffic]:
        """What each agent's connections carried in all, by client, in the order of their names."""
        last = {event.client: event for event in self.events if isinstance(event, ClientTraffic)}
        return dict(sorted(last.items()))

    @property
    def arrivals(self) -> list[float]:
        """When each distinct update first reached the aggregator, ascending, in seconds since the start."""
        first: dict[tuple[str, int], float] = {}
        for event in self.events:
            if isinstance(event, Fold | Refusal):
                first.setdefault((event.client, event.seq), event.t)
        return sorted(first.values())


def read_log(folder: Path) -> RunLog:
    """Read `metrics.jsonl` in a run's folder. Unknown fields are ignored.

    Raises:
        DataError: the file cannot be read, or a line before the last is malformed, or any line has a field of
            the wrong type; the message names the file and the line.
    """
    path = folder / LOG_NAME
    try:
        lines = path.read_bytes().rstrip(b"\0\n").split(b"\n")  # a power cut can leave zeros at the end
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror}): is this the folder of a run?") from error
    events: list[Event] = []
    cut_off = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number},", f"is not JSON: {error}") from error
            cut_off = True
            continue
        try:
            events.append(_parse(record))
        except (ValueError, OverflowError) as error:  # overflow: an integer that no float can hold
            raise DataError(f"{path}, line {number},", str(error)) from error
    return RunLog(events=tuple(sorted(events, key=lambda event: event.t)), cut_off=cut_off)


def _parse(record: object) -> Event:
    """Turn one line's JSON value into an event; ValueError says what is wrong."""
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    event_type = _EVENTS.get(str(record.get("kind")))
    if event_type is None:
        raise ValueError(f"has kind {record.get('kind')!r} instead of one of {', '.join(_EVENTS)}")
    values: dict[str, Any] = {}
    for field in fields(event_type):
        value = record.get(field.name)
        if value is None and field.default is None:
            continue
        wanted = get_args(field.type)[0] if field.default is None else field.type  # int of int | None
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ValueError(f"has {field.name} = {value!r} where {_TYPES[wanted]} must stand")
        # Loss alone may be anything: a run that diverges has an infinite one.
        if isinstance(value, int | float) and field.name != "loss" and not 0 <= value < math.inf:
            raise ValueError(f"has {field.name} = {value!r}, which is not a number from 0 up")
        values[field.name] = value
    event = event_type(**values)
    match event:
        case Evaluation(accuracy=accuracy) if accuracy > 1:
            raise ValueError(f"has accuracy = {accuracy!r}, which is above 1")
        case AgentState(state=state) if state not in AGENT_STATES:
            raise ValueError(f"has agent state {state!r} instead of one of {', '.join(AGENT_STATES)}")
        case AggregatorState(state=state) if state not in AGGREGATOR_STATES:
            raise ValueError(
                f"has aggregator state {state!r} instead of one of {', '.join(AGGREGATOR_STATES)}"
            )
    return event
