"""`fedmq codecs`."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from fedmq.app.codec_trial import Sample, example, load_sample, summary, synthetic, try_pipeline
from fedmq.codecs import installed_codecs


@click.command()
@click.argument("pipelines", nargs=-1)
@click.option(
    "--on",
    type=click.Path(path_type=Path),
    help="What to try them on: a model or difference (.safetensors), a float32 vector (.npy), or an aggregator's "
    "store, of which the newest update is taken. Otherwise a made-up update.",
)
def codecs(pipelines: tuple[str, ...], on: Path | None) -> None:
    """List the codecs, or try PIPELINES on a saved update.

    A pipeline is one line of text, such as "topk(0.01) | ternary | rows | range". Without one, every codec that is
    installed is listed, with pipelines that show it.
    """
    sample = load_sample(on) if on else synthetic()
    if pipelines:
        _try(pipelines, sample)
    else:
        _list(sample)


def _list(sample: Sample) -> None:
    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("codec", no_wrap=True)
    table.add_column("what it does")
    kind = ""
    for codec in installed_codecs():
        if codec.kind != kind:
            kind = codec.kind
            table.add_row(f"[bold]{kind}s[/bold]", "")
        table.add_row(f"  {codec.usage()}", summary(codec))
    console.print(table)
    console.print("\nIn pipelines:")
    examples = (example(codec) for codec in installed_codecs())
    _try(tuple(dict.fromkeys(text for text in examples if text)), sample)


def _try(pipelines: tuple[str, ...], sample: Sample) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("pipeline")
    for heading in ("bytes", "bits", "energy lost", "encode ms", "decode ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for text in pipelines:
        trial = try_pipeline(text, sample)
        table.add_row(
            trial.pipeline,
            f"{trial.size:,}",
            f"{trial.bits:.3f}",
            f"{trial.error:.4f}",
            f"{trial.encode_ms:.2f}",
            f"{trial.decode_ms:.2f}",
        )
    Console().print(table)
    click.echo(f"on {sample.geometry.length:,} parameters: {sample.name}")
