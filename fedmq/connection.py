"""The settings by which every role reaches the broker."""

from dataclasses import dataclass
from pathlib import Path

from .settings import setting
from .transport.base import Will
from .transport.mqtt_settings import PROTOCOLS, MqttSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """The `[broker]` table."""

    host: str = setting("127.0.0.1", help="name or address of the broker")
    port: int = setting(1883, help="the broker's port: 1883 plain, 8883 with TLS", low=1, high=65535)
    protocol: str = setting("5", help="MQTT version", choices=PROTOCOLS)
    username: str | None = setting(None, help="user at the broker")
    password: str | None = setting(None, help="its password; better given in the environment", secret=True)
    tls: bool = setting(False, help="encrypt, and check the broker's certificate")
    ca_file: Path | None = setting(None, help="PEM file of authorities; the system's when not given")
    cert_file: Path | None = setting(None, help="PEM file of our certificate")
    key_file: Path | None = setting(None, help="PEM file of its key")
    keepalive: int = setting(60, help="seconds of silence before a ping", low=1, high=65535)
    reconnect_min: float = setting(1.0, help="shortest wait before the next attempt, in seconds", low=0.01)
    reconnect_max: float = setting(60.0, help="longest wait before the next attempt, in seconds", low=0.01)

    def mqtt(
        self,
        *,
        client_id: str,
        will: Will | None = None,
        session_expiry: int = 0,
        receive_maximum: int = 64,
        maximum_packet_size: int | None = None,
        max_queued: int = 1024,
    ) -> MqttSettings:
        """The transport's settings for one client.

        Args:
            client_id: its name at the broker.
            will: what the broker publishes when it vanishes.
            session_expiry: seconds for which the broker keeps what is published while it is away; 0 ends the
                session with the connection.
            receive_maximum: deliveries the broker may send ahead of their acknowledgement.
            maximum_packet_size: bytes of the largest packet it may send; None for any.
            max_queued: publishes that may wait at a time.

        Raises:
            SettingError: two settings contradict each other.
        """
        return MqttSettings(
            host=self.host,
            port=self.port,
            protocol=self.protocol,
            username=self.username,
            password=self.password,
            tls=self.tls,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            keepalive=self.keepalive,
            reconnect_min=self.reconnect_min,
            reconnect_max=self.reconnect_max,
            client_id=client_id,
            will=will,
            clean_start=session_expiry == 0,
            session_expiry=session_expiry,
            receive_maximum=receive_maximum,
            maximum_packet_size=maximum_packet_size,
            max_queued=max_queued,
        )
