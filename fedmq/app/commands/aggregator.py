"""`fedmq aggregator`."""

from fedmq.aggregator.service import Service
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.store import Store
from fedmq.app.foreground import run_in_foreground
from fedmq.app.options import with_settings
from fedmq.app.tutor import make_tutor
from fedmq.plan import DEFAULT_CHUNK_BYTES
from fedmq.transport.mqtt import MqttTransport

#: Room for topic and header beside a chunk's bytes.
_PACKET_OVERHEAD = 1024


@with_settings(AggregatorSettings)
def aggregator(settings: AggregatorSettings) -> None:
    """Run the aggregator.

    It folds updates as they arrive and publishes the model.
    """
    run_in_foreground(make_aggregator(settings))


def make_aggregator(settings: AggregatorSettings) -> Service:
    """An aggregator over MQTT.

    Raises:
        FedmqError: see `Store` and `Service`.
    """
    broker = settings.broker
    # A client that has not seen the plan yet sends chunks of the default size.
    largest = max(settings.publish.chunk_bytes, DEFAULT_CHUNK_BYTES) + _PACKET_OVERHEAD
    store = Store(settings.store.path)
    try:
        return Service(
            settings,
            store,
            lambda client_id, will, expiry: MqttTransport(
                broker.mqtt(
                    client_id=client_id,
                    will=will,
                    session_expiry=expiry,
                    receive_maximum=min(2 * settings.store.batch_size, 65_535),
                    maximum_packet_size=largest,
                    max_queued=4096,
                )
            ),
            tutor=make_tutor(settings),
        )
    except BaseException:
        store.close()
        raise
