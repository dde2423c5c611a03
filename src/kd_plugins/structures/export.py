"""A target store as an extended xyz that every host's data pipeline reads."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict
from tqdm import tqdm

from kd_plugins.core.quantities import quantity
from kd_plugins.files import whole_file
from kd_plugins.numbers import shown
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.given import check_names
from kd_plugins.structures.readers import to_atoms

SUFFIXES = (".extxyz", ".xyz")
CALCULATED = ("energy", "forces", "stress", "magmoms")
"""What readers look for in the results of ASE's calculators."""


def export_extxyz(store: TargetStore, path: str | Path, ids: Iterable[str] | None = None) -> None:
    """Write records as extended xyz; what stood at ``path`` stays until all are written.

    Energy, forces, stress and magmoms are where ASE's readers expect a calculator's results, other
    quantities in columns and keys of their own names, and the identity in ``structure_id``; one of
    the form ``a/b`` also in ``sid`` and ``fid``, by which fairchem's data sets name structures.
    ASE writes atoms' numbers with eight decimals. Positions are the store's, so float32.

    Args:
        store: where from.
        path: ending in ``.extxyz`` or ``.xyz``, by which readers tell the format.
        ids: of the records, in this order; by default all, sorted, since a store has them in the
            order in which its workers happened to be done.

    Raises:
        ValueError: for another suffix, no structure, what is no store, or an id that extended xyz
            cannot hold.
        KeyError: for an id that the store has not.
        OSError: naming the file, if it cannot be written; nothing is then left of it.

    Warns:
        UserWarning: naming quantities such as embeddings, which are left out.
    """
    if not isinstance(store, TargetStore):
        raise ValueError(
            f"store: expected a TargetStore, got {shown(store)}; open it with TargetStore.open"
        )
    check_names("ids", ids)
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name}: expected a name that ends in {' or '.join(SUFFIXES)}")
    names = [name for name in store.manifest.dtypes if _has_column(name)]
    left_out = [name for name in store.manifest.dtypes if name not in names]
    if left_out:
        warnings.warn(f"{path.name} goes without {', '.join(left_out)}", stacklevel=2)
    ids = sorted(store.ids()) if ids is None else list(ids)
    if not ids:
        raise ValueError(f"{store.folder}: there is no structure to export; label some first")
    with whole_file(path) as file:
        for structure_id in tqdm(ids, desc="export", unit=" structures", disable=None):
            text = io.StringIO()
            ase.io.write(text, _labelled(store.record(structure_id), names), format="extxyz")
            file.write(text.getvalue().encode())


def _has_column(name: str) -> bool:
    """Return whether a quantity's size is known, which that of a learned feature is not."""
    return all(isinstance(size, int) for size in quantity(name).shape)


def _labelled(record: Record, names: list[str]) -> Atoms:
    atoms = to_atoms(record.structure)
    values: dict[str, Any] = {
        name: value.double().numpy() if value.ndim else value.item()
        for name, value in record.values.items()
        if name in names
    }
    results = {name: values.pop(name) for name in CALCULATED if name in values}
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(_names(record.structure_id))
    for name, value in values.items():
        (atoms.arrays if quantity(name).scope == "atom" else atoms.info)[name] = value
    return atoms


def _names(structure_id: str) -> dict[str, str | int]:
    names: dict[str, str | int] = {"structure_id": _as_text(structure_id)}
    sid, slash, fid = structure_id.rpartition("/")
    if slash:
        names["sid"] = _as_text(sid)
        names["fid"] = int(fid) if fid.isdecimal() and fid == str(int(fid)) else _as_text(fid)
    return names


def _as_text(value: str) -> str:
    """Return what ASE must be told to write, so that ASE reads this text and not a number."""
    for told in (value, f"_JSON {json.dumps(value, ensure_ascii=False)}"):
        if _parsed(told) == value:
            return told
    raise ValueError(f"structure id {value!r} cannot be written into an extended xyz; rename it")


def _parsed(told: str) -> str | None:
    """Return what ASE would read, or None if that is no text."""
    line = key_val_dict_to_str({"key": told})
    try:
        found = key_val_str_to_dict(line).get("key")
    except ValueError:
        return None
    return found if isinstance(found, str) and len(line.splitlines()) == 1 else None
