"""Links in virtual time: a transport that tells when it wants to be polled, and the wire between it and the broker."""

from collections.abc import Callable

from fedmq.transport.base import Event, PublishToken, Will
from fedmq.transport.memory import MemoryBroker, MemoryTransport

from .scenario import LinkSettings
from .virtual_time import Agenda


class VirtualWire:
    """A line to the broker and one back, each of which carries its packets one after the other.

    Args:
        agenda: virtual time.
        settings: how fast.
        wake: called when something has come down.
    """

    def __init__(self, agenda: Agenda, settings: LinkSettings, wake: Callable[[], None]) -> None:
        self._agenda, self._settings, self._wake = agenda, settings, wake
        self._up_free = self._down_free = 0.0

    def up(self, size: int, arrive: Callable[[], None]) -> None:
        """Carry a packet to the broker."""
        self._up_free = self._sent(size, self._settings.up, self._up_free)
        self._arrive(self._up_free, arrive)

    def down(self, size: int, arrive: Callable[[], None]) -> None:
        """Carry a packet to the client, and wake it."""

        def arrive_and_wake() -> None:
            arrive()
            self._wake()

        self._down_free = self._sent(size, self._settings.down, self._down_free)
        self._arrive(self._down_free, arrive_and_wake)

    def _sent(self, size: int, rate: float | None, free: float) -> float:
        """When the last bit has left."""
        return max(free, self._agenda.now) + (size / rate if rate else 0.0)

    def _arrive(self, sent: float, arrive: Callable[[], None]) -> None:
        time = sent + self._settings.latency
        if time > self._agenda.now:
            self._agenda.at(time, arrive)
        else:
            arrive()


class VirtualTransport(MemoryTransport):
    """A transport whose waiting is somebody else's business.

    Attributes:
        taken: events that were polled.
        patience: how many seconds the poll would have waited that found nothing.
        published: told of each publish.
    """

    def __init__(
        self, broker: MemoryBroker, client_id: str, will: Will, expiry: int, wire: VirtualWire
    ) -> None:
        super().__init__(
            broker, client_id, will=will, clean_start=expiry == 0, session_expiry=expiry, wire=wire
        )
        self.taken = 0
        self.patience = 0.0
        self.published: Callable[[str, bytes], None] = lambda topic, payload: None

    def poll(self, timeout: float | None = None) -> Event | None:
        """Take the next event; when there is none, note for how long it would have been waited for."""
        event = super().poll(timeout)
        if event is None:
            self.patience = 0.0 if timeout is None else timeout
        else:
            self.taken += 1
        return event

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry: float | None = None
    ) -> PublishToken:
        """Publish, and tell of it."""
        self.published(topic, payload)
        return super().publish(topic, payload, retain=retain, expiry=expiry)

    def exhaust(self, turn: Callable[[], None]) -> float:
        """Let a party take turns until one finds no event.

        Returns:
            Seconds after which it wants to look again.
        """
        while True:
            taken = self.taken
            turn()
            if taken == self.taken:
                return self.patience
