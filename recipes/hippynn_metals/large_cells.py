"""Molecular dynamics of one large cell, and the largest cell that fits (Matin et al. 2025, 3.1).

    python recipes/hippynn_metals/large_cells.py "hippynn folder=MODEL" --crystal runs/al.extxyz \
        --repeats 30 20 20 --out runs/al_48000.json

1 ps at constant energy and volume, 1,000 steps of 1 fs by ASE, gives the time per step and atom.
The largest cell, of as many layers of --repeats as fit, is found by doubling and bisection: on CUDA
until the device has no memory left, on a CPU until torch's tensors take --memory. Memory per atom
is this memory divided by the number of its atoms.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from kd_plugins.evaluate import nve
from kd_plugins.evaluate.input_checks import one_structure
from kd_plugins.evaluate.memory import peak_bytes
from kd_plugins.files import write_json
from kd_plugins.teachers.registry import load_teacher

GIB = 2**30


def fits(atoms: Atoms, calculator: Any, limit: float | None) -> bool:
    """Return whether forces can be computed within a limit in bytes, or within the device."""
    try:
        peak = peak_bytes(atoms, calculator)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return limit is None or peak <= limit


def largest_cell(layer: Atoms, calculator: Any, limit: float | None) -> int:
    """Return the number of atoms of the largest cell that fits, a pile of layers.

    Raises:
        SystemExit: if not even one layer fits.
    """
    low, high = 0, 1
    while fits(layer * (high, 1, 1), calculator, limit):
        low, high = high, 2 * high

    while high - low > 1:
        middle = (low + high) // 2
        if fits(layer * (middle, 1, 1), calculator, limit):
            low = middle
        else:
            high = middle

    if not low:
        raise SystemExit(
            f"one layer of {len(layer)} atoms does not fit; give smaller second and third "
            "--repeats, or more --memory"
        )
    return low * len(layer)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a potential, as kd-plugins evaluate takes it")
    parser.add_argument("--crystal", required=True, help="file of one crystal's cubic cell")
    parser.add_argument("--repeats", type=int, nargs=3, default=(30, 20, 20), help="of the crystal")
    parser.add_argument("--steps", type=int, default=1000, help="of 1 fs, 0 for no dynamics")
    parser.add_argument("--temperature", type=float, default=600, help="of the velocities, K")
    parser.add_argument("--memory", type=float, help="GiB; the device's, or 1 on a CPU")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    options = parser.parse_args()

    teacher = load_teacher(options.model)
    crystal, calculator, found = one_structure(options.crystal), teacher.calculator, {}
    if options.steps:
        atoms = crystal * tuple(options.repeats)
        run = nve(atoms, calculator, options.steps, temperature=options.temperature, seed=0)
        found |= {"atoms": run.n_atoms, "microseconds_per_atom": run.microseconds_per_atom}
        found |= {"steps": options.steps, "drift": run.drift}

    layer = crystal * (1, *options.repeats[1:])
    if teacher.device.startswith("cuda") and not options.memory:
        memory = torch.cuda.get_device_properties(teacher.device).total_memory
        largest = largest_cell(layer, calculator, None)
    else:
        memory = (options.memory or 1) * GIB
        largest = largest_cell(layer, calculator, memory)
    found |= {"largest_cell": largest, "memory": memory, "bytes_per_atom": memory / largest}
    print(write_json(options.out, {"device": teacher.device, **found}).read_text())


if __name__ == "__main__":
    main()
