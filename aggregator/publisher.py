"""The publisher: turns versions into keyframes and cumulative deltas. Pure.

A keyframe is a full model; until the next one, each version is published as its difference *from the keyframe*, so
an edge that holds the keyframe needs one small message however many versions it missed, and nothing drifts:
every delta is taken against the true model. Both ends decode the same bytes to the same bits, and the head
carries the digest of what they decode to (law 6).
"""

from dataclasses import dataclass, field

from fedmq import encoding
from fedmq.chunks import split
from fedmq.codecs import Pipeline, parse_pipeline
from fedmq.errors import CodecError, SettingError
from fedmq.settings import setting
from fedmq.types import (
    CumulativeDelta,
    GlobalModel,
    Keyframe,
    ModelHead,
    ObjectRef,
    ParamVector,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """How the model goes out."""

    keyframe_codec: str = setting("float16", help="pipeline of full models")
    delta_codec: str = setting("topk(0.1) | int8 | rice", help="pipeline of differences from the keyframe")
    keyframe_versions: int = setting(20, help="versions between full models", low=1)
    min_interval: float = setting(
        0.1, help="seconds between publishes at least; the newest version wins", low=0
    )
    chunk_bytes: int = setting(
        262_144, help="largest payload of one publish, in bytes", low=1024, high=268_435_455
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


@dataclass(slots=True, kw_only=True)
class _Frame:
    keyframe: Keyframe
    version: int
    decoded: ParamVector = field(repr=False)
    chunks: tuple[bytes, ...] = field(repr=False)


class Publisher:
    """Remembers the current keyframe, and which objects still lie on the broker.

    Raises:
        SettingError: a codec setting cannot be parsed.
    """

    def __init__(self, settings: PublishSettings) -> None:
        self._settings = settings
        self._keyframe_pipeline = codec_setting("publish.keyframe_codec", settings.keyframe_codec)
        self._delta_pipeline = codec_setting("publish.delta_codec", settings.delta_codec)
        self._frame: _Frame | None = None
        self._live: list[ObjectRef] = []
        self._dying: list[ObjectRef] = []

    def publish(self, model: GlobalModel) -> Publication:
        """The messages for a version."""
        frame = self._frame
        if frame is None or model.version - frame.version >= self._settings.keyframe_versions:
            return self._cut(model)
        payload = encoding.encode(model.layout, self._delta_pipeline, model.vector - frame.decoded)
        if len(payload) >= frame.keyframe.content.size:
            return self._cut(model)
        decoded = frame.decoded.copy()
        encoding.decode(model.layout, self._delta_pipeline, payload).add_to(decoded)
        objects: tuple[tuple[ObjectRef, tuple[bytes, ...]], ...] = ()
        content: bytes | ObjectRef = payload
        # the head's other fields need some room beside an inline delta
        if len(payload) > self._settings.chunk_bytes - 1024:
            ref, chunks = self._object(payload)
            content, objects = ref, ((ref, chunks),)
        delta = CumulativeDelta(codec=str(self._delta_pipeline), content=content)
        head = self._head(model, frame.keyframe, delta, decoded)
        kept = [frame.keyframe.content, *(ref for ref, _ in objects)]
        return Publication(head=head, objects=objects, retired=self._retire(kept))

    def adopt(self, head: ModelHead) -> None:
        """Take responsibility for the objects of a head that a former life of this process left on the broker."""
        refs = [head.keyframe.content]
        if head.delta is not None and isinstance(head.delta.content, ObjectRef):
            refs.append(head.delta.content)
        self._dying += [ref for ref in refs if ref not in self._live and ref not in self._dying]

    def keyframe_objects(self) -> tuple[tuple[ObjectRef, tuple[bytes, ...]], ...]:
        """The current keyframe's chunks, for a broker that may have lost them."""
        frame = self._frame
        return ((frame.keyframe.content, frame.chunks),) if frame else ()

    def _cut(self, model: GlobalModel) -> Publication:
        content = encoding.encode(model.layout, self._keyframe_pipeline, model.vector)
        decoded = encoding.decode(model.layout, self._keyframe_pipeline, content).to_dense()
        ref, chunks = self._object(content)
        keyframe = Keyframe(codec=str(self._keyframe_pipeline), content=ref)
        self._frame = _Frame(keyframe=keyframe, version=model.version, decoded=decoded, chunks=chunks)
        head = self._head(model, keyframe, None, decoded)
        return Publication(head=head, objects=((ref, chunks),), retired=self._retire([ref]))

    def _object(self, content: bytes) -> tuple[ObjectRef, tuple[bytes, ...]]:
        chunks = tuple(split(content, self._settings.chunk_bytes))
        ref = ObjectRef(id=encoding.object_id(content), size=len(content), chunks=len(chunks))
        return ref, chunks

    def _head(
        self, model: GlobalModel, keyframe: Keyframe, delta: CumulativeDelta | None, decoded: ParamVector
    ) -> ModelHead:
        return ModelHead(
            epoch=model.epoch,
            version=model.version,
            fingerprint=model.layout.fingerprint,
            keyframe=keyframe,
            delta=delta,
            digest=encoding.digest(decoded),
        )

    def _retire(self, live: list[ObjectRef]) -> tuple[ObjectRef, ...]:
        """Objects of the publish before last: an edge may still be pulling those of the last one."""
        retired = tuple(ref for ref in self._dying if ref not in live)
        self._dying = [ref for ref in self._live if ref not in live]
        self._live = live
        return retired
