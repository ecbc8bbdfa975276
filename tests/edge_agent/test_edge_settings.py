"""The settings of agents and evaluators: bounds that are refused with a reason, defaults that work."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from fedmq.edge_agent.outbox import Outbox
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings, OutboxSettings

from fedmq.errors import SettingError
from fedmq.settings import leaves, load
from fedmq.wire import MAX_RECEIPT_ENTRIES


def test_an_agent_needs_a_name_and_nothing_else() -> None:
    """Everything else has a default."""
    with pytest.raises(SettingError, match=r"setting client = None .*--client or FEDMQ_CLIENT"):
        load(AgentSettings)
    settings = load(AgentSettings, flags={"client": "pump-7"})

    assert AgentSettings(client="pump-7") == settings


def test_an_evaluator_needs_nothing() -> None:
    """It has even a name."""
    assert EvaluatorSettings() == load(EvaluatorSettings)


def test_a_file_reaches_every_table(tmp_path: Path) -> None:
    """As an operator would write it."""
    file = tmp_path / "agent.toml"
    file.write_text(
        'client = "pump-7"\n'
        '[trainer]\nfactory = "mine:make"\npause = 0.5\nsettings = {data = "d.npz", width = 3}\n'
        '[outbox]\nfolder = "state"\nmax_updates = 4\n'
        '[broker]\nhost = "broker.local"\n'
    )
    settings = load(AgentSettings, file=file)

    assert ("mine:make", 0.5) == (settings.trainer.factory, settings.trainer.pause)
    assert (("data", "d.npz"), ("width", 3)) == settings.trainer.settings
    assert OutboxSettings(folder=tmp_path / "state", max_updates=4) == settings.outbox
    assert "broker.local" == settings.broker.host


@pytest.mark.parametrize(
    "flags",
    [
        {"outbox.max_updates": 0},
        {"outbox.max_updates": MAX_RECEIPT_ENTRIES + 1},
        {"outbox.max_bytes": 1023},
        {"trainer.pause": -0.1},
        {"trainer.pause": "nan"},
        {"trainer.seed": -1},
        {"trainer.settings": "no pair"},
    ],
)
def test_a_value_out_of_bounds_is_refused(flags: Mapping[str, object]) -> None:
    """With its name and what would be allowed."""
    ((name, _),) = flags.items()

    with pytest.raises(SettingError, match=rf"setting {name} = .* is allowed"):
        load(AgentSettings, flags={"client": "pump-7", **flags})


def test_an_outbox_with_the_settings_bounds_keeps_them(tmp_path: Path) -> None:
    """The largest number that may be set is one that a receipt can settle."""
    (bound,) = [leaf.rule.high for leaf in leaves(AgentSettings) if leaf.path == "outbox.max_updates"]
    outbox = Outbox(tmp_path / "outbox.db", max_updates=int(bound or 0))

    assert bound == outbox._max_updates
