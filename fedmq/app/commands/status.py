"""`fedmq status`."""

from rich.console import Console

from fedmq.app.options import with_settings
from fedmq.app.status import StatusSettings, show_status


@with_settings(StatusSettings)
def status(settings: StatusSettings) -> None:
    """Show how a running federation is.

    Model, aggregator, clients, accuracy: what its retained topics say.
    """
    show_status(settings, Console())
