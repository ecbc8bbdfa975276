"""Export: the model in a store as a file, without an aggregator."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmq.errors import StoreError
from fedmq.modelfile import model_bytes, write_file

from .audit import replay
from .recovery import restore
from .store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        version: the model's.
        sparsity: the share of zeros in its matrices; 0 without matrices.
        dense_bytes: size of the file with every value.
        sparse_bytes: size of the file without the zeros.
    """

    version: int
    sparsity: float
    dense_bytes: int
    sparse_bytes: int


def export_store(
    store_path: Path, out: Path, version: int | None = None, *, sparse: bool = False
) -> Exported:
    """Write a model of a store as safetensors.

    Args:
        store_path: the store; no aggregator may be running on it.
        out: the file to write.
        version: which; None for the newest.
        sparse: write a file without the zeros, for `fedmq.modelfile`; any reader of safetensors can use the other one.

    Raises:
        StoreError: the store is missing, in use, empty or damaged, or does not hold the version.
        ModelFileError: the file cannot be written.
    """
    if not store_path.exists():
        raise StoreError(f"{store_path}: there is no such store")
    store = Store(store_path)
    try:
        engine = restore(store) if version is None else replay(store, version).engine
    finally:
        store.close()
    if engine is None:
        raise StoreError(f"{store_path} holds no model yet")
    layout, vector, metadata = (
        engine.layout,
        engine.state.served,
        {"fedmq.version": str(engine.state.version)},
    )
    files = [model_bytes(layout, vector, metadata, sparse=without_zeros) for without_zeros in (False, True)]
    write_file(out, files[sparse])
    matrices = np.concatenate([np.zeros(0, np.float32), *(vector[place] for place in layout.matrices)])
    return Exported(
        version=engine.state.version,
        sparsity=float(np.mean(matrices == 0)) if matrices.size else 0.0,
        dense_bytes=len(files[False]),
        sparse_bytes=len(files[True]),
    )
