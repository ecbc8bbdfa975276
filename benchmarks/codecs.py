"""Codecs one by one: bits against their limit, error, and time against copying the vector.

    python -m benchmarks.codecs

On two kinds of vector: made up, where closed forms say what is possible, and recorded from training
(`benchmarks.recording`), which is what counts. Limits: for positions kept at random with probability p the entropy
H(p)/p for each; for symbols their zero-order entropy; for EDEN the error of the Lloyd-Max quantiser of a normal
distribution (Vargaftik et al. 2022). Times are the fastest of some repeats, and stand beside the time of a
copy of the same vector.
"""

import importlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.codecs_plot import plot
from benchmarks.harness import Row, parse_options, print_table, spread, write_result
from benchmarks.recording import record
from fedmq.app.codec_trial import Sample, try_pipeline
from fedmq.codecs import Geometry, IndexVector, find_codec, parse_pipeline
from fedmq.types import ParamVector

_SHARES: Final = (0.0025, 0.005, 0.01, 0.02, 0.04)
_POSITIONS: Final = ("rice", "rows", "bitmap")
_DENSE: Final = (
    *("float32", "float16", "int8", "qsgd(8)", "qsgd(4)", "qsgd(2)", "sign"),
    *("eden(4)", "eden(3)", "eden(2)", "eden(1)", "int8 | range", "qsgd(4) | range"),
    *("deadzone(0.99) | range", "deadzone(0.95) | range", "deadzone(0.9) | range", "deadzone(0.8) | range"),
)
_SPARSE: Final = (
    *("topk(0.01) | float32 | u32", "topk(0.01) | int8 | rice", "topk(0.01) | ternary | rice"),
    *(
        "topk(0.01) | ternary | rows",
        "topk(0.01) | ternary | rows | range",
        "topk(0.04) | ternary | rows | range",
    ),
    *("topk_each(0.01) | ternary | rows | range", "randomk(0.05) | float16", "lowrank(2) | float16"),
)
#: vNMSE of the unbiased and of the least biased scale at 1 to 4 bits: D / (1 − D) and D of Lloyd-Max for N(0, 1).
_EDEN: Final = {1: (0.571, 0.363), 2: (0.133, 0.117), 3: (0.0358, 0.0345), 4: (0.0096, 0.0095)}
_LONG: Final = 1_000_000


def entropy_per_kept(p: float) -> float:
    """Bits of a position kept at random with probability p: H(p) / p."""
    return -math.log2(p) - (1 - p) / p * math.log2(1 - p)


def _position_bits(coder: str, indices: IndexVector, geometry: Geometry) -> float:
    codec = find_codec(coder)()
    return 8 * len(codec.encode(indices, geometry)) / len(indices)  # type: ignore[attr-defined]  # a PositionCoder


def _largest(vector: ParamVector, share: float) -> IndexVector:
    count = max(1, round(share * vector.size))
    return np.sort(np.argpartition(np.abs(vector), -count)[-count:]).astype(np.int32)


def position_rows(updates: Sequence[ParamVector], geometry: Geometry, seed: int) -> list[Row]:
    """Bits for each kept position: at random, against the entropy; and of real updates, which cluster."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for share in _SHARES:
        count = round(share * geometry.length)
        uniform = [
            np.sort(rng.choice(geometry.length, count, replace=False)).astype(np.int32) for _ in range(5)
        ]
        real = [_largest(update, share) for update in updates]
        limit = entropy_per_kept(share)
        for coder in _POSITIONS:
            if coder == "bitmap" and share < max(_SHARES):
                continue
            row: dict[str, str | int | float | None] = {"codec": coder, "kept": share, "limit_bits": limit}
            for kind, positions in (("uniform", uniform), ("real", real)):
                bits = [_position_bits(coder, indices, geometry) for indices in positions]
                middle, low, high = spread(bits)
                row[f"{kind}_bits"], row[f"{kind}_to_limit"] = middle, middle / limit
                row[f"{kind}_range"] = f"{low:.2f} … {high:.2f}"
            rows.append(row)
    return rows


def _symbol_entropy(text: str, sample: Sample) -> float | None:
    """Bits for each coordinate that the quantiser's symbols have at zero order; None for other shapes."""
    pipeline = parse_pipeline(text)
    if pipeline.sparsifier is not None or pipeline.transform is not None or pipeline.entropy is None:
        return None
    codes = pipeline.quantizer.quantize(sample.vector).codes
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def pipeline_rows(samples: Sequence[Sample], copy_ms: float) -> list[Row]:
    """Bits, error and time of whole pipelines; the median over samples."""
    rows: list[Row] = []
    for text in (*_DENSE, *_SPARSE):
        trials = [try_pipeline(text, sample) for sample in samples]
        limits = [limit for sample in samples if (limit := _symbol_entropy(text, sample)) is not None]
        error, low, high = spread([trial.error for trial in trials])
        encode_ms = spread([trial.encode_ms for trial in trials])[0]
        decode_ms = spread([trial.decode_ms for trial in trials])[0]
        rows.append(
            {
                "pipeline": text,
                "sample": samples[0].name,
                "bits": spread([trial.bits for trial in trials])[0],
                "limit_bits": spread(limits)[0] if limits else None,
                "error": error,
                "error_range": f"{low:.4f} … {high:.4f}",
                "encode_ms": encode_ms,
                "decode_ms": decode_ms,
                "encode_copies": encode_ms / copy_ms,
                "decode_copies": decode_ms / copy_ms,
            }
        )
    return rows


def eden_rows(seed: int) -> list[Row]:
    """EDEN's error on normal vectors beside theory, for both scales."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for bits, theory in _EDEN.items():
        for unbiased, expected in zip((1, 0), theory, strict=True):
            text = f"eden({bits}, {unbiased})"
            vectors = [rng.standard_normal(101_770).astype(np.float32) for _ in range(5)]
            errors = [
                try_pipeline(text, Sample(name="", vector=v, geometry=Geometry.flat(v.size))).error
                for v in vectors
            ]
            middle, low, high = spread(errors)
            rows.append(
                {
                    "pipeline": text,
                    "vnmse": middle,
                    "vnmse_range": f"{low:.4f} … {high:.4f}",
                    "theory": expected,
                    "to_theory": middle / expected,
                }
            )
    return rows


def zfp_rows(samples: Sequence[Sample]) -> list[Row]:
    """Compress by zfp with a bound on the error, one of the compressors that APPFL ships; nothing without zfpy."""
    try:
        zfpy = importlib.import_module("zfpy")
    except ImportError:
        return [{"pipeline": "zfp: the package zfpy is not installed", "sample": samples[0].name}]
    rows: list[Row] = []
    for bound in (1e-2, 1e-1):
        bits, errors = [], []
        for sample in samples:
            payload = zfpy.compress_numpy(sample.vector, tolerance=bound * float(np.ptp(sample.vector)))
            wrong = zfpy.decompress_numpy(payload).astype(np.float64) - sample.vector
            bits.append(8 * len(payload) / sample.vector.size)
            errors.append(float((wrong**2).sum() / np.square(sample.vector, dtype=np.float64).sum()))
        rows.append(
            {
                "pipeline": f"zfp, error within {bound:g} of the range",
                "sample": samples[0].name,
                "bits": spread(bits)[0],
                "error": spread(errors)[0],
            }
        )
    return rows


def _copy_ms(vector: ParamVector) -> float:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        vector.copy()
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


def main() -> None:
    """Run, print, write, draw."""
    options = parse_options("codecs", "codecs one by one: bits, error, time")
    recording = record(updates=60 if options.quick else 300, seed=options.seed, cache=Path("runs/cache"))
    geometry = recording.layout.geometry
    updates = recording.updates[-10:]
    real = [Sample(name="real updates", vector=update, geometry=geometry) for update in updates[-5:]]
    length = _LONG // 10 if options.quick else _LONG
    made = np.random.default_rng(options.seed).laplace(0, 1e-3, length).astype(np.float32)
    laplace = [Sample(name=f"Laplace, {length:,}", vector=made, geometry=Geometry.flat(length))]
    position = position_rows(updates, geometry, options.seed)
    print_table(
        "Bits for each kept position",
        position,
        {
            "codec": "codec",
            "kept": "kept",
            "limit_bits": "H(p)/p",
            "uniform_bits": "at random",
            "uniform_to_limit": "÷ limit",
            "real_bits": "real updates",
            "real_to_limit": "÷ limit",
            "real_range": "range",
        },
    )
    pipelines: list[Row] = []
    for samples in (real, laplace):
        rows = [*pipeline_rows(samples, _copy_ms(samples[0].vector)), *zfp_rows(samples)]
        pipelines += rows
        print_table(
            f"Pipelines on {samples[0].name}",
            rows,
            {
                "pipeline": "pipeline",
                "bits": "bits",
                "limit_bits": "entropy",
                "error": "lost",
                "encode_ms": "enc ms",
                "decode_ms": "dec ms",
                "encode_copies": "÷ copy",
                "decode_copies": "÷ copy",
            },
        )
    eden = eden_rows(options.seed)
    print_table(
        "EDEN on normal vectors",
        eden,
        {"pipeline": "codec", "vnmse": "vNMSE", "vnmse_range": "range", "theory": "theory", "to_theory": "÷"},
    )
    picture = options.out.with_suffix(".png")
    write_result("codecs", options, pipelines, positions=position, eden=eden, picture=picture.name)
    plot(picture, position, pipelines)


if __name__ == "__main__":
    main()
