"""A YAML mapping into dataclasses: what is read, and that everything wrong is said at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from kd_plugins.config import (
    ConfigError,
    distance,
    read_config,
    read_yaml,
    reader,
    set_dotted,
    weight,
)
from kd_plugins.core import DISTANCES, SCHEDULES, Constant, Cosine, Huber, Linear, Piecewise
from kd_plugins.core.distances import Distance
from kd_plugins.core.schedules import Schedule

pytestmark = pytest.mark.usefixtures("unchecked")


@dataclass(frozen=True)
class Bath:
    """A part of a configuration."""

    temperature: float
    kind: Literal["langevin", "nose"] = "langevin"

    def __post_init__(self) -> None:
        """Refuse what only the whole can judge."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0 K, got {self.temperature}")


@dataclass(frozen=True)
class Run:
    """A configuration with a field of every kind."""

    name: str
    steps: int
    bath: Bath
    soft: Schedule = reader(weight)
    measure: Distance = reader(distance, default=DISTANCES["norm"])
    verbose: bool = False
    frozen: tuple[str, ...] = ()
    second: Bath | None = None
    limit: float | None = None
    tags: tuple[str, ...] = field(default_factory=tuple)


SMALLEST = {"name": "a", "steps": 3, "bath": {"temperature": 300}, "soft": 1}


def complaints(changes: dict[str, Any]) -> list[str]:
    """Return what is said of the smallest configuration after these changes."""
    with pytest.raises(ConfigError, match=r"^\d+ errors? in run:\n") as error:
        read_config(Run, {**SMALLEST, **changes}, "run")
    head, *lines = str(error.value).split("\n  ")
    assert head == f"{len(lines)} error{'s' * (len(lines) > 1)} in run:"
    return lines


def test_defaults_stand_for_what_is_left_out() -> None:
    """Whole numbers are numbers."""
    expected = Run("a", 3, Bath(300.0), Constant(1.0))
    run = read_config(Run, SMALLEST, "run")
    assert run == expected
    assert type(run.bath.temperature) is float


def test_every_kind_of_field_is_read() -> None:
    """From the text of a YAML."""
    text = """
    name: b
    steps: 5
    bath: {temperature: 10.0, kind: nose}
    soft: {schedule: linear, start: 0, end: 2.0, first_step: 0, last_step: 10}
    measure: {huber: 0.1}
    verbose: true
    frozen: [blocks.0.*, embedding]
    second: {temperature: 1}
    limit: 1.0e-3
    """
    assert read_config(Run, yaml.safe_load(text), "run") == Run(
        "b",
        5,
        Bath(10.0, "nose"),
        Linear(0, 2.0, 0, 10),
        Huber(0.1),
        True,
        ("blocks.0.*", "embedding"),
        Bath(1.0),
        1e-3,
    )


@pytest.mark.parametrize("name", ["second", "limit"])
def test_null_is_none_where_it_may_be(name: str) -> None:
    """And stays an error elsewhere."""
    assert getattr(read_config(Run, {**SMALLEST, name: None}, "run"), name) is None
    assert complaints({"name": None}) == ["run.name: expected a string, got None"]


WRONG = [
    ({"steps": 3.0}, "run.steps: expected a whole number, got 3.0"),
    ({"steps": True}, "run.steps: expected a whole number, got True"),
    ({"steps": "3"}, "run.steps: expected a whole number, got '3'"),
    ({"name": 3}, "run.name: expected a string, got 3"),
    ({"verbose": 1}, "run.verbose: expected true or false, got 1"),
    ({"verbose": "yes"}, "run.verbose: expected true or false, got 'yes'"),
    ({"limit": True}, "run.limit: expected a number, got True"),
    ({"limit": [1]}, "run.limit: expected a number, got [1]"),
    (
        {"limit": "1e-3"},
        "run.limit: expected a number, got the string '1e-3' (YAML wants 1.0e-3, not 1e-3)",
    ),
    ({"limit": float("nan")}, "run.limit: expected a finite number, got nan"),
    ({"limit": float("inf")}, "run.limit: expected a finite number, got inf"),
    ({"limit": 10**400}, "run.limit: expected a finite number, got a whole number of 1329 bits"),
    ({"steps": 10**400}, "run.steps: expected a whole number up to 2^63, got a whole number of"),
    ({"steps": 2**63}, "run.steps: expected a whole number up to 2^63, got a whole number of 64"),
    ({"frozen": "embedding"}, "run.frozen: expected a list, got 'embedding'"),
    ({"frozen": ["a", 1]}, "run.frozen[1]: expected a string, got 1"),
    ({"bath": 300}, "run.bath: expected a mapping, got 300"),
    ({"bath": None}, "run.bath: expected a mapping, got None"),
    ({"bath": {}}, "run.bath.temperature: missing; expected a number"),
    ({"bath": {"temperature": "hot"}}, "run.bath.temperature: expected a number, got the string "),
    ({"bath": {"temperature": -1}}, "run.bath: temperature must be >= 0 K, got -1.0"),
    ({"second": {"temperature": -1}}, "run.second: temperature must be >= 0 K, got -1.0"),
    (
        {"bath": {"temperature": 1, "kind": "noose"}},
        "run.bath.kind: unknown choice 'noose'; did you mean 'nose'?",
    ),
    ({"bath": {"temperature": 1, "kind": ["nose"]}}, "run.bath.kind: unknown choice ['nose']"),
    (
        {"bath": {"temperature": 1, "kid": "nose"}},
        "run.bath.kid: unknown key; did you mean 'kind'?",
    ),
    ({"verbos": True}, "run.verbos: unknown key; did you mean 'verbose'?"),
    ({"xyzzy": 1}, "run.xyzzy: unknown key; known: bath, frozen, limit, measure, name, second"),
    ({1: 2}, "run.1: unknown key"),
    ({"soft": "1e-3"}, "run.soft: expected a number, got the string '1e-3' (YAML wants 1.0e-3"),
    ({"soft": True}, "run.soft: expected a number, got True"),
    ({"soft": None}, "run.soft: expected a number, got None"),
    ({"soft": -1}, "run.soft: a weight must be finite and >= 0, got -1.0"),
    ({"soft": {"schedule": 3}}, "run.soft: unknown schedule 3; known: constant, cosine, linear"),
    ({"soft": {"schedule": "linar"}}, "run.soft: unknown schedule 'linar'; did you mean 'linear'?"),
    ({"measure": "hubr"}, "run.measure: unknown distance 'hubr'; did you mean 'huber'?"),
    ({"measure": "huber"}, "run.measure: huber needs its delta: write {huber: 0.1}"),
    ({"measure": {"huber": 0}}, "run.measure: huber: delta must be > 0 and finite, got 0.0"),
    ({"measure": {"huber": "1e-3"}}, "run.measure: expected a number, got the string '1e-3'"),
    ({"measure": {"norm": 1}}, "run.measure: unknown distance {'norm': 1}"),
    ({"measure": ["norm"]}, "run.measure: unknown distance ['norm']"),
    ({"measure": None}, "run.measure: unknown distance None; known: absolute_mean"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG)
def test_what_is_wrong_is_said_with_its_path(changes: dict[str, Any], says: str) -> None:
    """One line, which names the key, what was expected and what came."""
    (line,) = complaints(changes)
    assert line.startswith(says)


def test_everything_wrong_is_said_at_once() -> None:
    """Unknown, missing, of a wrong type or out of range, at whatever depth."""
    changes = {
        "nam": "a",
        "steps": "three",
        "bath": {"temprature": 1, "kind": "noose"},
        "second": {"temperature": -1},
        "soft": {"schedule": "linear", "start": -1, "end": 0, "first_step": 0, "last_step": 1},
        "measure": "hubr",
    }
    assert [line.split(": ")[0] for line in complaints(changes)] == [
        "run.nam",
        "run.steps",
        "run.bath.temprature",
        "run.bath.temperature",
        "run.bath.kind",
        "run.soft",
        "run.measure",
        "run.second",
    ]


def test_every_required_key_is_missed() -> None:
    """With what it should hold; those with a default are not."""
    with pytest.raises(ConfigError, match="^4 errors in run:") as error:
        read_config(Run, {}, "run")
    assert str(error.value).split("\n  ")[1:] == [
        "run.name: missing; expected a string",
        "run.steps: missing; expected a whole number",
        "run.bath: missing; expected a mapping",
        "run.soft: missing; expected a value",
    ]


@pytest.mark.parametrize("raw", [None, [], "run", 3])
def test_only_a_mapping_is_a_configuration(raw: object) -> None:
    """A YAML may hold anything."""
    with pytest.raises(ConfigError, match="^1 error in run:\n  run: expected a mapping, got "):
        read_config(Run, raw, "run")


def test_one_error_is_one_error() -> None:
    """Also in grammar, and a ValueError like others."""
    with pytest.raises(ValueError, match=r"^1 error in run:\n  run\.steps: [^\n]*$"):
        read_config(Run, {**SMALLEST, "steps": "x"}, "run")


RAMP = {"start": 1.0, "end": 0.0, "first_step": 2, "last_step": 5}
SCHEDULED = {
    "constant": ({"value": 2.0}, Constant(2.0)),
    "linear": (RAMP, Linear(**RAMP)),
    "cosine": (RAMP, Cosine(**RAMP)),
    "piecewise": ({"steps": [0, 5], "weights": [1.0, 2.0]}, Piecewise((0, 5), (1.0, 2.0))),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_read_by_its_name(name: str) -> None:
    """Every row of the table; what it was read from is left as it was."""
    settings, expected = SCHEDULED[name]
    raw = {"schedule": name, **settings}
    assert weight(raw) == expected
    assert raw["schedule"] == name


@pytest.mark.parametrize("raw", [0, 0.0, 3, 2.5])
def test_a_number_is_a_constant_weight(raw: float) -> None:
    """Zero too, which turns a term off."""
    assert weight(raw) == Constant(float(raw))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_read_by_its_name(name: str) -> None:
    """Every row of the table."""
    assert distance(name) is DISTANCES[name]


WRONG_SCHEDULES = [
    ({}, "schedule: missing; expected constant or linear or cosine or piecewise"),
    ({"schedule": None, "value": 1}, "unknown schedule None"),
    ({"schedule": ["linear"]}, "unknown schedule ['linear']"),
    ({"schedule": {"linear": 1}}, "unknown schedule {'linear': 1}"),
    ({"schedule": "constant"}, "value: missing; expected a number"),
    ({"schedule": "constant", "value": 1, "valu": 1}, "valu: unknown key; did you mean 'value'"),
    ({"schedule": "constant", "value": "1e-3"}, "YAML wants 1.0e-3"),
    ({"schedule": "constant", "value": True}, "expected a number, got True"),
    ({"schedule": "constant", "value": -1}, "a weight must be finite and >= 0, got -1.0"),
    ({"schedule": "linear", **RAMP, "last_step": "5"}, "last_step: expected a whole number"),
    ({"schedule": "linear", **RAMP, "last_step": 5.5}, "last_step: expected a whole number"),
    ({"schedule": "linear", **RAMP, "last_step": 2}, "needs 0 <= first_step < last_step"),
    ({"schedule": "piecewise", "steps": 5, "weights": [1.0]}, "steps: expected a list, got 5"),
    ({"schedule": "piecewise", "steps": ["0"], "weights": [1.0]}, "expected a whole number"),
    ({"schedule": "piecewise", "steps": [0], "weights": ["1e-3"]}, "YAML wants 1.0e-3"),
    ({"schedule": "piecewise", "steps": [0, 0], "weights": [1, 2]}, "steps must increase, got"),
]


@pytest.mark.parametrize(
    ("raw", "says"), WRONG_SCHEDULES, ids=[str(raw) for raw, _ in WRONG_SCHEDULES]
)
def test_settings_of_a_schedule_are_read_strictly(raw: dict[str, Any], says: str) -> None:
    """As those of every other dataclass; whatever is wrong is said in one line."""
    (line,) = complaints({"soft": raw})
    assert line.startswith("run.soft: ")
    assert says in line


def test_everything_wrong_with_a_schedule_is_said_at_once() -> None:
    """Each of its settings."""
    raw = {"schedule": "linear", "start": "a", "ende": 1.0, "first_step": 0.5, "last_step": 5}
    (line,) = complaints({"soft": raw})
    assert all(name in line for name in ("start: ", "ende: unknown", "end: miss", "first_step: "))


def test_a_file_is_read_as_utf_8_and_dates_stay_text(tmp_path: Path) -> None:
    """Whatever the locale; with or without the mark that some editors put in front."""
    (tmp_path / "a.yml").write_bytes("\ufeffunit: Å\nday: 2024-01-02\n".encode())
    assert read_yaml(tmp_path / "a.yml") == {"unit": "Å", "day": "2024-01-02"}


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(10 * ['*' + before])}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds nothing; expected a mapping"),
        (b"# only a word\n", "holds nothing; expected a mapping"),
        (b"- a\n- b\n", r"expected a mapping, key: value, got a list: \['a', 'b'\]"),
        (b"a: 1\nb: [\n", "line 3: no YAML: "),
        (b"a: 1\nb:\n\t- 1\n", "line 3: no YAML: found character"),
        (b"a: 1\nb: \xff\n", "line 2 is not UTF-8; save the file as UTF-8"),
        (b"a: 1\n\nb: 2\na: 3\n", "line 4: no YAML: the key 'a' stands in line 1 already"),
        (b"c: {a: 1, b: {d: 1, d: 2}}\n", "line 1: no YAML: the key 'd' stands in line 1 already"),
        (b"a: &a {b: *a}\n", "an alias inside what it stands for"),
        (BOMB.encode(), "more than 100000 values, written out"),
        (b"[" * 60 + b"]" * 60, "more than 50 mappings and lists inside each other"),
        (b"[" * 100_000, "nested too deeply"),
        (b"a: " + 5000 * b"1", "no YAML: Exceeds the limit"),
        (b"a: !!python/object/apply:os.system [id]\n", "python/object/apply"),
        (b"a: !!binary aGk=\n", "binary is no setting"),
        (b"a: \x00\n", "special characters are not allowed"),
        (b"? [a, b]\n: 1\n", "found unhashable key"),
        (b"a: 1\n" * 200_001, "1000005 bytes, and settings have at most 1000000"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path: Path, content: bytes, says: str) -> None:
    """Is named, with the line as far as there is one."""
    path = tmp_path / "settings.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: ?.*{says}"):
        read_yaml(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; expected a YAML file"):
        read_yaml(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.yml: no such file; expected a YAML"):
        read_yaml(tmp_path / "no.yml")


def test_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yml").write_text("a: 1")
    assert read_yaml("~/a.yml") == {"a": 1}


def test_setting_a_dotted_key_leaves_an_aliased_block_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.yml"
    path.write_text("train: &data {files: [a.xyz]}\nvalidation: *data\n")
    settings = read_yaml(path)
    set_dotted(settings, "validation.files", ["b.xyz"])
    assert settings == {"train": {"files": ["a.xyz"]}, "validation": {"files": ["b.xyz"]}}
