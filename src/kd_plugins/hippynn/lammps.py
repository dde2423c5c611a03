"""A student for LAMMPS: hippynn's ML-IAP object, an input that runs it, and how to use both."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_masses, chemical_symbols
from hippynn.graphs import GraphModule

from kd_plugins.files import write_bytes
from kd_plugins.hippynn.calculator import receptive_field
from kd_plugins.hippynn.convert import DataError, energy_factor
from kd_plugins.hippynn.teacher import energy_node, resolve_dtype
from kd_plugins.teachers.teacher import resolve_device

OBJECT, INPUT, README = "student.pkl", "in.lammps", "README.md"
SKIN = 1.0
"""Å beyond the cutoff within which LAMMPS keeps neighbours."""


def write_lammps(
    folder: Path,
    model: GraphModule,
    energy_unit: str = "eV",
    device: str = "auto",
    dtype: str = "float32",
) -> None:
    """Write ``student.pkl``, ``in.lammps`` and ``README.md`` for LAMMPS' units ``metal``.

    The object is hippynn's ``MLIAPInterface``. LAMMPS unpickles it, and needs hippynn there.

    Args:
        folder: to make.
        model: with one energy.
        energy_unit: of the model, ``eV`` or ``kcal/mol``; its lengths are in Å.
        device: where LAMMPS is to compute: ``auto`` is that of this machine; ``cuda`` needs no GPU
            here, and there falls back to the CPU with a warning of hippynn's.
        dtype: in which the model computes, ``float32`` or ``float64``.

    Raises:
        ImportError: without LAMMPS' Python package, whose class the object extends.
        DataError: for a model without an energy or with several, or whose reach is not known.
        ValueError: for another unit, device or dtype.
    """
    interface = _import_interface()
    where = torch.device(resolve_device(device) if device == "auto" else device)
    precision, factor = resolve_dtype(dtype), energy_factor(energy_unit)
    node = energy_node(model)
    reach = receptive_field(node)
    if reach is None:
        raise DataError("the model is no HIPNN, so that LAMMPS cannot be told how far it reaches")

    elements = _elements(node)
    with warnings.catch_warnings():
        # hippynn warns of kernels that are not installed.
        warnings.simplefilter("ignore")
        made = interface(
            node,
            elements,
            model_device=where,
            compute_dtype=precision,
            energy_unit=None if factor == 1 else factor,
        )

    cutoff = 2 * made.rcutfac
    folder.mkdir()
    write_bytes(folder / OBJECT, pickle.dumps(made))
    write_bytes(folder / INPUT, _input(elements, cutoff, reach).encode())
    write_bytes(folder / README, _readme(elements, cutoff, reach, where, dtype).encode())


def _import_interface() -> Any:
    try:
        from hippynn.interfaces.lammps_interface import MLIAPInterface
    # OSError of lammps.mliap, for a Python without a shared library.
    except (ImportError, OSError) as error:
        raise ImportError(
            "lammps=True needs the Python package of LAMMPS, whose MLIAPUnified hippynn's object "
            f"extends ({error}); install the one of your LAMMPS, as `make install-python` does"
        ) from error
    return MLIAPInterface


def _elements(node: Any) -> list[str]:
    """Return the symbols of a model's elements, in the order in which LAMMPS numbers them."""
    from hippynn.graphs import find_unique_relative
    from hippynn.graphs.nodes.tags import Encoder

    encoder: Any = find_unique_relative(node, Encoder)
    return [chemical_symbols[int(number)] for number in encoder.torch_module.species_set[1:]]


def _input(elements: list[str], cutoff: float, reach: float) -> str:
    """Return LAMMPS' input."""
    # Features of ghosts need neighbours of ghosts, unless there is one interaction layer.
    has_ghost_neighbours = int(reach > cutoff)
    masses = "\n".join(
        f"mass            {number} {atomic_masses[chemical_symbols.index(symbol)]:.6g}  # {symbol}"
        for number, symbol in enumerate(elements, start=1)
    )
    return f"""\
# Molecular dynamics at constant energy: lmp -var structure FILE -in in.lammps
units           metal
atom_style      atomic
boundary        p p p
newton          on

variable        structure index structure.data
variable        temperature index 300
variable        steps index 1000
read_data       ${{structure}}
{masses}

# The last word says whether ghost atoms have neighbour lists; on a GPU: mliap/kk.
pair_style      mliap unified {OBJECT} {has_ghost_neighbours}
pair_coeff      * * {" ".join(elements)}
neighbor        {SKIN:g} bin
comm_modify     cutoff {reach + SKIN:g}

timestep        0.001
thermo          10
velocity        all create ${{temperature}} 1 loop geom
fix             1 all nve
run             ${{steps}}
"""


def _readme(
    elements: list[str], cutoff: float, reach: float, where: torch.device, dtype: str
) -> str:
    types = ", ".join(f"{number} {symbol}" for number, symbol in enumerate(elements, start=1))
    order = ", ".join(f'"{symbol}"' for symbol in elements)
    return f"""\
# The student in LAMMPS

- `{OBJECT}`: hippynn's `MLIAPInterface` of the student, for LAMMPS' `pair_style mliap unified`, in
  units `metal` (eV, Å, ps). It computes on {where} in {dtype}.
- `{INPUT}`: molecular dynamics with it.

LAMMPS needs the package ML-IAP with `MLIAP_ENABLE_PYTHON=yes`, and a Python with hippynn and torch.
**LAMMPS unpickles `{OBJECT}`, which can run any code: use only files from people whom you trust.**

Types are numbered {types}. A structure of ASE becomes LAMMPS' by

    ase.io.write("structure.data", atoms, format="lammps-data", specorder=[{order}])

and `lmp -var structure structure.data -in {INPUT}` runs it. The cutoff is {cutoff:g} Å. A force
depends on atoms up to {reach:g} Å away, so ghost atoms must reach that far (`comm_modify`).
"""
