"""Figures of simulated properties: radial distribution, volumes and stiffness of crystals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_plugins.report.figures import (
    GREY,
    INK,
    ArmStyles,
    Plot,
    add_legend,
    escape_text,
    make_panels,
    styled,
)
from kd_plugins.report.results import MODULI, RdfResults, Stiffness, Volume

MODULUS_NAMES: dict[str, str] = dict(
    zip(
        MODULI,
        ("bulk (GPa)", "shear (GPa)", "Young (GPa)", "Poisson ratio", "anisotropy"),
        strict=True,
    )
)
MOST_LINES = 60
"""Crystals that are drawn each on a line; of more, such as COD's, all together."""
ARM_SPREAD = 0.6
"""Part of a crystal's line that the points of its arms take."""

T = TypeVar("T")

ByCrystal = Mapping[str, Mapping[str, Sequence[T]]]
"""Arm, or ``teacher``, to crystal to one result a seed."""
Values = Mapping[str, Mapping[str, float]]
"""Arm, or ``teacher``, to crystal to a number."""


# --- Radial distribution functions --------------------------------------------------------------


@styled
def draw_rdf(results: Mapping[str, RdfResults], styles: ArmStyles) -> Plot:
    """Draw radial distribution functions.

    Args:
        results: arm to the functions of one of its seeds.
        styles: of the arms.
    """
    figure, (axes,) = make_panels(1, height=3.8)

    # All arms have the same teacher, so the first one's curve stands for all.
    with_teacher = [result for result in results.values() if result.teacher]
    for first in with_teacher[:1]:
        label = _teacher_label(first)
        axes.plot(first.distances, first.teacher, color=INK, linewidth=3, alpha=0.35, label=label)

    for arm, result in results.items():
        style = styles[arm]
        label = escape_text(arm) + _distance_text(result.distance)
        axes.plot(
            result.distances,
            result.student,
            color=style.colour,
            linestyle=style.dashes,
            label=label,
        )
    axes.set(xlabel="distance (Å)", ylabel="g(r)")
    add_legend(figure, axes)

    rows: list[list[object]] = [["arm", "distance (Å)", "student", "teacher"]]
    for arm, result in results.items():
        teacher = result.teacher or [""] * len(result.student)
        lines = zip(result.distances, result.student, teacher, strict=True)
        rows += [[arm, *line] for line in lines]

    caption = (
        "The first seed of each arm, averaged over its runs. The noise floor is how far apart two "
        "runs of the teacher are; a student within it cannot be distinguished from its teacher."
    )
    return Plot("rdf", "Radial distribution function", caption, figure, rows)


def _distance_text(distance: float | None) -> str:
    return "" if distance is None else f" ({distance:.3g} Å from the teacher)"


def _teacher_label(result: RdfResults) -> str:
    return "teacher" if result.floor is None else f"teacher (noise floor {result.floor:.3g} Å)"


# --- Volumes ------------------------------------------------------------------------------------


@styled
def draw_volumes(volumes: ByCrystal[Volume], styles: ArmStyles) -> Plot | None:
    """Draw the errors of relaxed volumes, crystal by crystal, in percent.

    They are compared with the experiment or, if no crystal has one, with the teacher; None if none
    has either.

    Args:
        volumes: arm to crystal to one volume a seed.
        styles: of the arms.
    """
    has_reference = any(volume.reference for _, _, volume in _flatten(volumes))
    base = "reference" if has_reference else "teacher"
    values = {arm: _percents(of_arm, "student", base) for arm, of_arm in volumes.items()}

    # Every arm's run relaxes with the same teacher; where they differ, the last one is drawn.
    teacher = [_percents(of_arm, "teacher", base) for of_arm in volumes.values()]
    if has_reference and any(teacher):
        values["teacher"] = {name: value for of_arm in teacher for name, value in of_arm.items()}

    crystals = _crystals(values)
    if not crystals:
        return None

    base_name = "the experiment" if has_reference else "the teacher"
    figure = _draw_distribution(values, crystals, styles, f"volume error against {base_name} (%)")
    figure.axes[0].axvline(0, color=GREY, linewidth=1)

    caption = "Mean over the seeds. Right of the line the relaxed crystal is too large."
    caption = f"{caption} {_failure_sentence(volumes)}".strip()
    rows = [["arm", "crystal", "percent"], *_value_rows(values)]
    return Plot("volumes", "Relaxed volumes", caption, figure, rows)


def _percents(crystals: Mapping[str, Sequence[Volume]], side: str, base: str) -> dict[str, float]:
    """Return the mean error of each crystal's volume in percent.

    Args:
        crystals: each with one volume a seed.
        side: ``student`` or ``teacher``.
        base: ``reference`` or ``teacher``.
    """
    errors = {}
    for name, seeds in crystals.items():
        pairs = [(getattr(volume, side), getattr(volume, base)) for volume in seeds]
        percents = [100 * (value / target - 1) for value, target in pairs if value and target]
        if percents:
            errors[name] = float(np.mean(percents))
    return errors


def _failure_sentence(volumes: ByCrystal[Volume]) -> str:
    failures = [
        (arm if side == "student" else side, crystal, reason)
        for arm, crystal, volume in _flatten(volumes)
        for side, reason in volume.failures.items()
    ]
    return _list_sentence("Not relaxed, counted as it was left", failures)


@styled
def draw_packing(volumes: ByCrystal[Volume], styles: ArmStyles) -> Plot | None:
    """Draw RMSD15 of relaxed crystals from the experiment's; None if no crystal has one.

    Args:
        volumes: arm to crystal to one relaxation a seed.
        styles: of the arms.
    """
    values = {arm: _packing(of_arm, "rmsd15") for arm, of_arm in volumes.items()}
    for of_arm in volumes.values():
        values.setdefault("teacher", {}).update(_packing(of_arm, "rmsd15_of_teacher"))
    values = {arm: by_crystal for arm, by_crystal in values.items() if by_crystal}
    crystals = _crystals(values)
    if not crystals:
        return None

    figure = _draw_distribution(values, crystals, styles, "RMSD15 from the experiment (Å)")
    rows = [["arm", "crystal", "RMSD15 (Å)"], *_value_rows(values)]
    caption = "Root mean square distance of 15 molecules' heavy atoms, mean over the seeds."
    return Plot("packing", "Packing of relaxed crystals", caption, figure, rows)


def _packing(crystals: Mapping[str, Sequence[Volume]], key: str) -> dict[str, float]:
    """Return the mean of a crystal's RMSD15 over the seeds that have one."""
    found = {}
    for name, seeds in crystals.items():
        held = [getattr(volume, key) for volume in seeds if getattr(volume, key) is not None]
        if held:
            found[name] = float(np.mean(held))
    return found


# --- Elasticity ---------------------------------------------------------------------------------


@styled
def draw_elasticity(stiffness: ByCrystal[Stiffness], styles: ArmStyles) -> Plot | None:
    """Draw elastic constants, crystal by crystal; None if no crystal is stable.

    Args:
        stiffness: arm, or ``teacher`` or ``reference``, to crystal to one stiffness a seed.
        styles: of the arms.
    """
    values = {name: _mean_moduli(stiffness, name) for name in MODULI}
    values = {name: by_arm for name, by_arm in values.items() if _crystals(by_arm)}
    if not values:
        return None

    crystals = list(dict.fromkeys(c for by_arm in values.values() for c in _crystals(by_arm)))
    figure, grid = make_panels(len(values), height=1.1 + 0.36 * len(crystals), columns=2)
    for axes, (name, by_arm) in zip(grid, values.items(), strict=True):
        _draw_points(axes, by_arm, crystals, styles)
        axes.set_xlabel(MODULUS_NAMES[name])
    add_legend(figure, grid[0])

    head = ["constant", "arm", "crystal", "value"]
    rows = [[name, *row] for name, by_arm in values.items() for row in _value_rows(by_arm)]
    caption = f"Mean over the seeds. {_unstable_sentence(stiffness)}".strip()
    return Plot("elasticity", "Elastic constants", caption, figure, [head, *rows])


def _mean_moduli(stiffness: ByCrystal[Stiffness], name: str) -> dict[str, dict[str, float]]:
    """Return arm to crystal to the mean of a modulus over the seeds whose crystal is stable."""
    values: dict[str, dict[str, float]] = {}
    for arm, crystals in stiffness.items():
        for crystal, seeds in crystals.items():
            moduli = [of_seed.moduli[name] for of_seed in seeds if name in of_seed.moduli]
            if moduli:
                values.setdefault(arm, {})[crystal] = float(np.mean(moduli))
    return values


def _unstable_sentence(stiffness: ByCrystal[Stiffness]) -> str:
    unstable = [
        (arm, crystal, of_seed.unstable)
        for arm, crystal, of_seed in _flatten(stiffness)
        if of_seed.unstable
    ]
    return _list_sentence("Unstable", unstable)


# --- Points over crystals -----------------------------------------------------------------------


def _draw_distribution(
    values: Values, crystals: Sequence[str], styles: ArmStyles, label: str
) -> Figure:
    """Draw a number of each crystal: a line a crystal, or a histogram of many crystals."""
    if len(crystals) <= MOST_LINES:
        figure, (axes,) = make_panels(1, height=1.3 + 0.3 * len(crystals))
        _draw_points(axes, values, crystals, styles)
    else:
        figure, (axes,) = make_panels(1, height=3.8)
        everything = [value for by_crystal in values.values() for value in by_crystal.values()]
        # One exploded crystal would leave the others a single bin.
        edges = np.linspace(*np.percentile(everything, [0.5, 99.5]), 41)
        for arm, by_crystal in values.items():
            style = styles.get(arm)
            inside = np.clip(list(by_crystal.values()), edges[0], edges[-1])
            counts, _ = np.histogram(inside, edges)
            colour, dashes = (style.colour, style.dashes) if style else (INK, "-")
            axes.stairs(counts, edges, color=colour, linestyle=dashes, label=escape_text(arm))
        axes.set_ylabel("crystals")
    axes.set_xlabel(label)
    add_legend(figure, axes)
    return figure


def _draw_points(axes: Axes, values: Values, crystals: Sequence[str], styles: ArmStyles) -> None:
    """Draw a line a crystal and on it a point an arm; teacher and reference are vertical strokes.

    The points of one crystal are a little above each other, so that none hides another.
    """
    arms = [arm for arm in values if arm in styles]
    for arm, by_crystal in values.items():
        if not by_crystal:
            continue

        style = styles.get(arm)
        shift = 0.0
        if style is not None:
            shift = ARM_SPREAD * (arms.index(arm) / max(len(arms) - 1, 1) - 0.5)

        points = [
            (by_crystal[crystal], len(crystals) - line - shift)
            for line, crystal in enumerate(crystals)
            if crystal in by_crystal
        ]
        axes.plot(
            [value for value, _ in points],
            [place for _, place in points],
            style.marker if style else "|",
            color=style.colour if style else INK,
            markersize=6 if style else 15,
            markeredgewidth=1 if style else 2,
            label=escape_text(arm),
            zorder=3 if style else 2,
        )

    axes.set_yticks(range(len(crystals), 0, -1), [escape_text(name) for name in crystals])
    axes.set_ylim(0.4, len(crystals) + 0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
    axes.locator_params(axis="x", nbins=4)


def _crystals(values: Values) -> list[str]:
    return list(dict.fromkeys(crystal for by_crystal in values.values() for crystal in by_crystal))


def _flatten(results: ByCrystal[T]) -> Iterator[tuple[str, str, T]]:
    """Yield arm, crystal and the result of each seed."""
    for arm, crystals in results.items():
        for crystal, seeds in crystals.items():
            for of_seed in seeds:
                yield arm, crystal, of_seed


def _list_sentence(start: str, reasons: Sequence[tuple[str, str, str]]) -> str:
    """Return a sentence of arms, crystals and reasons, each once; nothing if there are none."""
    texts = dict.fromkeys(f"{arm} on {crystal} ({reason})" for arm, crystal, reason in reasons)
    return f"{start}: {', '.join(texts)}." if texts else ""


def _value_rows(values: Values) -> list[list[object]]:
    return [
        [arm, crystal, value]
        for arm, by_crystal in values.items()
        for crystal, value in by_crystal.items()
    ]
