"""Links: do connections break in the way they do when two agents share a client id? Pure.

mosquitto 2.0 says nothing when another client takes the id; there, only the pattern tells.
"""

from typing import Final

#: So many connections in a row that break sooner than so many seconds look like two agents with one id.
SHORT_LINKS: Final = 3
SHORT_LINK_SECONDS: Final = 60.0


class Links:
    """Counts connections that did not last."""

    def __init__(self) -> None:
        self._made_at: float | None = None
        self.short = 0

    def made(self, now: float) -> None:
        """A connection was made, at so many seconds."""
        self._made_at = now

    def broken(self, now: float) -> bool:
        """A connection broke, or could not be made; says whether it is time to speak of a second agent."""
        if self._made_at is None:
            return False
        self.short = self.short + 1 if now - self._made_at < SHORT_LINK_SECONDS else 0
        self._made_at = None
        return self.short > 0 and self.short % SHORT_LINKS == 0
