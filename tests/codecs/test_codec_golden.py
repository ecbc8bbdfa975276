"""Bytes that every release decodes to the same bits, and encodes the same.

`tests/golden/codecs/<name>.bin` holds the payload of the vector below. The files are never regenerated in
place: when an encoding must change, it gets a new codec id, and these files stay.

The vector has 257 coordinates: `((i * 2654435761) mod 2**32) mod 2000003 - 1000001`, divided by 2**20 for even
i and by 2**24 for odd i. Its values are exact in float32 but not in float16; their sums are exact in float64. It counts
as a matrix of 16 rows and 16 columns and one value more.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fedmq.codecs import BUILT_IN, Geometry, parse_pipeline

FOLDER = Path(__file__).parent.parent / "golden" / "codecs"
GEOMETRY = Geometry(((16, 16), (1, 1)))

GOLDEN = {
    "float32": ("float32", "9ee785316d282711ef2231f17c7829c8"),
    "float16": ("float16", "ee590062c1597ec1a9218e72ca2ae0f6"),
    "int8": ("int8", "404b1fdca9e4ab3e5005fa132282dfd3"),
    "int8-64": ("int8(64)", "5858ab24308f6191919d06c42c8eeb49"),
    "topk-0.1-ternary-rice": ("topk(0.1) | ternary | rice", "c400b875f23c30d339e2790de9f256c3"),
    "topk-0.1-int8-rice": ("topk(0.1) | int8 | rice", "907618f5489e359a23e542986f38202f"),
    "topk-0.1-float16-bitmap": ("topk(0.1) | float16 | bitmap", "d1a878fd15c68ce849512a5211a0cc17"),
    "topk-0.05-float32-u32": ("topk(0.05) | float32 | u32", "888e11e4dcb127941572a715c64db92d"),
    "topk_each-0.1-float16-u32": ("topk_each(0.1) | float16 | u32", "2e76fe17aa70acc1eafb1c92021e7a32"),
    "threshold-0.8-0.2-int8-rice": ("threshold(0.8, 0.2) | int8 | rice", "0d363dcd50fd57af17c578ac811a55e7"),
    "budget-64-ternary-rice": ("budget(64) | ternary | rice", "4065b8e3c5fca8ac04a9cb22af79786b"),
    "randomk-0.1-float16": ("randomk(0.1) | float16", "cc2fbb6b17a946ea57d29fbd667e8710"),
    "topk-0.1-ternary-8-rice": ("topk(0.1) | ternary(8) | rice", "e6174179886fa732fb2473433ffa2ecc"),
    "sign-64": ("sign(64)", "9cc9d3d71a32d79cdf12c8bb6b598123"),
    "qsgd-2": ("qsgd(2)", "cb90cd8728a5520c92fafce74d7beb8a"),
    "qsgd-4-64": ("qsgd(4, 64)", "e19a8f06da8ac6a2d9917104182d9265"),
    "qsgd-8": ("qsgd(8)", "11891d0e37c8e7ee472b5ca45a7d2d15"),
    "eden-1": ("eden(1)", "71bffd2a00c770a06a1be7256757ea51"),
    "eden-2-1": ("eden(2, 1)", "f471fdabba553159a2699f3cd63b49b4"),
    "eden-3": ("eden(3)", "526415a92f2e280f2fa86932e851ae74"),
    "eden-4": ("eden(4)", "aca1eceec3bd4d03f4a5f29c1474dc33"),
    "lowrank-2-float16": ("lowrank(2) | float16", "585d5bc5fd3cf6f1f14482ca8b780786"),
    "topk-0.1-ternary-rows": ("topk(0.1) | ternary | rows", "c400b875f23c30d339e2790de9f256c3"),
    "topk-0.5-float16-rows": ("topk(0.5) | float16 | rows", "abb24ddd67c40c5f658531ccd5909988"),
    "topk-0.9-float16-rows": ("topk(0.9) | float16 | rows", "fb9cc84528d698a8d694b344cef6e3d0"),
    "deadzone-0.9": ("deadzone(0.9)", "ffa6570f06fe335ae18caa09b1cb1c70"),
    "deadzone-0.9-range": ("deadzone(0.9) | range", "ffa6570f06fe335ae18caa09b1cb1c70"),
    "deadzone-0.9999-0.5-range": ("deadzone(0.9999, 0.5) | range", "e4d9d084f6252995b1e353b1b0680493"),
    "float16-range": ("float16 | range", "ee590062c1597ec1a9218e72ca2ae0f6"),
}


def golden_vector() -> np.ndarray:
    """The documented vector."""
    i = np.arange(257, dtype=np.uint64)
    whole = (i * 2654435761 % 2**32 % 2000003).astype(np.int64) - 1000001
    return (whole / np.where(i % 2 == 0, 2**20, 2**24)).astype(np.float32)


golden = pytest.mark.parametrize("name", GOLDEN)


def test_every_built_in_codec_and_every_file_is_golden() -> None:
    """A codec without a golden file could change unnoticed; a file without a test is one already."""
    ids = {stage.id for text, _ in GOLDEN.values() for stage in parse_pipeline(text).stages}

    assert set(BUILT_IN) == ids
    assert {path.stem for path in FOLDER.iterdir()} == set(GOLDEN)


@golden
def test_golden_bytes_decode_to_the_same_bits(name: str) -> None:
    """The digest (BLAKE2s, 16 bytes) is of the dense vector as little-endian float32."""
    text, digest = GOLDEN[name]
    decoded = parse_pipeline(text).decode((FOLDER / f"{name}.bin").read_bytes(), GEOMETRY).to_dense()

    assert digest == hashlib.blake2s(decoded.astype("<f4").tobytes(), digest_size=16).hexdigest()


@golden
def test_the_golden_vector_encodes_to_the_golden_bytes(name: str) -> None:
    """Encoders may be improved, so this may be given up for one; decoding may not."""
    text, _ = GOLDEN[name]

    assert (FOLDER / f"{name}.bin").read_bytes() == parse_pipeline(text).encode(golden_vector(), GEOMETRY)
