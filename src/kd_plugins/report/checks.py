"""Raw JSON values into typed ones; each error says where, what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Raw = Mapping[str, object]

LARGEST, SMALLEST = 1e100, 1e-100
"""Of numbers and of positive numbers; beyond, their squares and ratios are none."""


def mapping(raw: object, where: str) -> Raw:
    """Return a mapping; None counts as an empty one."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected a mapping, got {_shown(raw)}")
    return raw


def text(raw: object, where: str) -> str:
    """Return a string that is not empty."""
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError(f"{where}: expected a text, got {_shown(raw)}")
    return raw


def number(raw: object, where: str) -> float:
    """Return a finite number, small enough that sums of squares of such numbers are finite."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not abs(raw) <= LARGEST:
        raise ValueError(f"{where}: expected a number, got {_shown(raw)}")
    return float(raw)


def positive(raw: object, where: str) -> float:
    """Return a number above zero."""
    value = number(raw, where)
    if value < SMALLEST:
        raise ValueError(f"{where}: expected a number above 0, got {value:g}")
    return value


def whole(raw: object, where: str) -> int:
    """Return a whole number of 64 bits."""
    if isinstance(raw, bool) or not isinstance(raw, int) or abs(raw) >= 2**63:
        raise ValueError(f"{where}: expected a whole number, got {_shown(raw)}")
    return raw


def count(raw: object, where: str) -> int:
    """Return a whole number above zero."""
    value = whole(raw, where)
    if value < 1:
        raise ValueError(f"{where}: expected a whole number above 0, got {value}")
    return value


def numbers(raw: object, where: str) -> tuple[float, ...]:
    """Return a flat list of finite numbers, as a tuple."""
    if not isinstance(raw, list):
        raise ValueError(f"{where}: expected a list of numbers, got {_shown(raw)}")
    return tuple(number(item, f"{where}[{place}]") for place, item in enumerate(raw))


def columns(raw: object, where: str, names: Iterable[str]) -> tuple[tuple[float, ...], ...]:
    """Return the lists of numbers under the names, which must be of one length."""
    given = mapping(raw, where)
    found = {name: numbers(given.get(name), f"{where}.{name}") for name in names}
    if len({len(column) for column in found.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in found.items())
        raise ValueError(f"{where}: expected lists of one length, got {lengths}")
    return tuple(found.values())


def distinct(raw: object, where: str) -> tuple[object, ...]:
    """Return a list, as a tuple, that is not empty and repeats nothing."""
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{where}: expected a list, got {_shown(raw)}")
    if any(item in raw[:place] for place, item in enumerate(raw)):
        raise ValueError(f"{where}: expected each once, got {_shown(raw)}")
    return tuple(raw)


def among(raw: Raw, where: str, names: Iterable[str]) -> Raw:
    """Return a mapping whose keys are among the names."""
    try:
        known(raw, names)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return raw


def known(raw: Raw, names: Iterable[str]) -> None:
    """Refuse keys that are not among the names."""
    names = list(names)
    strange = [key for key in raw if key not in names]
    if strange:
        raise ValueError(f"unknown key {strange[0]!r}; known: {', '.join(names)}")


def _shown(raw: object) -> str:
    if isinstance(raw, int) and abs(raw) >= 2**63:
        return f"a whole number of {raw.bit_length()} bits"
    shown = "nothing" if raw is None else repr(raw)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
