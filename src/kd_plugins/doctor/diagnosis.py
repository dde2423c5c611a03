"""A file of labels and a target store, matched by structure id and examined together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from kd_plugins.doctor.agreement import (
    LabelAgreement,
    advise,
    advise_on_atomic_energies,
    measure_deviations,
    recommend,
)
from kd_plugins.doctor.data_faults import isolated_atoms
from kd_plugins.doctor.differences import difference_faults
from kd_plugins.doctor.energy_faults import EnergyPairs
from kd_plugins.doctor.examine import check_allow, examine, split_allowed
from kd_plugins.doctor.inputs import NAMED, DoctorInput, Finding, Severity, collect_pairs
from kd_plugins.doctor.references import References
from kd_plugins.numbers import check_number, check_seed, check_whole
from kd_plugins.store import StoreError
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import LabelledStructure, to_atoms, to_structure
from kd_plugins.teachers.teacher import Teacher

UNFIT = ("energy-too-few", "energy-unrelated", "energy-scale")
"""Warnings with which a fit of energy offsets means nothing."""

# Each of them is compared with each: 40,000 comparisons take about a second.
KEPT_DIFFERENT = 200
"""Structures unlike the store's, among which those with exchanged ids are looked for."""


@dataclass(frozen=True)
class QuantitySummary:
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
    """What was examined and found.

    Args:
        findings: errors first.
        n_labels: structures read.
        n_targets: structures of the store.
        n_compared: structures examined, of those in both.
        summaries: one a quantity.
        references: energy offsets, teacher minus label, for `kd_plugins.doctor.align.align`; None
            where no structure has both energies.
        deviations: of teacher and labels, beside how much the labels vary.
        advice: whether this teacher will help, in words; it changes no exit code.
    """

    findings: tuple[Finding, ...]
    n_labels: int
    n_targets: int
    n_compared: int
    summaries: tuple[QuantitySummary, ...] = ()
    references: References | None = None
    deviations: tuple[LabelAgreement, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 if there is an error, 0 if there are warnings or nothing."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def check_fixable(self) -> None:
        """Refuse to move energies by offsets that nobody should trust.

        Raises:
            ValueError: if no structure has both energies, or findings contradict the fit.
        """
        doubts = [f.code for f in self.findings if f.severity == "error" or f.code in UNFIT]
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
    student_receptive_field: float | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Examine a store beside the labels of its structures.

    Every label is read and its structure compared with the store's; of those that agree, a random
    sample is examined. Structures without labels serve as well: checks that need labels are left
    out.

    Args:
        labels: structures with their ids, such as `read_structures` yields.
        store: a teacher's targets.
        teacher: predicts a few energies, if given, to see whether the store's values are its own.
        limit: number of structures to examine.
        seed: of the sample.
        allow: names of errors, such as ``energy_unit``, that are to be warnings.
        student_receptive_field: of the student that will learn, in Å: its cutoff times its layers;
            for advice on atomic energies.
        progress: show a bar.

    Raises:
        ValueError: for a limit below one, what is no seed, a name that no error has, a receptive
            field that is not above 0, or a store without targets.
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
    if student_receptive_field is not None:
        check_number("student_receptive_field", student_receptive_field, above=0, unit="Å")

    matching = Matching(store, limit, seed)
    for structure in tqdm(labels, desc="reading labels", unit="", disable=not progress):
        matching.add(structure)

    # Sorted, so that the findings do not depend on the order in which the sample was drawn.
    sample = sorted(matching.sample, key=lambda item: item.structure_id)
    found = [*matching.faults(), *examine(sample), *isolated_atoms(sample)]
    if teacher is not None:
        found += difference_faults(sample, store.manifest, teacher)

    refused, overruled = split_allowed(found, allow)
    warnings = [finding for finding in found if finding.severity == "warning"]
    energies = EnergyPairs.collect(sample)
    deviations = measure_deviations(sample)

    # Of values in a wrong unit or order, nothing follows for the teacher.
    advice = [] if refused else [*advise(deviations), *recommend(deviations)]
    if "atomic_energies" in store.manifest.dtypes:
        reach = getattr(teacher, "receptive_field", None) or store.manifest.receptive_field
        advice.append(advise_on_atomic_energies(reach, student_receptive_field))

    return Diagnosis(
        findings=(*refused, *overruled, *warnings),
        n_labels=matching.n_labels,
        n_targets=len(store),
        n_compared=len(sample),
        summaries=tuple(_summarize(sample)),
        references=energies.references if energies.inputs else None,
        deviations=deviations,
        advice=tuple(advice),
    )


def stored_structures(store: TargetStore) -> Iterator[LabelledStructure]:
    """Yield a store's own structures, without labels."""
    for structure_id in store.ids():
        yield LabelledStructure(structure_id, to_atoms(store.record(structure_id).structure))


def _summarize(inputs: Sequence[DoctorInput]) -> Iterator[QuantitySummary]:
    for name in sorted({name for item in inputs for _, side in item.sides for name in side}):
        kept, teachers, labels = collect_pairs(inputs, name)
        sizes = [item.n_atoms if name == "energy" else 1 for item in kept]
        differences = [
            np.abs(teacher - label).mean() / size
            for teacher, label, size in zip(teachers, labels, sizes, strict=True)
        ]
        yield QuantitySummary(
            name,
            sum(name in item.labels for item in inputs),
            sum(name in item.teacher for item in inputs),
            float(np.mean(differences)) if differences else None,
        )


class Matching:
    """Compares labelled structures with a store, one by one, and keeps a random sample of both.

    One pass, because label files may be larger than memory.

    Args:
        store: a teacher's targets.
        limit: number of structures to keep.
        seed: of the sample.
    """

    def __init__(self, store: TargetStore, limit: int, seed: int) -> None:
        self.store, self.limit = store, limit
        self.sample: list[DoctorInput] = []
        self.n_labels = 0
        self._generator = np.random.default_rng(seed)
        self._n_matched = 0

        self._places: dict[str, str] = {}  # of each id, the file and position that has it
        self._twice: list[tuple[str, str]] = []
        self._without_target: list[str] = []
        self._damaged: list[tuple[str, str]] = []
        self._different: list[tuple[str, str]] = []
        self._structures: list[tuple[Structure, Structure]] = []

    def add(self, structure: LabelledStructure) -> None:
        """Compare one labelled structure with the store's, and perhaps keep it."""
        structure_id = structure.structure_id
        self.n_labels += 1
        if structure_id in self._places:
            places = f"{self._places[structure_id]} and {structure.place}"
            self._twice.append((structure_id, places))
            return

        self._places[structure_id] = structure.place
        try:
            record = self.store.record(structure_id)
        except KeyError:
            self._without_target.append(structure_id)
        except (StoreError, ValueError) as error:
            self._damaged.append((structure_id, str(error)))
        else:
            self._compare(structure, record)

    def _compare(self, labelled: LabelledStructure, record: Record) -> None:
        structure = to_structure(labelled.atoms)
        difference = structure.difference(record.structure)
        if difference is None:
            values = {name: value.double().numpy() for name, value in record.values.items()}
            self._keep(DoctorInput(labelled.structure_id, structure, labelled.labels, values))
            return

        self._different.append((labelled.structure_id, difference))
        if len(self._structures) < KEPT_DIFFERENT:
            self._structures.append((structure, record.structure))

    def _keep(self, item: DoctorInput) -> None:
        """Keep each structure with the same probability, however many will come.

        Reservoir sampling: the n-th one replaces a random one of the sample with probability
        limit / n.
        """
        self._n_matched += 1
        if len(self.sample) < self.limit:
            self.sample.append(item)
            return

        place = int(self._generator.integers(self._n_matched))
        if place < self.limit:
            self.sample[place] = item

    def faults(self) -> Iterator[Finding]:
        """Yield what is wrong with ids and records."""
        targets = list(self.store.ids())
        unlabelled = [structure_id for structure_id in targets if structure_id not in self._places]
        yield from self._missing(targets, unlabelled)

        where = f" ({self._twice[0][0]!r}: {self._twice[0][1]})" if self._twice else ""
        yield from _finding(
            "id-twice",
            "error",
            [structure_id for structure_id, _ in self._twice],
            f"labels have an id that another one has{where}, and only the first was examined; give "
            "each structure its own",
        )

        damaged = [structure_id for structure_id, _ in self._damaged]
        reason = self._damaged[0][1] if self._damaged else ""
        yield from _finding("damaged", "error", damaged, f"records cannot be read: {reason}")
        yield from self._edited()

    def _missing(self, targets: Sequence[str], unlabelled: Sequence[str]) -> Iterator[Finding]:
        n_common = len(targets) - len(unlabelled)
        if not n_common and self.n_labels and targets:
            text = (
                f"no label has a target: labels are called {min(self._places)!r} and so on, "
                f"targets {targets[0]!r}; read both with the same ids"
            )
            yield Finding("ids-disjoint", "error", "structure", text)
            return

        yield from _finding(
            "label-without-target",
            "warning",
            self._without_target,
            f"of {self.n_labels} labels have no target; label them, or training leaves them out",
        )
        yield from _finding(
            "target-without-label",
            "warning",
            unlabelled,
            f"of {len(targets)} targets have no label; were all label files given?",
        )

    def _edited(self) -> Iterator[Finding]:
        """Yield structures that differ from the store's, and whether their ids were exchanged."""
        if not self._different:
            return

        n_found = sum(
            any(here.difference(there) is None for _, there in self._structures)
            for here, _ in self._structures
        )
        if 2 * n_found > len(self._structures):
            code, why = "ids-shuffled", "but most stand there under other ids: ids are shuffled"
        else:
            code, why = "structure-edited", "were structures edited since? Label them again"

        first, difference = self._different[0]
        text = f"structures are not those that the store has ({first!r}: {difference}), {why}"
        ids = [structure_id for structure_id, _ in self._different]
        yield from _finding(code, "error", ids, text)


def _finding(code: str, severity: Severity, ids: Sequence[str], words: str) -> Iterator[Finding]:
    if ids:
        yield Finding(code, severity, "structure", f"{len(ids)} {words}", tuple(ids[:NAMED]))
