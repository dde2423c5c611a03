"""A YAML mapping into strict frozen dataclasses; everything that is wrong is said at once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from kd_plugins.core.distances import DISTANCES, Distance, Huber
from kd_plugins.core.names import suggestion
from kd_plugins.core.schedules import SCHEDULES, Constant, Schedule

T = TypeVar("T")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line an error."""


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
        errors.append(f"{path}: expected a mapping, got {raw!r}")
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
        raise ValueError(f"expected {_expectation(hint)}, got {raw!r}")
    return raw


def _choice(choices: tuple[str, ...], raw: object) -> object:
    if raw not in choices:
        raise ValueError(f"unknown choice {raw!r}{suggestion(str(raw), choices)}")
    return raw


def _items(hint: Any, raw: object, path: str, errors: list[str]) -> tuple[object, ...]:
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"expected a list, got {raw!r}")
    return tuple(_value(hint, item, path, errors) for item in raw)


def _number(raw: object) -> float:
    if isinstance(raw, str):
        raise ValueError(f"expected a number, got the string {raw!r} (YAML wants 1.0e-3, not 1e-3)")
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(f"expected a number, got {raw!r}")
    return float(raw)


def _expectation(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    names = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    return names.get(hint, "a mapping" if dataclasses.is_dataclass(hint) else "a value")
