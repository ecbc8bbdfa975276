"""The broker's table becomes the transport's settings, whole."""

from dataclasses import fields
from pathlib import Path

import pytest

from fedmq.connection import ConnectionSettings
from fedmq.errors import SettingError
from fedmq.transport.base import Will


def test_everything_said_of_the_broker_reaches_the_transport() -> None:
    """Nothing that a person sets is forgotten on the way."""
    said = ConnectionSettings(
        host="broker.example",
        port=8883,
        protocol="3.1.1",
        username="u",
        password="p",
        tls=True,
        ca_file=Path("ca"),
        cert_file=Path("cert"),
        key_file=Path("key"),
        keepalive=7,
        reconnect_min=0.5,
        reconnect_max=9.0,
    )
    will = Will(topic="t", payload=b"gone")
    passed = said.mqtt(client_id="c", will=will, session_expiry=60, receive_maximum=5, max_queued=6)

    for entry in fields(said):
        assert getattr(said, entry.name) == getattr(passed, entry.name)
        assert getattr(said, entry.name) != getattr(ConnectionSettings(), entry.name)
    assert ("c", will, False, 60, 5, 6) == (
        passed.client_id,
        passed.will,
        passed.clean_start,
        passed.session_expiry,
        passed.receive_maximum,
        passed.max_queued,
    )


def test_a_client_without_a_session_starts_clean() -> None:
    """An expiry of 0 ends the session with the connection, so there is none to go on with."""
    assert ConnectionSettings().mqtt(client_id="c").clean_start


def test_settings_that_contradict_each_other_are_refused() -> None:
    """Each alone would do."""
    for settings, name in (
        (ConnectionSettings(password="p"), "username"),
        (ConnectionSettings(ca_file=Path("ca")), "tls"),
        (ConnectionSettings(reconnect_min=5.0, reconnect_max=1.0), "reconnect_max"),
        (ConnectionSettings(tls=True, key_file=Path("key")), "cert_file"),
    ):
        with pytest.raises(SettingError) as caught:
            settings.mqtt(client_id="c")

        assert name == caught.value.name
