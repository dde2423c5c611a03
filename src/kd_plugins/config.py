"""Read YAML and JSON into strict frozen dataclasses, and report all errors at once."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from kd_plugins.files import LARGEST_WHOLE
from kd_plugins.names import suggestion
from kd_plugins.numbers import LARGEST, shown

if TYPE_CHECKING:
    from kd_plugins.core.distances import Distance
    from kd_plugins.core.schedules import Schedule

T = TypeVar("T")

LARGEST_FILE = 1_000_000
"""Bytes of a YAML file. Settings have a few thousand, and PyYAML reads some 100,000 a second."""
MOST_VALUES = 100_000
"""Values of a YAML file after its aliases are expanded: a small file can expand to gigabytes."""
DEEPEST = 50
"""Levels of nested mappings and lists. Python's recursion limit would end deeper ones."""


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line an error."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps dates as text: JSON and our settings have no dates."""


# A resolver maps the first character of a scalar to the types it may have; drop that of dates.
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
        ConfigError: with the file and, where there is one, the line: for invalid YAML, text that is
            not UTF-8, an empty file, anything but a mapping, a repeated key, a Python object,
            aliases that contain themselves or expand to too many values, and a file or a nesting
            larger than settings need.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected a YAML file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a YAML")

    try:
        raw = _parse(_read_text(path))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}:"
        raise ConfigError(f"{path}:{line} no YAML: {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: no YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        # PyYAML converts numbers by `int` and `float`, and passes their errors on.
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path}: no YAML: {problem}") from None

    if raw is None:
        raise ConfigError(f"{path}: holds nothing; expected a mapping, key: value")
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected a mapping, key: value, got a {type(raw).__name__}: {shown(raw)}"
        )
    return raw


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{size} bytes, and settings have at most {LARGEST_FILE}")

    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8; save the file as UTF-8") from None


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None

        # Checked on the graph of nodes, before aliases are expanded into values.
        _count_values(node, {}, ())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counted: dict[int, int], parents: tuple[yaml.Node, ...]) -> int:
    """Return how many values a node has after its aliases are expanded.

    Args:
        node: to count.
        counted: id of a node to its count, so that a node with many aliases is counted once.
        parents: nodes that contain this one.

    Raises:
        yaml.MarkedYAMLError: for what no settings contain.
    """
    if any(node is parent for parent in parents):
        raise _error_at("an alias inside what it stands for", node)
    if len(parents) > DEEPEST:
        raise _error_at(f"more than {DEEPEST} mappings and lists inside each other", node)
    if id(node) in counted:
        return counted[id(node)]

    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif not node.tag.startswith("tag:yaml.org,2002:") or node.tag.endswith((":binary", ":set")):
        raise _error_at(f"{node.tag} is no setting", node)

    total = 1 + sum(_count_values(child, counted, (*parents, node)) for child in children)
    if total > MOST_VALUES:
        raise _error_at(f"more than {MOST_VALUES} values, written out", node)
    counted[id(node)] = total
    return total


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a repeated key, of which PyYAML would keep the last without a warning."""
    first_line: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        identity = (key.tag, key.value)
        if identity in first_line:
            line = first_line[identity]
            raise _error_at(f"the key {key.value!r} stands in line {line} already", key)
        first_line[identity] = key.start_mark.line + 1


def _error_at(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def read_config(kind: type[T], raw: object, path: str) -> T:
    """Build the dataclass ``kind`` from a mapping, and check every field.

    Args:
        kind: a dataclass whose fields are numbers, strings, booleans, Literals, other such
            dataclasses, tuples or mappings of these, one of these or a tuple of them, or have a
            reader (`reader`). A mapping's keys are strings or Literals; an entry that is null is
            left out.
        raw: the value in the YAML or JSON.
        path: its place for messages, such as ``"task.distill"`` or the name of the file.

    Raises:
        ConfigError: with every unknown or missing key, wrong type and value out of range.

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
    try:
        instance = _read_value(kind, raw, path, errors)
    except ValueError as error:
        errors.append(f"{path}: {error.args[0]}")
        instance = None

    if errors:
        plural = "errors" if len(errors) > 1 else "error"
        raise ConfigError("\n  ".join([f"{len(errors)} {plural} in {path}:", *errors]))
    return typing.cast(T, instance)


def set_dotted(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of settings, in place; a whole number is a place in a list.

    Raises:
        ValueError: if a name on the way is not a mapping or list, a list has no such place, or the
            key is not a dotted one.

    >>> settings = {"loss": {"energy": 1}}
    >>> set_dotted(settings, "loss.forces", 30)
    >>> settings
    {'loss': {'energy': 1, 'forces': 30}}
    >>> settings = {"train": [{"weight": 1}, {"weight": 1}]}
    >>> set_dotted(settings, "train.1.weight", 0.5)
    >>> settings
    {'train': [{'weight': 1}, {'weight': 0.5}]}
    """
    first, dot, rest = key.partition(".")
    if not first or (dot and not rest):
        raise ValueError(f"{key!r}: expected names with dots between them, such as loss.energy")
    if not dot:
        settings[first] = value
        return

    inner = settings.get(first, {})
    if isinstance(inner, list) and rest.partition(".")[0].isdecimal():
        # A list is changed as the mapping of its places.
        places = {str(place): item for place, item in enumerate(inner)}
        if rest.partition(".")[0] not in places:
            raise ValueError(f"{key}: {first} has {len(inner)} items, and the first is 0")
        set_dotted(places, rest, value)
        settings[first] = list(places.values())
        return
    if not isinstance(inner, dict):
        raise ValueError(f"{key}: {first} is {shown(inner)}, which has nothing in it")
    # A copy: with an alias in the YAML, another key may hold the same mapping.
    settings[first] = dict(inner)
    set_dotted(settings[first], rest, value)


def reader(read: Callable[[Any], Any], **field: Any) -> Any:
    """Declare a dataclass field whose value in the YAML is converted by ``read``.

    Args:
        read: converts the value, and raises a ValueError or KeyError for a bad one.
        field: arguments of `dataclasses.field`, such as ``default``.
    """
    return dataclasses.field(metadata={"read": read}, **field)


def weight(raw: object) -> Schedule:
    """Read a weight: a number, or a mapping such as ``{schedule: linear, ...}``.

    Raises:
        ValueError: for an unknown schedule or wrong settings of one.

    >>> weight(10)(0)
    10.0
    """
    # Imported here, since distances load torch, and most settings have neither.
    from kd_plugins.core.schedules import SCHEDULES, Constant

    if not isinstance(raw, Mapping):
        return Constant(_read_number(raw))

    if "schedule" not in raw:
        raise ValueError(f"schedule: missing; expected {' or '.join(SCHEDULES)}")
    name = raw["schedule"]
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}{suggestion(str(name), SCHEDULES)}")

    errors: list[str] = []
    settings = {key: value for key, value in raw.items() if key != "schedule"}
    schedule = _read_dataclass(SCHEDULES[name], settings, name, errors)
    if errors:
        raise ValueError("; ".join(errors))
    return typing.cast("Schedule", schedule)


def distance(raw: object) -> Distance:
    """Read a distance: its name, or ``{huber: DELTA}``.

    Raises:
        ValueError: for an unknown distance, or huber without its delta.

    >>> distance("norm").__name__
    'norm'
    """
    from kd_plugins.core.distances import DISTANCES, Huber

    if isinstance(raw, Mapping) and set(raw) == {"huber"}:
        return Huber(_read_number(raw["huber"]))
    if raw == "huber":
        raise ValueError("huber needs its delta: write {huber: 0.1}")
    if not isinstance(raw, str) or raw not in DISTANCES:
        raise ValueError(f"unknown distance {raw!r}{suggestion(str(raw), [*DISTANCES, 'huber'])}")
    return DISTANCES[raw]


def _read_dataclass(kind: Any, raw: object, path: str, errors: list[str]) -> object:
    if not isinstance(raw, Mapping):
        errors.append(f"{path}: expected a mapping, got {shown(raw)}")
        return None

    fields = {field.name: field for field in dataclasses.fields(kind)}
    n_errors_before = len(errors)
    errors.extend(
        f"{path}.{key}: unknown key{suggestion(str(key), fields)}"
        for key in raw
        if key not in fields
    )
    n_unknown = len(errors) - n_errors_before

    # `fields` holds annotations as text under `from __future__ import annotations`.
    hints = typing.get_type_hints(kind)
    values = {
        name: _read_field(field, hints[name], raw, f"{path}.{name}", errors)
        for name, field in fields.items()
        if name in raw or _is_required(field)
    }

    # Unknown keys do not stop the instance, whose own checks may find more errors.
    if len(errors) > n_errors_before + n_unknown:
        return None
    try:
        return kind(**values)
    except (ValueError, KeyError) as error:
        errors.append(f"{path}: {error.args[0]}")
        return None


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_field(
    field: dataclasses.Field[Any], hint: Any, raw: Mapping[str, Any], path: str, errors: list[str]
) -> object:
    if field.name not in raw:
        errors.append(f"{path}: missing; expected {_expectation(hint)}")
        return None

    read = field.metadata.get("read")
    try:
        return read(raw[field.name]) if read else _read_value(hint, raw[field.name], path, errors)
    except (ValueError, KeyError) as error:
        errors.append(f"{path}: {error.args[0]}")
        return None


def _read_value(hint: Any, raw: Any, path: str, errors: list[str]) -> object:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if raw is None and type(None) in typing.get_args(hint):
            return None
        hint = _choose_option(hint, raw)

    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, raw, path, errors)
    if typing.get_origin(hint) is Literal:
        return _read_choice(typing.get_args(hint), raw)
    if hint is float:
        return _read_number(raw)
    if typing.get_origin(hint) is tuple:
        return _read_list(typing.get_args(hint)[0], raw, path, errors)
    if typing.get_origin(hint) is Mapping:
        return _read_mapping(*typing.get_args(hint), raw, path, errors)
    if hint in (object, Any):
        return raw

    if type(raw) is not hint:  # not isinstance: True is an int to Python, and no number to us
        raise ValueError(f"expected {_expectation(hint)}, got {shown(raw)}")
    if isinstance(raw, int) and abs(raw) > LARGEST_WHOLE:
        raise ValueError(f"expected a whole number up to 2^63, got {shown(raw)}")
    return raw


def _choose_option(hint: Any, raw: object) -> Any:
    """Return the form of a value that may have two, such as one block or a list of blocks."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    lists = [option for option in options if typing.get_origin(option) is tuple]
    return lists[0] if lists and isinstance(raw, list | tuple) else options[0]


def _read_choice(choices: tuple[str, ...], raw: object) -> object:
    if raw not in choices:
        raise ValueError(f"unknown choice {shown(raw)}{suggestion(shown(raw), choices)}")
    return raw


def _read_list(hint: Any, raw: object, path: str, errors: list[str]) -> tuple[object, ...]:
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"expected a list, got {shown(raw)}")
    return tuple(
        _read_item(hint, item, f"{path}[{place}]", errors) for place, item in enumerate(raw)
    )


def _read_mapping(
    key_hint: Any, hint: Any, raw: object, path: str, errors: list[str]
) -> dict[str, object]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected a mapping, got {shown(raw)}")

    known = typing.get_args(key_hint)  # those of a Literal; none for any string
    items = {}
    for key, value in raw.items():
        if not isinstance(key, str) or (known and key not in known):
            near = suggestion(str(key), known) if known else "; expected a string"
            errors.append(f"{path}.{key}: unknown key{near}")
        elif value is not None:
            items[key] = _read_item(hint, value, f"{path}.{key}", errors)
    return items


def _read_item(hint: Any, raw: object, path: str, errors: list[str]) -> object:
    """Read an item of a list or mapping, and add its error to the others."""
    try:
        return _read_value(hint, raw, path, errors)
    except (ValueError, KeyError) as error:
        errors.append(f"{path}: {error.args[0]}")
        return None


def _read_number(raw: object) -> float:
    if isinstance(raw, str):
        raise ValueError(
            f"expected a number, got the string {shown(raw)} (YAML wants 1.0e-3, not 1e-3)"
        )
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(f"expected a number, got {shown(raw)}")
    if abs(raw) > LARGEST or math.isnan(raw):
        raise ValueError(f"expected a finite number, got {shown(raw)}")
    return float(raw)


def _expectation(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = _choose_option(hint, None)
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    names = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    return names.get(hint, "a mapping" if dataclasses.is_dataclass(hint) else "a value")
