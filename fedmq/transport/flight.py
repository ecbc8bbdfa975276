"""The publishes of one client, from the call to the outcome.

What lives here: `Flight`, which decides what may be sent next and which publish is beyond hope. What must not:
sockets, threads, clocks, and paho.
"""

from collections import deque
from dataclasses import dataclass

from fedmq.transport.base import PublishToken

STRIKES = 5  # with the default waits between connections, half a minute of trying

SERVER_SHUTTING_DOWN = 0x8B  # MQTT 5 section 3.14.2.1, as the other two
TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95


@dataclass(slots=True, kw_only=True, eq=False)
class Publish:
    """One publish on its way.

    Attributes:
        token: what its caller knows it by.
        topic: where to.
        payload: what.
        retain: keep it on the topic.
        expiry: seconds, or None.
        size: of its packet in bytes.
        strikes: how many connections broke over it.
    """

    token: PublishToken
    topic: str
    payload: bytes
    retain: bool
    expiry: float | None
    size: int
    strikes: int = 0


class Flight:
    """What waits to be sent, and what waits to be acknowledged.

    A publish that is larger than the broker takes makes the broker hang up, and would do so again on each
    connection, for ever. Where the limit is known the publish is refused before it is sent. Where it is not, the
    breaking connections tell: the broker handles publishes in order, so the oldest unacknowledged one is what
    it did not get past. After `STRIKES` such connections it is refused.

    Args:
        max_inflight: how many to send before one is acknowledged, if the broker takes as many.
    """

    def __init__(self, max_inflight: int) -> None:
        self._max_inflight = max_inflight
        self._window = max_inflight
        self._progress = False  # something was acknowledged on this connection
        self._waiting: deque[Publish] = deque()
        self._sent: dict[int, Publish] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def add(self, publish: Publish) -> None:
        """Put one at the end of the queue."""
        self._waiting.append(publish)

    def next(self) -> Publish | None:
        """What to send now, or None when there is nothing or the window is full."""
        if self._waiting and len(self._sent) < self._window:
            return self._waiting[0]
        return None

    def send(self, packet_id: int) -> None:
        """`next` was sent, with this packet id."""
        self._sent[packet_id] = self._waiting.popleft()

    def acknowledge(self, packet_id: int) -> Publish:
        """Forget what the broker acknowledged."""
        self._progress = True
        return self._sent.pop(packet_id)

    @property
    def sent_bytes(self) -> list[int]:
        """The sizes of what was sent and is not acknowledged, oldest first."""
        return [publish.size for publish in self._sent.values()]

    def opened(self, *, receive_maximum: int, largest: int) -> bool:
        """A connection came up with these limits; whether what was sent before exceeds them.

        If so it has to be taken back: `recall`.
        """
        self._progress = False
        self._window = min(self._max_inflight, receive_maximum)
        return len(self._sent) > self._window or any(size > largest for size in self.sent_bytes)

    def broke(self, reason_code: int | None) -> bool:
        """The connection broke, with the code the broker gave if any; whether something is now beyond hope.

        If so it has to be taken back, `recall`, and removed: `take_hopeless`.
        """
        if not self._sent or reason_code in (TAKEN_OVER, SERVER_SHUTTING_DOWN):
            return False
        if reason_code == PACKET_TOO_LARGE:
            culprit = max(self._sent.values(), key=lambda publish: publish.size)
        elif not self._progress:
            culprit = next(iter(self._sent.values()))
        else:
            return False
        culprit.strikes += 1
        return culprit.strikes >= STRIKES

    def recall(self) -> None:
        """What was sent waits again, in front of the others."""
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()

    def take_hopeless(self) -> list[Publish]:
        """Remove what waits and has too many strikes."""
        return self._take({publish.token for publish in self._waiting if publish.strikes >= STRIKES})

    def take_larger(self, largest: int) -> list[Publish]:
        """Remove what waits and has more bytes than that."""
        return self._take({publish.token for publish in self._waiting if publish.size > largest})

    def _take(self, tokens: set[PublishToken]) -> list[Publish]:
        taken = [publish for publish in self._waiting if publish.token in tokens]
        self._waiting = deque(publish for publish in self._waiting if publish.token not in tokens)
        return taken
