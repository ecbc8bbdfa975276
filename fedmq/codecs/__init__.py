"""Codecs: how a vector of parameters becomes a small message, and back.

A codec is a value with an id; a `Pipeline` of them is one line of text:

>>> import numpy as np
>>> pipeline = parse_pipeline("topk(0.5) | ternary | rice")
>>> pipeline.decode(pipeline.encode(np.array([1, -3, 0, 2], np.float32)), 4).to_dense()
array([ 0. , -2.5,  0. ,  2.5], dtype=float32)

Codecs know one flat float32 vector and its `Geometry`, which stretch of it is which matrix: no names, no messages,
no error feedback. `base` says what a codec is and how to write one, `pipeline` what the bytes are, `text` how a
line is read, `registry` which codecs there are.
"""

from fedmq.codecs.base import (
    Codec,
    CodecConfig,
    Codes,
    EntropyCoder,
    PositionCoder,
    Quantizer,
    SeededSparsifier,
    Sparsifier,
    Symbols,
    Transform,
)
from fedmq.codecs.pipeline import MAX_TEXT, Pipeline
from fedmq.codecs.registry import BUILT_IN, ENTRY_POINT_GROUP, codec_from_config, find_codec, installed_codecs
from fedmq.codecs.text import parse_pipeline, pipeline_from_wire
from fedmq.codecs.vector import FloatVector, IndexVector, SparseVector
from fedmq.geometry import MAX_LENGTH, Geometry

__all__ = [
    "BUILT_IN",
    "ENTRY_POINT_GROUP",
    "MAX_LENGTH",
    "MAX_TEXT",
    "Codec",
    "CodecConfig",
    "Codes",
    "EntropyCoder",
    "FloatVector",
    "Geometry",
    "IndexVector",
    "Pipeline",
    "PositionCoder",
    "Quantizer",
    "SeededSparsifier",
    "SparseVector",
    "Sparsifier",
    "Symbols",
    "Transform",
    "codec_from_config",
    "find_codec",
    "installed_codecs",
    "parse_pipeline",
    "pipeline_from_wire",
]
