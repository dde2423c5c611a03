"""Labels and targets brought together by structure id, and what is wrong with the ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kd_plugins.doctor.inputs import NAMED, DoctorInput, Finding, Severity
from kd_plugins.store.record import Record
from kd_plugins.store.shard import StoreError
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.structures.readers import LabelledStructure, to_structure

KEPT_DIFFERENT = 200
"""Structures unlike the store's, among which those that changed places are looked for."""


class Matching:
    """Takes labels one by one, compares each with the store, and keeps a random sample of cases.

    Args:
        store: what a teacher said.
        limit: cases to keep.
        seed: of the sample.

    Raises:
        ValueError: for a limit below one.
    """

    def __init__(self, store: TargetStore, limit: int, seed: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: expected at least one structure to examine, got {limit}")
        self.store, self.limit = store, limit
        self.sample: list[DoctorInput] = []
        self.n_labels = 0
        self._generator = np.random.default_rng(seed)
        self._n_matched = 0
        self._seen: dict[str, str] = {}
        self._twice: list[tuple[str, str]] = []
        self._without: list[str] = []
        self._damaged: list[tuple[str, str]] = []
        self._different: list[tuple[str, str]] = []
        self._structures: list[tuple[Structure, Structure]] = []

    def add(self, frame: LabelledStructure) -> None:
        """Take a label."""
        name = frame.structure_id
        self.n_labels += 1
        if name in self._seen:
            self._twice.append((name, f"{self._seen[name]} and {frame.place}"))
            return
        self._seen[name] = frame.place
        try:
            record = self.store.record(name)
        except KeyError:
            self._without.append(name)
        except (StoreError, ValueError) as error:
            self._damaged.append((name, str(error)))
        else:
            self._compare(frame, record)

    def _compare(self, frame: LabelledStructure, record: Record) -> None:
        structure = to_structure(frame.atoms)
        difference = structure.difference(record.structure)
        if difference is None:
            values = {name: value.double().numpy() for name, value in record.values.items()}
            self._keep(DoctorInput(frame.structure_id, structure, frame.labels, values))
            return
        self._different.append((frame.structure_id, difference))
        if len(self._structures) < KEPT_DIFFERENT:
            self._structures.append((structure, record.structure))

    def _keep(self, case: DoctorInput) -> None:
        """Keep each of all cases with the same probability, however many will come."""
        self._n_matched += 1
        if len(self.sample) < self.limit:
            self.sample.append(case)
            return
        place = int(self._generator.integers(self._n_matched))
        if place < self.limit:
            self.sample[place] = case

    def faults(self) -> Iterator[Finding]:
        """Yield what is wrong with ids and records."""
        targets = list(self.store.ids())
        alone = [name for name in targets if name not in self._seen]
        yield from self._missing(targets, alone)
        where = f" ({self._twice[0][0]!r}: {self._twice[0][1]})" if self._twice else ""
        yield from _finding(
            "id-twice",
            "error",
            [name for name, _ in self._twice],
            f"labels have an id that another one has{where}, and only the first was examined; give "
            "each structure its own",
        )
        damaged = [name for name, _ in self._damaged]
        reason = self._damaged[0][1] if self._damaged else ""
        yield from _finding("damaged", "error", damaged, f"records cannot be read: {reason}")
        yield from self._edited()

    def _missing(self, targets: Sequence[str], alone: Sequence[str]) -> Iterator[Finding]:
        n_common = len(targets) - len(alone)
        if not n_common and self.n_labels and targets:
            message = (
                f"no label has a target: labels are called {min(self._seen)!r} and so on, targets "
                f"{targets[0]!r}; read both with the same ids"
            )
            yield Finding("ids-disjoint", "error", "structure", message)
            return
        yield from _finding(
            "label-without-target",
            "warning",
            self._without,
            f"of {self.n_labels} labels have no target; label them, or training leaves them out",
        )
        yield from _finding(
            "target-without-label",
            "warning",
            alone,
            f"of {len(targets)} targets have no label; were all label files given?",
        )

    def _edited(self) -> Iterator[Finding]:
        names = [name for name, _ in self._different]
        if not names:
            return
        found = sum(
            any(here.difference(there) is None for _, there in self._structures)
            for here, _ in self._structures
        )
        if 2 * found > len(self._structures):
            code, why = "ids-shuffled", "but most stand there under other ids: ids are shuffled"
        else:
            code, why = "structure-edited", "were structures edited since? Label them again"
        first, difference = self._different[0]
        what = f"structures are not those that the store has ({first!r}: {difference}), {why}"
        yield from _finding(code, "error", names, what)


def _finding(code: str, severity: Severity, names: Sequence[str], words: str) -> Iterator[Finding]:
    if names:
        message = f"{len(names)} {words}"
        yield Finding(code, severity, "structure", message, tuple(names[:NAMED]))
