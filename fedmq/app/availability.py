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
    shift = random.uniform(-0.5, 0.5)
    stays = None if settings.stays is None else parse_distribution("stays", settings.stays)
    away = parse_distribution("away", settings.away)
    time = parse_distribution("joins", settings.joins).draw(random)
    while time < math.inf:
        comes, closes = window(settings, shift, time)
        leaves = math.inf if stays is None else comes + stays.draw(random)
        yield comes, min(closes, leaves)
        time = closes if closes <= leaves else leaves + away.draw(random)


def window(settings: AvailabilitySettings, shift: float, time: float) -> tuple[float, float]:
    """The part of the day's window that is left at a time, or the next one.

    Args:
        settings: when it opens, and for how long.
        shift: the device's own, from -0.5 to 0.5 of `spread`.
        time: seconds since the start.

    Returns:
        When a device that wants to come at `time` may come, and when it has to go: infinity if the window never closes.
    """
    open_seconds = _HOUR * settings.hours
    if open_seconds >= _DAY:
        return time, math.inf
    since_opened = (time - _HOUR * (settings.opens + settings.spread * shift)) % _DAY
    if since_opened > open_seconds - _ROUNDING:
        # at least `time`: what is left of the day may vanish in rounding
        time, since_opened = max(time, time + _DAY - since_opened), 0.0
    return time, time + open_seconds - since_opened
