"""The tables of settings in `docs/operations.md` against the dataclasses that they are made from.

Run as a script it writes them anew: `python tests/docs/test_docs_settings.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

import pytest
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings

from fedmq.app.cli import COMMANDS
from fedmq.app.commands.broker import EmbeddedSettings
from fedmq.app.demo import DemoSettings
from fedmq.app.options import SettingsCommand
from fedmq.app.status import StatusSettings
from fedmq.connection import ConnectionSettings
from fedmq.settings import Leaf, leaves

PAGE: Final = Path(__file__).parents[2] / "docs" / "operations.md"
CONNECTION: Final = "broker."
#: By command, but for `connection`: what the roles share, told once.
TABLES: Final[Mapping[str, type]] = {
    "aggregator": AggregatorSettings,
    "agent": AgentSettings,
    "evaluator": EvaluatorSettings,
    "status": StatusSettings,
    "broker": EmbeddedSettings,
    "demo": DemoSettings,
    "connection": ConnectionSettings,
}


def table(name: str) -> str:
    """One table as the page must have it."""
    prefix = CONNECTION if name == "connection" else ""
    rows = [
        _row(leaf) for leaf in leaves(TABLES[name], prefix) if prefix or not leaf.path.startswith(CONNECTION)
    ]
    return "\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows, ""])


def _row(leaf: Leaf) -> str:
    default = f"`{leaf.default}`".replace("|", "\\|")
    if leaf.default is dataclasses.MISSING:
        default = "required"
    elif leaf.default in (None, "", ()):
        default = ""
    return f"| `{leaf.path}` | {default} | {leaf.allowed} | {leaf.help} |"


def place(name: str) -> re.Pattern[str]:
    """Where the page has a table: between two comments."""
    return re.compile(rf"(<!-- settings: {name} -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_each_table_of_settings_is_what_the_code_says(name: str) -> None:
    """When it is not: `python tests/docs/test_docs_settings.py` writes the tables anew."""
    found = place(name).search(PAGE.read_text(encoding="utf-8"))

    assert found is not None
    assert f"{found[1]}{table(name)}{found[2]}" == found[0]


def test_each_command_with_settings_has_its_table() -> None:
    """And there is no table for a command that is gone."""
    with_settings = {
        name
        for name, module in COMMANDS.items()
        if isinstance(getattr(import_module(module), name), SettingsCommand)
    }

    assert with_settings | {"connection"} == TABLES.keys()


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name in TABLES:
        text = place(name).sub(lambda found: f"{found[1]}{table(name)}{found[2]}", text)  # noqa: B023 - used at once
    PAGE.write_text(text, encoding="utf-8")
