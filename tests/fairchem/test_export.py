"""A student lives on in plain fairchem, in a process where kd_plugins cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fairchem.core.preprocessing import AtomsToGraphs

from kd_plugins.fairchem import compat
from tests.fairchem import tiny

READER = """
import json, sys, warnings
sys.modules["kd_plugins"] = None  # any import of it fails
warnings.simplefilter("ignore")
from fairchem.core import OCPCalculator
from ase.io import read
atoms = read(sys.argv[2])
atoms.calc = OCPCalculator(checkpoint_path=sys.argv[1], cpu=True, seed=0)
energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
print("RESULT", json.dumps([energy, forces.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint.pt", "best_checkpoint.pt"])
def test_student_serves_the_hosts_calculator(
    make_config, teacher: Path, tmp_path: Path, name: str
) -> None:
    """Its energy and forces there are those of the trainer that made it."""
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher)
    )
    settings["optim"].pop("ema_decay")  # so that both files hold the weights in the trainer
    atoms = tiny.slab(20)
    atoms.write(tmp_path / "slab.json")

    def predict(trainer):  # noqa: ANN001, ANN202
        data = AtomsToGraphs(r_energy=False, r_forces=False, r_fixed=True).convert(atoms)
        batch = trainer.collater([data])
        out = trainer.predict(batch, per_image=False, disable_tqdm=True)
        return float(out["energy"][0]), out["forces"].numpy()

    energy, forces = tiny.run(settings, predict)
    checkpoint = Path(settings["run_dir"]) / "checkpoints" / "run" / name
    standins = os.pathsep.join(str(folder) for folder in compat.FOLDERS.values())
    output = subprocess.run(
        [sys.executable, "-c", READER, str(checkpoint), str(tmp_path / "slab.json")],
        env={**os.environ, "PYTHONPATH": standins},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr[-2000:]
    line = next(line for line in output.stdout.splitlines() if line.startswith("RESULT"))
    their_energy, their_forces = json.loads(line.removeprefix("RESULT"))
    # EquiformerV2's random edge rolls leave a noise of some 1e-5
    assert their_energy == pytest.approx(energy, abs=1e-3)
    assert np.allclose(their_forces, forces, atol=1e-3)
