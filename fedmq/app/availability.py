"""When a device is there: day and night, and what else makes it come and go. Pure."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from .distribution import parse_distribution
from .scenario import AvailabilitySettings

_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR
#: Seconds; a window that closes this soon is closed, so that no rounding makes one of no length.
_ROUNDING: Final = 1e-3


def periods(settings: AvailabilitySettings, random: np.random.Generator) -> Iterator[tuple[float, float]]:
    """The periods for which one device is there.

    Args:
        settings: how it comes and goes.
        random: the device's own generator.

    Yields:
        When it comes and when it goes, in seconds since the start, ascending; the last one may go at infinity. Where
        the day's window and `stays` both end a period, the earlier counts.
    """
    opens = _HOUR * (settings.opens + settings.spread * random.uniform(-0.5, 0.5))
    open_seconds = _HOUR * settings.hours
    stays = None if settings.stays is None else parse_distribution("stays", settings.stays)
    away = parse_distribution("away", settings.away)
    time = parse_distribution("joins", settings.joins).draw(random)
    while time < math.inf:
        comes, closes = time, math.inf
        if open_seconds < _DAY:
            since_opened = (time - opens) % _DAY
            if since_opened > open_seconds - _ROUNDING:
                comes, since_opened = time + _DAY - since_opened, 0.0
            closes = comes + open_seconds - since_opened
        leaves = math.inf if stays is None else comes + stays.draw(random)
        yield comes, min(closes, leaves)
        time = closes if closes <= leaves else leaves + away.draw(random)
