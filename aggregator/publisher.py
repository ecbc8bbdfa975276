"""The publisher: turns versions into frames and cumulative deltas. Pure.

A head names a stack of frames, each a published state of the model: the keyframe, which is whole, and on it
differences, each *from the frame below*. Until the next frame, a version is published as its difference from the
topmost one. An edge keeps the frames and downloads those that it lacks; what it missed between two frames costs it
nothing. Nothing drifts: every difference is taken from what the edges decode to the true model, so what one leaves
out the next one holds. Both ends decode the same bytes to the same bits, and the head carries the digest of what
they decode to (law 6).

Which frame the next one stands on is a matter of bytes, and of how long clients stay away (`stacking`). On the
topmost one it is small for those who are here often, and the stack grows for those who are not; on a lower one it is
larger, those above it are dropped, and who was away for a thousand versions downloads one frame instead of many; a
keyframe ends the stack.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fedmq import encoding, wire
from fedmq.chunks import split
from fedmq.codecs import Pipeline, parse_pipeline, pipeline_from_wire
from fedmq.errors import CodecError, SettingError
from fedmq.settings import setting
from fedmq.types import (
    CumulativeDelta,
    Frame,
    GlobalModel,
    ModelHead,
    ObjectRef,
    ParamVector,
)

from .absence import Absence
from .stacking import Stacking

#: What the lower frames come to is needed whenever a frame takes the place of several. The keyframe's is kept, since it
#: takes longer to decode than anything else here; those of the frames on it up to so many bytes in all.
_STATE_BYTES: Final = 4_194_304


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """How the model goes out."""

    keyframe_codec: str = setting("deadzone(0.9995) | range", help="pipeline of full models")
    frame_codec: str = setting("topk(0.03) | ternary(64) | rice", help="pipeline of frames on a frame")
    delta_codec: str = setting(
        "topk(0.02) | ternary(64) | rice", help="pipeline of differences from the last frame"
    )
    frame_versions: int = setting(3, help="versions between frames", low=1)
    max_frames: int = setting(64, help="frames that a newcomer downloads at most", low=1, high=64)
    min_interval: float = setting(
        0.03,
        help="seconds between publishes at least; the newest version wins. There is a rest of four times as long as "
        "the last one took in any case",
        low=0,
    )
    chunk_bytes: int = setting(
        262_144, help="largest payload of one publish, in bytes", low=4096, high=268_435_455
    )


def codec_setting(name: str, text: str) -> Pipeline:
    """The pipeline that a setting names.

    Raises:
        SettingError: it names none.
    """
    try:
        return parse_pipeline(text)
    except CodecError as error:
        raise SettingError(name, text, str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What to send for one version, in this order: objects, head, then clear the retired objects.

    Attributes:
        head: for the model topic.
        objects: new objects' chunks.
        retired: objects that no head refers to any more.
    """

    head: ModelHead
    objects: tuple[tuple[ObjectRef, tuple[bytes, ...]], ...]
    retired: tuple[ObjectRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFrame:
    """A frame that lies on the broker.

    Attributes:
        version: that it is of.
        codec: the pipeline that encoded it.
        content: its bytes.
    """

    version: int
    codec: str
    content: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.content)


class Publisher:
    """Remembers the stack of frames, and which objects still lie on the broker.

    Attributes:
        absence: of the clients; whoever knows of their visits notes them there.

    Raises:
        SettingError: a codec setting cannot be parsed.
    """

    def __init__(self, settings: PublishSettings) -> None:
        self.absence = Absence()
        self._settings = settings
        self._keyframe_pipeline = codec_setting("publish.keyframe_codec", settings.keyframe_codec)
        self._frame_pipeline = codec_setting("publish.frame_codec", settings.frame_codec)
        self._delta_pipeline = codec_setting("publish.delta_codec", settings.delta_codec)
        self._frames: tuple[PublishedFrame, ...] = ()
        self._decoded = np.zeros(0, np.float32)  # what the whole stack comes to
        self._below: list[ParamVector] = []  # what the keyframe comes to, with the frame on it, and so on
        self._stacking = Stacking(
            self.absence, frame_versions=settings.frame_versions, max_frames=settings.max_frames
        )
        # By id: the objects of the last head, and those of the one before that are not in it.
        self._live: dict[str, ObjectRef] = {}
        self._dying: dict[str, ObjectRef] = {}

    @property
    def frames(self) -> tuple[PublishedFrame, ...]:
        """The stack, keyframe first; empty before the first publish."""
        return self._frames

    def publish(self, model: GlobalModel) -> Publication:
        """The messages for a version."""
        before = self._frames
        if not self._frames or model.version < self._frames[-1].version:
            self._cut(model)
        elif model.version - self._frames[-1].version >= self._settings.frame_versions:
            self._advance(model)
        delta, decoded = None, self._decoded
        if model.version > self._frames[-1].version:
            payload, decoded = self._encode(model, self._delta_pipeline, self._decoded)
            delta = CumulativeDelta(codec=str(self._delta_pipeline), content=payload)
            if len(payload) >= self._frames[0].size:
                self._cut(model)
                delta, decoded = None, self._decoded
        head = ModelHead(
            epoch=model.epoch,
            version=model.version,
            fingerprint=model.layout.fingerprint,
            frames=tuple(Frame(codec=f.codec, content=self._ref(f.content)) for f in self._frames),
            delta=delta,
            digest=encoding.digest(decoded),
        )
        contents = [frame.content for frame in self._frames if frame not in before]
        if delta is not None and len(wire.pack_head(head)) > self._settings.chunk_bytes:
            contents.append(payload)
            head = replace(head, delta=replace(delta, content=self._ref(payload)))
        return Publication(
            head=head,
            objects=tuple((self._ref(content), self._chunks(content)) for content in contents),
            retired=self._retire(_objects(head)),
        )

    def adopt(self, head: ModelHead) -> None:
        """Take responsibility for the objects of a head that a former life of this process left on the broker."""
        for ref in _objects(head):
            mine = self._live if ref.id in self._live else self._dying
            mine[ref.id] = _longer(ref, mine.get(ref.id))

    def restore(self, model: GlobalModel, frames: Sequence[PublishedFrame]) -> None:
        """Go on with the stack of a former life, as `frames` told it.

        Raises:
            WireError: a frame cannot be decoded.
        """
        self._frames, self._below = (), []
        if frames and frames[-1].version <= model.version:
            self._decoded = self._state(model, frames)
            self._frames = tuple(frames)

    def frame_objects(self) -> Iterator[tuple[ObjectRef, tuple[bytes, ...]]]:
        """The chunks of all frames, for a broker that may have lost them."""
        for frame in self._frames:
            yield self._ref(frame.content), self._chunks(frame.content)

    def _cut(self, model: GlobalModel) -> None:
        """Begin a new stack with a keyframe."""
        self._stacking.begin()
        payload, self._decoded = self._encode(model, self._keyframe_pipeline, None)
        self._frames = (self._frame(model, self._keyframe_pipeline, payload),)
        self._below = []

    def _advance(self, model: GlobalModel) -> None:
        """Put a frame of this version where it costs least."""
        frames, pipeline, stacking = self._frames, self._frame_pipeline, self._stacking
        payload, decoded = self._encode(model, pipeline, self._decoded)
        stack = [(frame.version, frame.size) for frame in frames]
        # An edge refuses what is too much, and a difference behind the frames is at most as long as the keyframe.
        most = encoding.max_model_bytes(model.layout) - frames[0].size
        kept = stacking.place(model.version, stack, len(payload), most)
        if 0 < kept < len(frames):
            error = _energy(model.vector - decoded)
            state = self._state(model, frames[:kept])
            if error:  # else the codec loses nothing, and so must this frame
                pipeline = _as_good((model.vector - state)[: model.layout.trainable_size], error)
            expected = stacking.expect(stack[kept:], len(payload))
            payload, decoded = self._encode(model, pipeline, state)
            stacking.learn(expected, len(payload))
        total = sum(frame.size for frame in frames[:kept]) + len(payload)
        if kept == 0 or len(payload) >= frames[0].size or total > most:
            self._cut(model)
            return
        del self._below[kept:]
        self._keep_below(kept - 1, self._decoded if kept == len(frames) else None)
        self._frames = (*frames[:kept], self._frame(model, pipeline, payload))
        self._decoded = decoded

    def _encode(
        self, model: GlobalModel, pipeline: Pipeline, base: ParamVector | None
    ) -> tuple[bytes, ParamVector]:
        """The bytes of the model, or of its difference from a base, and what they come to."""
        difference = model.vector if base is None else model.vector - base
        payload = encoding.encode(model.layout, pipeline, difference)
        decoded = np.zeros_like(model.vector) if base is None else base.copy()
        encoding.decode(model.layout, pipeline, payload).add_to(decoded)
        return payload, decoded

    def _state(self, model: GlobalModel, frames: Sequence[PublishedFrame]) -> ParamVector:
        """What frames at the bottom of the stack come to; must not be written to."""
        if len(frames) <= len(self._below):
            return self._below[len(frames) - 1]
        state = self._below[-1] if self._below else np.zeros_like(model.vector)
        for index in range(len(self._below), len(frames)):
            state = state.copy()
            frame = frames[index]
            encoding.decode(model.layout, pipeline_from_wire(frame.codec), frame.content).add_to(state)
            self._keep_below(index, state)
        return state

    def _keep_below(self, index: int, state: ParamVector | None) -> None:
        """Keep what the frames up to this one come to, while there is room."""
        if state is None or index != len(self._below):
            return
        if not index or (index + 1) * state.nbytes <= _STATE_BYTES:
            self._below.append(state)

    def _frame(self, model: GlobalModel, pipeline: Pipeline, payload: bytes) -> PublishedFrame:
        return PublishedFrame(version=model.version, codec=str(pipeline), content=payload)

    def _chunks(self, content: bytes) -> tuple[bytes, ...]:
        return tuple(split(content, self._settings.chunk_bytes))

    def _ref(self, content: bytes) -> ObjectRef:
        chunks = -(-len(content) // self._settings.chunk_bytes)
        return ObjectRef(id=encoding.object_id(content), size=len(content), chunks=chunks)

    def _retire(self, refs: Iterable[ObjectRef]) -> tuple[ObjectRef, ...]:
        """Objects of the publish before last: an edge may still be pulling those of the last one."""
        live = {ref.id: _longer(ref, self._live.get(ref.id, self._dying.get(ref.id))) for ref in refs}
        retired = tuple(ref for object_id, ref in self._dying.items() if object_id not in live)
        self._dying = {object_id: ref for object_id, ref in self._live.items() if object_id not in live}
        self._live = live
        return retired


def _objects(head: ModelHead) -> list[ObjectRef]:
    """The objects that a head names."""
    refs = [frame.content for frame in head.frames]
    if head.delta is not None and isinstance(head.delta.content, ObjectRef):
        refs.append(head.delta.content)
    return refs


def _longer(ref: ObjectRef, known: ObjectRef | None) -> ObjectRef:
    """Of two cuts of one object the one in more chunks: they lie on the same topics, and must all be cleared."""
    return ref if known is None or known.chunks < ref.chunks else known


def _energy(vector: ParamVector) -> float:
    return float(np.square(vector, dtype=np.float64).sum())


def _as_good(difference: ParamVector, error: float) -> Pipeline:
    """A pipeline for a difference that leaves about as large an error: half by choosing coordinates, half by rounding.

    Rounding all of them, entropy-coded, would need somewhat less bytes and ten times as long, while nobody is served.
    """
    sums = np.cumsum(np.square(np.sort(np.abs(difference)), dtype=np.float64))
    kept = difference.shape[0] - int(np.searchsorted(sums, error / 2))
    share = min(max(kept / difference.shape[0], 1e-6), 1.0)
    energy = min(max(1 - error / 2 / sums[-1], 0.3), 0.9999) if sums[-1] > 0 else 0.5
    return parse_pipeline(f"topk({share:.6f}) | deadzone({energy:.4f}) | rice | range")
