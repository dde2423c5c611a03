"""Faults of values by themselves: missing, not finite, of a wrong shape, placeholders, bad sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kd_plugins.doctor.inputs import DoctorInput, Finding, Severity, Values, first_ids, share

# A teacher fails on single structures; where every tenth is missing, a run of the labeller is.
MANY_MISSING = 0.1
"""Share of structures without a teacher's value, above which that is an error."""

# About the error of a good teacher, which is what it predicts where the label is exactly zero.
PLACEHOLDER = {"energy": 0.01, "forces": 0.05, "stress": 1e-3}
"""How large the other side's value must be where one side is 0, for the 0 to be a placeholder:
largest component, in our units, energies per atom."""

# A teacher in kcal/mol/Å has noise of 1 eV/Å where symmetry lets forces vanish, so the limit must
# scale with its values.
OF_USUAL = 0.03
"""The same as a part of the other side's usual value; the larger of both limits counts."""

# Rounding a total energy of 100,000 eV to float32 moves it by 0.008 eV in all; a reference or a
# correction that is missing in one of both is some 0.1 eV/atom and more.
SUM_TOLERANCE = 0.01
"""eV/atom by which atomic energies may miss the energy."""

_FLOAT16 = 1e-3  # relative precision of values that a store keeps as float16


@dataclass(frozen=True, eq=False)
class _Column:
    """One quantity of all structures on one side.

    Args:
        name: of the quantity.
        label: in messages, such as ``"teacher energy"``.
        inputs: all structures.
        values: one a structure, None where there is none.
        fits: whether each has its structure's shape.
        is_finite: whether each is finite.
    """

    name: str
    label: str
    inputs: Sequence[DoctorInput]
    values: Sequence[Values | None]
    fits: Sequence[bool]
    is_finite: Sequence[bool]

    @classmethod
    def collect(cls, inputs: Sequence[DoctorInput], side: str, name: str) -> _Column:
        values = [dict(item.sides)[side].get(name) for item in inputs]
        fits = [
            value is not None and item.fits(name, value)
            for item, value in zip(inputs, values, strict=True)
        ]
        is_finite = [value is not None and bool(np.isfinite(value).all()) for value in values]
        return cls(name, f"{side} {name}", inputs, values, fits, is_finite)

    @property
    def usable(self) -> list[Values | None]:
        """The values that fit and are finite, None for the others."""
        rows = zip(self.values, self.fits, self.is_finite, strict=True)
        return [value if fits and is_finite else None for value, fits, is_finite in rows]

    def finding(
        self, code: str, severity: Severity, bad: Sequence[DoctorInput], words: str
    ) -> Iterator[Finding]:
        """Yield a finding if some structures are bad."""
        if bad:
            text = f"{self.label} of {share(len(bad), len(self.inputs))} {words}"
            yield Finding(code, severity, self.name, text, first_ids(bad))


def value_faults(inputs: Sequence[DoctorInput]) -> list[Finding]:
    """Look at labels and teacher values one by one."""
    names = sorted({name for item in inputs for _, side in item.sides for name in side})
    labels, teachers = (
        {name: _Column.collect(inputs, side, name) for name in names}
        for side in ("label", "teacher")
    )

    found: list[Finding] = []
    for here, there in ((labels, teachers), (teachers, labels)):
        is_teacher = here is teachers
        for name in names:
            found += _shapes(here[name])
            found += _not_finite(here[name])

            # A label without a target trains nothing wrong, so it counts only beside targets.
            if is_teacher or any(value is not None for value in there[name].values):
                found += _missing(here[name], many=MANY_MISSING if is_teacher else 1.0)
            found += _placeholders(here[name], there[name])
        found += _sums(here)
    return found


def _shapes(column: _Column) -> Iterator[Finding]:
    rows = zip(column.inputs, column.values, column.fits, strict=True)
    bad = [(item, value) for item, value, fits in rows if value is not None and not fits]
    if bad:
        item, value = bad[0]
        words = (
            f"do not fit their structure, such as {value.shape} for the {item.n_atoms} atoms of "
            f"{item.structure_id!r}; do values and structures belong together?"
        )
        yield from column.finding("shape", "error", [item for item, _ in bad], words)


def _not_finite(column: _Column) -> Iterator[Finding]:
    rows = zip(column.inputs, column.values, column.is_finite, strict=True)
    bad = [item for item, value, is_finite in rows if value is not None and not is_finite]
    words = "hold NaN or inf, on which training ends; leave the value or the structure out"
    return column.finding("not-finite", "error", bad, words)


def _missing(column: _Column, many: float) -> Iterator[Finding]:
    if all(value is None for value in column.values):
        return

    rows = zip(column.inputs, column.values, strict=True)
    missing = [item for item, value in rows if value is None and _may_have(item, column.name)]
    severity: Severity = "error" if len(missing) > many * len(column.inputs) else "warning"
    words = "are missing while others have them; add them, or be sure that it is meant so"
    yield from column.finding("missing", severity, missing, words)


def _may_have(item: DoctorInput, name: str) -> bool:
    """Return whether a structure can have a quantity: no stress without a lattice."""
    return name != "stress" or bool(item.structure.pbc.all())


def _placeholders(column: _Column, other: _Column) -> Iterator[Finding]:
    """Find exact zeros where the other side's value is not zero.

    Energies may be 0 for a reason, such as an element's formation energy or the structure that all
    others are relative to, so these are warnings. Forces vanish by symmetry, on a single atom
    always.
    """
    name = column.name
    if name not in PLACEHOLDER:
        return

    sizes = [
        _size(item, name, value) for item, value in zip(other.inputs, other.usable, strict=True)
    ]
    usual = float(np.median([size for size in sizes if size] or [0.0]))
    least = max(PLACEHOLDER[name], OF_USUAL * usual)

    bad = []
    for item, value, size in zip(column.inputs, column.usable, sizes, strict=True):
        if value is None or value.any() or (name == "forces" and item.n_atoms < 2):
            continue
        # Where the other side has no value, forces and stress may well be 0; energies hardly.
        is_suspicious = name == "energy" if size is None else size > least
        if is_suspicious:
            bad.append(item)

    if name == "energy":
        words = (
            "are exactly 0: if these are placeholders for missing ones, leave them out; energies "
            "relative to a structure or to the elements may be 0"
        )
        yield from column.finding("zeros", "warning", bad, words)
    else:
        words = (
            "are exactly 0 where they should not be: placeholders for missing ones? Leave them out"
        )
        yield from column.finding("zeros", "error", bad, words)


def _size(item: DoctorInput, name: str, value: Values | None) -> float | None:
    """Return the largest component, of an energy per atom; None where there is none."""
    if value is None or value.size == 0:
        return None
    return float(np.abs(value).max()) / (item.n_atoms if name == "energy" else 1)


def _sums(columns: dict[str, _Column]) -> Iterator[Finding]:
    """Compare energies with the sum of atomic energies, and with energies per atom."""
    for name in ("atomic_energies", "energy_per_atom"):
        if name not in columns or "energy" not in columns:
            continue

        column = columns[name]
        rows = zip(column.inputs, column.usable, columns["energy"].usable, strict=True)
        differences = [(_sum_difference(item, parts, energy), item) for item, parts, energy in rows]
        bad = [pair for pair in differences if pair[0] > SUM_TOLERANCE]
        bad.sort(key=lambda pair: -pair[0])
        if bad:
            words = (
                f"do not add up to the energy, at worst by {bad[0][0]:.3g} eV/atom; is a reference "
                "or a correction in one of them only?"
            )
            yield from column.finding("sum", "error", [item for _, item in bad], words)


def _sum_difference(item: DoctorInput, parts: Values | None, energy: Values | None) -> float:
    """Return by how much parts miss the energy, eV/atom; 0 within what their dtype can hold."""
    if energy is None or parts is None or item.n_atoms == 0:
        return 0.0
    per_atom = float(np.abs(parts.mean() - energy / item.n_atoms))
    return per_atom if per_atom > _FLOAT16 * np.abs(parts).mean() else 0.0
