"""A pipeline's line of text, read.

    topk(0.01) | ternary | rice

A codec is its id, with its arguments as numbers in parentheses, those at the end at will when they have a default.
What a codec makes of them is its own affair, what may follow what is `pipeline`'s.
"""

import functools
import re
from dataclasses import fields
from typing import Final

from fedmq.codecs.base import (
    Codec,
    EntropyCoder,
    PositionCoder,
    Quantizer,
    SeededSparsifier,
    Sparsifier,
    Transform,
)
from fedmq.codecs.pipeline import MAX_TEXT, Pipeline, check_order
from fedmq.codecs.registry import find_codec
from fedmq.errors import CodecError, WireError

_STAGE: Final = re.compile(r"([a-z][a-z0-9_]*)(?:\(([^()]*)\))?")
_WHOLE: Final = re.compile(r"[+-]?[0-9]+")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")


@functools.lru_cache(maxsize=64)
def parse_pipeline(text: str) -> Pipeline:
    """Parse a pipeline's line of text; blanks around `|` and within parentheses do not matter.

    Raises:
        CodecError: too long, a codec that is not installed, an argument that is not allowed, or an order
            that makes no sense; the message names the piece and says what would be accepted.
    """
    if len(text) > MAX_TEXT:
        raise CodecError(f"a pipeline's text has at most {MAX_TEXT} characters, not {len(text)}")
    stages = [_parse_stage(piece.strip(" ")) for piece in text.split("|")]
    check_order(stages)
    transform, sparsifier, quantizer, positions, entropy = None, None, None, None, None
    for stage in stages:
        match stage:
            case Transform():
                transform = stage
            case Sparsifier() | SeededSparsifier():
                sparsifier = stage
            case Quantizer():
                quantizer = stage
            case PositionCoder():
                positions = stage
            case EntropyCoder():
                entropy = stage
    assert quantizer is not None  # every shape has one
    return Pipeline(
        transform=transform,
        sparsifier=sparsifier,
        quantizer=quantizer,
        positions=positions,
        entropy=entropy,
    )


def pipeline_from_wire(text: str) -> Pipeline:
    """Parse a pipeline that a peer named in a message.

    Raises:
        WireError: whatever `parse_pipeline` refuses.
    """
    try:
        return parse_pipeline(text)
    except CodecError as error:
        raise WireError("pipeline", str(error)) from error


def _parse_stage(piece: str) -> Codec:
    match = _STAGE.fullmatch(piece)
    if match is None:
        raise CodecError(f"{piece!r} is not a codec: write a name, or name(number), with | between codecs")
    name, inner = match.groups()
    codec = find_codec(name)
    names = [field.name for field in fields(codec)]
    tokens = [token.strip(" ") for token in inner.split(",")] if inner and inner.strip(" ") else []
    if len(tokens) > len(names):
        raise CodecError(f"{piece!r} has {len(tokens)} arguments; it is written {codec.usage()}")
    arguments = {key: _parse_number(token, piece) for key, token in zip(names, tokens, strict=False)}
    return codec.from_config({"id": name, **arguments})


def _parse_number(token: str, piece: str) -> int | float:
    if _WHOLE.fullmatch(token):
        return int(token)
    if _NUMBER.fullmatch(token):
        return float(token)
    raise CodecError(f"{token!r} in {piece!r} is not a number")
