"""The broker's settings: every bound it keeps, with its default and what happens there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .errors import BrokerSettingError

_DAY: Final = 86_400
_MAY_BE_ZERO: Final = frozenset({"sys_interval", "max_session_expiry", "log_compact_bytes", "topic_aliases"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """What a broker allows. Sizes are in bytes, times in seconds.

    Attributes:
        users: passwords by user name; None lets anybody in. With users, a session belongs to the user who
            opened it.
        max_packet: the largest packet accepted; a larger one ends the connection with 0x95.
        max_clients: connected clients; the next is answered 0x97.
        max_sessions: sessions, connected or not; the next client is answered 0x97.
        max_session_expiry: a longer expiry is shortened and announced; also that of 3.1.1's sessions.
        max_subscriptions: filters of one client; the next is answered 0x97.
        max_topic_levels: levels of a topic or a filter; longer ones are refused with 0x90 or 0x8F.
        max_queued_messages: messages that wait for one client; the newest is dropped and counted.
        max_queued_bytes: their size; the same.
        max_stored_bytes: all messages that wait for anybody, each counted once; the same.
        max_retained_messages: retained messages; the next topic's publish is answered 0x97.
        max_retained_bytes: their size; the same.
        receive_maximum: unacknowledged publishes of one MQTT 5 client; one more ends the connection with 0x93.
        topic_aliases: topics that an MQTT 5 client may give numbers to; a larger number ends the connection with 0x94.
        default_window: unacknowledged deliveries to a client that announces no Receive Maximum.
        write_buffer: bytes waiting to be sent to one client before its deliveries wait in its queue.
        connect_timeout: how long a connection may be open before its CONNECT.
        sys_interval: how often `$SYS` is published; 0 for never.
        log_compact_bytes: a log smaller than this is never compacted.
        max_log_bytes: the log's largest size; beyond it publishes that need the log are answered 0x97. At the
            start the whole log is read into memory.
    """

    users: Mapping[str, str] | None = field(default=None, repr=False)
    max_packet: int = 4 << 20
    max_clients: int = 1_000
    max_sessions: int = 10_000
    max_session_expiry: int = 14 * _DAY
    max_subscriptions: int = 1_000
    max_topic_levels: int = 32
    max_queued_messages: int = 100_000
    max_queued_bytes: int = 256 << 20
    max_stored_bytes: int = 1 << 30
    max_retained_messages: int = 100_000
    max_retained_bytes: int = 256 << 20
    receive_maximum: int = 100
    topic_aliases: int = 10
    default_window: int = 20
    write_buffer: int = 1 << 20
    connect_timeout: float = 10.0
    sys_interval: float = 10.0
    log_compact_bytes: int = 16 << 20
    max_log_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "users":
                continue
            lowest = 0 if name in _MAY_BE_ZERO else 1
            if not isinstance(value, int | float) or not value >= lowest:
                raise BrokerSettingError(name, value, f"a number of at least {lowest}")
        for name in ("receive_maximum", "default_window", "topic_aliases"):
            if getattr(self, name) > 65_535:
                raise BrokerSettingError(name, getattr(self, name), "at most 65535")
        if not 256 <= self.max_packet <= 268_435_460:
            raise BrokerSettingError("max_packet", self.max_packet, "from 256 to 268435460")
