"""Messages and objects that are larger than one packet: split, and put together again.

A PUBLISH that takes longer to send than the keep-alive never completes, and brokers cap the packet: so what is
larger than the plan's `chunk_bytes` travels in pieces, and `chunk_bytes` should be at most what the slowest
uplink sends in half a keep-alive.

`Reassembler` is pure: it takes pieces in any order and the time, and keeps its memory within bounds. Time is any
monotonic number of seconds.
"""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from .errors import WireError

DEFAULT_TTL: Final = 600.0
#: What Python takes to hold a piece beside its data: otherwise pieces of one byte would escape every bound.
PIECE_BYTES: Final = 200
Key = TypeVar("Key", bound=Hashable)


def checksum(data: bytes) -> bytes:
    """8 bytes of BLAKE2b, to tell two messages apart that claim the same name."""
    return hashlib.blake2b(data, digest_size=8).digest()


def split(data: bytes, chunk_bytes: int) -> list[bytes]:
    """Cut `data` into pieces of `chunk_bytes`, the last one shorter; one empty piece for no data."""
    return [data[start : start + chunk_bytes] for start in range(0, max(len(data), 1), chunk_bytes)]


@dataclass(slots=True)
class _Partial:
    count: int
    size: int
    digest: bytes
    expires: float
    held: int = 0
    pieces: dict[int, bytes] = field(default_factory=dict)


class Reassembler(Generic[Key]):
    """Puts messages together, one for each key.

    Args:
        max_message: largest whole message in bytes; larger announcements are refused at their first piece.
        max_total: bytes held for all unfinished messages, each piece with `PIECE_BYTES` more than its data;
            beyond it, new pieces are refused.
        max_partial: how many unfinished messages are held; beyond it, new ones are refused.
        ttl: seconds without a new piece after which an unfinished message is given up.
    """

    def __init__(
        self, *, max_message: int, max_total: int, max_partial: int = 1024, ttl: float = DEFAULT_TTL
    ) -> None:
        self._max_message, self._max_total, self._max_partial = max_message, max_total, max_partial
        self._ttl = ttl
        self._partials: dict[Key, _Partial] = {}
        self.held = 0

    def __len__(self) -> int:
        return len(self._partials)

    def __contains__(self, key: Key) -> bool:
        return key in self._partials

    def add(
        self, key: Key, *, index: int, count: int, size: int, digest: bytes, data: bytes, now: float
    ) -> bytes | None:
        """Take one piece.

        Args:
            key: which message.
            index: which piece, from 0.
            count: of how many.
            size: length of the whole in bytes.
            digest: `checksum` of the whole.
            data: the piece.
            now: seconds, monotonic.

        Returns:
            The whole message when this was the last missing piece, otherwise None. A piece that is there
            already changes nothing.

        Raises:
            WireError: the piece contradicts the ones before, exceeds a bound, or the whole does not match its
                digest, in which case all its pieces are dropped.
        """
        if not (0 <= index < count <= size <= self._max_message and 0 < len(data) <= size):
            raise WireError(
                "chunk", f"piece {index} of {count}, {len(data)} of {size} bytes: at most {self._max_message}"
            )
        partial = self._partials.get(key)
        if partial is None:
            if len(self._partials) >= self._max_partial:
                raise WireError("chunk", f"{self._max_partial} unfinished messages are held already")
            partial = _Partial(count, size, digest, now + self._ttl)
        elif (partial.count, partial.size, partial.digest) != (count, size, digest):
            raise WireError("chunk", "count, size or digest differ from the earlier pieces'")
        if index in partial.pieces:
            return None
        if partial.held + len(data) > size:
            raise WireError("chunk", f"the pieces exceed the announced {size} bytes")
        if self.held + len(data) + PIECE_BYTES > self._max_total:
            raise WireError("chunk", f"the unfinished messages exceed {self._max_total} bytes")
        partial.pieces[index] = data
        partial.held += len(data)
        partial.expires = now + self._ttl
        self.held += len(data) + PIECE_BYTES
        self._partials[key] = partial
        if len(partial.pieces) < count:
            return None
        self.drop(key)
        whole = b"".join(partial.pieces[i] for i in range(count))
        if len(whole) != size or checksum(whole) != digest:
            raise WireError("chunk", "the whole does not match its size and digest")
        return whole

    def held_for(self, key: Key) -> int:
        """Bytes held for one message, counted as `held` counts them."""
        partial = self._partials.get(key)
        return partial.held + PIECE_BYTES * len(partial.pieces) if partial else 0

    def drop(self, key: Key) -> None:
        """Forget what is held for a key."""
        self.held -= self.held_for(key)
        self._partials.pop(key, None)

    def expire(self, now: float) -> list[Key]:
        """Give up what has waited too long for its next piece, and return its keys."""
        late = [key for key, partial in self._partials.items() if partial.expires <= now]
        for key in late:
            self.drop(key)
        return late
