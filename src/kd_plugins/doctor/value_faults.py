"""Faults of values by themselves: missing, not finite, of a wrong shape, placeholders, bad sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kd_plugins.doctor.inputs import DoctorInput, Finding, Severity, Values, first_ids, share

MANY_MISSING = 0.1
"""Share of structures without a teacher's value above which that is an error."""
PLACEHOLDER = {"energy": 0.01, "forces": 0.05, "stress": 1e-3}
"""What the other side must at least say, largest component in our units and energies per atom,
where one says 0."""
OF_USUAL = 0.03
"""Part of what it says of most structures that it must at least say there: the noise of a teacher
in another unit may be large in itself where symmetry lets forces vanish."""
SUM_TOLERANCE = 0.01
"""eV/atom by which atomic energies may miss the energy."""
_FLOAT16 = 1e-3


@dataclass(frozen=True, eq=False)
class _Column:
    """One quantity of all cases on one side.

    Args:
        name: of the quantity.
        called: in messages, such as ``"teacher energy"``.
        cases: all of them.
        values: theirs, None where there is none.
        fits: whether each has its structure's shape.
        finite: whether each is finite.
    """

    name: str
    called: str
    cases: Sequence[DoctorInput]
    values: Sequence[Values | None]
    fits: Sequence[bool]
    finite: Sequence[bool]

    @classmethod
    def of(cls, cases: Sequence[DoctorInput], side: str, name: str) -> _Column:
        values = [dict(case.sides)[side].get(name) for case in cases]
        pairs = list(zip(cases, values, strict=True))
        fits = [value is not None and case.fits(name, value) for case, value in pairs]
        finite = [value is not None and bool(np.isfinite(value).all()) for value in values]
        return cls(name, f"{side} {name}", cases, values, fits, finite)

    @property
    def usable(self) -> list[Values | None]:
        """The values that fit and are finite, None for the others."""
        rows = zip(self.values, self.fits, self.finite, strict=True)
        return [value if fits and finite else None for value, fits, finite in rows]

    def finding(
        self, code: str, severity: Severity, bad: Sequence[DoctorInput], words: str
    ) -> Iterator[Finding]:
        """Yield a finding if some cases are bad."""
        if bad:
            message = f"{self.called} of {share(len(bad), len(self.cases))} {words}"
            yield Finding(code, severity, self.name, message, first_ids(bad))


def value_faults(cases: Sequence[DoctorInput]) -> list[Finding]:
    """Look at labels and teacher values one by one."""
    names = sorted({name for case in cases for _, side in case.sides for name in side})
    labels, teachers = (
        {name: _Column.of(cases, side, name) for name in names} for side in ("label", "teacher")
    )
    found: list[Finding] = []
    for here, there in ((labels, teachers), (teachers, labels)):
        for name in names:
            found += _shapes(here[name])
            found += _not_finite(here[name])
            if here is teachers or any(value is not None for value in there[name].values):
                found += _missing(here[name], many=MANY_MISSING if here is teachers else 1.0)
            found += _placeholders(here[name], there[name])
        found += _sums(here)
    return found


def _shapes(column: _Column) -> Iterator[Finding]:
    rows = zip(column.cases, column.values, column.fits, strict=True)
    bad = [(case, value) for case, value, fits in rows if value is not None and not fits]
    if bad:
        case, value = bad[0]
        words = (
            f"do not fit their structure, such as {value.shape} for the {case.n_atoms} atoms of "
            f"{case.structure_id!r}; do values and structures belong together?"
        )
        yield from column.finding("shape", "error", [case for case, _ in bad], words)


def _not_finite(column: _Column) -> Iterator[Finding]:
    rows = zip(column.cases, column.values, column.finite, strict=True)
    bad = [case for case, value, finite in rows if value is not None and not finite]
    words = "hold NaN or inf, on which training ends; leave the value or the structure out"
    return column.finding("not-finite", "error", bad, words)


def _missing(column: _Column, many: float) -> Iterator[Finding]:
    rows = zip(column.cases, column.values, strict=True)
    missing = [case for case, value in rows if value is None and _may_have(case, column.name)]
    if all(value is None for value in column.values):
        return iter(())
    severity: Severity = "error" if len(missing) > many * len(column.cases) else "warning"
    words = "are missing while others have them; add them, or be sure that it is meant so"
    return column.finding("missing", severity, missing, words)


def _may_have(case: DoctorInput, name: str) -> bool:
    """Return whether a structure can have a quantity: no stress without a lattice."""
    return name != "stress" or bool(case.structure.pbc.all())


def _placeholders(column: _Column, other: _Column) -> Iterator[Finding]:
    """Find exact zeros where the other side says otherwise.

    Energies may be 0 for a reason, such as an element's formation energy or the frame that all
    others are relative to; forces vanish by symmetry, on a single atom always.
    """
    name = column.name
    if name not in PLACEHOLDER:
        return iter(())
    sizes = [_size(case, name, told) for case, told in zip(other.cases, other.usable, strict=True)]
    usual = float(np.median([size for size in sizes if size] or [0.0]))
    least = max(PLACEHOLDER[name], OF_USUAL * usual)
    bad = [
        case
        for case, value, size in zip(column.cases, column.usable, sizes, strict=True)
        if value is not None
        and not value.any()
        and (size is None and name == "energy" or size is not None and size > least)
        and not (name == "forces" and case.n_atoms < 2)
    ]
    if name == "energy":
        words = (
            "are exactly 0: if these are placeholders for missing ones, leave them out; energies "
            "relative to a frame or to the elements may be 0"
        )
        return column.finding("zeros", "warning", bad, words)
    words = "are exactly 0 where they should not be: placeholders for missing ones? Leave them out"
    return column.finding("zeros", "error", bad, words)


def _size(case: DoctorInput, name: str, told: Values | None) -> float | None:
    """Return the largest component, of an energy per atom; None where there is none."""
    if told is None or told.size == 0:
        return None
    return float(np.abs(told).max()) / (case.n_atoms if name == "energy" else 1)


def _sums(columns: dict[str, _Column]) -> Iterator[Finding]:
    for name in ("atomic_energies", "energy_per_atom"):
        if name not in columns or "energy" not in columns:
            continue
        column = columns[name]
        rows = zip(column.cases, column.usable, columns["energy"].usable, strict=True)
        misses = [(_miss(case, parts, energy), case) for case, parts, energy in rows]
        bad = sorted(
            (miss for miss in misses if miss[0] > SUM_TOLERANCE), key=lambda miss: -miss[0]
        )
        if bad:
            words = (
                f"do not add up to the energy, at worst by {bad[0][0]:.3g} eV/atom; is a reference "
                "or a correction in one of them only?"
            )
            yield from column.finding("sum", "error", [case for _, case in bad], words)


def _miss(case: DoctorInput, parts: Values | None, energy: Values | None) -> float:
    """Return by how much parts miss the energy, eV/atom; 0 within what their dtype can hold."""
    if energy is None or parts is None or case.n_atoms == 0:
        return 0.0
    per_atom = float(np.abs(parts.mean() - energy / case.n_atoms))
    return per_atom if per_atom > _FLOAT16 * np.abs(parts).mean() else 0.0
