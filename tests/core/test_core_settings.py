"""Settings: one declaration, four sources in one order, and errors that name what was wrong."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fedmq.aggregator.settings import AggregatorSettings
from fedmq.edge_agent.settings import AgentSettings, EvaluatorSettings

from fedmq.errors import SettingError
from fedmq.settings import Table, leaves, load, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    cylinders: int = setting(4, help="how many", low=1, high=12)
    boost: float = setting(0.5, help="bar", low=0)
    fuel: str = setting("petrol", help="what it burns", choices=("petrol", "diesel"))
    turbo: bool = setting(False, help="whether there is one")
    options: Table = setting((), help="anything else")


@dataclass(frozen=True, slots=True, kw_only=True)
class Car:
    name: str = setting(help="what it is called")
    key: str | None = setting(None, help="what starts it", secret=True)
    pin: int = setting(0, help="what else starts it", low=0, high=9999, secret=True)
    manual: Path | None = setting(None, help="where to read on")
    engine: Engine = field(default_factory=Engine)


def file(folder: Path, text: str) -> Path:
    """A TOML file."""
    path = folder / "car.toml"
    path.write_text(text, encoding="utf-8")
    return path


def flags(**values: object) -> dict[str, object]:
    """Values by path; a double underscore is a dot."""
    return {"name": "A", **{name.replace("__", "."): value for name, value in values.items()}}


def test_flags_win_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    """Each source gives one setting less than the one it wins over."""
    path = file(tmp_path, 'name = "file"\n[engine]\ncylinders = 5\nboost = 1\nfuel = "diesel"\n')
    environment = {"FEDMQ_ENGINE_CYLINDERS": "6", "FEDMQ_ENGINE_BOOST": "2.5"}
    loaded = load(Car, file=path, environment=environment, flags={"engine.cylinders": 8, "name": None})

    assert Car(name="file", engine=Engine(cylinders=8, boost=2.5, fuel="diesel")) == loaded


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("engine.cylinders", "12", 12),
        ("engine.boost", "1e-2", 0.01),
        ("engine.boost", "3", 3.0),
        ("engine.turbo", "TRUE", True),
        ("engine.turbo", "yes", True),
        ("engine.turbo", "1", True),
        ("engine.turbo", "no", False),
        ("engine.turbo", "0", False),
        ("engine.fuel", "diesel", "diesel"),
        ("manual", "a/b", Path("a/b")),
        ("key", "", ""),
        ("engine.options", "", ()),
        (
            "engine.options",
            "rate=0.5, size=3,seed=-1,flag=True,path=a=b,",
            (("rate", 0.5), ("size", 3), ("seed", -1), ("flag", True), ("path", "a=b")),
        ),
    ],
)
def test_a_text_from_the_environment_is_read_as_the_settings_type(
    path: str, text: str, value: object
) -> None:
    """Type for type."""
    variable = "FEDMQ_" + path.replace(".", "_").upper()
    found: object = load(Car, environment={variable: text}, flags={"name": "A"})
    for part in path.split("."):
        found = getattr(found, part)

    assert value == found
    assert type(value) is type(found)


def test_a_table_of_the_file_may_hold_any_names(tmp_path: Path) -> None:
    """Unlike all other tables."""
    path = file(tmp_path, 'name = "A"\n[engine.options]\nlearning_rate = 0.1\nlayers = 3\nmode = "x"\n')
    expected = (("learning_rate", 0.1), ("layers", 3), ("mode", "x"))

    assert expected == load(Car, file=path).engine.options


def test_a_relative_path_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    """A relative path in a flag is relative to where the person stands."""
    path = file(tmp_path, 'name = "A"\nmanual = "book.pdf"\n')

    assert tmp_path / "book.pdf" == load(Car, file=path).manual
    assert Path("book.pdf") == load(Car, flags={"name": "A", "manual": "book.pdf"}).manual
    assert Path("/book.pdf") == load(Car, file=file(tmp_path, 'name = "A"\nmanual = "/book.pdf"\n')).manual


WRONG: list[tuple[dict[str, object], str]] = [
    (
        flags(engine__cylinders=0),
        "engine.cylinders = 0 cannot be used: a whole number from 1 to 12 is allowed",
    ),
    (flags(engine__cylinders=13), "engine.cylinders = 13 cannot be used: a whole number from 1 to 12"),
    (
        flags(engine__cylinders="four"),
        "engine.cylinders = 'four' cannot be used: a whole number from 1 to 12",
    ),
    (flags(engine__cylinders=4.0), "engine.cylinders = 4.0 cannot be used: a whole number"),
    (flags(engine__cylinders=True), "engine.cylinders = True cannot be used: a whole number"),
    (flags(engine__boost=-0.1), "engine.boost = -0.1 cannot be used: a number, at least 0 is allowed"),
    (flags(engine__boost="nan"), "engine.boost = 'nan' cannot be used: a number, at least 0"),
    (flags(engine__boost=10**400), "cannot be used: a number, at least 0 is allowed"),
    (flags(engine__boost=[1]), r"engine.boost = [1] cannot be used: a number, at least 0"),
    (flags(engine__fuel="coal"), "engine.fuel = 'coal' cannot be used: one of petrol, diesel is allowed"),
    (flags(engine__fuel=1), "engine.fuel = 1 cannot be used: one of petrol, diesel is allowed"),
    (flags(engine__turbo="maybe"), "engine.turbo = 'maybe' cannot be used: true or false is allowed"),
    (flags(engine__turbo=1), "engine.turbo = 1 cannot be used: true or false is allowed"),
    (flags(engine__options="a"), "engine.options = 'a' cannot be used: name=value pairs"),
    (flags(engine__options={"a": [1]}), "engine.options = {'a': [1]} cannot be used: name=value pairs"),
    (flags(engine__options=f"a={2**63}"), "cannot be used: name=value pairs"),
    (flags(engine__options="=1"), "cannot be used: name=value pairs"),
    (flags(engine__options={str(i): i for i in range(65)}), "cannot be used: name=value pairs"),
    (flags(manual=3), "manual = 3 cannot be used: a path is allowed"),
    ({}, "name = None cannot be used: it is required: give --name or FEDMQ_NAME"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(values: dict[str, object], message: str) -> None:
    """The message is made of the setting, the value and what would do."""
    with pytest.raises(SettingError) as caught:
        load(Car, flags=values)

    assert message in str(caught.value)
    assert str(caught.value).startswith(f"setting {caught.value.name} = ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nme = "A"', "setting nme = '…' cannot be used: there is no such setting; "),
        ('name = "A"\n[engine]\nfule = "coal"', "setting engine.fule = "),
        ('name = "A"\nengine = 3', "setting engine = "),
        ('name = "A"\n[gearbox]\ngears = 5', "setting gearbox = "),
        ("name = ", "is not valid TOML: "),
        ('name = "A"\nname = "B"', "is not valid TOML: "),
        ("name = 3", "setting name = 3 cannot be used: a text is allowed"),
        ("[name]\nfirst = 1", "setting name = {'first': 1} cannot be used: a text is allowed"),
    ],
)
def test_a_wrong_file_is_named_with_what_it_may_hold(tmp_path: Path, text: str, message: str) -> None:
    """Unknown keys are refused: a misspelt setting that does nothing would be found late."""
    path = file(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        load(Car, file=path)

    assert message in str(caught.value)
    if "no such setting" in str(caught.value):
        assert f"{path} may hold name, key, pin, manual, engine.cylinders, " in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a folder, or not text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.toml", ".", "binary"):
        with pytest.raises(SettingError, match=r"--config = .* the file cannot be read"):
            load(Car, file=tmp_path / name)


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    """Neither in the settings' repr nor in an error, not even under a misspelt name."""
    texts = [repr(load(Car, flags={"name": "A", "key": "hunter2", "pin": 1234}))]
    wrong: list[dict[str, object]] = [{"name": "A", "key": ["hunter2"]}, {"name": "A", "pin": 12345}]
    for values in wrong:
        with pytest.raises(SettingError) as caught:
            load(Car, flags=values)
        texts.append(f"{caught.value} {caught.value.args} {caught.value.value}")
    with pytest.raises(SettingError) as caught:
        load(Car, file=file(tmp_path, 'name = "A"\nkye = "hunter2"\n'))
    texts.append(f"{caught.value} {caught.value.args} {caught.value.value}")

    assert not [text for text in texts if "hunter2" in text or "1234" in text]


@pytest.mark.parametrize("role", [AggregatorSettings, AgentSettings, EvaluatorSettings])
def test_every_setting_of_a_role_can_be_told_apart_and_explained(role: type) -> None:
    """No two share a name in the environment or on the command line, and each has a line of help."""
    found = list(leaves(role))

    assert len(found) == len({leaf.variable for leaf in found}) == len({leaf.flag for leaf in found})
    assert all(leaf.help and leaf.allowed for leaf in found)


@pytest.mark.parametrize("role", [AggregatorSettings, AgentSettings, EvaluatorSettings])
def test_every_default_of_a_role_passes_its_own_check(role: type) -> None:
    """Otherwise saying what is the case already would be an error."""
    for leaf in leaves(role):
        if isinstance(leaf.default, bool | int | float | str | Path | tuple):
            assert leaf.default == leaf.parse(leaf.default)


def test_the_password_of_the_broker_is_a_secret() -> None:
    """In every role's settings."""
    for role in (AggregatorSettings, AgentSettings, EvaluatorSettings):
        assert ["broker.password"] == [leaf.path for leaf in leaves(role) if leaf.secret]
