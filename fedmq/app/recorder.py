"""The recorder: gathers what the roles write in their diaries into one `metrics.jsonl`, and keeps the present state.

Each role appends to a file of its own; the recorder follows all of them, so nothing of what it shows travels over
the broker or counts as traffic.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .runlog import LOG_NAME

_SHOWN_STATES: Final = {"idle": "waiting"}
_PARTS: Final = ("payload_sent", "payload_received", "topic_sent", "topic_received")


@dataclass(slots=True)
class Odometer:
    """An agent's byte counters, which begin at 0 with each of its lives, summed over all of them.

    Attributes:
        measured: whether the agent's system counts the bytes itself; None while the agent has not said.
    """

    measured: bool | None = None
    _before: Counter[str] = field(default_factory=Counter)
    _latest: Counter[str] = field(default_factory=Counter)

    def read(self, entry: dict[str, Any]) -> None:
        """Take the counters that stand in an agent's entry; `sent` and `received` stand in each."""
        if entry["sent"] < self._latest["sent"]:  # a life begins with an entry before anything is sent
            self._before.update(self._latest)
            self._latest.clear()
        for name in ("sent", "received", *_PARTS):
            if name in entry:
                self._latest[name] = entry[name]
        if "measured" in entry:
            self.measured = entry["measured"] and self.measured is not False

    def __getitem__(self, name: str) -> int:
        return self._before[name] + self._latest[name]

    @property
    def parts(self) -> dict[str, int]:
        """What the bytes were, as far as the agent has said."""
        return {name: self[name] for name in _PARTS} if self.measured is not None else {}


@dataclass(slots=True)
class AgentView:
    """One agent as far as its diary tells: `since` when it has been in this state, and when it was last `seen`."""

    state: str = "starting"
    since: float = 0.0
    updates: int = 0
    base_version: int = -1
    seen: float = 0.0
    traffic: Odometer = field(default_factory=Odometer)


@dataclass(slots=True)
class RunView:
    """The run as it stands.

    Attributes:
        agents: by client id.
        accuracy: (seconds since the start, version, accuracy) of each evaluation.
        version: of the model.
        folded: updates folded.
        refused: updates refused, by reason.
        staleness: how often each staleness occurred.
    """

    agents: dict[str, AgentView] = field(default_factory=dict)
    accuracy: list[tuple[float, int, float]] = field(default_factory=list)
    version: int = 0
    folded: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)

    @property
    def uplink_bytes(self) -> int:
        """What all agents sent, everything inside TCP."""
        return sum(agent.traffic["sent"] for agent in self.agents.values())

    @property
    def downlink_bytes(self) -> int:
        """What all agents received, likewise."""
        return sum(agent.traffic["received"] for agent in self.agents.values())


class Recorder:
    """Follows the diaries of one run.

    Args:
        folder: of the run; diaries are `events/*.jsonl`, the result is `metrics.jsonl`.
        started: wall time of the run's start, in seconds since 1970.
        target: the run ends with the first evaluation that reaches this accuracy; what comes after it is no
            longer recorded.
    """

    def __init__(self, folder: Path, started: float, target: float = math.inf) -> None:
        self._events, self._started = folder / "events", started
        self._metrics = (folder / LOG_NAME).open("w", encoding="utf-8", buffering=1)
        self._offsets: dict[Path, int] = {}
        self._target = target
        self.has_ended = False
        self.view = RunView()

    def poll(self) -> bool:
        """Read what is new in all diaries, in the order of time.

        Returns:
            Whether there was anything.
        """
        entries: list[dict[str, Any]] = []
        for path in sorted(self._events.glob("*.jsonl")):
            entries += self._read(path)
        for entry in sorted(entries, key=lambda entry: float(entry["time"])):
            if not self.has_ended:
                self._take(entry)
        return bool(entries)

    def close(self) -> None:
        """Take the rest, note what each agent's connections carried, then close the file."""
        self.poll()
        for client, agent in sorted(self.view.agents.items()):
            traffic = agent.traffic
            whole = {"sent": traffic["sent"], "received": traffic["received"]}
            self._write(
                agent.seen, "traffic", client=client, **whole, **traffic.parts, measured=traffic.measured
            )
        self._metrics.close()

    def _read(self, path: Path) -> list[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # a process may be killed in the middle of a line
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        entries = []
        for line in whole.splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the torn line of a killed process, with the next one's after it
        return entries

    def _take(self, entry: dict[str, Any]) -> None:
        kind, t = entry["kind"], round(entry["time"] - self._started, 4)
        view = self.view
        if "sent" in entry:
            agent = view.agents.setdefault(entry["client"], AgentView())
            agent.traffic.read(entry)
            agent.seen = t
        match kind:
            case "state" | "away":
                agent = view.agents[entry["client"]]
                state = "away" if kind == "away" else _SHOWN_STATES.get(entry["state"], entry["state"])
                if state != agent.state:
                    agent.state, agent.since = state, t
                    self._write(t, "agent", client=entry["client"], state=state)
            case "trained":
                view.agents[entry["client"]].updates += 1
                view.agents[entry["client"]].base_version = entry["version"]
            case "fold":
                view.folded += 1
                view.version = max(view.version, entry["version"])
                view.staleness[entry["staleness"]] += 1
                names = ("client", "seq", "base_version", "version", "staleness", "bytes", "payload")
                self._copy(t, entry, *(name for name in names if name in entry))
            case "refusal":
                view.refused[entry["reason"]] += 1
                self._copy(t, entry, "client", "seq", "reason")
            case "publish":
                view.version = max(view.version, entry["version"])
                self._copy(t, entry, "version", "frame_bytes", "delta_bytes")
            case "aggregator":
                self._write(t, kind, state=entry["state"])
            case "evaluation" if "accuracy" in entry:
                view.accuracy.append((t, entry["version"], entry["accuracy"]))
                self._write(
                    t,
                    kind,
                    version=entry["version"],
                    accuracy=entry["accuracy"],
                    loss=entry["loss"],
                    folded=view.folded,
                    uplink_bytes=view.uplink_bytes,
                    downlink_bytes=view.downlink_bytes,
                )
                self.has_ended = entry["accuracy"] >= self._target

    def _copy(self, t: float, entry: dict[str, Any], *names: str) -> None:
        self._write(t, entry["kind"], **{name: entry[name] for name in names})

    def _write(self, t: float, kind: str, **fields: object) -> None:
        self._metrics.write(json.dumps({"t": t, "kind": kind, **fields}) + "\n")
