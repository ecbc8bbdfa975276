"""Which codecs there are: the built-in ones in one table, others by entry point.

A package offers a codec as an entry point of group `fedmq.codecs`: the name is the codec's id, the value its
class. The group is read when an id is asked for that is not built in, and a codec is imported when it is
asked for by name, so what nobody uses costs nothing.
"""

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

from fedmq.codecs.adaptive import Budget, Threshold
from fedmq.codecs.base import (
    Codec,
    EntropyCoder,
    PositionCoder,
    Quantizer,
    SeededSparsifier,
    Sparsifier,
    Transform,
)
from fedmq.codecs.deadzone import Deadzone
from fedmq.codecs.entropy import Range
from fedmq.codecs.lowrank import LowRank
from fedmq.codecs.positions import U32, Bitmap, Rice
from fedmq.codecs.quantize import Float16, Float32, Int8
from fedmq.codecs.randomk import RandomK
from fedmq.codecs.rotate import Eden
from fedmq.codecs.rows import Rows
from fedmq.codecs.sign import Sign, Ternary
from fedmq.codecs.sparse import TopK, TopKEach
from fedmq.codecs.stochastic import QSGD
from fedmq.errors import CodecError

ENTRY_POINT_GROUP: Final = "fedmq.codecs"
_KINDS: Final = (Transform, Sparsifier, SeededSparsifier, Quantizer, PositionCoder, EntropyCoder)

BUILT_IN: Final[Mapping[str, type[Codec]]] = MappingProxyType(
    {
        "lowrank": LowRank,
        "topk": TopK,
        "topk_each": TopKEach,
        "threshold": Threshold,
        "budget": Budget,
        "randomk": RandomK,
        "float32": Float32,
        "float16": Float16,
        "int8": Int8,
        "ternary": Ternary,
        "sign": Sign,
        "qsgd": QSGD,
        "eden": Eden,
        "deadzone": Deadzone,
        "rice": Rice,
        "bitmap": Bitmap,
        "u32": U32,
        "rows": Rows,
        "range": Range,
    }
)
"""Every codec that fedmq ships, by id."""


def find_codec(codec_id: str) -> type[Codec]:
    """Return the codec with this id, built in or installed.

    Raises:
        CodecError: there is none; or two packages claim one id; or a package's codec cannot be loaded.
    """
    if built_in := BUILT_IN.get(codec_id):
        return built_in
    installed = _installed()
    if codec_id not in installed:
        known = ", ".join(sorted({*BUILT_IN, *installed}))
        raise CodecError(f"there is no codec {codec_id!r}; known are {known}")
    return _load(installed[codec_id])


def installed_codecs() -> list[type[Codec]]:
    """Every codec that can be used here, the built-in ones first.

    Raises:
        CodecError: two packages claim one id, or a package's codec cannot be loaded.
    """
    return [*BUILT_IN.values(), *(_load(entry) for _, entry in sorted(_installed().items()))]


def codec_from_config(config: Mapping[str, object]) -> Codec:
    """Build the codec that `Codec.get_config` described.

    Raises:
        CodecError: there is no such codec, or it refuses its arguments.
    """
    codec_id = config.get("id")
    if not isinstance(codec_id, str):
        raise CodecError(f"a codec's config needs its id as text, not {codec_id!r}")
    return find_codec(codec_id).from_config(config)


@functools.cache
def _installed() -> Mapping[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in BUILT_IN or entry.name in found:
            other = found[entry.name].value if entry.name in found else "fedmq itself"
            raise CodecError(
                f"codec id {entry.name!r} is offered twice, by {entry.value} and by {other}: uninstall one"
            )
        found[entry.name] = entry
    return found


def _load(entry: EntryPoint) -> type[Codec]:
    try:
        codec: object = entry.load()
    except (ImportError, AttributeError) as error:
        raise CodecError(f"codec {entry.name!r} cannot be loaded from {entry.value}: {error}") from error
    match codec:
        case type() if issubclass(codec, _KINDS) and codec.id == entry.name:
            return codec
    raise CodecError(
        f"{entry.value} is offered as codec {entry.name!r} but is not a codec class with that id"
    )
