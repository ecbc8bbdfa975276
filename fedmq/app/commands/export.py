"""`fedmq export`."""

from pathlib import Path

import click

from fedmq.aggregator.export import export_store


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--store",
    required=True,
    type=click.Path(path_type=Path),
    help="The aggregator's store.",
)
@click.option(
    "--sparse",
    is_flag=True,
    help="Leave the zeros of a pruned model out, for fedmq's own reader: see docs/pruning.md.",
)
def export(out: Path, store: Path, sparse: bool) -> None:
    """Write a store's newest model to OUT.

    As a safetensors file; the aggregator must not be running.
    """
    done = export_store(store, out, sparse=sparse)
    click.echo(f"{out}: version {done.version}")
    click.echo(
        f"{done.sparsity:.1%} of the weights in matrices are zero: {done.dense_bytes:,} bytes dense, "
        f"{done.sparse_bytes:,} sparse; written is the {'sparse' if sparse else 'dense'} file"
    )
