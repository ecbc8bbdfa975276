"""Settings: frozen dataclasses filled from a TOML file, the environment and flags.

A role declares its settings once, as a dataclass whose fields are made by `setting`; nested dataclasses are the
tables of the TOML file. From that one declaration come the file's keys (`fold.buffer_size`), the environment's
names (`FEDMQ_FOLD_BUFFER_SIZE`), the flags (`--fold-buffer-size`), their help and their checks. Flags win
over the environment, the environment over the file, the file over the defaults.

Not pydantic-settings: it adds 10 MB to a resident memory of 44, of the 60 that an agent may take
(`docs/decisions/0003-settings.md`).
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import SettingError
from .plan import MAX_SETTING_NAME, MAX_TRAINER_SETTINGS, Scalar

S = TypeVar("S")

_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

#: A free table, such as a trainer's settings: any names, scalar values.
Table = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False


def setting(
    default: object = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 - the command line's own word
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Declare one setting.

    Args:
        default: its value when nobody gives one; without it the setting is required.
        help: one line for `--help`, with the unit.
        low: smallest allowed number.
        high: largest allowed number.
        choices: the allowed texts.
        secret: never shown.
    """
    rule = _Rule(help=help, low=low, high=high, choices=choices, secret=secret)
    return field(default=default, repr=not secret, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One setting as the outside sees it.

    Attributes:
        path: the key in the file, for instance `broker.port`.
        kind: bool, int, float, str, Path or Table (`tuple`).
        optional: whether it may be absent (its type admits None).
        default: its default, `dataclasses.MISSING` when it is required.
        help: one line.
        secret: never shown.
    """

    path: str
    kind: type
    optional: bool
    default: object
    help: str
    secret: bool
    rule: _Rule = field(repr=False)

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "FEDMQ_" + self.path.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.path.replace(".", "-").replace("_", "-")

    @property
    def allowed(self) -> str:
        """In words, what it may be."""
        rule = self.rule
        if rule.choices:
            return "one of " + ", ".join(rule.choices)
        words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "name=value pairs"}
        text = words.get(self.kind, "a path" if self.kind is Path else "a text")
        if rule.low is not None and rule.high is not None:
            return f"{text} from {rule.low:.12g} to {rule.high:.12g}"
        if rule.low is not None:
            return f"{text}, at least {rule.low:.12g}"
        return text

    def parse(self, value: object) -> object:
        """Check a value, and read it when it is a text from the environment or a flag.

        Raises:
            SettingError: it cannot be used.
        """
        try:
            result = self._convert(value)
        except (ValueError, TypeError, OverflowError):
            raise self._refused(value) from None
        rule = self.rule
        low, high = rule.low, rule.high
        if isinstance(result, int | float) and not isinstance(result, bool):
            # written so that NaN fails
            if not ((low is None or result >= low) and (high is None or result <= high)):
                raise self._refused(value)
        elif rule.choices and result not in rule.choices:
            raise self._refused(value)
        return result

    def _refused(self, value: object) -> SettingError:
        return SettingError(self.path, "…" if self.secret else value, f"{self.allowed} is allowed")

    def _convert(self, value: object) -> object:
        if self.kind is tuple:
            return parse_table(value)
        if self.kind is bool:
            found = _TRUTHS.get(value.lower()) if isinstance(value, str) else value
            if not isinstance(found, bool):
                raise ValueError
            return found
        if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
            raise ValueError
        if self.kind is int and isinstance(value, float):
            raise ValueError
        if self.kind in (str, Path) and not isinstance(value, str | Path):
            raise ValueError
        return self.kind(value)


def parse_table(value: object) -> Table:
    """A table from a mapping, or from a text `name=value,…`.

    Raises:
        ValueError, TypeError: it is neither, or no plan can carry it.
    """
    if isinstance(value, str):
        pairs = (part.split("=", 1) for part in value.split(",") if part)
        value = {name.strip(): _scalar(text.strip()) for name, text in pairs}
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, Mapping):
        raise TypeError
    if len(value) > MAX_TRAINER_SETTINGS:
        raise ValueError
    for name, entry in value.items():
        if not isinstance(entry, str | int | float | bool):
            raise TypeError
        # msgpack has no longer integers
        if not 0 < len(name) <= MAX_SETTING_NAME or (isinstance(entry, int) and abs(entry) > 2**63 - 1):
            raise ValueError
    return tuple(value.items())


def _scalar(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Every setting of a settings dataclass, tables unfolded."""
    hints = get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from leaves(hint, f"{prefix}{entry.name}.")
            continue
        rule: _Rule = entry.metadata["rule"]
        optional = isinstance(hint, UnionType)
        kind = next(arm for arm in get_args(hint) if arm is not NoneType) if optional else hint
        yield Leaf(
            path=prefix + entry.name,
            kind=get_origin(kind) or kind,
            optional=optional,
            default=entry.default,
            help=rule.help,
            secret=rule.secret,
            rule=rule,
        )


def load(
    cls: type[S],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> S:
    """Fill a settings dataclass.

    Args:
        cls: the dataclass.
        file: a TOML file. Relative paths in it are relative to its folder.
        environment: names and values, as in `os.environ`.
        flags: values by path (`broker.port`); None counts as not given.

    Raises:
        SettingError: a value cannot be used, a required one is missing, or a key is unknown.
    """
    known = {leaf.path: leaf for leaf in leaves(cls)}
    values: dict[str, object] = {}
    for path, value in (_read_file(file, known) if file else {}).items():
        parsed = known[path].parse(value)
        values[path] = file.parent / parsed if file and isinstance(parsed, Path) else parsed
    for leaf in known.values():
        if environment and leaf.variable in environment:
            values[leaf.path] = leaf.parse(environment[leaf.variable])
    for path, value in (flags or {}).items():
        if value is not None:
            values[path] = known[path].parse(value)
    for path, leaf in known.items():
        if path not in values and leaf.default is dataclasses.MISSING:
            raise SettingError(path, None, f"it is required: give {leaf.flag} or {leaf.variable}")
    return _build(cls, values, "")


def _read_file(file: Path, known: Mapping[str, Leaf]) -> dict[str, object]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("--config", str(file), f"the file cannot be read ({error})") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError("--config", str(file), f"it is not valid TOML: {error}") from None
    return dict(_flatten(tree, "", known, file))


def _flatten(
    tree: Mapping[str, object], prefix: str, known: Mapping[str, Leaf], file: Path
) -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        path = prefix + key
        if path in known:
            yield path, value
        elif isinstance(value, dict) and any(name.startswith(path + ".") for name in known):
            yield from _flatten(value, path + ".", known, file)
        else:
            # the value is not shown: it may be a password whose name is misspelt
            raise SettingError(path, "…", f"there is no such setting; {file} may hold {', '.join(known)}")


def _build(cls: type[S], values: Mapping[str, object], prefix: str) -> S:
    arguments: dict[str, object] = {}
    hints = get_type_hints(cls)
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]  # S is a dataclass: leaves() saw to it
        path = prefix + entry.name
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[entry.name] = _build(hint, values, path + ".")
        elif path in values:
            arguments[entry.name] = values[path]
    return cls(**arguments)
