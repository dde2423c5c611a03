"""Turn OC20 S2EF structures into the folder that fairchem trains from.

    python recipes/crack_oc20/prepare.py s2ef_200k --val s2ef_val_id --reference official \
        --out data/oc20_200k

A source is an official OC20 folder (``*.extxyz`` with a ``*.txt`` beside each, both perhaps
``.xz``) or one extended xyz file whose frames carry ``sid`` and ``fid``. The result is an ASE
database a split, which fairchem reads without pickle, with fairchem's ``metadata.npz`` beside it
and a manifest that says what was done:

    OUT/manifest.json
    OUT/train/structures.db   OUT/train/metadata.npz
    OUT/val/structures.db     OUT/val/metadata.npz

Energies are eV a structure less their reference, forces eV/Å as computed (no constraint applied);
tags, fixed atoms, ``sid`` and ``fid`` are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import chemical_symbols
from ase.db import connect
from ase.io import iread
from tqdm import tqdm

MANIFEST = "manifest.json"
REFERENCES = ("official", "last-frame", "elements", "none")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Settings:
    """What decides the content of a prepared folder.

    Args:
        source: an OC20 folder or an extended xyz file.
        val: source of the validation structures; without one they are split off.
        reference: what is taken off each energy. ``official``: the third column of the ``*.txt``,
            which makes it OC20's adsorption energy; ``last-frame``: ``E_last`` of the frame;
            ``elements``: a least-squares energy per element, fitted on train; ``none``.
        val_fraction: share of the structures, or systems, that is split off; each is drawn by
            itself, so a small set's share is only about that.
        split_by: ``frame``, or ``system`` so that no system is in both.
        seed: of the split.
        systems: file of the system ids to keep, one a line.
    """

    source: str
    val: str | None
    reference: str
    val_fraction: float
    split_by: str
    seed: int
    systems: str | None


@dataclass(frozen=True)
class LabelledStructure:
    """One structure, its identity, and the reference energy in eV if the source gives one."""

    atoms: Atoms
    sid: str
    fid: int
    reference: float | None
    where: str

    @property
    def energy(self) -> float:
        """Return the source's energy in eV."""
        return float(self.atoms.calc.results["energy"])

    @property
    def forces(self) -> np.ndarray:
        """Return the forces as computed, (N, 3) in eV/Å; ASE's constraints would zero some."""
        return self.atoms.get_forces(apply_constraint=False)

    @property
    def fixed(self) -> np.ndarray:
        """Return which atoms are fixed, (N,)."""
        fixed = np.zeros(len(self.atoms), dtype=bool)
        for constraint in self.atoms.constraints:
            if isinstance(constraint, FixAtoms):
                fixed[constraint.index] = True
        return fixed


@dataclass
class Summary:
    """What was written for one split, gathered frame by frame."""

    natoms: list[int] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    systems: Counter[str] = field(default_factory=Counter)
    square_sum: float = 0.0
    n_force_components: int = 0
    n_zeroed: int = 0

    def add(self, frame: LabelledStructure, energy: float) -> None:
        """Take in one frame with its final energy."""
        self.natoms.append(len(frame.atoms))
        self.energies.append(energy)
        self.systems[frame.sid] += 1
        free = frame.forces[~frame.fixed]
        self.square_sum += float(np.square(free).sum())
        self.n_force_components += free.size
        self.n_zeroed += bool(frame.fixed.any() and not frame.forces[frame.fixed].any())

    def report(self) -> dict[str, Any]:
        """Return the split's line of the manifest."""
        return {
            "structures": len(self.natoms),
            "systems": len(self.systems),
            "atoms": [min(self.natoms), max(self.natoms)],
            "structures_with_zero_force_on_every_fixed_atom": self.n_zeroed,
        }

    def normalizer(self) -> dict[str, dict[str, float]]:
        """Return mean and root mean square deviation, as fairchem's ``transforms.normalizer``."""
        forces = math.sqrt(self.square_sum / max(self.n_force_components, 1))
        return {
            "energy": {
                "mean": float(np.mean(self.energies)),
                "rmsd": float(np.std(self.energies)) or 1.0,
            },
            "forces": {"mean": 0.0, "rmsd": forces or 1.0},
        }


def prepare(settings: Settings, out: Path) -> dict[str, Any]:
    """Write the folder ``out`` in one go, or find it there already, and return its manifest.

    Raises:
        FileExistsError: if ``out`` holds anything but this very preparation.
        ValueError: if a structure or the split is not usable; the message names it.
    """
    identity = _identity(settings)
    if out.exists():
        return _same_preparation(out, identity)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        partial = Path(scratch) / out.name
        partial.mkdir()
        manifest = {"settings": identity, **_write(settings, partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        partial.rename(out)
    return manifest


def _identity(settings: Settings) -> dict[str, Any]:
    """Return the settings with every path replaced by the names and sizes of its files."""
    return {
        **asdict(settings),
        "source": _sizes(_files(Path(settings.source))),
        "val": _sizes(_files(Path(settings.val))) if settings.val else None,
        "systems": _sizes([(Path(settings.systems), None)]) if settings.systems else None,
    }


def _sizes(files: list[tuple[Path, Path | None]]) -> dict[str, int]:
    return {file.name: file.stat().st_size for pair in files for file in pair if file}


def _same_preparation(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    if not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} exists and is no prepared folder; choose another --out")
    manifest = json.loads((out / MANIFEST).read_text())
    differing = [key for key in identity if manifest["settings"].get(key) != identity[key]]
    if differing:
        raise FileExistsError(
            f"{out} was prepared with other settings ({', '.join(differing)}); "
            "choose another --out or remove it"
        )
    return manifest


def _write(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write both splits and return what the manifest says of them."""
    reference, coefficients = _reference(settings)
    summaries = {split: Summary() for split in SPLITS}
    with ExitStack() as stack:  # one transaction a database, which SQLite needs to be fast
        databases = {split: stack.enter_context(_database(folder / split)) for split in SPLITS}
        for split, frame in _checked(_labelled(settings), "writing"):
            energy = frame.energy - reference(frame)
            databases[split].write(_row(frame, energy), data={"sid": frame.sid, "fid": frame.fid})
            summaries[split].add(frame, energy)
    for split, summary in summaries.items():
        if not summary.natoms:
            raise ValueError(f"the {split} split is empty; change --val-fraction, --seed or --val")
        np.savez(folder / split / "metadata.npz", natoms=np.array(summary.natoms))
    return {
        "format": "ase_db",
        "reference_energies_eV": coefficients,
        "splits": {split: summary.report() for split, summary in summaries.items()},
        "normalizer": summaries["train"].normalizer(),
    }


def _database(folder: Path) -> Any:
    folder.mkdir()
    return connect(folder / "structures.db")


def _row(frame: LabelledStructure, energy: float) -> Atoms:
    atoms = frame.atoms.copy()
    atoms.info = {}
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=frame.forces)
    return atoms


def _labelled(settings: Settings) -> Iterator[tuple[str, LabelledStructure]]:
    """Yield each frame with the split that it belongs to."""
    for frame in _frames(settings.source, settings.systems):
        yield ("train" if settings.val else _split(frame, settings)), frame
    if settings.val:
        for frame in _frames(settings.val, settings.systems):
            yield "val", frame


def _split(frame: LabelledStructure, settings: Settings) -> str:
    """Draw a split by hashing the frame's identity: neither order nor new frames change it."""
    drawn = frame.sid if settings.split_by == "system" else f"{frame.sid}/{frame.fid}"
    digest = hashlib.blake2b(f"{settings.seed}/{drawn}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") / 2**64 < settings.val_fraction else "train"


def _frames(source: str, systems: str | None) -> Iterator[LabelledStructure]:
    kept = set(Path(systems).read_text().split()) if systems else None
    for structures, log in _files(Path(source)):
        for frame in _read(structures, log):
            if kept is None or frame.sid in kept:
                yield frame


def _files(source: Path) -> list[tuple[Path, Path | None]]:
    """Return each xyz file of a source with the ``*.txt`` that belongs to it."""
    if source.is_file():
        return [(source, None)]
    if not source.is_dir():
        raise FileNotFoundError(f"there is no {source}; expected an OC20 folder or an extxyz file")
    structures = sorted([*source.glob("*.extxyz"), *source.glob("*.extxyz.xz")])
    if not structures:
        raise ValueError(f"{source}: no *.extxyz and no *.extxyz.xz in this folder")
    return [(file, _log(file)) for file in structures]


def _log(structures: Path) -> Path:
    stem = structures.name.split(".extxyz")[0]
    for log in (structures.with_name(f"{stem}.txt"), structures.with_name(f"{stem}.txt.xz")):
        if log.is_file():
            return log
    raise ValueError(f"{structures}: {stem}.txt with ids and reference energies is missing")


def _text(path: Path) -> str:
    if path.suffix == ".xz":
        with lzma.open(path, "rt") as file:
            return file.read()
    return path.read_text()


def _read(structures: Path, log: Path | None) -> Iterator[LabelledStructure]:
    """Yield a file's frames; ids come from the log where there is one, else from the frames."""
    lines = _text(log).split() if log else None
    count = 0
    for count, atoms in enumerate(iread(io.StringIO(_text(structures)), ":", "extxyz"), start=1):
        where = f"{structures.name}, frame {count - 1}"
        if lines is None:
            yield _own_identity(atoms, where)
        elif count <= len(lines):
            yield _logged_identity(atoms, lines[count - 1], where)
    if lines is not None and count != len(lines):
        raise ValueError(f"{structures.name} has {count} frames, {log.name} has {len(lines)} lines")


def _own_identity(atoms: Atoms, where: str) -> LabelledStructure:
    missing = [key for key in ("sid", "fid") if key not in atoms.info]
    if missing:
        raise ValueError(f"{where}: no {' and no '.join(missing)} among its info")
    return LabelledStructure(atoms, str(atoms.info["sid"]), int(atoms.info["fid"]), None, where)


def _logged_identity(atoms: Atoms, line: str, where: str) -> LabelledStructure:
    """Read ``system_id,frame7,reference_energy``; OC20's test sets have no energy."""
    sid, frame, *energy = line.split(",")
    fid = int(frame.removeprefix("frame"))
    return LabelledStructure(atoms, sid, fid, float(energy[0]) if energy else None, where)


def _checked(
    frames: Iterable[tuple[str, LabelledStructure]], doing: str
) -> Iterator[tuple[str, LabelledStructure]]:
    """Pass frames on, with a progress bar, and stop at the first that cannot be trained on."""
    seen: set[tuple[str, int]] = set()
    for split, frame in tqdm(frames, desc=doing, unit=" frames"):
        if (frame.sid, frame.fid) in seen:
            raise ValueError(f"{frame.where}: sid {frame.sid}, fid {frame.fid} was there before")
        seen.add((frame.sid, frame.fid))
        check(frame)
        yield split, frame


def check(frame: LabelledStructure) -> None:
    """Raise a ValueError that names what the frame lacks."""
    results = frame.atoms.calc.results if frame.atoms.calc else {}
    for quantity in ("energy", "forces"):
        if quantity not in results:
            raise ValueError(f"{frame.where}: no {quantity}")
        if not np.isfinite(results[quantity]).all():
            raise ValueError(f"{frame.where}: {quantity} hold NaN or inf")
    for name, array in (("positions", frame.atoms.positions), ("cell", frame.atoms.cell.array)):
        if not np.isfinite(array).all():
            raise ValueError(f"{frame.where}: {name} hold NaN or inf")
    if not frame.atoms.has("tags"):
        raise ValueError(f"{frame.where}: no tags (0 fixed, 1 surface, 2 adsorbate)")


def _reference(
    settings: Settings,
) -> tuple[Callable[[LabelledStructure], float], dict[str, float] | None]:
    """Return what to take off a frame's energy, and the element energies if they were fitted."""
    if settings.reference == "elements":
        energies = fit_elements(settings)
        return (lambda frame: _elements(frame, energies)), energies
    given = {"official": _official, "last-frame": _last_frame, "none": lambda frame: 0.0}
    return given[settings.reference], None


def _elements(frame: LabelledStructure, energies: dict[str, float]) -> float:
    symbols = frame.atoms.get_chemical_symbols()
    unknown = sorted(set(symbols) - set(energies))
    if unknown:
        raise ValueError(f"{frame.where}: holds {', '.join(unknown)}, which train lacks")
    return sum(energies[symbol] for symbol in symbols)


def _official(frame: LabelledStructure) -> float:
    if frame.reference is None:
        raise ValueError(
            f"{frame.where}: no reference energy; --reference official needs OC20's *.txt files"
        )
    return frame.reference


def _last_frame(frame: LabelledStructure) -> float:
    if "E_last" not in frame.atoms.info:
        raise ValueError(f"{frame.where}: no E_last among its info, as last-frame needs")
    return float(frame.atoms.info["E_last"])


def fit_elements(settings: Settings) -> dict[str, float]:
    """Return the least-squares energy in eV of each element of train."""
    counts, energies = [], []
    for split, frame in _checked(_labelled(settings), "fitting elements"):
        if split == "train":
            counts.append(np.bincount(frame.atoms.numbers, minlength=len(chemical_symbols)))
            energies.append(frame.energy)
    present = np.flatnonzero(np.sum(counts, axis=0))
    composition = np.reshape(counts, (-1, len(chemical_symbols)))[:, present].astype(float)
    solution = np.linalg.lstsq(composition, np.array(energies), rcond=None)[0]
    return {chemical_symbols[z]: float(energy) for z, energy in zip(present, solution, strict=True)}


def arguments() -> argparse.ArgumentParser:
    """Return the command line; every choice that changes the data is asked for or has a default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="OC20 S2EF folder, or an extended xyz file (.xz too)")
    parser.add_argument("--val", help="source of the validation structures")
    parser.add_argument("--reference", choices=REFERENCES, required=True)
    parser.add_argument("--val-fraction", type=float, default=0.2, help="without --val")
    parser.add_argument("--split-by", choices=("frame", "system"), default="frame")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--systems", help="file of system ids to keep, one a line")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> None:
    """Run the command line."""
    options = vars(arguments().parse_args())
    out = options.pop("out")
    try:
        manifest = prepare(Settings(**options), out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare.py: {error}") from None
    for split, report in manifest["splits"].items():
        print(f"{out / split}: {report['structures']} structures of {report['systems']} systems")
        if zeroed := report["structures_with_zero_force_on_every_fixed_atom"]:
            print(f"  {zeroed} have no force on any fixed atom: stored with constraints applied?")


if __name__ == "__main__":
    main()
