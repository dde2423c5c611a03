"""Write a target store as an extended xyz that every host's data pipeline reads."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict
from tqdm import tqdm

from kd_plugins.core.quantities import quantity
from kd_plugins.files import whole_file
from kd_plugins.numbers import shown
from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import check_names, to_atoms

SUFFIXES = (".extxyz", ".xyz")
CALCULATOR_RESULTS = ("energy", "forces", "stress", "magmoms")
"""Quantities that readers look for in the results of ASE's calculators."""


def export_extxyz(store: TargetStore, path: str | Path, ids: Iterable[str] | None = None) -> None:
    """Write records as extended xyz; what stood at ``path`` stays until all are written.

    Energy, forces, stress and magmoms are where ASE's readers expect a calculator's results, other
    quantities in columns and keys of their own names, and the identity in ``structure_id``; one of
    the form ``a/b`` also in ``sid`` and ``fid``, by which fairchem's data sets name structures.
    ASE writes atoms' numbers with eight decimals. Positions are the store's, so float32.

    Args:
        store: where the records are.
        path: ending in ``.extxyz`` or ``.xyz``, by which readers choose the format.
        ids: of the records, in this order; by default all, sorted, since a store has them in the
            order in which its workers happened to be done.

    Raises:
        ValueError: for another suffix, no structure, what is no store, or an id that extended xyz
            cannot hold.
        KeyError: for an id that is not in the store.
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
    check_suffix(path)

    names = [name for name in store.manifest.dtypes if _has_fixed_size(name)]
    left_out = [name for name in store.manifest.dtypes if name not in names]
    if left_out:
        warnings.warn(f"{path.name} goes without {', '.join(left_out)}", stacklevel=2)

    ids = sorted(store.ids()) if ids is None else list(ids)
    if not ids:
        raise ValueError(f"{store.folder}: there is no structure to export; label some first")

    # One structure at a time in memory, and no half-written file if one of them fails.
    with whole_file(path) as file:
        for structure_id in tqdm(ids, desc="export", unit=" structures", disable=None):
            record = store.record(structure_id)
            values: dict[str, Any] = {
                name: value.double().numpy() if value.ndim else value.item()
                for name, value in record.values.items()
                if name in names
            }
            file.write(to_extxyz(structure_id, to_atoms(record.structure), values))


def check_suffix(path: Path) -> None:
    """Refuse a name by which readers would not choose extended xyz.

    Raises:
        ValueError: with the endings that there are.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name}: expected a name that ends in {' or '.join(SUFFIXES)}")


def to_extxyz(structure_id: str, atoms: Atoms, values: Mapping[str, Any]) -> bytes:
    """Return a structure as a frame of extended xyz.

    Args:
        structure_id: its identity.
        atoms: the structure, which is not changed. Text in its ``info`` is read back as it is.
        values: quantity name to value; see `export_extxyz` for where it is written.

    Raises:
        ValueError: for an id that extended xyz cannot hold.
    """
    atoms = atoms.copy()
    values = {
        name: value.item() if isinstance(value, np.ndarray) and not value.ndim else value
        for name, value in values.items()
    }
    results = {name: values.pop(name) for name in CALCULATOR_RESULTS if name in values}
    atoms.calc = SinglePointCalculator(atoms, **results)

    for name, value in atoms.info.items():
        atoms.info[name] = _quote(value) if isinstance(value, str) else value
    atoms.info.update(_id_keys(structure_id))
    for name, value in values.items():
        place = atoms.arrays if quantity(name).scope == "atom" else atoms.info
        place[name] = value

    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue().encode()


def _has_fixed_size(name: str) -> bool:
    """Return whether a quantity has the same number of columns in every store.

    Embeddings and force derivatives do not.
    """
    return all(isinstance(size, int) for size in quantity(name).shape)


def _id_keys(structure_id: str) -> dict[str, str | int]:
    """Return the keys of ``info`` that hold an id: ours, and fairchem's where it has the form."""
    keys: dict[str, str | int] = {"structure_id": _quote(structure_id)}

    sid, slash, fid = structure_id.rpartition("/")
    if slash:
        is_number = fid.isdecimal() and fid == str(int(fid))
        keys["sid"] = _quote(sid)
        keys["fid"] = int(fid) if is_number else _quote(fid)
    return keys


def _quote(text: str) -> str:
    """Return a text such that ASE reads it back as this text, and not as the number 7 for 007."""
    for candidate in (text, f"_JSON {json.dumps(text, ensure_ascii=False)}"):
        if _parse_back(candidate) == text:
            return candidate
    raise ValueError(f"{text!r} cannot be written into an extended xyz; rename it")


def _parse_back(text: str) -> str | None:
    """Return what ASE reads where it has written a text, or None if that is no text."""
    line = key_val_dict_to_str({"key": text})

    try:
        found = key_val_str_to_dict(line).get("key")
    except ValueError:
        return None

    is_one_line = len(line.splitlines()) == 1  # a line break would end the line of keys
    return found if isinstance(found, str) and is_one_line else None
