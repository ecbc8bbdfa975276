"""Frames: from the head of a model to its vector, with the keyframe kept on disk. No network in here.

The reader is told of a head, says which objects it lacks, takes their chunks in any order, and assembles the
vector once it has them. Everything is checked against what the head says: object ids against the content's
hash, the decoded vector against the digest (law 6). What does not match is dropped, never used.
"""

from contextlib import suppress
from pathlib import Path

from fedmq import encoding
from fedmq.codecs import Pipeline, pipeline_from_wire
from fedmq.errors import WireError
from fedmq.layout import ParamLayout
from fedmq.types import GlobalModel, ModelHead, ObjectRef, ParamVector


class FrameCache:
    """The newest keyframe's bytes, on disk, so that a device that wakes needs one small message.

    Args:
        folder: where; made when it is missing. None keeps it in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._newest: tuple[str, bytes] | None = None

    def get(self, object_id: str) -> bytes | None:
        """The content of an object, or None when it is not here or damaged."""
        if self._newest is not None and self._newest[0] == object_id:
            return self._newest[1]
        if self._folder is None:
            return None
        try:
            content = (self._folder / f"{object_id}.keyframe").read_bytes()
        except OSError:
            return None
        return content if encoding.object_id(content) == object_id else None

    def put(self, object_id: str, content: bytes) -> None:
        """Keep a keyframe instead of the one before. A full disk costs a download later, nothing else."""
        self._newest = (object_id, content)
        if self._folder is None:
            return
        temporary = self._folder / "keyframe.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self._folder / f"{object_id}.keyframe")
            for old in self._folder.glob("*.keyframe"):
                if old.stem != object_id:
                    old.unlink()
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


class FrameReader:
    """Assembles models of one layout.

    Args:
        layout: the plan's.
        cache: where keyframes are kept.
    """

    def __init__(self, layout: ParamLayout, cache: FrameCache) -> None:
        self._layout, self._cache = layout, cache
        self._head: ModelHead | None = None
        self._objects: dict[str, bytes] = {}
        self._pieces: dict[ObjectRef, dict[int, bytes]] = {}
        self._frame: tuple[str, ParamVector] | None = None

    def begin(self, head: ModelHead) -> tuple[tuple[ObjectRef, int], ...]:
        """Turn to a head, whatever came before; chunks of objects that it names, too, are kept.

        Returns:
            The chunks that are missing, each by its object and index; empty when `assemble` can be called.

        Raises:
            WireError: the head is of another layout, or announces objects that no valid model needs.
        """
        if head.fingerprint != self._layout.fingerprint:
            raise WireError(
                "model", f"layout {head.fingerprint.hex()}, the plan has {self._layout.fingerprint.hex()}"
            )
        wanted = [(head.keyframe.codec, head.keyframe.content)]
        if head.delta is not None and isinstance(head.delta.content, ObjectRef):
            wanted.append((head.delta.codec, head.delta.content))
        for codec, ref in wanted:
            high = encoding.max_payload_bytes(self._layout, pipeline_from_wire(codec))
            if ref.size > high or ref.chunks > ref.size:
                raise WireError(
                    "model", f"an object of {ref.size} bytes in {ref.chunks} chunks: at most {high}"
                )
        self._head = head
        refs = [ref for _, ref in wanted]
        ids = {ref.id for ref in refs}
        self._objects = {key: value for key, value in self._objects.items() if key in ids}
        # by the whole reference: another head may cut the same object into other chunks
        self._pieces = {ref: pieces for ref, pieces in self._pieces.items() if ref in refs}
        return tuple(
            (ref, index)
            for ref in refs
            if self._content(ref.id) is None
            for index in range(ref.chunks)
            if index not in self._pieces.get(ref, {})
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
        pieces = self._pieces.setdefault(ref, {})
        pieces[index] = data
        held = sum(map(len, pieces.values()))
        if held > ref.size or (len(pieces) == ref.chunks and held != ref.size):
            del self._pieces[ref]
            raise WireError("object", f"{held} bytes came for an object of {ref.size}")
        if len(pieces) < ref.chunks:
            return False
        content = b"".join(pieces[i] for i in range(ref.chunks))
        del self._pieces[ref]
        if encoding.object_id(content) != ref.id:
            raise WireError("object", f"the content does not hash to {ref.id}")
        self._objects[ref.id] = content
        if self._head is not None and ref == self._head.keyframe.content:
            self._cache.put(ref.id, content)
        return True

    def assemble(self) -> GlobalModel:
        """The model of the head in hand.

        Raises:
            WireError: an object is missing or cannot be decoded, or the vector does not match the digest.
        """
        head = self._head
        if head is None:
            raise WireError("model", "there is no head")
        vector = self._keyframe(head).copy()
        if head.delta is not None:
            content = head.delta.content
            payload = content if isinstance(content, bytes) else self._need(content.id)
            self._decode(head.delta.codec, payload).add_to(vector)
        if encoding.digest(vector) != head.digest:
            self._frame = None
            raise WireError("model", f"version {head.version} does not decode to the digest in its head")
        vector.flags.writeable = False
        return GlobalModel(epoch=head.epoch, version=head.version, layout=self._layout, vector=vector)

    def _keyframe(self, head: ModelHead) -> ParamVector:
        """The decoded keyframe, decoded once."""
        ref = head.keyframe.content
        if self._frame is None or self._frame[0] != ref.id:
            self._frame = ref.id, self._decode(head.keyframe.codec, self._need(ref.id)).to_dense()
            self._objects.pop(ref.id, None)  # the cache has it
        return self._frame[1]

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
