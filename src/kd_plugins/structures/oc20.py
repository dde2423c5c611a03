"""Turn OC20's S2EF structures into the folder that fairchem trains from.

A source is a folder of the release (`kd_plugins.structures.oc20_frames`) or one extended xyz file
whose frames carry ``sid`` and ``fid``. The result is an ASE database a split, which fairchem reads
without pickle, with fairchem's ``metadata.npz`` beside it and a manifest that says what was done:

    OUT/manifest.json
    OUT/train/structures.db   OUT/train/metadata.npz
    OUT/val/structures.db     OUT/val/metadata.npz

Energies are eV a structure less their reference, forces eV/Å as computed (no constraint applied);
tags, fixed atoms, ``sid`` and ``fid`` are kept. Until it is whole the work stands in the folder
``.OUT.partial`` beside it, where the same call goes on. Memory does not grow with the frames, but
for four bytes each and the ids of the wanted systems.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from tqdm import tqdm

from kd_plugins.files import folder_lock, read_json, write_json
from kd_plugins.structures.oc20_frames import find_chunks
from kd_plugins.structures.oc20_mapping import System, choose_systems, count_kinds, read_mapping
from kd_plugins.structures.oc20_shards import (
    SPLITS,
    Reference,
    Rules,
    Task,
    append_index,
    append_structures,
    is_finished,
    read_compositions,
    write_shards,
)

MANIFEST = "manifest.json"
REFERENCES = ("official", "last-frame", "elements", "none")
SPLIT_BY = ("frame", "system")
TABLE_5 = {
    "ostar": {"structures": 459_715, "adsorbates": 1},
    "200k": {"structures": 198_823, "adsorbates": 82},
}
"""Statistics of CRACK's subsets (Lim, Choung, Han 2025, Table 5). Its 55 "catalyst surfaces" of
either are left out: 55 is OC20's number of elements, and what was counted is not said."""


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
        mapping: OC20's ``oc20_data_mapping.pkl``, for ``adsorbate`` and for the manifest.
        adsorbate: keep the systems with this one, such as ``*O``.
    """

    source: str
    val: str | None
    reference: str
    val_fraction: float
    split_by: str
    seed: int
    systems: str | None
    mapping: str | None = None
    adsorbate: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.reference not in REFERENCES:
            raise ValueError(f"reference: expected one of {', '.join(REFERENCES)}")
        if self.split_by not in SPLIT_BY:
            raise ValueError(f"split_by: expected one of {', '.join(SPLIT_BY)}")
        if not 0 <= self.val_fraction <= 1:
            raise ValueError(f"--val-fraction: expected 0 to 1, got {self.val_fraction}")
        if self.adsorbate is not None and self.mapping is None:
            raise ValueError("--adsorbate needs --mapping oc20_data_mapping.pkl, which names them")
        if self.adsorbate is not None and self.systems is not None:
            raise ValueError("--adsorbate and --systems both choose systems; give one of them")


def prepare(settings: Settings, out: Path, n_workers: int = 1) -> dict[str, Any]:
    """Write the folder ``out``, go on with it, or find it there already; return its manifest.

    Args:
        settings: what to write.
        out: the folder, which is there whole or not at all.
        n_workers: processes that read, a file each; their number does not change the result.

    Raises:
        FileExistsError: if ``out`` holds anything but this very preparation.
        FolderInUse: if another process prepares the same folder.
        ValueError: if a structure or the split is not usable; the message names it.
    """
    identity = _identity(settings)
    work = out.with_name(f".{out.name}.partial")
    if out.exists():
        manifest = _same_preparation(out, identity)
        shutil.rmtree(work, ignore_errors=True)  # of a call that was killed at its very end
        return manifest

    work.mkdir(parents=True, exist_ok=True)
    with folder_lock(work, "prepare"):
        _claim(work, identity)
        mapping = read_mapping(Path(settings.mapping)) if settings.mapping else {}
        rules = _rules(settings, mapping)
        tasks = _tasks(settings, work)
        _read(tasks, rules, n_workers, work)
        summary = _write(tasks, settings, work, mapping)
        manifest = {"settings": identity, **summary}
        _finish(work, out, manifest)
    shutil.rmtree(work)
    return manifest


def _identity(settings: Settings) -> dict[str, Any]:
    """Return the settings with every path replaced by the names and sizes of its files."""
    files = {"systems": settings.systems, "mapping": settings.mapping}
    return {
        **asdict(settings),
        "source": _sizes(settings.source),
        "val": _sizes(settings.val) if settings.val else None,
        **{
            name: {Path(file).name: Path(file).stat().st_size} if file else None
            for name, file in files.items()
        },
    }


def _sizes(source: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for chunk in find_chunks(Path(source)):
        sizes.update(chunk.sizes)
    return sizes


def _same_preparation(out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    if not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} exists and is no prepared folder; choose another --out")
    manifest = dict(read_json(out / MANIFEST))
    settings: Any = manifest["settings"]
    differing = [key for key in identity if settings.get(key) != identity[key]]
    if differing:
        raise FileExistsError(
            f"{out} was prepared with other settings ({', '.join(differing)}); "
            "choose another --out or remove it"
        )
    return manifest


def _claim(work: Path, identity: Mapping[str, Any]) -> None:
    """Go on with work of the same settings only; a file that was mended is read anew."""
    note = work / "settings.json"
    settings = {name: one for name, one in identity.items() if name not in ("source", "val")}
    settings["files"] = {name: sorted(identity[name] or ()) for name in ("source", "val")}
    if not any((work / "shards").glob("*.db")):  # nothing would be lost
        write_json(note, settings)
    elif read_json(note) != settings:
        raise FileExistsError(
            f"{work} holds an unfinished preparation with other settings or files; remove it, or "
            "choose another --out"
        )


def _rules(settings: Settings, mapping: Mapping[str, System]) -> Rules:
    wanted: Collection[str] | None = None
    if settings.systems is not None:
        wanted = frozenset(Path(settings.systems).read_text().split())
    elif settings.adsorbate is not None:
        wanted = choose_systems(mapping, settings.adsorbate, Path(settings.mapping or ""))
    drawn = settings.val_fraction, settings.split_by, settings.seed
    return Rules(settings.reference, *drawn, wanted)


def _tasks(settings: Settings, work: Path) -> list[Task]:
    chunks = [(chunk, "train" if settings.val else None) for chunk in _chunks(settings.source)]
    chunks += [(chunk, "val") for chunk in _chunks(settings.val)]
    shards = work / "shards"
    shards.mkdir(exist_ok=True)
    return [
        Task(chunk, split, shards / f"{index:06d}.db")
        for index, (chunk, split) in enumerate(chunks)
    ]


def _chunks(source: str | None) -> list[Any]:
    return find_chunks(Path(source)) if source else []


def _read(tasks: Sequence[Task], rules: Rules, n_workers: int, work: Path) -> None:
    missing = [task for task in tasks if not is_finished(task)]
    if not missing:
        return

    # What was appended so far may be of shards that are now written anew.
    for split in SPLITS:
        shutil.rmtree(work / split, ignore_errors=True)
    (work / "index.db").unlink(missing_ok=True)

    done = len(tasks) - len(missing)
    with tqdm(total=len(tasks), initial=done, desc="reading", unit=" files") as bar:
        for _ in write_shards(missing, rules, n_workers):
            bar.update()


def _write(
    tasks: Sequence[Task], settings: Settings, work: Path, mapping: Mapping[str, System]
) -> dict[str, Any]:
    """Append the shards to both splits and return what the manifest says of them."""
    coefficients = fit_elements(tasks) if settings.reference == "elements" else None
    subtract = _subtraction(coefficients)

    index = work / "index.db"
    _show(append_index(index, tasks, subtract), "indexing", tasks)
    with closing(sqlite3.connect(index)) as connection:
        reports = {split: _report(connection, split) for split in SPLITS}
        kinds = _kinds(connection, mapping) if mapping else {}
        normalizer = _normalizer(connection)

    for split in SPLITS:
        database = work / split / "structures.db"
        _show(append_structures(database, split, tasks, subtract), f"writing {split}", tasks)
        with closing(sqlite3.connect(index)) as connection:
            rows = connection.execute(
                "SELECT natoms FROM frames WHERE split = ? ORDER BY position", [split]
            )
            natoms = np.fromiter((n for (n,) in rows), dtype=np.int64)
        np.savez(work / split / "metadata.npz", natoms=natoms)

    return {
        "format": "ase_db",
        "reference_energies_eV": coefficients,
        "splits": reports,
        **({"statistics": kinds} if kinds else {}),
        "normalizer": normalizer,
    }


def _show(steps: Iterator[None], doing: str, tasks: Sequence[Task]) -> None:
    for _ in tqdm(steps, desc=doing, total=len(tasks), unit=" files"):
        pass


def _report(connection: sqlite3.Connection, split: str) -> dict[str, Any]:
    """Return the split's line of the manifest."""
    n, n_systems, least, most, n_zeroed = connection.execute(
        "SELECT COUNT(*), COUNT(DISTINCT sid), MIN(natoms), MAX(natoms), SUM(zeroed) FROM frames"
        " WHERE split = ?",
        [split],
    ).fetchone()
    if not n:
        raise ValueError(f"the {split} split is empty; change --val-fraction, --seed or --val")
    return {
        "structures": n,
        "systems": n_systems,
        "atoms": [least, most],
        "structures_with_zero_force_on_every_fixed_atom": n_zeroed,
    }


def _kinds(connection: sqlite3.Connection, mapping: Mapping[str, System]) -> dict[str, int]:
    sids = connection.execute("SELECT DISTINCT sid FROM frames")
    return count_kinds((sid for (sid,) in sids), mapping)


def _normalizer(connection: sqlite3.Connection) -> dict[str, dict[str, float]]:
    """Return mean and root mean square deviation of train, as fairchem's transforms have them."""

    def total(expression: str) -> float:
        rows = connection.execute(f"SELECT {expression} FROM frames WHERE split = 'train'")
        return math.fsum(value for (value,) in rows)  # exact, so the order does not matter

    n, n_components = total("1"), total("n_components")
    mean = total("energy") / n
    deviation = math.sqrt(total(f"(energy - {mean!r}) * (energy - {mean!r})") / n)
    forces = math.sqrt(total("square_sum") / max(n_components, 1))
    return {
        "energy": {"mean": mean, "rmsd": deviation or 1.0},
        "forces": {"mean": 0.0, "rmsd": forces or 1.0},
    }


def _subtraction(coefficients: Mapping[str, float] | None) -> Reference:
    if coefficients is None:
        return lambda reference, _: 0.0 if reference is None else reference
    energies = {chemical_symbols.index(symbol): one for symbol, one in coefficients.items()}
    return lambda _, composition: sum(
        n * energies[int(number)] for number, n in json.loads(composition).items()
    )


def fit_elements(tasks: Sequence[Task]) -> dict[str, float]:
    """Return the least-squares energy in eV of each element of train.

    Raises:
        ValueError: naming a structure of val with an element that train lacks.
    """
    size = len(chemical_symbols)
    gram, moment = np.zeros((size, size)), np.zeros(size)
    of_val: dict[int, str] = {}  # element to the first place where it is
    for split, energy, composition, where in read_compositions(tasks):
        counts = np.zeros(size)
        for number, n in json.loads(composition).items():
            counts[int(number)] = n
            if split == "val":
                of_val.setdefault(int(number), where)
        if split == "train":
            gram += np.outer(counts, counts)  # whole numbers, so exact
            moment += energy * counts

    present = np.flatnonzero(np.diag(gram))
    if unknown := [number for number in of_val if number not in present]:
        where = of_val[unknown[0]]
        raise ValueError(f"{where}: holds {chemical_symbols[unknown[0]]}, which train lacks")

    solution = np.linalg.lstsq(gram[np.ix_(present, present)], moment[present], rcond=None)[0]
    return {chemical_symbols[z]: float(energy) for z, energy in zip(present, solution, strict=True)}


def _finish(work: Path, out: Path, manifest: Mapping[str, Any]) -> None:
    """Give the finished folder its name, its content being on the disk."""
    whole = work / out.name
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    write_json(whole / MANIFEST, manifest)
    for split in SPLITS:
        for file in (work / split).iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        (work / split).rename(whole / split)
    whole.rename(out)


def compare_with_table_5(manifest: Mapping[str, Any], subset: str) -> list[str]:
    """Return where a prepared folder differs from a subset of CRACK's Table 5, in words.

    Structures of a validation source of its own are not counted.
    """
    splits, settings = manifest["splits"], manifest["settings"]
    found = {"structures": splits["train"]["structures"], **manifest.get("statistics", {})}
    if settings["val"] is None:
        found["structures"] += splits["val"]["structures"]
    return [
        f"{found[name]:,} {name}, Table 5 has {expected:,}"
        for name, expected in TABLE_5[subset].items()
        if name in found and found[name] != expected
    ]
