"""Measured stiffness tensors of crystals, read from a table, and their averaged moduli."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_plugins.evaluate.elasticity import ElasticAverages

Floats = NDArray[np.float64]

COLUMNS = [f"C{i}{j}" for i in range(1, 7) for j in range(1, 7)]
AVERAGES = ("voigt", "reuss", "hill", "reuss_hill")
MODULI = {
    f"{modulus}_{average}": f"{symbol}_{letters}"
    for modulus, symbol in (("young", "E"), ("bulk", "K"), ("shear", "G"))
    for average, letters in zip(AVERAGES, ("V", "R", "H", "RH"), strict=True)
} | {"poisson_ratio": "nu", "anisotropy": "A"}
"""Name of an averaged modulus to its symbol in Table 2 of Taniguchi 2024; GPa, the last two pure
numbers."""
EXPERIMENT = "Exp"


def averaged_moduli(stiffness: Floats) -> dict[str, float]:
    """Return all `MODULI` of a stiffness tensor (6, 6) in GPa.

    Raises:
        ValueError: for what `ElasticAverages.of` refuses, such as a crystal that is not stable.
    """
    averages = ElasticAverages.of(stiffness)
    found = {"poisson_ratio": averages.poisson_ratio, "anisotropy": averages.anisotropy}
    for name in AVERAGES:
        moduli = getattr(averages, name)
        found |= {f"{one}_{name}": getattr(moduli, one) for one in ("young", "bulk", "shear")}
    return {name: found[name] for name in MODULI}


def mean_moduli(tensors: Sequence[Floats]) -> dict[str, float] | None:
    """Return the mean of all `MODULI` over several measurements of one crystal.

    Tensors that are not positive definite are left out, as in Taniguchi 2024 (Experimental); None
    if no other is there.
    """
    moduli = []
    for tensor in tensors:
        try:
            moduli.append(averaged_moduli(tensor))
        except ValueError:
            continue
    if not moduli:
        return None
    return {name: float(np.mean([one[name] for one in moduli])) for name in MODULI}


def read_stiffness(path: Path, method: str = EXPERIMENT) -> dict[str, list[Floats]]:
    """Return the tensors of a table by compound, several where it was measured several times.

    Args:
        path: of a CSV with the columns ``Compound``, ``C11`` to ``C66`` in GPa (Voigt order xx, yy,
            zz, yz, xz, xy), and perhaps ``Method``.
        method: rows of other methods are left out, where the table has that column.

    Raises:
        FileNotFoundError: without the file.
        ValueError: naming file and line, for a column that is missing or a number that is none; for
            no row of the method.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a CSV of stiffness tensors")

    tensors: dict[str, list[Floats]] = {}
    spellings: dict[str, str] = {}
    for compound, tensor in _read_rows(path, method):
        # One table may write a compound with a capital letter in one row and without in another.
        spelling = spellings.setdefault(_plain(compound), compound)
        tensors.setdefault(spelling, []).append(tensor)
    if not tensors:
        raise ValueError(f"{path}: no row has the method {method!r}")
    return tensors


def _read_rows(path: Path, method: str) -> Iterator[tuple[str, Floats]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = [one for one in ("Compound", *COLUMNS) if one not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: no column {missing[0]!r}; expected Compound and C11 to C66, in GPa"
            )

        for row in rows:
            if row.get("Method", method) != method:
                continue
            try:
                values = [float(row[name]) for name in COLUMNS]
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {rows.line_num}: expected 36 numbers in GPa"
                ) from None
            yield row["Compound"].strip(), np.array(values).reshape(6, 6)


def matching_compounds(names: Sequence[str], tensors: Mapping[str, object]) -> dict[str, str]:
    """Return crystal to compound where both have one name, whatever its capitals.

    Spaces and underscores are the same: ``oxalic_acid`` is ``oxalic acid``.
    """
    compounds = {_plain(compound): compound for compound in tensors}
    return {name: compounds[_plain(name)] for name in names if _plain(name) in compounds}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
