"""The settings of an MQTT connection.

What lives here: `MqttSettings` and what may stand in it. What must not: anything that connects.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fedmq.errors import SettingError, TransportError
from fedmq.transport.base import Will
from fedmq.transport.filters import check_topic

PROTOCOLS = ("5", "3.1.1")
WEEK = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """How to reach a broker, and how to behave there.

    Attributes:
        host: name or address of the broker.
        client_id: the session's name at the broker; two running clients must not share one.
        port: 1883 is MQTT's, 8883 the one with TLS.
        protocol: "5" or "3.1.1". Under 3.1.1 nobody sees refusals: of publishes without a subscriber, of
            denied ones, or of a session that was taken over; and messages do not expire.
        username: None for a broker that knows clients by certificate, or not at all.
        password: never shown.
        tls: encrypt, and check the broker's certificate and name.
        ca_file: PEM file of the authorities that may sign the broker's certificate; None: the system's.
        cert_file: PEM file of our certificate, where the broker wants one.
        key_file: PEM file of its key, unless `cert_file` has it.
        clean_start: end the old session at each connection. Only for those who need no queue while away.
        session_expiry: seconds the broker keeps the session after the connection; with `clean_start` False
            and more than 0 here, what is published while we are away waits for us.
        receive_maximum: how many deliveries the broker may send before one is acknowledged. This is the
            back-pressure: the broker keeps the rest.
        maximum_packet_size: bytes of the largest packet that the broker may send us; it drops what is larger, except
            under 3.1.1, which has no word for it. None: whatever the broker takes.
        max_inflight: how many publishes may wait for the broker's acknowledgement; the broker may want fewer.
        max_queued: how many publishes may wait for their outcome to be polled; beyond it `publish` raises.
        keepalive: seconds of silence after which a ping is sent, and after as many more the connection is
            given up. One publish must take less than half of it to send, or the ping behind it comes too late
            and the same publish begins again for ever: chunk bytes <= uplink bytes per second * keepalive / 2.
        connect_timeout: seconds for the connection, TLS handshake and the broker's answer, each.
        reconnect_min: the shortest wait in seconds before the next attempt.
        reconnect_max: the longest.
        will: what the broker publishes when we vanish.

    Raises:
        SettingError: a value that cannot be used.
    """

    host: str
    client_id: str
    port: int = 1883
    protocol: str = "5"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    clean_start: bool = False
    session_expiry: int = WEEK
    receive_maximum: int = 64
    maximum_packet_size: int | None = None
    max_inflight: int = 20
    max_queued: int = 1024
    keepalive: int = 60
    connect_timeout: float = 10.0
    reconnect_min: float = 1.0
    reconnect_max: float = 60.0
    will: Will | None = None

    def __post_init__(self) -> None:
        if not self.host:
            raise SettingError("host", self.host, "give the broker's name or address")
        if not self.client_id or "\0" in self.client_id or len(self.client_id.encode()) > 65535:
            raise SettingError("client_id", self.client_id, "give a name of 1 to 65535 bytes")
        if self.protocol not in PROTOCOLS:
            raise SettingError("protocol", self.protocol, f"one of {', '.join(PROTOCOLS)}")
        if self.password is not None and self.username is None:
            raise SettingError("username", None, "a password needs a username")
        whole = {
            "port": (1, 65535),
            "session_expiry": (0, 0xFFFFFFFE),  # MQTT 5 section 3.1.2.11.2; 0xFFFFFFFF would mean for ever
            "receive_maximum": (1, 65535),
            "max_inflight": (1, 65535),
            "max_queued": (1, 1_000_000),
            "keepalive": (1, 65535),
        }
        if self.maximum_packet_size is not None:
            whole["maximum_packet_size"] = (256, 0xFFFFFFFF)  # MQTT 5 section 3.1.2.11.4; less holds no topic
        for name, (least, most) in whole.items():
            if not least <= getattr(self, name) <= most:
                raise SettingError(name, getattr(self, name), f"{least} to {most}")
        if self.connect_timeout <= 0:
            raise SettingError("connect_timeout", self.connect_timeout, "more than 0 seconds")
        if self.reconnect_min <= 0:
            raise SettingError("reconnect_min", self.reconnect_min, "more than 0 seconds")
        if self.reconnect_max < self.reconnect_min:
            raise SettingError("reconnect_max", self.reconnect_max, f"{self.reconnect_min} or more")
        if not self.tls and (self.ca_file or self.cert_file or self.key_file):
            raise SettingError("tls", self.tls, "set it when giving ca_file, cert_file or key_file")
        if self.key_file and not self.cert_file:
            raise SettingError("cert_file", None, "a key_file needs its certificate")
        if self.will is not None:
            try:
                check_topic(self.will.topic)
            except TransportError as error:
                raise SettingError("will", self.will.topic, str(error)) from error
