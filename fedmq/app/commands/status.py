"""`fedmq status`."""

from rich.console import Console

from fedmq.app.options import with_settings
from fedmq.app.status import StatusSettings, show_status


@with_settings(StatusSettings)
def status(settings: StatusSettings) -> None:
    """Show what a running federation says of itself: model, aggregator, clients, accuracy."""
    show_status(settings, Console())
