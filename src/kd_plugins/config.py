"""A YAML mapping into strict frozen dataclasses; everything that is wrong is said at once."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from kd_plugins.core.distances import DISTANCES, Distance, Huber
from kd_plugins.core.schedules import SCHEDULES, Constant, Schedule
from kd_plugins.names import suggestion

T = TypeVar("T")


LARGEST_FILE = 1_000_000
"""Bytes of a YAML; settings are a few thousand, and PyYAML reads some 100,000 a second."""
MOST_VALUES = 100_000
"""Of a YAML once its aliases are written out."""
DEEPEST = 50
"""Mappings and lists inside each other."""
LARGEST_WHOLE = 2**63 - 1
LARGEST_NUMBER = 1e300


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line an error."""


class _Loader(yaml.SafeLoader):
    """Reads dates as text, since JSON and our settings have none."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; dates stay text.

    Args:
        path: of the file; ``~`` is the home folder.

    Raises:
        FileNotFoundError: without the file.
        ConfigError: naming the file and, as far as there is one, the line: for what is no YAML, not
            UTF-8, empty or no mapping, a key that comes twice, an object of Python, aliases that
            name themselves or write out to a great many values, and a file or a nesting that no
            settings need.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected a YAML file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a YAML")
    try:
        raw = _parsed(_text_of(path))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}:"
        raise ConfigError(f"{path}:{line} no YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        # PyYAML makes numbers by `int` and `float`, whose errors it passes on
        said = " ".join(str(error).split())
        said = "nested too deeply" if isinstance(error, RecursionError) else said
        raise ConfigError(f"{path}: no YAML: {said}") from None
    if raw is None:
        raise ConfigError(f"{path}: holds nothing; expected a mapping, key: value")
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected a mapping, key: value, got a {type(raw).__name__}: {shown(raw)}"
        )
    return raw


def _text_of(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{size} bytes, and settings have at most {LARGEST_FILE}")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8; save the file as UTF-8") from None


def _parsed(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, counted: dict[int, int], above: tuple[yaml.Node, ...]) -> int:
    """Return how many values a node is once aliases are written out; refuse what is no setting."""
    if any(node is one for one in above):
        raise _refused("an alias inside what it stands for", node)
    if len(above) > DEEPEST:
        raise _refused(f"more than {DEEPEST} mappings and lists inside each other", node)
    if id(node) in counted:
        return counted[id(node)]
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node)
        inner = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif not node.tag.startswith("tag:yaml.org,2002:") or node.tag.endswith((":binary", ":set")):
        raise _refused(f"{node.tag} is no setting", node)
    total = 1 + sum(_count(one, counted, (*above, node)) for one in inner)
    if total > MOST_VALUES:
        raise _refused(f"more than {MOST_VALUES} values, written out", node)
    counted[id(node)] = total
    return total


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Raise for a key that comes twice, of which PyYAML would keep the last in silence."""
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        known = (key.tag, key.value)
        if known in first:
            raise _refused(f"the key {key.value!r} stands in line {first[known]} already", key)
        first[known] = key.start_mark.line + 1


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long.

    >>> shown("a" * 200)[-5:]
    'aa...'
    """
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_config(kind: type[T], raw: object, path: str) -> T:
    """Return ``raw`` as an instance of the dataclass ``kind``.

    Args:
        kind: a dataclass whose fields are numbers, strings, booleans, Literals, tuples of strings,
            other such dataclasses, or carry a reader in their metadata (`reader`).
        raw: what the YAML holds.
        path: where in the YAML it stands, for the messages, e.g. ``"task.distill"``.

    Raises:
        ConfigError: listing every unknown or missing key, wrong type and value out of range.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Bath:
    ...     temperature: float
    >>> read_config(Bath, {"temperature": 300}, "bath")
    Bath(temperature=300.0)
    >>> read_config(Bath, {"temprature": 300}, "bath")
    Traceback (most recent call last):
    kd_plugins.config.ConfigError: 2 errors in bath:
      bath.temprature: unknown key; did you mean 'temperature'?
      bath.temperature: missing; expected a number
    """
    errors: list[str] = []
    instance = _dataclass(kind, raw, path, errors)
    if errors:
        plural = "errors" if len(errors) > 1 else "error"
        raise ConfigError("\n  ".join([f"{len(errors)} {plural} in {path}:", *errors]))
    return typing.cast(T, instance)


def reader(read: Callable[[Any], Any], **field: Any) -> Any:
    """Return a dataclass field whose raw value goes through ``read``.

    ``read`` raises a ValueError or KeyError for a bad value.
    """
    return dataclasses.field(metadata={"read": read}, **field)


def weight(raw: object) -> Schedule:
    """Return a weight from a number, or from a mapping such as ``{schedule: linear, ...}``.

    >>> weight(10)(0)
    10.0
    """
    if not isinstance(raw, Mapping):
        return Constant(_number(raw))
    if "schedule" not in raw:
        raise ValueError(f"schedule: missing; expected {' or '.join(SCHEDULES)}")
    name = raw["schedule"]
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}{suggestion(str(name), SCHEDULES)}")
    errors: list[str] = []
    settings = {key: value for key, value in raw.items() if key != "schedule"}
    schedule = _dataclass(SCHEDULES[name], settings, name, errors)
    if errors:
        raise ValueError("; ".join(errors))
    return typing.cast(Schedule, schedule)


def distance(raw: object) -> Distance:
    """Return a distance from its name, or from ``{huber: DELTA}``.

    >>> distance("norm").__name__
    'norm'
    """
    if isinstance(raw, Mapping) and set(raw) == {"huber"}:
        return Huber(_number(raw["huber"]))
    if raw == "huber":
        raise ValueError("huber needs its delta: write {huber: 0.1}")
    if not isinstance(raw, str) or raw not in DISTANCES:
        raise ValueError(f"unknown distance {raw!r}{suggestion(str(raw), [*DISTANCES, 'huber'])}")
    return DISTANCES[raw]


def _dataclass(kind: Any, raw: object, path: str, errors: list[str]) -> object:
    if not isinstance(raw, Mapping):
        errors.append(f"{path}: expected a mapping, got {shown(raw)}")
        return None
    fields = {field.name: field for field in dataclasses.fields(kind)}
    errors.extend(
        f"{path}.{key}: unknown key{suggestion(str(key), fields)}"
        for key in raw
        if key not in fields
    )
    hints = typing.get_type_hints(kind)
    before = len(errors)
    values = {
        name: _field(field, hints[name], raw, f"{path}.{name}", errors)
        for name, field in fields.items()
        if name in raw or _required(field)
    }
    return None if len(errors) > before else _construct(kind, values, path, errors)


def _construct(kind: Any, values: dict[str, Any], path: str, errors: list[str]) -> object:
    try:
        return kind(**values)
    except (ValueError, KeyError) as error:
        errors.append(f"{path}: {error.args[0]}")
        return None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _field(
    field: dataclasses.Field[Any], hint: Any, raw: Mapping[str, Any], path: str, errors: list[str]
) -> object:
    if field.name not in raw:
        errors.append(f"{path}: missing; expected {_expectation(hint)}")
        return None
    read = field.metadata.get("read")
    try:
        return read(raw[field.name]) if read else _value(hint, raw[field.name], path, errors)
    except (ValueError, KeyError) as error:
        errors.append(f"{path}: {error.args[0]}")
        return None


def _value(hint: Any, raw: Any, path: str, errors: list[str]) -> object:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if raw is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, raw, path, errors)
    if typing.get_origin(hint) is Literal:
        return _choice(typing.get_args(hint), raw)
    if hint is float:
        return _number(raw)
    if typing.get_origin(hint) is tuple:
        return _items(typing.get_args(hint)[0], raw, path, errors)
    if type(raw) is not hint:
        raise ValueError(f"expected {_expectation(hint)}, got {shown(raw)}")
    if isinstance(raw, int) and abs(raw) > LARGEST_WHOLE:
        raise ValueError(f"expected a whole number up to 2^63, got {shown(raw)}")
    return raw


def _choice(choices: tuple[str, ...], raw: object) -> object:
    if raw not in choices:
        raise ValueError(f"unknown choice {shown(raw)}{suggestion(shown(raw), choices)}")
    return raw


def _items(hint: Any, raw: object, path: str, errors: list[str]) -> tuple[object, ...]:
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"expected a list, got {shown(raw)}")
    return tuple(_value(hint, item, path, errors) for item in raw)


def _number(raw: object) -> float:
    if isinstance(raw, str):
        raise ValueError(
            f"expected a number, got the string {shown(raw)} (YAML wants 1.0e-3, not 1e-3)"
        )
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(f"expected a number, got {shown(raw)}")
    if abs(raw) > LARGEST_NUMBER or math.isnan(raw):
        raise ValueError(f"expected a finite number, got {shown(raw)}")
    return float(raw)


def _expectation(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    names = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    return names.get(hint, "a mapping" if dataclasses.is_dataclass(hint) else "a value")
