"""The spool: updates that arrive in chunks, until they are whole. Pure; the store keeps the pieces.

A chunk is acknowledged once it is durable, like an update: otherwise the unfinished chunks of a few slow clients
would fill the broker's window and stop everybody. Memory is bounded, and shared fairly: when it is full, the client
that holds most of it gives way, so that nobody can shut the others out with updates that never end.
"""

from collections.abc import Callable, Iterable

from fedmq import wire
from fedmq.chunks import DEFAULT_TTL, PIECE_BYTES, Reassembler
from fedmq.envelope import MAX_DETAIL, Kind, kind_of
from fedmq.errors import StoreError, WireError
from fedmq.types import Chunk, Refusal, Rejection, UpdateId

from .decision import Arrival
from .store import ChunkChanges

#: Unfinished updates that one client may have at a time; an agent sends one after the other.
_PARTIALS_PER_CLIENT = 4
#: In all.
_PARTIALS = 1024


class Spool:
    """Turns messages from the update topics into arrivals.

    Args:
        is_settled: whether an update was folded or refused before; its chunks are not kept again.
        max_update_bytes: a larger update is refused at its first chunk.
        max_bytes: held for all unfinished updates together.
        ttl: seconds without a new piece after which an update is given up; its client sends it again.
    """

    def __init__(
        self,
        *,
        is_settled: Callable[[UpdateId], bool],
        max_update_bytes: int,
        max_bytes: int,
        ttl: float = DEFAULT_TTL,
    ) -> None:
        self._is_settled, self._max_update_bytes = is_settled, max_update_bytes
        self._reassembler: Reassembler[UpdateId] = Reassembler(
            max_message=max_update_bytes, max_total=max_bytes, max_partial=_PARTIALS, ttl=ttl
        )
        self._max_bytes = max_bytes
        # By client: its unfinished updates, the oldest first.
        self._partials: dict[str, dict[UpdateId, None]] = {}
        self._added: list[tuple[UpdateId, int, bytes]] = []
        self._dropped: dict[UpdateId, None] = {}
        # Made whole since the last `take_changes`: settled soon, but `is_settled` does not know it yet.
        self._completed: set[UpdateId] = set()

    def restore(self, envelopes: Iterable[bytes], now: float) -> None:
        """Take the pieces that a former life of the process made durable.

        Raises:
            StoreError: one of them is no chunk.
        """
        for envelope in envelopes:
            try:
                chunk = wire.unpack_chunk(envelope)
            except WireError as error:
                raise StoreError(f"a chunk in the store is damaged ({error}): run fedmq verify") from error
            try:
                self._add(chunk, now)
            except WireError:  # the bounds are narrower than they were; the client sends it again
                self._release(chunk.id)

    def take(self, client: str, message: bytes, now: float) -> Arrival | None:
        """Take one message.

        Args:
            client: whose topic it came on.
            message: untrusted bytes.
            now: seconds, monotonic.

        Returns:
            An arrival to judge, or None when the message was a chunk and more are to come.
        """
        try:
            if kind_of(message) is not Kind.CHUNK:
                return Arrival(client=client, message=message)
            chunk = wire.unpack_chunk(message)
        except WireError:
            return Arrival(client=client, message=message)  # the engine finds the same and counts it
        if chunk.id.client != client:
            detail = f"the chunk names {chunk.id.client}, it came on the topic of {client}"
            return _drop(client, Rejection.FOREIGN_CLIENT, detail)
        if chunk.id in self._completed or self._is_settled(chunk.id):
            return Arrival(client=client, message=b"", id=chunk.id)
        if chunk.size > self._max_update_bytes:
            detail = f"{chunk.size} bytes announced, at most {self._max_update_bytes} are allowed"
            refusal = Refusal(reason=Rejection.TOO_LARGE, detail=detail)
            return Arrival(client=client, message=b"", id=chunk.id, refusal=refusal)
        if chunk.id not in self._reassembler and len(self._partials.get(client, ())) >= _PARTIALS_PER_CLIENT:
            return _drop(client, Rejection.QUOTA, f"{_PARTIALS_PER_CLIENT} updates are unfinished already")
        if not self._make_room(chunk):
            detail = f"the unfinished updates of all clients would exceed {self._max_bytes} bytes"
            return _drop(client, Rejection.QUOTA, detail)
        held = self._reassembler.held
        try:
            whole = self._add(chunk, now)
        except WireError as error:
            # Perhaps cut anew after the plan changed: forget the pieces, the client sends them all again.
            self._release(chunk.id)
            return _drop(client, Rejection.UNREADABLE, str(error))
        if whole is None:
            if self._reassembler.held > held:  # not a piece that was there already
                self._added.append((chunk.id, chunk.index, message))
            return None
        self._release(chunk.id)
        self._completed.add(chunk.id)
        return Arrival(client=client, message=whole)

    def expire(self, now: float) -> None:
        """Give up what has waited too long."""
        for update_id in self._reassembler.expire(now):
            self._release(update_id)

    def take_changes(self) -> ChunkChanges:
        """What the store must do since the last call."""
        changes = ChunkChanges(dropped=tuple(self._dropped), added=tuple(self._added))
        self._added, self._dropped, self._completed = [], {}, set()
        return changes

    def _make_room(self, chunk: Chunk) -> bool:
        """Give up updates of those who hold most, as far as a chunk needs it and they hold more than its client."""
        size = len(chunk.data) + PIECE_BYTES
        while not self._has_room(chunk, size):
            heaviest = max(self._partials, key=self._held_by, default=chunk.id.client)
            if self._held_by(heaviest) <= self._held_by(chunk.id.client) + size:
                return False
            self._release(next(iter(self._partials[heaviest])))
        return True

    def _has_room(self, chunk: Chunk, size: int) -> bool:
        is_countable = chunk.id in self._reassembler or len(self._reassembler) < _PARTIALS
        return is_countable and self._reassembler.held + size <= self._max_bytes

    def _held_by(self, client: str) -> int:
        return sum(map(self._reassembler.held_for, self._partials.get(client, ())))

    def _add(self, chunk: Chunk, now: float) -> bytes | None:
        self._partials.setdefault(chunk.id.client, {})[chunk.id] = None
        return self._reassembler.add(
            chunk.id,
            index=chunk.index,
            count=chunk.count,
            size=chunk.size,
            digest=chunk.digest,
            data=chunk.data,
            now=now,
        )

    def _release(self, update_id: UpdateId) -> None:
        self._reassembler.drop(update_id)
        self._dropped[update_id] = None
        self._added = [piece for piece in self._added if piece[0] != update_id]
        of_client = self._partials.get(update_id.client, {})
        of_client.pop(update_id, None)
        if not of_client:
            self._partials.pop(update_id.client, None)


def _drop(client: str, reason: Rejection, detail: str) -> Arrival:
    refusal = Refusal(reason=reason, detail=detail[:MAX_DETAIL])
    return Arrival(client=client, message=b"", refusal=refusal)
