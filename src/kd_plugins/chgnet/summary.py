"""What a training comes to: its validation errors beside those of the untrained student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kd_plugins.chgnet.convert import LETTERS
from kd_plugins.chgnet.fitting import Fitted
from kd_plugins.chgnet.loss import PREFIX

COLUMNS: Mapping[str, tuple[str, float]] = {
    "e": ("energy (meV/atom)", 1000.0),
    "f": ("forces (meV/Å)", 1000.0),
    "s": ("stress (GPa)", 1.0),
    "m": ("magmoms (μB)", 1.0),
}
"""CHGNet's letter to the head of its column, and the factor from CHGNet's unit."""

AGAINST = {"hard": "the labels", "soft": "the teacher"}


def describe_result(fitted: Fitted) -> str:
    """Return the errors of the untrained, the best and the last student, and what got worse.

    Args:
        fitted: a training of one epoch or more.
    """
    scores = [errors["val_score"] for errors in fitted.errors]
    best = max(place for place, score in enumerate(scores) if score == min(scores))
    students = {
        "untrained": fitted.untrained,
        f"best, epoch {best + 1}": fitted.errors[best],
        f"last, epoch {len(scores)}": fitted.errors[-1],
    }
    if best + 1 == len(scores):
        del students[f"last, epoch {len(scores)}"]

    lines = list(_table(students))
    lines += _differences(fitted.untrained, fitted.errors[best])
    return "\n".join([*lines, *([fitted.stopped] if fitted.stopped else [])])


def _table(students: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the lines of a table, one for each student and kind of targets."""
    held = {
        letter
        for errors in students.values()
        for letter in COLUMNS
        if any(f"val_{kind}_{letter}" in errors for kind in PREFIX)
    }
    heads = {letter: head for letter, (head, _) in COLUMNS.items() if letter in held}
    yield "  ".join(["validation errors (MAE)".ljust(38), *heads.values()])

    for kind in reversed(PREFIX):
        if not any(f"val_{kind}_{letter}" in one for one in students.values() for letter in held):
            continue
        for student, errors in students.items():
            cells = [
                _cell(errors.get(f"val_{kind}_{letter}"), letter).rjust(len(head))
                for letter, head in heads.items()
            ]
            yield "  ".join([f"against {AGAINST[kind]}, {student}".ljust(38), *cells])


def _cell(error: float | None, letter: str) -> str:
    return "-" if error is None else f"{error * COLUMNS[letter][1]:.4g}"


def _differences(untrained: Mapping[str, float], best: Mapping[str, float]) -> Iterator[str]:
    """Yield a sentence for each kind of targets: what got better and what got worse."""
    names = {letter: name for name, letter in LETTERS.items()}
    for kind in reversed(PREFIX):
        keys = {letter: f"val_{kind}_{letter}" for letter in COLUMNS}
        changes = {
            names[letter]: 100 * (best[key] / untrained[key] - 1)
            for letter, key in keys.items()
            if key in best and untrained.get(key)
        }
        better = [f"{name} {change:+.0f} %" for name, change in changes.items() if change <= 0]
        worse = [f"{name} {change:+.0f} %" for name, change in changes.items() if change > 0]

        if better:
            yield f"errors against {AGAINST[kind]} lower than untrained: {', '.join(better)}"
        if worse:
            yield f"errors against {AGAINST[kind]} WORSE than untrained: {', '.join(worse)}"
