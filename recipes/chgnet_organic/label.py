"""Make the structures of the study and let the teacher label them.

    python recipes/chgnet_organic/label.py --x23 ../shared/data/molecular_crystals/x23 \
        --out runs/organic

Each crystal of the training and selection groups is deformed at random, molecules rigid (strain,
rotation, rattle), and labelled twice: by the teacher, CHGNet with D3(BJ), and by pretrained CHGNet,
which stands in for the labels that the student was trained on. With ``relaxed_by`` in the settings
that potential moves the atoms of each crystal to rest first, in the experiment's cell: the bonds of
hydrogen that X-rays see are 0.1 Å too short, which is 2 to 4 eV/Å in the forces. Stopped, the same
command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from study import HERE, Study, open_study

from kd_plugins.evaluate import relax
from kd_plugins.files import write_bytes
from kd_plugins.sampling import deformed_frames
from kd_plugins.structures import LabelledStructure, export_extxyz, read_structures
from kd_plugins.structures.export import to_extxyz
from kd_plugins.teachers import label, load_teacher

QUANTITIES = ("energy", "forces", "stress")


def starts(study: Study, group: str) -> Iterator[LabelledStructure]:
    """Yield the crystals to deform: the experiments', or relaxed in their cells."""
    by = study.settings.relaxed_by
    calculator = load_teacher(by).calculator if by else None
    for crystal in study.crystals([group]):
        if calculator is None:
            yield crystal
            continue

        path = study.out / "relaxed" / f"{crystal.structure_id}.extxyz"
        if not path.is_file():
            found = relax(crystal.atoms, calculator, 0.05, max_steps=500, cell=False)
            if not found.converged:
                raise SystemExit(f"{crystal.structure_id}: not at rest by {by}, {found.reason}")
            write_bytes(path, to_extxyz(crystal.structure_id, found.atoms, {}))
        yield from read_structures([path])


def make(study: Study, group: str) -> None:
    """Label one group with both teachers, and write its structures with their labels."""
    count = getattr(study.settings.structures, group)
    frames = list(deformed_frames(starts(study, group), count, study.settings.seed))
    labels = study.out / "labels" / group
    label(frames, study.settings.labels, labels, QUANTITIES, total=len(frames))
    if not study.structures(group).is_file():
        export_extxyz(study.store(group, "labels"), study.structures(group))
    again = read_structures([study.structures(group)])
    label(again, study.settings.teacher, study.out / "teacher" / group, QUANTITIES)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--x23", type=Path, required=True, help="folder of CIFs and index.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--settings", type=Path, default=HERE / "study.yml", help="crystals, counts"
    )
    options = parser.parse_args()
    study = open_study(options.out, options.x23, options.settings)
    for group in ("train", "selection"):
        make(study, group)


if __name__ == "__main__":
    main()
