"""The control of a real mosquitto."""

import os
import signal

import pytest
from fedmq.broker import Mosquitto, MosquittoMissingError
from fedmq.broker import mosquitto as module
from fedmq.broker.errors import MosquittoError
from fedmq.broker.properties import Properties

KEPT = {"clean_start": False, "properties": Properties(session_expiry=1000)}


@pytest.fixture
def mosquitto():
    """One with the configuration that we ship, started."""
    try:
        broker = Mosquitto()
    except MosquittoMissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with broker:
        yield broker


def leave_a_message(dial, broker):
    """One that waits for a client and is retained."""
    client = dial(broker, "c", **KEPT)
    client.subscribe("t")
    client.disconnect()
    dial(broker, "p").publish("t", b"kept", retain=True)


@pytest.mark.mosquitto
def test_the_shipped_configuration_has_its_limits(mosquitto, dial):
    """Clients are told the largest packet, and mosquitto finds nothing to complain about."""
    client = dial(mosquitto, "c")

    assert client.connack.properties.maximum_packet_size == 4 << 20
    assert "Error" not in mosquitto.log


@pytest.mark.mosquitto
def test_a_checkpoint_outlives_a_kill(mosquitto, dial):
    """Saved on request, so that not even SIGKILL loses it; also when we are root."""
    leave_a_message(dial, mosquitto)
    mosquitto.checkpoint()
    mosquitto.kill()
    mosquitto.start()

    back = dial(mosquitto, "c", **KEPT)

    assert back.connack.session_present
    assert [bytes(one.payload) for one in back.deliveries(1)] == [b"kept"]


@pytest.mark.mosquitto
def test_a_restart_keeps_the_port_and_the_state(mosquitto, dial):
    """SIGTERM has it save."""
    port = mosquitto.port
    leave_a_message(dial, mosquitto)
    mosquitto.restart()

    assert port == mosquitto.port
    assert [bytes(one.payload) for one in dial(mosquitto, "c", **KEPT).deliveries(1)] == [b"kept"]


@pytest.mark.mosquitto
def test_a_mosquitto_that_does_not_start_shows_its_log(mosquitto):
    """The error carries the reason that mosquitto gave."""
    with pytest.raises(MosquittoError, match="no_such_setting"), Mosquitto("no_such_setting 1\n"):
        pass


@pytest.mark.mosquitto
def test_what_is_not_running_cannot_be_signalled(mosquitto):
    """And what runs cannot be started twice."""
    with pytest.raises(MosquittoError, match="running already"):
        mosquitto.start()
    os.kill(mosquitto.pid, signal.SIGKILL)
    mosquitto._process.wait()
    for action in (mosquitto.kill, mosquitto.terminate, mosquitto.checkpoint):
        with pytest.raises(MosquittoError, match="not running"):
            action()


def test_a_missing_binary_is_named_with_its_remedy(monkeypatch, tmp_path):
    """Where it was looked for, and how to install it."""
    monkeypatch.setattr(module, "_SEARCHED", (str(tmp_path),))
    with pytest.raises(MosquittoMissingError, match="apt-get install mosquitto") as caught:
        Mosquitto()

    assert (str(tmp_path),) == caught.value.searched
