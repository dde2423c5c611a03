"""Names: suggestions for misspelt ones, public names imported at first use, and old names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or the list of what is known.

    >>> suggestion("hubr", ["huber", "norm"])
    "; did you mean 'huber'?"
    """
    known = sorted(known)
    if not known:
        return "; there is none"
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def look_up(name: str, table: Mapping[str, T], kind: str) -> T:
    """Return ``table[name]``.

    Raises:
        KeyError: naming the kind of thing, the wrong name and the nearest right one.

    >>> look_up("a", {"a": 1}, "letter")
    1
    """
    if name not in table:
        raise KeyError(f"unknown {kind} {name!r}{suggestion(str(name), table)}")
    return table[name]


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that goes on taking an argument by its old name, with a warning.

    >>> @renamed_argument("frames", "structures")
    ... def count(structures):
    ...     return len(structures)
    >>> count(structures=[1, 2])  # and count(frames=[1, 2]), with a DeprecationWarning
    2
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            if old in kwargs and new not in kwargs:
                message = f"{function.__name__}: the argument {old} is {new} now"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapped

    return decorate


def lazy_names(
    package: str, homes: Mapping[str, str], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` of a package's ``__init__`` (PEP 562).

    Public names are imported when they are first used. So a command answers at once, and a training
    loads only the rooms that it needs.

    No module of the package may have the name of a public function: once imported, the module
    would stand in the function's place.

    Args:
        package: its ``__name__``.
        homes: public name to the module that defines it; a module stands for itself.
        moved: old name to the full new one, which is returned with a DeprecationWarning.
    """

    def get(name: str) -> Any:
        if name == "__all__":  # of `from package import *`
            return sorted(homes)
        if name in homes:
            module = import_module(homes[name])
            return module if homes[name] == f"{package}.{name}" else getattr(module, name)

        new = (moved or {}).get(name)
        if new is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is {new} now", DeprecationWarning, stacklevel=2)
        room, _, attribute = new.rpartition(".")
        return getattr(import_module(room), attribute)

    def names() -> list[str]:
        return sorted([*vars(sys.modules[package]), *homes])

    return get, names
