"""Where a run's bytes went: to whom, in which direction, and what they were. From the log alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .runlog import ClientTraffic, Fold, RunLog


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientBytes:
    """What one agent's connections carried, everything inside TCP, and how many of its updates were folded."""

    sent: int
    received: int
    updates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """The bytes of all agents in the whole run.

    Attributes:
        clients: by name.
        updates: how many of theirs were folded.
        uplink: what was sent, by what it was: "payload", what the codec made of the folded updates; "envelope", what
            surrounds it in their messages; "other messages": presence, headers of chunks, updates that were sent
            again or are not folded; "topics", those of all messages; "MQTT", everything else, with TLS. Without
            "payload" and "envelope" apart, "updates" stands for both. Empty when the log does not say.
        downlink: what was received, likewise: "messages", "topics" and "MQTT".
        measured: whether the agents' systems counted the bytes themselves; None when some agent did not say.
    """

    clients: Mapping[str, ClientBytes]
    updates: int
    uplink: Mapping[str, int]
    downlink: Mapping[str, int]
    measured: bool | None


def account(log: RunLog) -> Accounting:
    """Sum up what a log says of bytes."""
    traffic = log.traffic
    # Later ones are not in the agent's own count yet.
    folds = [fold for fold in log.folds if fold.client in traffic and fold.t <= traffic[fold.client].t]
    updates = Counter(fold.client for fold in folds)
    claims = {moved.measured for moved in traffic.values()}
    return Accounting(
        clients={
            client: ClientBytes(sent=moved.sent, received=moved.received, updates=updates[client])
            for client, moved in traffic.items()
        },
        updates=len(folds),
        uplink=_uplink(list(traffic.values()), folds),
        downlink=_downlink(list(traffic.values())),
        measured=None if None in claims or not claims else False not in claims,
    )


def _uplink(traffic: Sequence[ClientTraffic], folds: Sequence[Fold]) -> dict[str, int]:
    messages = _sum([moved.payload_sent for moved in traffic])
    topics = _sum([moved.topic_sent for moved in traffic])
    if messages is None or topics is None:
        return {}
    whole = sum(fold.bytes for fold in folds)
    payload = _sum([fold.payload for fold in folds])
    updates = {"updates": whole} if payload is None else {"payload": payload, "envelope": whole - payload}
    sent = sum(moved.sent for moved in traffic)
    other = max(messages - whole, 0)
    return {**updates, "other messages": other, "topics": topics, "MQTT": sent - messages - topics}


def _downlink(traffic: Sequence[ClientTraffic]) -> dict[str, int]:
    messages = _sum([moved.payload_received for moved in traffic])
    topics = _sum([moved.topic_received for moved in traffic])
    if messages is None or topics is None:
        return {}
    received = sum(moved.received for moved in traffic)
    return {"messages": messages, "topics": topics, "MQTT": received - messages - topics}


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum; None when there is nothing, or something of it is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
