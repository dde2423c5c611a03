"""A HIPNN that was trained moves the atoms; stopped and gone on, as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

pytest.importorskip("hippynn")

from kd_plugins.sampling import MolecularDynamics, Sampling, Strain
from kd_plugins.sampling.sampler import Sampler
from kd_plugins.structures import LabelledStructure
from tests.hippynn import fixtures
from tests.hosts import in_one_environment

pytestmark = in_one_environment


def test_student_moves_the_atoms(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    data = fixtures.make_database(fixtures.read_molybdenum(shared_file))
    model = fixtures.make_hipnn()
    fixtures.initialise(model, data)
    folder = tmp_path / "run"
    fixtures.train_student(folder, model, data, {"energy": 1, "forces": 1}, max_epochs=1)

    seed = LabelledStructure("mo", bulk("Mo", cubic=True))
    dynamics = MolecularDynamics(4, (600,), timestep=1.0, interval=3, equilibration=2)
    settings = Sampling(strain=Strain(1), md=dynamics)
    name = f"hippynn folder={folder}"
    whole = list(Sampler([seed], settings, 0, name, "cpu").draws())
    rest = list(Sampler([seed], settings, 0, name, "cpu").draws(whole[2][1]))

    snapshots = [one.atoms for one, _ in whole[1:]]
    assert all(np.ptp(one.positions - snapshots[0].positions) > 1e-3 for one in snapshots[1:])
    assert [one.atoms for one, _ in whole[3:]] == [one.atoms for one, _ in rest]
