"""Pace: how many updates a second one client may have judged. Pure.

Without it a client that sends valid updates as fast as it can would take all of the aggregator's time, journal and
model. What is beyond its pace is dropped before it is judged, with a notice, which costs little; its client keeps it
and sends it again. A bucket of tokens for each client: one for each update, so many new ones a second.
"""

from typing import Final

from fedmq.wire import MAX_RECEIPT_ENTRIES

#: What an outbox can hold may always come at once: after a reconnect, it does.
LEAST_BURST: Final = 2 * MAX_RECEIPT_ENTRIES
#: Buckets after which those that are full again are forgotten.
_SWEEP: Final = 1024


class Pace:
    """The buckets.

    Args:
        rate: updates a second of one client. A second's worth may come at once, or `LEAST_BURST` if that is more.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._burst = rate, max(rate, LEAST_BURST)
        # By client: when its bucket will be full again. Those that are full need no entry.
        self._full_at: dict[str, float] = {}
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        return len(self._full_at)

    def admits(self, client: str, now: float) -> bool:
        """Take a token of a client's, if it has one.

        Args:
            client: whose update it is.
            now: seconds, monotonic.
        """
        full_at = max(self._full_at.get(client, now), now) + 1 / self._rate
        if full_at - now > self._burst / self._rate:
            return False
        self._full_at[client] = full_at
        if len(self._full_at) > self._sweep_at:
            self._full_at = {name: time for name, time in self._full_at.items() if time > now}
            self._sweep_at = max(_SWEEP, 2 * len(self._full_at))
        return True
