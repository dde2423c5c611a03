"""A student is hippynn's alone: it loads and runs where this package cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_plugins.hippynn import add_teacher_targets, export_student
from tests.hippynn import fixtures
from tests.hippynn.test_schedule import WEIGHTS

MD = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["kd_plugins"] = None
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from hippynn.experiment.serialization import load_model_from_cwd
from hippynn.interfaces.ase_interface import calculator_from_model
import numpy as np
model = load_model_from_cwd(map_location="cpu")
atoms = bulk("Mo", cubic=True) * (2, 2, 2)
atoms.calc = calculator_from_model(model, en_unit=units.eV)
MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
start = float(atoms.get_total_energy())
VelocityVerlet(atoms, 1 * units.fs).run(5)
print(json.dumps([start, float(atoms.get_total_energy())]))
"""


@pytest.fixture
def run(shared_file: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run with a scheduled loss, so that hippynn's files name classes of this package."""
    data, model = fixtures.make_initialised(shared_file, large=6)
    add_teacher_targets(data, fixtures.make_hipnn(4).energy, align=True)
    fixtures.train_student(tmp_path / "run", model, data, WEIGHTS, max_epochs=5)
    return tmp_path / "run"


def test_exported_student_runs_md_without_kd_plugins(run: Path, tmp_path: Path) -> None:
    out = export_student(run, tmp_path / "student")
    assert sorted(path.name for path in out.iterdir()) == [
        "best_model.pt",
        "experiment_structure.pt",
    ]
    settings = {**os.environ, "HIPPYNN_USE_CUSTOM_KERNELS": "_pytorch_raw"}
    done = subprocess.run(
        [sys.executable, "-c", MD], cwd=out, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    start, end = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(start) and end == pytest.approx(start, abs=0.05)
    weights = torch.load(out / "best_model.pt", weights_only=False)
    expected = torch.load(run / "best_model.pt", weights_only=False)
    assert all(torch.equal(weights[n], one) for n, one in expected.items() if hasattr(one, "dim"))


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no experiment_structure\.pt"):
        export_student(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(FileExistsError, match="holds something already"):
        export_student(run, tmp_path / "out")


def test_model_with_a_part_of_kd_plugins_is_refused(run: Path, tmp_path: Path) -> None:
    """The file is then not written, rather than one that fails elsewhere."""
    structure = torch.load(run / "experiment_structure.pt", weights_only=False)
    structure["training_modules"].model.extra = structure["controller"].scheduler_list[0]
    torch.save(structure, run / "experiment_structure.pt")
    with pytest.raises(ValueError, match=r"needs .*kd_plugins\.hippynn\.schedule"):
        export_student(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
