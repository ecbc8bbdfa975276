"""Whole federations in virtual time: what is simulated is as asked for, and everything else is production's."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from fedmq.aggregator.publisher import PublishSettings
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings

from fedmq.app.datasets import Dataset
from fedmq.app.runlog import AgentState, Event, Fold
from fedmq.app.scenario import (
    AvailabilitySettings,
    DataSettings,
    DeviceClass,
    EnergySettings,
    EvaluationSettings,
    LinkSettings,
    Scenario,
    StopSettings,
)
from fedmq.app.simulation import simulate
from fedmq.app.simulation_result import SimulationResult

HOUR = 3600.0
BASE = Scenario(
    seed=3,
    data=DataSettings(clients=5, alpha=10.0, per_client=100),
    task=TaskSettings(
        settings=(("hidden", 16), ("batch_size", 5), ("learning_rate", 0.1)), codec="topk(0.2) | int8 | rice"
    ),
    fold=FoldSettings(strategy="fedbuff", buffer_size=2),
    publish=PublishSettings(min_interval=0.0),
    evaluation=EvaluationSettings(every=5),
    stop=StopSettings(updates=60),
)


def play(blobs: Dataset, scenario: Scenario) -> tuple[SimulationResult, list[Event]]:
    """Simulate, and keep the events."""
    events: list[Event] = []
    return simulate(scenario, dataset=blobs, observe=events.append), events


def with_kind(**differences: object) -> Scenario:
    """The base scenario with devices of one other kind."""
    return replace(BASE, devices=(DeviceClass(**differences),))  # type: ignore[arg-type]


def test_a_federation_learns_in_virtual_time(blobs: Dataset) -> None:
    """One second of an epoch each: five devices need twelve seconds for sixty updates."""
    result, events = play(blobs, BASE)

    assert 60 == result.updates == sum(result.staleness.values()) == sum(isinstance(e, Fold) for e in events)
    assert 30 == result.versions
    assert 12.0 == pytest.approx(result.seconds, abs=0.2)
    assert 0.8 < (result.final_accuracy or 0.0)
    assert list(range(5, 61, 5)) == [evaluation.folded for evaluation in result.evaluations]
    assert {} == result.refusals
    assert [12] * 5 == [client.folded for client in result.clients]


def test_the_same_scenario_gives_the_same_result(blobs: Dataset) -> None:
    """To the last bit of the model; another seed gives another."""
    one, other = play(blobs, BASE), play(blobs, BASE)
    third, _ = play(blobs, replace(BASE, seed=4))

    assert one[1] == other[1]
    assert one[0].vector.tobytes() == other[0].vector.tobytes()
    assert one[0].clients == other[0].clients
    assert one[0].vector.tobytes() != third.vector.tobytes()


def test_nobody_waits_for_stragglers_unless_told_to(blobs: Dataset) -> None:
    """The same devices, one of which takes ten times as long: FedAvg goes at its pace."""
    kinds = (
        DeviceClass(name="usual", share=4, epoch_seconds="1"),
        DeviceClass(name="slow", share=1, epoch_seconds="10"),
    )
    fast, _ = play(blobs, replace(BASE, devices=kinds))
    fedavg = replace(BASE, devices=kinds, fold=FoldSettings(strategy="fedavg"))
    slow, _ = play(blobs, fedavg)

    assert 16.0 > fast.seconds
    assert 120.0 == pytest.approx(slow.seconds, abs=1.0)
    assert {0: 60} == slow.staleness
    assert [12] * 5 == [client.folded for client in slow.clients]
    assert fast.clients[4].folded == 1 < fast.clients[0].folded


@pytest.mark.parametrize(
    ("stop", "reached"),
    [
        (StopSettings(updates=7), lambda result: result.updates >= 7 > result.updates - 5),
        (StopSettings(versions=3), lambda result: 3 <= result.versions <= 5),
        (StopSettings(accuracy=0.5), lambda result: result.evaluations[-1].accuracy >= 0.5),
        (StopSettings(seconds=4.5), lambda result: result.seconds <= 4.5 and result.updates == 20),
    ],
)
def test_it_stops_when_it_is_told_to(
    blobs: Dataset, stop: StopSettings, reached: Callable[[SimulationResult], bool]
) -> None:
    """With an evaluation of the model as it is then."""
    result, _ = play(blobs, replace(BASE, stop=stop))

    assert reached(result)
    assert result.updates == result.evaluations[-1].folded


def test_what_it_took_to_reach_an_accuracy_can_be_asked_afterwards(blobs: Dataset) -> None:
    """The first evaluation that has it, with updates, seconds and bytes until then."""
    result, _ = play(blobs, BASE)
    found = result.reached(0.6)

    assert found is not None
    assert 0.6 <= found.accuracy
    assert all(earlier.accuracy < 0.6 for earlier in result.evaluations if earlier.t < found.t)
    assert 0 < found.uplink_bytes < result.uplink_bytes
    assert result.reached(1.1) is None


def test_a_slow_link_takes_its_time(blobs: Dataset) -> None:
    """The first update comes after the model's way down, an epoch, and its own way up."""
    instant, instant_events = play(blobs, replace(BASE, stop=StopSettings(updates=1)))
    link = LinkSettings(up=200.0, down=1000.0, latency=0.5)
    scenario = replace(with_kind(link=link), stop=StopSettings(updates=1))
    result, events = play(blobs, scenario)
    first, at_once = (next(e for e in found if isinstance(e, Fold)) for found in (events, instant_events))
    down = result.downlink_bytes / 5 / 1000.0
    up = result.uplink_bytes / 5 / 200.0

    assert at_once.t == pytest.approx(1.0, abs=0.05)
    # connect, plan, head, frame: four times there and back, and once there with the update
    assert 1.0 + 9 * 0.5 < first.t < 1.0 + 10 * 0.5 + down + up
    assert first.t > 1.0 + 9 * 0.5 + 0.5 * up
    assert first.bytes == pytest.approx(at_once.bytes, rel=0.1)
    assert instant.uplink_bytes == pytest.approx(result.uplink_bytes, rel=0.3)


def test_devices_that_come_and_go_lose_nothing_but_time(blobs: Dataset) -> None:
    """What was in the outbox when the power was cut is folded once, in another life."""
    availability = AvailabilitySettings(stays="exponential(3)", away="uniform(0.5, 2)")
    link = LinkSettings(up=2000.0, latency=0.1)
    scenario = replace(
        with_kind(availability=availability, link=link), stop=StopSettings(seconds=120), seed=8
    )
    result, events = play(blobs, scenario)
    folds = Counter((event.client, event.seq) for event in events if isinstance(event, Fold))

    assert {1} == set(folds.values())
    assert all(client.lives > 10 for client in result.clients)
    assert all(client.folded >= client.trained - 3 > 5 for client in result.clients)
    assert all(client.reimaged == 0 for client in result.clients)
    assert result.seconds > max(client.present_seconds for client in result.clients) > 30.0


def test_a_device_that_is_reimaged_begins_with_number_one(blobs: Dataset) -> None:
    """Its old outbox is gone, and the aggregator takes it for a new one."""
    availability = AvailabilitySettings(stays="uniform(2, 6)", away="1", reimaged=0.5)
    scenario = replace(with_kind(availability=availability), stop=StopSettings(seconds=60))
    result, events = play(blobs, scenario)
    again = Counter(event.client for event in events if isinstance(event, Fold) and event.seq == 1)

    assert sum(client.reimaged for client in result.clients) > 5
    assert all(again[client.client] <= client.reimaged + 1 for client in result.clients)
    assert max(again.values()) > 1


def test_devices_work_when_the_day_allows_it(blobs: Dataset) -> None:
    """A window of two hours from ten in the evening, shifted by up to one."""
    availability = AvailabilitySettings(opens=22, hours=2, spread=2)
    scenario = replace(
        with_kind(availability=availability, epoch_seconds="600"), stop=StopSettings(seconds=26 * HOUR)
    )
    result, events = play(blobs, scenario)
    hours = [event.t / HOUR % 24 for event in events if isinstance(event, Fold)]

    assert len(hours) > 30
    assert all(hour >= 21 or hour <= 1 for hour in hours)
    assert all(client.lives in (1, 2) for client in result.clients)
    assert all(1.9 * HOUR < client.present_seconds < 3.1 * HOUR for client in result.clients)


def test_energy_is_what_waiting_training_and_bytes_take(blobs: Dataset) -> None:
    """E = P_idle t_idle + P_train t_train + e_byte bytes."""
    energy = EnergySettings(idle_watts=0.5, train_watts=4.0, joules_per_byte=1e-3)
    link = LinkSettings(up=1000.0, down=5000.0)
    result, _ = play(blobs, with_kind(energy=energy, link=link))
    for client in result.clients:
        idle = client.present_seconds - client.training_seconds
        moved = client.uplink_bytes + client.downlink_bytes

        assert 0 < idle < client.present_seconds
        assert client.joules == pytest.approx(
            0.5 * idle + 4.0 * client.training_seconds + 1e-3 * moved, rel=1e-9
        )


def test_training_takes_as_long_as_its_distribution_says(blobs: Dataset) -> None:
    """Each device draws once, and each piece of its work differs from that."""
    _, events = play(
        blobs,
        replace(
            with_kind(epoch_seconds="uniform(2, 20)", jitter="uniform(0.9, 1.1)"),
            stop=StopSettings(seconds=150),
        ),
    )
    for client in range(5):
        states = [e for e in events if isinstance(e, AgentState) and e.client == f"agent-{client:02d}"]
        spans = [end.t - start.t for start, end in pairwise(states) if start.state == "training"]

        assert len(spans) > 4
        assert 2 * 0.9 <= min(spans) < max(spans) <= 20 * 1.1
        assert max(spans) / min(spans) < 1.1 / 0.9 + 0.05


def test_every_byte_of_every_device_is_counted(blobs: Dataset) -> None:
    """The last evaluation, at the end, has the sum over all clients and lives."""
    result, _ = play(blobs, BASE)
    last = result.evaluations[-1]

    assert last.uplink_bytes == pytest.approx(sum(c.uplink_bytes for c in result.clients), rel=0.03)
    assert last.downlink_bytes == pytest.approx(sum(c.downlink_bytes for c in result.clients), rel=0.03)
    assert all(client.uplink_bytes > 12 * 100 for client in result.clients)


def test_a_device_may_have_no_topic_aliases(blobs: Dataset) -> None:
    """They save most of an update's topic, from the second update on."""
    short, _ = play(blobs, BASE)
    long, _ = play(blobs, replace(BASE, topic_aliases=0))

    assert short.vector.tobytes() == long.vector.tobytes()
    saved = 55 * len("fedmq/v1/default/update/0/agent-00")
    assert 0.8 * saved < long.uplink_bytes - short.uplink_bytes < saved


def test_an_adjusted_loss_learns_more_from_devices_with_other_labels(blobs: Dataset) -> None:
    """Dirichlet(0.1): six devices with a label or two each, two of them in each version."""

    def learn(seed: int, tau: float) -> float:
        settings = (("hidden", 16), ("learning_rate", 0.1), ("logit_adjustment", tau))
        scenario = Scenario(
            seed=seed,
            data=DataSettings(clients=6, alpha=0.1, per_client=60),
            task=TaskSettings(settings=settings, codec="float32", local_epochs=5),
            fold=FoldSettings(buffer_size=2),
            stop=StopSettings(updates=60),
            devices=(DeviceClass(epoch_seconds="1", jitter="uniform(0.8, 1.2)"),),
        )
        return simulate(scenario, dataset=blobs).final_accuracy

    gained = [learn(seed, 1.0) - learn(seed, 0.0) for seed in (0, 1)]

    assert sum(gained) / 2 > 0.05
    assert min(gained) > 0
