"""Which unit, sign or scope explains a teacher's energies, and what else speaks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kd_plugins.doctor.agreement import CLEAR_FACTOR, Agreement, rank_correlation
from kd_plugins.doctor.energies import PLAIN, Energies, Explanation
from kd_plugins.doctor.units import ENERGY_UNITS, FORCE_UNITS

EXPLAINED, BETTER, FOLLOWS = 0.5, 2.0, 0.8
"""An explanation must leave less than this part of the labels' spread, so many times less than
plain agreement leaves, and correlate so well."""
SAME_ZERO = 0.03
"""Part of the labels' energy by which total energies may differ and still have one zero."""
SAME_SIZE, SAME_FACTOR = 0.5, 0.2
"""How far energies and forces of one teacher may be soft or hard differently, in natural
logarithms; and how much farther a second unit may be than the best and still be named."""


@dataclass(frozen=True, eq=False)
class Claim:
    """What explains the labels far better than plain agreement does.

    Args:
        all: explanations, the likeliest first.
        certain: whether something besides the spread of energies speaks for it.
        evidence: what speaks for or against it, in words.
        left: part of the labels' spread that the first leaves unexplained.
        plain: the same of the values as they are.
    """

    all: tuple[Explanation, ...]
    certain: bool
    evidence: str
    left: float
    plain: float

    @property
    def best(self) -> Explanation:
        """The likeliest."""
        return self.all[0]

    @property
    def words(self) -> str:
        """All of them."""
        return " or ".join(one.words for one in self.all)


def explanations(energies: Energies) -> Iterator[Explanation]:
    """Yield everything that is commonly wrong with energies."""
    n_atoms = energies.n_atoms
    for sign, opposite in ((1.0, ""), (-1.0, " and of opposite sign")):
        for unit, size in ENERGY_UNITS.items():
            words = f"the teacher's energies are in {unit}{opposite}, not eV"
            yield Explanation("energy-unit", words, teacher=sign * size)
            words = f"the label energies are in {unit}{opposite}, not eV"
            yield Explanation("energy-unit", words, teacher=sign, labels=size)
    yield Explanation("energy-sign", "one side's energies have the wrong sign", teacher=-1.0)
    words = "the {} energies are per atom, not total ones of the structure"
    yield Explanation("energy-per-atom", words.format("teacher's"), teacher=n_atoms)
    yield Explanation("energy-per-atom", words.format("label"), labels=n_atoms)


def explain(energies: Energies, forces: Agreement | None) -> Claim | None:
    """Return what explains the labels far better than plain agreement does, if anything.

    A teacher that was hardly trained varies by any factor, a unit's as well. A unit is certain only
    if total energies then agree to a few percent, each element's zero included; or if energies then
    vary as much more than the labels as forces are larger, which only a mistake tells apart: forces
    are derivatives of energies, however poor the teacher.

    Args:
        energies: of which more than a few are left beyond the elements.
        forces: how they compare, None if not known.
    """
    plain = energies.unexplained(PLAIN)
    left = {one: energies.unexplained(one) for one in explanations(energies)}
    plausible = sorted(
        (one for one in left if _is_plausible(energies, one, left[one], plain)),
        key=lambda one: left[one],
    )
    if not plausible:
        return None

    found, certain, evidence = _weighed(energies, forces, plausible)
    return Claim(tuple(found), certain, evidence, left[found[0]], plain)


def _is_plausible(energies: Energies, one: Explanation, left: float, plain: float) -> bool:
    """Return whether energies follow under an explanation, and of another size only by softness."""
    if rank_correlation(*energies.spreads(one)) < FOLLOWS:
        return False
    if left < EXPLAINED and left * BETTER < plain:
        return True
    before, after = energies.slope(PLAIN), energies.slope(one)
    return before is not None and after is not None and is_sized(after) and not is_sized(before)


def is_sized(slope: float) -> bool:
    """Return whether values are as large as the labels, within what teachers are soft by.

    >>> is_sized(0.6), is_sized(0.1), is_sized(-1.0)
    (True, False, False)
    """
    return 1 / CLEAR_FACTOR < slope < CLEAR_FACTOR


def _weighed(
    energies: Energies, forces: Agreement | None, plausible: Sequence[Explanation]
) -> tuple[Sequence[Explanation], bool, str]:
    """Return the explanations that remain, whether they are certain, and why or why not."""
    misses = {one: energies.zero_miss(one) for one in plausible}
    nearest = min(plausible, key=misses.__getitem__)
    if misses[nearest] < SAME_ZERO:
        return [nearest], True, f"total energies then agree to {100 * misses[nearest]:.2g} %"
    if energies.zero_miss(PLAIN) < SAME_ZERO:
        return plausible, False, "total energies agree as they are, which no other unit allows"

    if forces is None:
        return plausible, False, "neither the energies' zero nor forces speak for it"
    by_forces = _alike(energies, forces, plausible)
    if by_forces:
        words = f"forces, which are {forces.ratio:.3g} times the labels, fit to such energies"
        return by_forces, True, words
    words = f"forces are {forces.ratio:.3g} times the labels"
    slopes = {one: energies.slope(one) for one in plausible}
    sizes = {one: abs(float(np.log(abs(slope)))) for one, slope in slopes.items() if slope}
    if not sizes:
        return plausible, False, words
    near = sorted(sizes, key=sizes.__getitem__)
    near = [one for one in near if sizes[one] < sizes[near[0]] + SAME_FACTOR]
    return near, _both_larger(energies, forces), f"{words}, near a unit's factor as well"


def _alike(
    energies: Energies, forces: Agreement, plausible: Sequence[Explanation]
) -> list[Explanation]:
    """Return explanations under which energies are as soft or hard as forces, nearest first."""
    apart = {}
    for one in plausible:
        slope = energies.slope(one)
        turned = np.ndim(one.teacher) == 0 and np.sign(one.teacher) < 0
        if slope is not None and slope > 0 and not (turned and forces.cosine < 0):
            apart[one] = abs(float(np.log(slope / forces.ratio)))
    near = sorted((one for one in apart if apart[one] < SAME_SIZE), key=apart.__getitem__)
    return [one for one in near if apart[one] < apart[near[0]] + SAME_FACTOR]


def _both_larger(energies: Energies, forces: Agreement) -> bool:
    """Return whether energies and forces are both larger by units' factors.

    None learns to follow the labels at many times their size. Values that are both smaller may be
    those of a teacher that has only begun to learn.
    """
    slope = energies.slope(PLAIN)
    if slope is None or min(slope, forces.ratio) < CLEAR_FACTOR or forces.cosine < FOLLOWS:
        return False
    factors = [*FORCE_UNITS.values(), *(1 / size for size in FORCE_UNITS.values())]
    return min(abs(float(np.log(forces.ratio / factor))) for factor in factors) < SAME_SIZE
