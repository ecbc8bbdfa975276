"""`fedmq demo`."""

import logging
import sys

from rich.console import Console

from fedmq.app.demo import DemoSettings, run_demo
from fedmq.app.options import with_settings


@with_settings(DemoSettings)
def demo(settings: DemoSettings) -> None:
    """Watch ten edge agents teach a model.

    Everything runs on this machine, over real MQTT.

    Ends with status 0 when the target accuracy is reached.
    """
    if logging.getLogger().level == logging.INFO:
        logging.getLogger().setLevel(logging.WARNING)  # each role has a log of its own in the run's folder
    report = run_demo(settings, Console())
    if report.seconds_to_target is None:
        sys.exit(1)
