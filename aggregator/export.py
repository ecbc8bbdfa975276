"""Export: the model in a store as a file, without an aggregator."""

from pathlib import Path

from fedmq.errors import StoreError
from fedmq.modelfile import save_model

from .audit import replay
from .recovery import restore
from .store import Store


def export_store(store_path: Path, out: Path, version: int | None = None) -> int:
    """Write a model of a store as safetensors.

    Args:
        store_path: the store; no aggregator may be running on it.
        out: the file to write.
        version: which; None for the newest.

    Returns:
        The model's version.

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
    version = engine.state.version
    save_model(out, engine.layout, engine.state.served, {"fedmq.version": str(version)})
    return version
