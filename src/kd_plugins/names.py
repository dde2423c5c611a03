"""Look names up, with a suggestion for a misspelt one, and accept old names of arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

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
