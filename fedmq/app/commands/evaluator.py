"""`fedmq evaluator`."""

from fedmq.app.foreground import run_in_foreground
from fedmq.app.options import with_settings
from fedmq.edge_agent.evaluator import Evaluator
from fedmq.edge_agent.settings import EvaluatorSettings
from fedmq.transport.mqtt import MqttTransport


@with_settings(EvaluatorSettings)
def evaluator(settings: EvaluatorSettings) -> None:
    """Run an evaluator.

    It measures each version on test data and publishes the accuracy.
    """
    run_in_foreground(make_evaluator(settings))


def make_evaluator(settings: EvaluatorSettings) -> Evaluator:
    """An evaluator over MQTT."""
    return Evaluator(settings, lambda client_id: MqttTransport(settings.broker.mqtt(client_id=client_id)))
