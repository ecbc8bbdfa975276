"""Error-bounded compressors that APPFL ships, as codecs, so that they run in the same federation as ours.

APPFL (FedSZ: Wilkins et al. 2024, arXiv:2312.13461) compresses each update with SZ2, SZ3, SZx or ZFP under a bound on
the error relative to the range of the values; 1 % is what FedSZ recommends. Here the bound is for the whole vector, and
what the compressor leaves out is kept by error feedback, which APPFL does not have: both are in its favour. SZ3 needs
the package pysz, ZFP the package zfpy; neither is a dependency.
"""

import importlib
from abc import abstractmethod
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from typing import Any, ClassVar, Final

import numpy as np

from fedmq.codecs import registry
from fedmq.codecs.base import Codes, EntropyCoder
from fedmq.codecs.bits import Reader
from fedmq.codecs.vector import IndexVector
from fedmq.geometry import Geometry

_PACKAGES: Final = {"sz3": "pysz", "zfp": "zfpy"}
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _ErrorBounded(EntropyCoder):
    """Takes the bits of float32 values, and gives back those of values near them."""

    bound: float

    def encode(self, codes: Codes, bits: int, indices: IndexVector | None, geometry: Geometry) -> bytes:
        """The length, and what the compressor makes of the values."""
        payload = self._compress(codes.view(np.float32))
        return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload

    def decode(
        self, reader: Reader, count: int, bits: int, indices: IndexVector | None, geometry: Geometry
    ) -> Codes:
        """The values' bits. Nothing here is hostile: both ends are this benchmark."""
        size = int.from_bytes(reader.take(_LENGTH_BYTES, self.id), "little")
        values = self._decompress(bytes(reader.take(size, self.id)), count)
        return np.ascontiguousarray(values, np.float32).view(np.uint32)

    def max_bytes(self, count: int, bits: int, geometry: Geometry) -> int:
        """What cannot be compressed grows a little."""
        return 8 * count + 65_536

    @abstractmethod
    def _compress(self, values: np.ndarray) -> bytes:
        """Float32 values as bytes, within the bound."""

    @abstractmethod
    def _decompress(self, payload: bytes, count: int) -> np.ndarray:
        """So many values of such bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sz3(_ErrorBounded):
    """SZ3 (Liang et al. 2023)."""

    id: ClassVar[str] = "sz3"

    def _compress(self, values: np.ndarray) -> bytes:
        pysz: Any = importlib.import_module("pysz")
        config = pysz.szConfig(values.shape)
        config.errorBoundMode, config.relErrorBound = pysz.szErrorBoundMode.REL, self.bound
        packed, _ = pysz.sz.compress(np.ascontiguousarray(values), config)
        return bytes(packed.tobytes())

    def _decompress(self, payload: bytes, count: int) -> np.ndarray:
        pysz: Any = importlib.import_module("pysz")
        values: np.ndarray = pysz.sz.decompress(np.frombuffer(payload, np.uint8), np.float32, (count,))[0]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Zfp(_ErrorBounded):
    """ZFP (Lindstrom 2014), fixed accuracy."""

    id: ClassVar[str] = "zfp"

    def _compress(self, values: np.ndarray) -> bytes:
        zfpy: Any = importlib.import_module("zfpy")
        return bytes(zfpy.compress_numpy(values, tolerance=self.bound * float(np.ptp(values))))

    def _decompress(self, payload: bytes, count: int) -> np.ndarray:
        zfpy: Any = importlib.import_module("zfpy")
        values: np.ndarray = zfpy.decompress_numpy(payload)
        return values


def offer() -> dict[str, str]:
    """Offer those whose packages are here as if they were installed as codecs.

    Returns:
        For each id whether it can be used: its package, or why not.
    """
    there = {name: package for name, package in _PACKAGES.items() if find_spec(package) is not None}
    entries = {
        name: EntryPoint(
            name=name, value=f"benchmarks.bytes_peers:{name.capitalize()}", group=registry.ENTRY_POINT_GROUP
        )
        for name in there
    }
    installed = registry._installed()
    registry._installed = lambda: {**installed, **entries}  # type: ignore[assignment]  # it is cached
    return there
