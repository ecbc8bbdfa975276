"""Writes a TOML file; the standard library only reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = "str | int | float | bool | Path | Mapping[str, Value]"


def write_toml(path: Path, values: Mapping[str, Value]) -> None:
    """Write scalars and nested tables.

    Args:
        path: the file.
        values: scalars first and tables, in any order.
    """
    path.write_text("\n".join(_lines(values, "")) + "\n", encoding="utf-8")


def _lines(values: Mapping[str, Value], prefix: str) -> list[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {_scalar(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for key, table in tables.items():
        lines += ["", f"[{prefix}{key}]", *_lines(table, f"{prefix}{key}.")]
    return lines


def _scalar(value: "str | int | float | bool | Path | Mapping[str, Value]") -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # a JSON string is a TOML basic string
    return json.dumps(str(value), ensure_ascii=False)
