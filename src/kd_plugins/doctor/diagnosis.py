"""A label file and a store, read side by side and examined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list
from tqdm import tqdm

from kd_plugins.doctor.examine import check_allow, examine, split_allowed
from kd_plugins.doctor.differences import difference_faults
from kd_plugins.doctor.energies import Energies
from kd_plugins.doctor.inputs import DoctorInput, Finding, first_ids, paired, share
from kd_plugins.doctor.matching import Matching
from kd_plugins.doctor.references import References
from kd_plugins.numbers import check_seed, check_whole
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_atoms
from kd_plugins.teachers.teacher import Teacher

LONELY = 6.0
"""Å within which an atom without neighbour counts as isolated: the cutoff of usual models."""
SMALL = 1000
"""Atoms up to which all pairs are looked at."""

DOUBTS = ("energy-too-few", "energy-unrelated", "energy-scale")
"""Warnings with which offsets mean nothing."""


@dataclass(frozen=True)
class Comparison:
    """How far teacher and labels are apart in one quantity, over the sample.

    Args:
        quantity: its name.
        n_labels: structures of the sample with a label.
        n_targets: those with a target.
        mean_difference: mean absolute difference, of energies per atom; None if none has both.
    """

    quantity: str
    n_labels: int
    n_targets: int
    mean_difference: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Args:
        findings: errors first.
        n_labels: structures read.
        n_targets: structures of the store.
        n_compared: structures examined, of those in both.
        comparisons: one a quantity.
        references: energy offsets, teacher minus label, that `kd_plugins.doctor.align.align`
            takes; None where no structure has both energies.
    """

    findings: tuple[Finding, ...]
    n_labels: int
    n_targets: int
    n_compared: int
    comparisons: tuple[Comparison, ...] = ()
    references: References | None = None

    @property
    def exit_code(self) -> int:
        """1 if there is an error, 0 if there are warnings or nothing."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def check_fixable(self) -> None:
        """Refuse to move energies by offsets that nobody should trust.

        Raises:
            ValueError: if no structure has both energies, or findings speak against the fit.
        """
        doubts = [f.code for f in self.findings if f.severity == "error" or f.code in DOUBTS]
        if self.references is None:
            doubts = ["no structure has a label and a target of its energy"]
        if doubts:
            raise ValueError(f"--fix is not done, because of {', '.join(doubts)}; see above")


def diagnose(
    labels: Iterable[LabelledStructure],
    store: TargetStore,
    teacher: Teacher | None = None,
    limit: int = 2000,
    seed: int = 0,
    *,
    allow: Sequence[str] = (),
    progress: bool = True,
) -> Diagnosis:
    """Examine a store beside the labels of its structures.

    Every label is read and its structure compared with the store's; of those that agree, a random
    sample is examined. Structures without labels serve as well: what needs labels is left out.

    Args:
        labels: structures with their ids, such as `read_structures` yields.
        store: what a teacher said of them.
        teacher: asked for a few energies, if given, to see whether the store's values are its own.
        limit: structures to examine.
        seed: of the sample.
        allow: names of errors, such as ``energy_unit``, that are to be warnings.
        progress: show a bar.

    Raises:
        ValueError: for a limit below one, what is no seed, a name that no error has, or a store
            without targets.
        StoreError: if the store as a whole cannot be read.
    """
    allow = check_allow(allow)
    if not isinstance(store, TargetStore):
        raise ValueError(
            f"store: expected a TargetStore, such as of TargetStore.open, got {store!r:.60}"
        )
    if not len(store):
        raise ValueError(f"{store.folder} holds no targets to examine; label structures first")
    check_whole("limit", limit, least=1)
    check_seed("seed", seed)
    matching = Matching(store, limit, seed)
    for frame in tqdm(labels, desc="reading labels", unit="", disable=not progress):
        matching.add(frame)
    sample = sorted(matching.sample, key=lambda case: case.structure_id)
    found = [*matching.faults(), *examine(sample), *_isolated(sample)]
    if teacher is not None:
        found += difference_faults(sample, store.manifest, teacher)

    refused, overruled = split_allowed(found, allow)
    warnings = [finding for finding in found if finding.severity == "warning"]
    energies = Energies.of(sample)
    return Diagnosis(
        findings=(*refused, *overruled, *warnings),
        n_labels=matching.n_labels,
        n_targets=len(store),
        n_compared=len(sample),
        comparisons=tuple(_comparisons(sample)),
        references=energies.references if energies.cases else None,
    )


def frames_of(store: TargetStore) -> Iterator[LabelledStructure]:
    """Yield a store's own structures, without labels."""
    for name in store.ids():
        yield LabelledStructure(name, to_atoms(store.record(name).structure))


def _comparisons(cases: Sequence[DoctorInput]) -> Iterator[Comparison]:
    for name in sorted({name for case in cases for _, side in case.sides for name in side}):
        kept, teachers, labels = paired(cases, name)
        sizes = [case.n_atoms if name == "energy" else 1 for case in kept]
        differences = [
            np.abs(teacher - label).mean() / size
            for teacher, label, size in zip(teachers, labels, sizes, strict=True)
        ]
        yield Comparison(
            name,
            sum(name in case.labels for case in cases),
            sum(name in case.teacher for case in cases),
            float(np.mean(differences)) if differences else None,
        )


def _isolated(cases: Sequence[DoctorInput]) -> Iterator[Finding]:
    alone = [case for case in cases if _has_isolated(to_atoms(case.structure))]
    if alone:
        message = (
            f"{share(len(alone), len(cases))} have an atom without neighbour within {LONELY} Å, of "
            "which a model with such a cutoff knows nothing; is the cell's unit right?"
        )
        yield Finding("isolated-atom", "warning", "structure", message, first_ids(alone))


def _has_isolated(atoms: Atoms) -> bool:
    """Return whether an atom has no neighbour; an image of itself is one."""
    if (atoms.cell.lengths()[atoms.pbc] < LONELY).any() or _all_near(atoms):
        return False
    first = neighbor_list("i", atoms, LONELY)
    return bool((np.bincount(first, minlength=len(atoms)) == 0).any())


def _all_near(atoms: Atoms) -> bool:
    """Return whether one image of another atom is near each atom: quick, and mostly so."""
    if not 1 < len(atoms) <= SMALL:
        return False
    apart = atoms.positions[:, None] - atoms.positions[None]
    images = np.round(apart @ np.linalg.pinv(atoms.cell.array)) * atoms.pbc
    distances = np.linalg.norm(apart - images @ atoms.cell.array, axis=2)
    np.fill_diagonal(distances, np.inf)
    return bool((distances.min(axis=1) < LONELY).all())
