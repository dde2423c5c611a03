"""The volume of least energy when rigid molecules move apart: a student's in a blink.

    python recipes/chgnet_organic/scan.py --out runs/organic

The trunk is frozen, so what the readout sees of a scan's structures is computed once; then a
student's energies at all volumes of all test crystals are a few small matrix products.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from chgnet.model import CHGNet
from study import Study, open_study, write_json
from tqdm import tqdm

from kd_plugins.chgnet import FrozenTrunk, freeze_except
from kd_plugins.chgnet.convert import to_pymatgen
from kd_plugins.sampling import find_molecules, minimum_volume, volume_scan
from kd_plugins.teachers import load_teacher


@dataclass(frozen=True)
class Scan:
    """One crystal at several volumes.

    Args:
        embeddings: (K, N, D) input of the readout.
        numbers: (N,) atomic numbers.
        volumes: (K,) in Å³.
        teacher: (K,) the teacher's energies in eV.
        reference: the experiment's volume in Å³.
    """

    embeddings: torch.Tensor
    numbers: torch.Tensor
    volumes: np.ndarray
    teacher: np.ndarray
    reference: float

    def student(self, model: CHGNet) -> np.ndarray:
        """Return a model's energies in eV, (K,)."""
        with torch.no_grad():
            shares = model.mlp(self.embeddings).squeeze(-1)
            references = model.composition_model.fc.weight[0, self.numbers - 1]
            return (shares + references).double().sum(dim=1).numpy()

    def least(self, energies: np.ndarray) -> float:
        """Return the volume of least energy in Å³, or the end of the scan towards it."""
        return minimum_volume(self.volumes, energies, self.reference).volume


def read_scans(study: Study) -> dict[str, Scan]:
    """Return the scans of the test crystals, computed if they are not there yet."""
    model = CHGNet.load(verbose=False)
    freeze_except(model)
    trunk, teacher, volumes = (
        FrozenTrunk(model),
        load_teacher(study.settings.teacher),
        study.volumes(),
    )
    scans = {}
    for frame in tqdm(list(study.crystals(["test"])), "scanning volumes", unit=" crystals"):
        path = study.out / "scans" / f"{frame.structure_id}.npz"
        if not path.is_file():
            _write(path, frame.atoms, trunk, teacher)
        held = np.load(path)
        scans[frame.structure_id] = Scan(
            torch.from_numpy(held["embeddings"]),
            torch.from_numpy(held["numbers"]),
            held["volumes"],
            held["teacher"],
            volumes[frame.structure_id],
        )
    return scans


def _write(path: Path, atoms, trunk: FrozenTrunk, teacher) -> None:
    structures = volume_scan(atoms, find_molecules(atoms))
    convert = trunk.model.graph_converter
    graphs = [convert(to_pymatgen(one)) for one in structures]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        embeddings=torch.stack([trunk.embeddings(graph) for graph in graphs]).numpy(),
        numbers=atoms.numbers.astype(np.int64),
        volumes=np.array([one.get_volume() for one in structures]),
        teacher=np.array([float(one["energy"]) for one in teacher.predict(structures, ["energy"])]),
    )
    partial.replace(path)


def volume_errors(scans: dict[str, Scan], model: CHGNet | None) -> dict[str, dict[str, float]]:
    """Return, a crystal, the error in percent against the experiment and against the teacher.

    Args:
        scans: of the crystals.
        model: a student; the teacher itself if left out.
    """
    found = {}
    for name, scan in scans.items():
        teacher = scan.least(scan.teacher)
        volume = teacher if model is None else scan.least(scan.student(model))
        found[name] = {
            "experiment": 100 * (volume / scan.reference - 1),
            "teacher": 100 * (volume / teacher - 1),
        }
    return found


def main() -> None:
    """Run the command line: a record for the pretrained student, the teacher and every student."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    study = open_study(parser.parse_args().out)
    scans = read_scans(study)
    write_json(study.out / "scanned" / "teacher.json", volume_errors(scans, None))
    pretrained = CHGNet.load(verbose=False)
    write_json(study.out / "scanned" / "pretrained.json", volume_errors(scans, pretrained))
    for record in sorted((study.out / "students").glob("*/record.json")):
        arm, _, seed = record.parent.name.rpartition("-seed")
        for epoch in ("last", "best"):
            model = CHGNet.from_file(record.parent / f"{epoch}.pth.tar")
            path = study.out / "scanned" / f"{arm}, {epoch} epoch-seed{seed}.json"
            write_json(path, volume_errors(scans, model))


if __name__ == "__main__":
    main()
