"""An MQTT broker to embed, and the control of a real mosquitto.

This folder knows nothing of federated learning and imports nothing of the rest of fedmq.

The embedded broker, from the bottom up: `wire` and `properties` (primitive types), `packets` and `decoder` (the
codec), `topics` (the two trees), `session`, `state` and `channel` (what is remembered, and of whom), `records`,
`journal` and `log` (what survives a restart), `faults` (what goes wrong on purpose), `dispatch` and `core` (the
decisions, pure), `server` and `embedded` (sockets and threads). `mosquitto` stands beside all of that.
"""

from .counters import Counters
from .embedded import EmbeddedBroker, serve
from .errors import BrokerError, MosquittoMissingError
from .faults import Fault, FaultAction, FaultPlan
from .mosquitto import Mosquitto
from .settings import BrokerSettings

__all__ = [
    "BrokerError",
    "BrokerSettings",
    "Counters",
    "EmbeddedBroker",
    "Fault",
    "FaultAction",
    "FaultPlan",
    "Mosquitto",
    "MosquittoMissingError",
    "serve",
]
