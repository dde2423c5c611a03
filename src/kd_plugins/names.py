"""Looking names up so that a misspelt one is told its nearest neighbour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


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
