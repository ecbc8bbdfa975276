"""How long a round takes: NVFlare's published time model of synchronous and asynchronous training, in virtual time.

Its example of cross-edge learning has 16 devices whose training takes about 100, 200 or 400 s with a standard
deviation of 4 s, and 5 s of communication. A synchronous round takes as long as the slowest device, 400 + 3/2 π^-½ × 4
+ 5 = 408.4 s for one of each kind; an update of an asynchronous one (400 + 200 + 100) / 3 + 5 = 238.3 s on average.
"""

import statistics
from dataclasses import replace

import pytest
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings

from fedmq.app.datasets import Dataset
from fedmq.app.runlog import Event, Fold
from fedmq.app.scenario import DataSettings, DeviceClass, LinkSettings, Scenario, StopSettings
from fedmq.app.simulation import simulate
from fedmq.app.simulation_result import SimulationResult

DEVICES = 15
ROUNDS = 10
COMMUNICATION = 5.0


def devices(ways: int) -> tuple[DeviceClass, ...]:
    """Five of each kind; what their messages travel `ways` times makes 5 s."""
    link = LinkSettings(latency=COMMUNICATION / ways)
    return tuple(
        DeviceClass(name=f"{mean} s", epoch_seconds=f"{mean}", jitter=f"lognormal(1, {4 / mean})", link=link)
        for mean in (100, 200, 400)
    )


BASE = Scenario(
    data=DataSettings(clients=DEVICES, alpha=10.0, per_client=10),
    task=TaskSettings(settings=(("hidden", 8),), codec="float32", resend_seconds=600.0),
    stop=StopSettings(updates=ROUNDS * DEVICES),
)
SYNCHRONOUS = FoldSettings(strategy="fedavg", buffer_size=DEVICES)
ASYNCHRONOUS = FoldSettings(strategy="fedasync")


def play(blobs: Dataset, scenario: Scenario) -> tuple[SimulationResult, list[float]]:
    """Ten rounds' worth of updates, and how long an update of each device takes, from the first to the last."""
    folds: dict[str, list[float]] = {}

    def observe(event: Event) -> None:
        if isinstance(event, Fold):
            folds.setdefault(event.client, []).append(event.t)

    result = simulate(scenario, dataset=blobs, observe=observe)
    return result, [(times[-1] - times[0]) / (len(times) - 1) for times in folds.values()]


def test_a_synchronous_round_takes_as_long_as_its_slowest_device(blobs: Dataset) -> None:
    """Of five that take 400 s: 1.163 standard deviations more than the mean (Teichroew 1956), and 5 s on the way.

    A device sends its update and hears of it, asks for the model and gets it: four ways.
    """
    result, _ = play(blobs, replace(BASE, fold=SYNCHRONOUS, devices=devices(ways=4)))

    assert 400 + 1.163 * 4 + COMMUNICATION == pytest.approx(result.seconds / ROUNDS, abs=2.0)


def test_an_asynchronous_update_takes_as_long_as_its_own_device(blobs: Dataset) -> None:
    """238.3 s on average over the devices; those that are faster send more, so fifteen updates take less than that.

    Who is late needs a frame and a difference, one after the other: six ways.
    """
    result, seconds = play(blobs, replace(BASE, fold=ASYNCHRONOUS, devices=devices(ways=6)))
    updates_a_second = sum(5 / (mean + COMMUNICATION) for mean in (100, 200, 400))

    assert 238.3 == pytest.approx(statistics.fmean(seconds), rel=0.01)
    assert DEVICES / updates_a_second == pytest.approx(result.seconds / ROUNDS, rel=0.07)


def test_between_equal_devices_nothing_is_gained(blobs: Dataset) -> None:
    """Nobody waits for anybody in either way."""
    equal = replace(BASE, devices=(DeviceClass(epoch_seconds="100"),))
    seconds = [play(blobs, replace(equal, fold=fold))[0].seconds for fold in (SYNCHRONOUS, ASYNCHRONOUS)]

    assert seconds[0] == pytest.approx(seconds[1], rel=0.01)


def test_a_deadline_ends_a_round_with_those_who_answered(blobs: Dataset) -> None:
    """The two faster kinds are in each version, and what closes it counts as nobody's update."""
    hasty = replace(BASE, fold=replace(SYNCHRONOUS, deadline=150.0), devices=devices(4))
    folded: list[Fold] = []
    result = simulate(
        replace(hasty, stop=StopSettings(updates=40)),
        dataset=blobs,
        observe=lambda event: folded.append(event) if isinstance(event, Fold) else None,
    )

    assert {1, 2, 3} <= {event.version for event in folded}
    assert result.updates == len(folded) == sum(client.folded for client in result.clients)
    assert result.refusals.get("stale", 0) > 0
