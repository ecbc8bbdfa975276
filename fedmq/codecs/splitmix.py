"""Random numbers that both ends draw alike: words of 64 bits, each a function of a seed and an index.

For what must be the same on every machine and in every release, which numpy promises of its bit streams but not of
its distributions. The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014). All operations are on unsigned integers modulo 2**64:

    mix(z):  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
             z = (z ^ (z >> 27)) * 0x94d049bb133111eb
             z =  z ^ (z >> 31)
    g       = 0x9e3779b97f4a7c15
    key     = mix(seed + g)
    word(i) = mix(key + (i + 1) * g)                                       i = 0, 1, 2, …

A seed is below 2**32. An encoder that takes it from its input, by `seed_of`, gives equal bytes for equal inputs.

>>> [f"{word:016x}" for word in draw_words(seed=1, count=3)]
['5e41ab087439611e', 'f18d6ce93d6cf1ee', '0b95f66d327e8d78']
"""

import zlib
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.codecs.bits import BitVector
from fedmq.codecs.vector import FloatVector

Words: TypeAlias = NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def seed_of(vector: FloatVector) -> int:
    """A seed that depends on every bit of a vector: the CRC-32 of its little-endian bytes."""
    return zlib.crc32(np.ascontiguousarray(vector, "<f4").data)


def draw_words(seed: int, count: int) -> Words:
    """Return words 0 to count - 1 of a seed, shape (count,)."""
    key = _mix(np.array([seed], np.uint64) + _GOLDEN)
    return _mix(np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN + key)


def draw_bits(seed: int, count: int) -> BitVector:
    """Return `count` bits: those of each word in turn, the lowest first."""
    words = draw_words(seed, -(-count // 64)).astype("<u8", copy=False)
    return np.unpackbits(words.view(np.uint8), count=count, bitorder="little")


def draw_unit(seed: int, count: int) -> FloatVector:
    """Return `count` multiples of 2**-24 in [0, 1): from each word its lower half, then its upper half.

    Of a half, the upper 24 bits count.
    """
    words = draw_words(seed, -(-count // 2)).astype("<u8", copy=False)
    halves = words.view("<u4")[:count] >> np.uint32(8)
    unit: FloatVector = halves.astype(np.float32) * np.float32(2.0**-24)
    return unit


def draw_below(words: Words, limits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Turn words into integers below limits: the upper half of the word times the limit, divided by 2**32.

    Args:
        words: shape (k,).
        limits: from 1 to 2**32 - 1 each, shape (k,). A number's chance differs from its share by at most 2**-32.
    """
    return ((words >> np.uint64(32)) * limits >> np.uint64(32)).astype(np.int64)


def _mix(z: Words) -> Words:
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
