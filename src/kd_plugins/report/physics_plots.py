"""Figures of what a potential is for: packing, volume and stiffness of crystals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes

from kd_plugins.report.figures import GREY, INK, Looks, Plot, legend, panels, plain, styled
from kd_plugins.report.results import MODULI, RdfResults, Stiffness, Volume

LABELS: dict[str, str] = dict(
    zip(
        MODULI,
        ("bulk (GPa)", "shear (GPa)", "Young (GPa)", "Poisson ratio", "anisotropy"),
        strict=True,
    )
)

T = TypeVar("T")

Values = Mapping[str, Mapping[str, float]]
"""Arm, or ``teacher``, to crystal to a number."""


@styled
def packing(found: Mapping[str, RdfResults], looks: Looks) -> Plot:
    """Draw radial distribution functions.

    Args:
        found: arm to the functions of one of its seeds.
        looks: arm to its look.
    """
    figure, (axes,) = panels(1, height=3.8)
    taught = [one for one in found.values() if one.teacher]
    for first in taught[:1]:
        axes.plot(
            first.distances, first.teacher, color=INK, linewidth=3, alpha=0.35, label=_floor(first)
        )
    for arm, one in found.items():
        look = looks[arm]
        label = plain(arm) + _away(one.distance)
        axes.plot(one.distances, one.student, color=look.colour, linestyle=look.dashes, label=label)
    axes.set(xlabel="distance (Å)", ylabel="g(r)")
    legend(figure, axes)
    head = ["arm", "distance (Å)", "student", "teacher"]
    rows = [
        [arm, *line]
        for arm, one in found.items()
        for line in zip(
            one.distances, one.student, one.teacher or [""] * len(one.student), strict=True
        )
    ]
    caption = (
        "The first seed of each arm. The noise floor is how far apart two runs of the same "
        "potential are; a student within it cannot be told from its teacher."
    )
    return Plot("rdf", "Radial distribution function", caption, figure, [head, *rows])


@styled
def volumes(found: Mapping[str, Mapping[str, Sequence[Volume]]], looks: Looks) -> Plot | None:
    """Draw how far relaxed volumes are off, crystal by crystal, in percent.

    They are compared with the experiment or, if no crystal has one, with the teacher; None if none
    has either.

    Args:
        found: arm to crystal to one volume a seed.
        looks: arm to its look.
    """
    base = "reference" if any(one.reference for _, _, one in _flat(found)) else "teacher"
    values = {arm: _errors(crystals, "student", base) for arm, crystals in found.items()}
    teacher = [_errors(crystals, "teacher", base) for crystals in found.values()]
    if base == "reference" and any(teacher):
        values["teacher"] = {name: value for one in teacher for name, value in one.items()}
    crystals = _crystals(values)
    if not crystals:
        return None
    figure, (axes,) = panels(1, height=1.3 + 0.3 * len(crystals))
    _dots(axes, values, crystals, looks)
    axes.axvline(0, color=GREY, linewidth=1)
    whom = "the experiment" if base == "reference" else "the teacher"
    axes.set_xlabel(f"volume error against {whom} (%)")
    legend(figure, axes)
    caption = "Mean over the seeds. Right of the line the relaxed crystal is too large."
    caption = f"{caption} {_not_relaxed(found)}".strip()
    return Plot("volumes", "Relaxed volumes", caption, figure, _rows(values, "percent"))


@styled
def elasticity(found: Mapping[str, Mapping[str, Sequence[Stiffness]]], looks: Looks) -> Plot | None:
    """Draw elastic constants, crystal by crystal; None if no crystal is stable.

    Args:
        found: arm, or ``teacher`` or ``reference``, to crystal to one stiffness a seed.
        looks: arm to its look.
    """
    values = {name: _moduli(found, name) for name in MODULI}
    values = {name: one for name, one in values.items() if _crystals(one)}
    if not values:
        return None
    crystals = list(dict.fromkeys(c for one in values.values() for c in _crystals(one)))
    figure, grid = panels(len(values), height=1.1 + 0.36 * len(crystals), columns=2)
    for axes, (name, one) in zip(grid, values.items(), strict=True):
        _dots(axes, one, crystals, looks)
        axes.set_xlabel(LABELS[name])
    legend(figure, grid[0])
    rows = [[name, *row] for name, one in values.items() for row in _rows(one, "")[1:]]
    caption = f"Mean over the seeds. {_unstable(found)}".strip()
    head = ["constant", "arm", "crystal", "value"]
    return Plot("elasticity", "Elastic constants", caption, figure, [head, *rows])


def _away(distance: float | None) -> str:
    return "" if distance is None else f" ({distance:.3g} Å from the teacher)"


def _floor(found: RdfResults) -> str:
    return "teacher" if found.floor is None else f"teacher (noise floor {found.floor:.3g} Å)"


def _errors(crystals: Mapping[str, Sequence[Volume]], side: str, base: str) -> dict[str, float]:
    errors = {}
    for name, seeds in crystals.items():
        pairs = [(getattr(one, side), getattr(one, base)) for one in seeds]
        percents = [100 * (ours / theirs - 1) for ours, theirs in pairs if ours and theirs]
        if percents:
            errors[name] = float(np.mean(percents))
    return errors


def _moduli(
    found: Mapping[str, Mapping[str, Sequence[Stiffness]]], name: str
) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for arm, crystals in found.items():
        for crystal, seeds in crystals.items():
            known = [one.moduli[name] for one in seeds if name in one.moduli]
            if known:
                values.setdefault(arm, {})[crystal] = float(np.mean(known))
    return values


def _unstable(found: Mapping[str, Mapping[str, Sequence[Stiffness]]]) -> str:
    every = [(arm, crystal, one.unstable) for arm, crystal, one in _flat(found) if one.unstable]
    return _naming("Unstable", every)


def _not_relaxed(found: Mapping[str, Mapping[str, Sequence[Volume]]]) -> str:
    every = [
        (arm if who == "student" else who, crystal, reason)
        for arm, crystal, one in _flat(found)
        for who, reason in one.failures.items()
    ]
    return _naming("Not relaxed, counted as it was left", every)


def _flat(found: Mapping[str, Mapping[str, Sequence[T]]]) -> Iterator[tuple[str, str, T]]:
    """Yield arm, crystal and what was found, seed by seed."""
    for arm, crystals in found.items():
        for crystal, seeds in crystals.items():
            for one in seeds:
                yield arm, crystal, one


def _naming(what: str, every: Sequence[tuple[str, str, str]]) -> str:
    """Return a sentence of arms, crystals and reasons, each once; nothing if there are none."""
    said = dict.fromkeys(f"{arm} on {crystal} ({reason})" for arm, crystal, reason in every)
    return f"{what}: {', '.join(said)}." if said else ""


def _dots(axes: Axes, values: Values, crystals: Sequence[str], looks: Looks) -> None:
    """Draw a line a crystal and on it a dot an arm, a little apart; a stroke for who is no arm."""
    arms = [arm for arm in values if arm in looks]
    for arm, found in ((arm, found) for arm, found in values.items() if found):
        look = looks.get(arm)
        shift = 0.6 * (arms.index(arm) / max(len(arms) - 1, 1) - 0.5) if look else 0.0
        known = [
            (found[c], len(crystals) - i - shift) for i, c in enumerate(crystals) if c in found
        ]
        axes.plot(
            [value for value, _ in known],
            [place for _, place in known],
            look.marker if look else "|",
            color=look.colour if look else INK,
            markersize=6 if look else 15,
            markeredgewidth=1 if look else 2,
            label=plain(arm),
            zorder=3 if look else 2,
        )
    axes.set_yticks(range(len(crystals), 0, -1), [plain(name) for name in crystals])
    axes.set_ylim(0.4, len(crystals) + 0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
    axes.locator_params(axis="x", nbins=4)


def _crystals(values: Values) -> list[str]:
    return list(dict.fromkeys(crystal for found in values.values() for crystal in found))


def _rows(values: Values, unit: str) -> list[list[object]]:
    head: list[object] = ["arm", "crystal", unit]
    return [head, *([arm, c, value] for arm, found in values.items() for c, value in found.items())]
