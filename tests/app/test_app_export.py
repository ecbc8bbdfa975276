"""`fedmq export` of a pruned model: what is written, and what people are told."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner
from fedmq.aggregator.pruning import PruneSettings
from fedmq.aggregator.recovery import recover
from fedmq.aggregator.settings import AggregatorSettings, StoreSettings
from fedmq.aggregator.store import Store

from fedmq.app.commands.export import export
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import load_model, save_model

LAYOUT = ParamLayout((Segment(name="w", shape=(40, 50)), Segment(name="b", shape=(40,))))


def test_export_tells_the_sparsity_and_both_sizes(tmp_path: Path) -> None:
    """And writes what was asked for."""
    store, dense, sparse = (
        tmp_path / name for name in ("store.db", "dense.safetensors", "sparse.safetensors")
    )
    vector = np.ones(LAYOUT.size, np.float32)
    vector[np.arange(0, 2040) % 5 > 0] = 0
    save_model(tmp_path / "model.safetensors", LAYOUT, vector)
    opened = Store(store)
    recover(
        AggregatorSettings(
            model=tmp_path / "model.safetensors",
            prune=PruneSettings(sparsity=0.8),
            store=StoreSettings(path=store),
        ),
        opened,
    )
    opened.close()
    told = [
        CliRunner().invoke(export, [*map(str, arguments), "--store", str(store)], catch_exceptions=False)
        for arguments in ([dense], [sparse, "--sparse"])
    ]
    sizes = f"{dense.stat().st_size:,} bytes dense, {sparse.stat().st_size:,} sparse"

    assert [
        f"{dense}: version 0\n80.0% of the weights in matrices are zero: {sizes}; written is the dense file\n",
        f"{sparse}: version 0\n80.0% of the weights in matrices are zero: {sizes}; written is the sparse file\n",
    ] == [result.output for result in told]
    assert sparse.stat().st_size < 0.35 * dense.stat().st_size
    assert vector.tobytes() == load_model(sparse)[1].tobytes() == load_model(dense)[1].tobytes()
