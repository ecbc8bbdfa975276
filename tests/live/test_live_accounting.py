"""What agents say of their bytes is what proxies on their lines have counted, to the byte, from diary to report."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from fedmq.aggregator.tasks import TaskSettings
from fedmq.broker import EmbeddedBroker, Mosquitto

from fedmq.app.accounting import Accounting
from fedmq.app.recorder import Recorder
from fedmq.app.report import RunFacts, build_report
from fedmq.testing.proxy import Proxy

#: Parameters. As float32 an update takes three chunks of the default size, and so does the keyframe.
SIZE = 150_000
LARGE = TaskSettings(codec="float32", resend_seconds=5.0)


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def port(request: pytest.FixtureRequest, new_mosquitto: Callable[..., Mosquitto]) -> Iterator[int]:
    """Where a broker listens, of each kind."""
    if request.param == "mosquitto":
        yield new_mosquitto().port
    else:
        with EmbeddedBroker() as broker:
            yield broker.port


def account(folder: Path, diaries: dict[str, Path]) -> Accounting:
    """What the report makes of these diaries."""
    (folder / "events").mkdir(parents=True)
    for name, diary in diaries.items():
        (folder / "events" / f"{name}.jsonl").symlink_to(diary)
    Recorder(folder, started=0.0).close()
    facts = RunFacts(
        target=1.0, dense_model_bytes=4 * SIZE, agents=2, broker="any", settings={}, seed=0, data="none"
    )
    return build_report(folder, facts).accounting


def test_diary_and_report_have_every_byte_of_every_connection(
    port: int, new_federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents: large updates, three broken connections, pings, a restart with its goodbye, per direction."""
    federation = new_federation(port, SIZE)
    plain = federation.connection
    monkeypatch.setattr(federation, "connection", lambda port=None: replace(plain(port), keepalive=3))
    federation.serve(task=LARGE, events=tmp_path / "aggregator.jsonl")
    with ExitStack() as stack:
        proxies = {number: stack.enter_context(Proxy(port)) for number in (1, 2)}
        for number, proxy in proxies.items():
            federation.join(number, port=proxy.port, allowed=1)

        seen: deque[list[tuple[int, int]]] = deque(maxlen=20)

        def all_is_quiet_and_counted() -> bool:
            """What is sent in the moment of a cut, the proxy may throw away uncounted."""
            transports = {number: device.agent.transport for number, device in federation.devices.items()}
            acknowledged = not any(transport._unacknowledged for transport in transports.values())
            traffic = {number: transport.traffic for number, transport in transports.items()}
            seen.append([(proxy.bytes_up, proxy.bytes_down) for proxy in proxies.values()])
            said = [(traffic[number].bytes_sent, traffic[number].bytes_received) for number in proxies]
            return acknowledged and said == seen[-1] and seen.count(said) == seen.maxlen

        for round_ in range(3):
            federation.until_settled()
            federation.until_training()
            federation.until(all_is_quiet_and_counted, "both have counted the same")
            for proxy in proxies.values():
                proxy.cut()
            federation.until(
                lambda wanted=2 + round_: all(proxy.connections == wanted for proxy in proxies.values()),
                "back",
            )
            federation.until(
                lambda: all(device.agent._session._can_work for device in federation.devices.values()),
                "online",
            )
            federation.train(1)
        federation.until_settled()
        federation.until_training()
        federation.until(all_is_quiet_and_counted, "both have counted the same")
        quiet = {number: proxy.bytes_up for number, proxy in proxies.items()}
        federation.until(
            lambda: all(proxies[number].bytes_up >= sent + 2 for number, sent in quiet.items()), "pings"
        )
        federation.until(all_is_quiet_and_counted, "both have counted the pings")
        federation.leave(1)
        federation.leave(2)
        first = {number: (proxy.bytes_up, proxy.bytes_down) for number, proxy in proxies.items()}
        federation.join(1, port=proxies[1].port, allowed=1)
        federation.until_settled()
        federation.close()
    accounting = account(
        tmp_path / "run",
        {f"device-{number}": tmp_path / f"device-{number}" / "diary.jsonl" for number in (1, 2)}
        | {"aggregator": tmp_path / "aggregator.jsonl"},
    )
    moved = {name: (client.sent, client.received) for name, client in accounting.clients.items()}
    updates = {name: client.updates for name, client in accounting.clients.items()}

    assert moved == {
        f"device-{number}": (proxy.bytes_up, proxy.bytes_down) for number, proxy in proxies.items()
    }
    assert moved["device-1"] > first[1]
    assert moved["device-2"] == first[2]
    assert updates == {"device-1": 5, "device-2": 4}
    assert all(proxy.connections >= 4 for proxy in proxies.values())
    assert min(sent for sent, _ in moved.values()) > 4 * 4 * SIZE
