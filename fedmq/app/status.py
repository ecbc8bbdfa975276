"""Status: what a federation's retained topics say, as a table or a model file."""

import json
import time
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from fedmq import wire
from fedmq.connection import ConnectionSettings
from fedmq.envelope import Kind
from fedmq.errors import LocalError, WireError
from fedmq.settings import setting
from fedmq.topics import Topics, last_level
from fedmq.transport.base import Connected, Delivery, Disconnected, SubscriptionRefused
from fedmq.transport.mqtt import MqttTransport
from fedmq.types import ModelHead, ObjectRef

_MAX_CLIENTS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSettings:
    """Which federation to look at."""

    federation: str = setting("default", help="name of the federation")
    shard: str = setting("0", help="whose aggregator to look for")
    wait: float = setting(2.0, help="seconds to wait for the broker and its retained messages", low=0.1)
    broker: ConnectionSettings = field(default_factory=ConnectionSettings)


def show_status(settings: StatusSettings, console: Console) -> None:
    """Print it.

    Raises:
        LocalError: the broker cannot be reached.
    """
    retained = _collect(settings)
    topics = Topics(settings.federation)
    if not retained:
        console.print(
            Text(f"Nothing is known of federation {settings.federation}: no aggregator has published yet.")
        )
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(retained, topics, settings.shard):
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(table)
    clients = {
        topic: payload
        for topic, payload in sorted(retained.items())
        if topic == topics.client(last_level(topic))
    }
    listing = Table("client", "state", "software", box=None, padding=(0, 2, 0, 0))
    for topic, payload in list(clients.items())[:_MAX_CLIENTS]:
        try:
            presence = wire.unpack_presence(Kind.CLIENT, payload)
            listing.add_row(Text(last_level(topic)), str(presence.state), Text(presence.software))
        except WireError as error:
            listing.add_row(Text(last_level(topic)), "unreadable", Text(str(error)))
    if clients:
        console.print(listing)
    if len(clients) > _MAX_CLIENTS:
        console.print(Text(f"… and {len(clients) - _MAX_CLIENTS} more"))


def _collect(settings: StatusSettings) -> dict[str, bytes]:
    """The retained messages that come within the time."""
    topics = Topics(settings.federation)
    transport = MqttTransport(
        settings.broker.mqtt(client_id=f"{settings.federation}-status-{time.time_ns()}")
    )
    retained: dict[str, bytes] = {}
    reason = "no answer"
    connected = False
    deadline = time.monotonic() + settings.wait
    transport.start()
    try:
        while (left := deadline - time.monotonic()) > 0:
            match transport.poll(left):
                case Connected():
                    connected = True
                    for topic_filter in (
                        topics.plan,
                        topics.model,
                        topics.aggregator(settings.shard),
                        topics.clients,
                        topics.all_stats,
                    ):
                        transport.subscribe(topic_filter)
                case Disconnected(reason=reason):
                    pass
                case SubscriptionRefused(topic_filter=refused, reason=why):
                    raise LocalError(f"the broker refuses the subscription to {refused}: {why}")
                case Delivery(topic=topic, payload=payload) as delivery:
                    if payload:
                        retained[topic] = payload
                    delivery.ack()
                case _:
                    pass
    finally:
        transport.close()
    if not connected:
        raise LocalError(f"no connection to {settings.broker.host}:{settings.broker.port}: {reason}")
    return retained


def _facts(retained: dict[str, bytes], topics: Topics, shard: str) -> list[tuple[str, str]]:
    facts = [("federation", topics.federation)]
    try:
        if (payload := retained.get(topics.aggregator(shard))) is not None:
            presence = wire.unpack_presence(Kind.AGGREGATOR, payload)
            facts.append(("aggregator", f"{presence.state}, {presence.software}"))
        if (payload := retained.get(topics.plan)) is not None:
            plan = wire.unpack_plan(payload)
            facts.append(("plan", f"{plan.trainer}, {plan.layout.size} parameters, updates as {plan.codec}"))
        if (payload := retained.get(topics.model)) is not None:
            facts.append(("model", _describe(wire.unpack_head(payload), len(payload))))
    except WireError as error:
        facts.append(("unreadable", str(error)))
    for topic, payload in sorted(retained.items()):
        if topic == topics.stats(last_level(topic)):
            facts.append((last_level(topic), _stats(payload)))
    return facts


def _describe(head: ModelHead, size: int) -> str:
    frames = " + ".join(decimal(frame.content.size) for frame in head.frames)
    if head.delta is None:
        return f"version {head.version}, frames of {frames}"
    content = head.delta.content
    delta = content.size if isinstance(content, ObjectRef) else size
    return f"version {head.version}, {decimal(delta)} beyond frames of {frames}"


def _stats(payload: bytes) -> str:
    try:
        values = json.loads(payload)
        age = max(time.time() - float(values.pop("time")), 0.0)
        pairs = ", ".join(f"{key} {value}" for key, value in values.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return "unreadable"
    return f"{pairs} ({age:.0f} s ago)"
