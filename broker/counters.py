"""The broker's counters, and their names under `$SYS/broker` (those that mosquitto uses)."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from .state import BrokerState


@dataclass(slots=True, kw_only=True)
class Counters:
    """What has happened since the start; only the core and its shell add to them."""

    connected: int = 0
    maximum: int = 0
    expired_sessions: int = 0
    packets_received: int = 0
    publishes_received: int = 0
    publishes_sent: int = 0
    publishes_dropped: int = 0
    publishes_refused: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0


def server_version() -> str:
    """The name and version that this broker gives itself."""
    try:
        return f"fedmq {version('fedmq')}"
    except PackageNotFoundError:
        return "fedmq"


def sys_values(counters: Counters, state: BrokerState, uptime: float) -> Iterator[tuple[str, str]]:
    """The topics under `$SYS/broker` with their values as text."""
    numbers = {
        "clients/connected": counters.connected,
        "clients/disconnected": len(state.sessions) - counters.connected,
        "clients/expired": counters.expired_sessions,
        "clients/maximum": counters.maximum,
        "clients/total": len(state.sessions),
        "messages/received": counters.packets_received,
        "publish/messages/received": counters.publishes_received,
        "publish/messages/sent": counters.publishes_sent,
        "publish/messages/dropped": counters.publishes_dropped,
        "publish/messages/refused": counters.publishes_refused,
        "bytes/received": counters.bytes_received,
        "bytes/sent": counters.bytes_sent,
        "retained messages/count": len(state.retained),
        "store/messages/count": state.stored_messages,
        "store/messages/bytes": state.stored_bytes,
        "subscriptions/count": state.subscriptions.count,
    }
    yield "$SYS/broker/version", server_version()
    yield "$SYS/broker/uptime", f"{int(uptime)} seconds"
    for name, number in numbers.items():
        yield f"$SYS/broker/{name}", str(number)
