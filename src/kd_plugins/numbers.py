"""Check numbers that a user gives: finite, of the right kind, within bounds."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import TypeGuard

LARGEST = 1e300
"""The largest magnitude of a setting: float64 ends at 1.8e308, and settings are scaled."""
LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy's and torch's generators both take."""


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite real number; a boolean is not one.

    >>> is_number(3), is_number(True), is_number(float("nan")), is_number(10**400)
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    if isinstance(value, Integral):
        return abs(int(value)) <= LARGEST
    return math.isfinite(float(value)) and abs(float(value)) <= LARGEST


def check_number(
    name: str,
    value: object,
    *,
    above: int | float | None = None,
    least: int | float | None = None,
    most: int | float | None = None,
    unit: str = "",
) -> float:
    """Return a number as a float.

    Args:
        name: of the argument, for the message.
        value: that was given.
        above: it must be larger than this.
        least: it must be this or larger.
        most: it must be this or smaller.
        unit: for the message.

    Raises:
        ValueError: for what is no number (a boolean is none), not finite, or out of bounds.

    >>> check_number("cutoff", -1, above=0, unit="Å")
    Traceback (most recent call last):
    ValueError: cutoff: expected a number above 0 Å, got -1
    """
    bounds = _bounds(above, least, most, unit)
    if not is_number(value):
        raise ValueError(f"{name}: expected a number{bounds}, got {shown(value)}")

    number = float(value)
    outside = (
        (above is not None and number <= above)
        or (least is not None and number < least)
        or (most is not None and number > most)
    )
    if outside:
        raise ValueError(f"{name}: expected a number{bounds}, got {shown(value)}")
    return number


def check_whole(
    name: str, value: object, *, least: int | None = None, most: int | None = None
) -> int:
    """Return a whole number as an int.

    Args:
        name: of the argument, for the message.
        value: that was given.
        least: it must be this or larger.
        most: it must be this or smaller.

    Raises:
        ValueError: for what is no whole number (a boolean or 2.0 is none), or out of bounds.

    >>> check_whole("batch_size", 0, least=1)
    Traceback (most recent call last):
    ValueError: batch_size: expected a whole number of 1 or more, got 0
    """
    bounds = _bounds(None, least, most, "")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}: expected a whole number{bounds}, got {shown(value)}")

    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name}: expected a whole number{bounds}, got {shown(value)}")
    return number


def check_seed(name: str, value: object) -> int:
    """Return a seed of random numbers, 0 to 4294967295.

    Raises:
        ValueError: for anything else.
    """
    return check_whole(name, value, least=0, most=LARGEST_SEED)


def shown(value: object) -> str:
    """Return a value as it may stand in a message: on one line and not long.

    >>> shown("x" * 199)[-20:]
    'xxxxxxxxxxxxxxxxx...'
    """
    if isinstance(value, int) and abs(value) >= 2**63:
        # Too long to compare by eye; beyond 4,300 digits Python refuses to print it.
        return f"a whole number of {value.bit_length()} bits"

    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # such an integer inside a list, or a list inside itself
        text = f"a {type(value).__name__}"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # an address differs from run to run
    return text if len(text) <= 100 else f"{text[:97]}..."


def _bounds(
    above: int | float | None, least: int | float | None, most: int | float | None, unit: str
) -> str:
    of = f" {unit}" if unit else ""
    if most is not None and (least is not None or above is not None):
        low = f"from {least}" if least is not None else f"above {above}"
        return f" {low} to {most}{of}"
    if above is not None:
        return f" above {above}{of}"
    if least is not None:
        return f" of {least}{of} or more"
    return "" if most is None else f" of {most}{of} or less"
