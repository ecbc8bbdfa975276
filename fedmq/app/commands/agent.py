"""`fedmq agent`."""

from fedmq.app.foreground import run_in_foreground
from fedmq.app.options import with_settings
from fedmq.edge_agent.agent import Agent
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings
from fedmq.transport.mqtt import MqttTransport


@with_settings(AgentSettings)
def agent(settings: AgentSettings) -> None:
    """Run one edge agent.

    It trains on local data and publishes updates.
    """
    run_in_foreground(make_agent(settings))


def make_agent(settings: AgentSettings) -> Agent:
    """An edge agent over MQTT.

    Raises:
        FedmqError: see `Outbox` and `Agent`.
    """
    outbox = Outbox(
        settings.outbox.folder / "outbox.db",
        max_updates=settings.outbox.max_updates,
        max_bytes=settings.outbox.max_bytes,
    )
    try:
        return Agent(
            settings,
            outbox,
            lambda client_id, will: MqttTransport(settings.broker.mqtt(client_id=client_id, will=will)),
        )
    except BaseException:
        outbox.close()
        raise
