"""Leaves a shared broker as it was found: retained messages and sessions of a finished demo are removed."""

from collections.abc import Sequence
from typing import Final

from fedmq.connection import ConnectionSettings
from fedmq.topics import Topics
from fedmq.transport.base import Connected, Delivery, Disconnected, PublishAccepted, PublishRefused
from fedmq.transport.mqtt import MqttTransport

_QUIET_SECONDS: Final = 1.0


def sweep(broker: ConnectionSettings, federation: str) -> None:
    """Clear what a federation left on a broker. Best effort: a broker that is gone needs none.

    Args:
        broker: where.
        federation: whose topics and sessions.
    """
    # A clean start without expiry under the aggregator's name ends the session that waits for it.
    _clear(broker, f"{federation}-aggregator-0", [])
    _clear(broker, f"{federation}-sweep", [Topics(federation).everything])


def _clear(broker: ConnectionSettings, client_id: str, filters: Sequence[str]) -> None:
    transport = MqttTransport(broker.mqtt(client_id=client_id))
    transport.start()
    open_publishes = 0
    try:
        while (event := transport.poll(_QUIET_SECONDS)) is not None or open_publishes:
            match event:
                case Connected():
                    for topic_filter in filters:
                        transport.subscribe(topic_filter)
                    if not filters:
                        return
                case Disconnected():
                    return
                case Delivery(topic=topic, payload=payload, retained=True) if payload:
                    transport.publish(topic, b"", retain=True)
                    open_publishes += 1
                    event.ack()
                case Delivery():
                    event.ack()
                case PublishAccepted() | PublishRefused():
                    open_publishes -= 1
                case _:
                    pass
    finally:
        transport.close()
