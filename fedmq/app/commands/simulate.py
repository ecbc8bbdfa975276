"""`fedmq simulate`."""

import logging
from pathlib import Path

import click
from rich.console import Console

from fedmq.app.simulation_run import run_scenario


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder for run folders.")
@click.option("--seed", type=click.IntRange(0), help="Instead of the scenario's own.")
def simulate(scenario: Path, runs: Path, seed: int | None) -> None:
    """Play a scenario in virtual time.

    SCENARIO is a TOML file; docs/simulation.md tells what it may hold, examples/scenarios has some.

    What runs is the aggregator and the agents themselves, with real training. Simulated are time, links and power.
    """
    if logging.getLogger().level == logging.INFO:
        logging.getLogger().setLevel(logging.ERROR)  # of a thousand devices some always have something to say
    run_scenario(scenario, runs, Console(), seed=seed)
