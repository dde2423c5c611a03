"""What is written is read by CHGNet alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.chgnet import DistillData
from kd_plugins.chgnet.convert import to_pymatgen
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled


@pytest.fixture(scope="session")
def saved(data: DistillData, trunk_folder: Path, tmp_path_factory: Any) -> dict[str, Any]:
    """Folders of a run of each kind, with the models that they end with."""
    folder = tmp_path_factory.mktemp("saved")
    made = fixtures.trainer(epochs=1)
    made.train(fixtures.loader(data, 2), fixtures.loader(data, 4), save_dir=str(folder / "trainer"))
    _, model = fixtures.fitted(data, trunk_folder, folder / "fit", epochs=1)
    return {"trainer": (folder / "trainer", made.model), "fit": (folder / "fit", model)}


ALONE = """
import json, sys
sys.modules["kd_plugins"] = None
from chgnet.model import CHGNet
from pymatgen.core import Structure
structure = Structure.from_file(sys.argv[1])
found = [float(CHGNet.from_file(path).predict_structure(structure, task="e")["e"])
         for path in sys.argv[2:]]
try:
    import kd_plugins
except ImportError:
    print(json.dumps(found))
"""


def test_checkpoints_load_without_kd_plugins(
    saved: dict[str, Any], salts: Labelled, tmp_path: Path
) -> None:
    """All files of trainer and fit are read where kd_plugins cannot be imported."""
    structure = to_pymatgen(salts.structures[0].atoms)
    structure.to(str(tmp_path / "salt.json"))
    paths, expected = [], []

    for folder, model in saved.values():
        held = sorted(folder.glob("*.tar"))
        paths += [str(path) for path in held]
        expected += [float(model.predict_structure(structure, task="e")["e"])] * len(held)

    assert {"last.pth.tar", "best.pth.tar"} <= {path.name for path in saved["fit"][0].iterdir()}
    assert any(Path(path).name.startswith("bestE_epoch0") for path in paths)

    words = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path / "salt.json"), *paths]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-6)

    for path in paths:
        torch.load(path, weights_only=True)
