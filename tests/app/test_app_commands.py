"""The command line as a person meets it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("demo", "broker", "init", "shards", "aggregator", "agent", "evaluator", "status", "export")


def fedmq(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process."""
    return subprocess.run(
        [sys.executable, "-m", "fedmq.app", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    """`--help` works for all of them and says more than the usage line."""
    done = fedmq(command, "--help", cwd=tmp_path)

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 6


def test_a_wrong_value_names_the_setting_the_value_and_what_is_allowed(tmp_path: Path) -> None:
    """One line, no traceback, status 2."""
    done = fedmq("agent", "--client", "pi-1", "--outbox-max-updates", "many", cwd=tmp_path)

    assert done.returncode == 2
    assert (
        "fedmq: setting outbox.max_updates = 'many' cannot be used: a whole number from 1 to 256"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_missing_required_setting_says_how_to_give_it(tmp_path: Path) -> None:
    """Flag and environment variable are both named."""
    done = fedmq("agent", cwd=tmp_path)

    assert done.returncode == 2
    assert "give --client or FEDMQ_CLIENT" in done.stderr


def test_a_setting_of_the_environment_counts(tmp_path: Path) -> None:
    """The name is the setting's path in capitals; the message shows that it was read."""
    done = fedmq("agent", cwd=tmp_path, FEDMQ_CLIENT="no/slash")

    assert done.returncode == 2
    assert "client = 'no/slash'" in done.stderr


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    """A misspelt setting is never silently ignored."""
    (tmp_path / "agent.toml").write_text('client = "pi-1"\n[broker]\nhots = "x"\n')
    done = fedmq("agent", "--config", "agent.toml", cwd=tmp_path)

    assert done.returncode == 2
    assert "broker.hots" in done.stderr
    assert "broker.host" in done.stderr


def test_an_aggregator_without_a_model_says_what_it_needs(tmp_path: Path) -> None:
    """And leaves no half-made store that the next start would trip over."""
    done = fedmq("aggregator", "--store-path", "store.db", cwd=tmp_path)

    assert done.returncode == 2
    assert "give --model" in done.stderr


def test_init_writes_a_model_that_names_its_tensors(tmp_path: Path) -> None:
    """The numpy trainer's first model, from shards written before."""
    images = tmp_path / "images"
    _write_idx(images)
    first = fedmq("shards", "data", "--clients", "2", "--data", images, cwd=tmp_path)
    second = fedmq("init", "model.safetensors", "--settings", "features=16,classes=2,hidden=4",
                   "--local", "data=data/test.npz", cwd=tmp_path)  # fmt: skip

    assert first.returncode == 0, first.stderr
    assert "shard-1.npz" in first.stdout
    assert second.returncode == 0, second.stderr
    assert "78 parameters in 4 tensors" in second.stdout


def test_a_trainer_of_the_users_own_is_found_in_the_present_folder(tmp_path: Path) -> None:
    """`module:function`, as `examples/own_model.py` is used."""
    (tmp_path / "mine.py").write_text("def make(settings):\n    raise SystemExit(7)\n")
    done = fedmq("init", "model.safetensors", "--trainer", "mine:make", cwd=tmp_path)

    assert done.returncode == 7


def test_status_without_a_broker_says_so(tmp_path: Path) -> None:
    """Port 1 is nobody's."""
    done = fedmq("status", "--broker-port", "1", "--wait", "0.5", cwd=tmp_path)

    assert done.returncode == 2
    assert "no connection to 127.0.0.1:1" in done.stderr


def test_export_of_a_missing_store_says_so(tmp_path: Path) -> None:
    """No empty store is made on the way."""
    done = fedmq("export", "model.safetensors", "--store", "nowhere.db", cwd=tmp_path)

    assert done.returncode == 2
    assert "there is no such store" in done.stderr
    assert not (tmp_path / "nowhere.db").exists()


def test_the_broker_announces_the_port_it_got(tmp_path: Path) -> None:
    """With port 0, whoever started it reads the ready line; SIGTERM ends it with status 0."""
    with subprocess.Popen(
        [sys.executable, "-m", "fedmq.app", "broker", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        status = process.wait(10)

    assert re.fullmatch(r"ready on 127\.0\.0\.1:\d+\n", line)
    assert status == 0


def test_the_demo_refuses_a_broker_it_cannot_read(tmp_path: Path) -> None:
    """Neither a known word nor HOST:PORT."""
    images = tmp_path / "images"
    _write_idx(images)
    done = fedmq("demo", "--broker", "rabbit", "--data", images, cwd=tmp_path)

    assert done.returncode == 2
    assert "embedded, mosquitto or HOST:PORT" in done.stderr


def _write_idx(folder: Path) -> None:
    """Two classes of 4×4 images."""
    folder.mkdir()
    for stem, count in (("train", 40), ("t10k", 10)):
        images = bytes(i % 251 for i in range(16 * count))
        head = (0x803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (count, 4, 4))
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images)
        labels = bytes(i % 2 for i in range(count))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
            (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + labels
        )


def test_json_strings_are_toml_strings(tmp_path: Path) -> None:
    """What `write_toml` writes is what `tomllib` reads."""
    import tomllib

    from fedmq.app.toml import write_toml

    values = {
        "a": 'quote " backslash \\ é \n',
        "n": 1,
        "f": 0.25,
        "t": True,
        "table": {"inner": {"x": "y"}, "z": 3},
    }
    write_toml(tmp_path / "x.toml", values)

    assert tomllib.loads((tmp_path / "x.toml").read_text()) == json.loads(json.dumps(values))
