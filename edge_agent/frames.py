"""Frames: from the head of a model to its vector, with the frames kept on disk. No network in here.

The reader is told of a head, says which objects it lacks, takes their chunks in any order, and assembles the
vector once it has them: the frames one on the other, and the delta on the last. Everything is checked against what
the head says: object ids against the content's hash, the decoded vector against the digest (law 6). What does not
match is dropped, never used.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from fedmq import encoding
from fedmq.codecs import Pipeline, pipeline_from_wire
from fedmq.errors import WireError
from fedmq.layout import ParamLayout
from fedmq.types import Frame, GlobalModel, ModelHead, ObjectRef, ParamVector
from fedmq.wire import MAX_CHUNKS

#: No frames, and what they come to.
_NOTHING: Final[tuple[tuple[Frame, ...], ParamVector]] = (), np.zeros(0, np.float32)


class FrameCache:
    """The frames' bytes, on disk, so that a device that wakes needs one small message.

    Args:
        folder: where; made when it is missing. None keeps them in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[str, bytes] = {}
        self._files: set[str] | None = None  # ids of those in the folder; None until it was looked at

    def get(self, object_id: str) -> bytes | None:
        """The content of an object, or None when it is not here or damaged."""
        if self._folder is None:
            return self._kept.get(object_id)
        try:
            content = (self._folder / f"{object_id}.frame").read_bytes()
        except OSError:
            return None
        return content if encoding.object_id(content) == object_id else None

    def put(self, object_id: str, content: bytes) -> bool:
        """Keep a frame; whether it could be. A full disk costs a download later, nothing else."""
        if self._folder is None:
            self._kept[object_id] = content
            return True
        temporary = self._folder / "frame.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self._folder / f"{object_id}.frame")
            if self._files is not None:
                self._files.add(object_id)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True

    def keep_only(self, object_ids: Collection[str]) -> None:
        """Drop all frames but these."""
        self._kept = {key: content for key, content in self._kept.items() if key in object_ids}
        if self._folder is None:
            return
        with suppress(OSError):
            if self._files is None:
                self._files = {path.stem for path in self._folder.glob("*.frame")}
            for old in self._files.difference(object_ids):
                (self._folder / f"{old}.frame").unlink(missing_ok=True)
                self._files.discard(old)


@dataclass(slots=True)
class _Pieces:
    """The chunks of an object that have come, and their length together."""

    held: int = 0
    by_index: dict[int, bytes] = field(default_factory=dict)

    def add(self, index: int, data: bytes) -> None:
        self.held += len(data) - len(self.by_index.get(index, b""))
        self.by_index[index] = data


class FrameReader:
    """Assembles models of one layout.

    Args:
        layout: the plan's.
        cache: where frames are kept.
    """

    def __init__(self, layout: ParamLayout, cache: FrameCache) -> None:
        self._layout, self._cache = layout, cache
        self._head: ModelHead | None = None
        # Objects that the cache does not have, and those that are not whole yet.
        self._objects: dict[str, bytes] = {}
        self._pieces: dict[ObjectRef, _Pieces] = {}
        # Some frames, and what they come to, one on the other.
        self._state = _NOTHING
        # The frames of the model assembled last: kept until the next one is, for a head may lead nowhere.
        self._proven: frozenset[str] = frozenset()

    def begin(self, head: ModelHead) -> tuple[tuple[ObjectRef, int], ...]:
        """Turn to a head, whatever came before; chunks of objects that it names, too, are kept.

        Returns:
            The chunks that are missing, each by its object and index; empty when `assemble` can be called.

        Raises:
            WireError: the head is of another layout, or announces objects that no valid model needs; the head
                before is still the one in hand.
        """
        self._check(head)
        self._head = head
        if head.frames[: len(self._state[0])] != self._state[0]:
            self._state = _NOTHING  # another stack: built again from what is kept
        self._cache.keep_only(self._proven | _ids(head))
        refs = [frame.content for frame in head.frames[len(self._state[0]) :]]
        if head.delta is not None and isinstance(head.delta.content, ObjectRef):
            refs.append(head.delta.content)
        ids = {ref.id for ref in refs}
        self._objects = {key: value for key, value in self._objects.items() if key in ids}
        # by the whole reference: another head may cut the same object into other chunks
        self._pieces = {ref: pieces for ref, pieces in self._pieces.items() if ref in refs}
        return tuple(
            (ref, index)
            for ref in dict.fromkeys(refs)
            if self._content(ref.id) is None
            for index in range(ref.chunks)
            if ref not in self._pieces or index not in self._pieces[ref].by_index
        )

    def add(self, ref: ObjectRef, index: int, data: bytes) -> bool:
        """Take one chunk of a missing object.

        Returns:
            Whether that object is complete now.

        Raises:
            WireError: the chunk does not fit, or the object is not what its id says; its chunks are dropped.
        """
        if not 0 <= index < ref.chunks:
            raise WireError("object", f"chunk {index} of {ref.chunks}")
        pieces = self._pieces.setdefault(ref, _Pieces())
        pieces.add(index, data)
        whole = len(pieces.by_index) == ref.chunks
        if pieces.held > ref.size or (whole and pieces.held != ref.size):
            del self._pieces[ref]
            raise WireError("object", f"{pieces.held} bytes came for an object of {ref.size}")
        if not whole:
            return False
        content = b"".join(pieces.by_index[i] for i in range(ref.chunks))
        del self._pieces[ref]
        if encoding.object_id(content) != ref.id:
            raise WireError("object", f"the content does not hash to {ref.id}")
        is_frame = self._head is not None and ref in (frame.content for frame in self._head.frames)
        if not (is_frame and self._cache.put(ref.id, content)):
            self._objects[ref.id] = content
        return True

    def assemble(self) -> GlobalModel:
        """The model of the head in hand.

        Raises:
            WireError: an object is missing or cannot be decoded, or the vector does not match the digest.
        """
        head = self._head
        if head is None:
            raise WireError("model", "there is no head")
        vector = self._stack(head).copy()
        if head.delta is not None:
            content = head.delta.content
            payload = content if isinstance(content, bytes) else self._need(content.id)
            self._decode(head.delta.codec, payload).add_to(vector)
        if encoding.digest(vector) != head.digest:
            self._state = _NOTHING  # it may be at fault
            raise WireError("model", f"version {head.version} does not decode to the digest in its head")
        self._proven = _ids(head)
        self._cache.keep_only(self._proven)
        vector.flags.writeable = False
        return GlobalModel(epoch=head.epoch, version=head.version, layout=self._layout, vector=vector)

    def _check(self, head: ModelHead) -> None:
        """Refuse a head that is not of our layout, or asks for more than a model can need."""
        layout = self._layout
        if head.fingerprint != layout.fingerprint:
            raise WireError(
                "model", f"layout {head.fingerprint.hex()}, the plan has {layout.fingerprint.hex()}"
            )
        objects = [(frame.content, frame.codec) for frame in head.frames]
        if head.delta is not None and isinstance(head.delta.content, ObjectRef):
            objects.append((head.delta.content, head.delta.codec))
        codecs = {codec for _, codec in objects}
        most = {codec: encoding.max_payload_bytes(layout, pipeline_from_wire(codec)) for codec in codecs}
        for ref, codec in objects:
            high = most[codec]
            if ref.size > high or ref.chunks > ref.size:
                raise WireError(
                    "model", f"an object of {ref.size} bytes in {ref.chunks} chunks: at most {high}"
                )
        refs = {ref for ref, _ in objects}
        size, chunks = sum(ref.size for ref in refs), sum(ref.chunks for ref in refs)
        if size > (high := encoding.max_model_bytes(layout)) or chunks > MAX_CHUNKS:
            raise WireError(
                "model", f"{size} bytes in {chunks} chunks: at most {high} in {MAX_CHUNKS} are allowed"
            )

    def _stack(self, head: ModelHead) -> ParamVector:
        """What the head's frames come to; each is decoded once."""
        known, vector = self._state
        if not known:
            vector = np.zeros(self._layout.size, np.float32)
        self._state = _NOTHING  # should a frame be missing, the vector is neither this nor that
        for frame in head.frames[len(known) :]:
            self._decode(frame.codec, self._need(frame.content.id)).add_to(vector)
        self._state = head.frames, vector
        return vector

    def _decode(self, codec: str, payload: bytes) -> encoding.DecodedVector:
        pipeline: Pipeline = pipeline_from_wire(codec)
        return encoding.decode(self._layout, pipeline, payload)

    def _need(self, object_id: str) -> bytes:
        content = self._content(object_id)
        if content is None:
            raise WireError("model", f"object {object_id} is missing")
        return content

    def _content(self, object_id: str) -> bytes | None:
        return self._objects.get(object_id) or self._cache.get(object_id)


def _ids(head: ModelHead) -> frozenset[str]:
    return frozenset(frame.content.id for frame in head.frames)
