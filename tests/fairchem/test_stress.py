"""Stress as a soft target: in fairchem's two parts or whole, from a model or a store."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from fairchem.core.trainers import OCPTrainer

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.convert import STRESS_PARTS, stress_parts
from kd_plugins.structures import read_structures
from kd_plugins.teachers import label
from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2, first_batch
from tests.fairchem.test_stored_targets import stored

Settings = dict[str, Any]
SOFT = {"stress": {"weight": 1.0, "distance": "absolute_sum"}}
DECOMPOSITION = {STRESS_PARTS[0]: {"irrep_dim": 0}, STRESS_PARTS[1]: {"irrep_dim": 2}}
UNITS = {"mean": -0.002, "rmsd": 0.01}
"""eV/Å³, of one part of the stress."""


@pytest.fixture(scope="module")
def strained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slabs with the stress of EMT."""
    slabs = [tiny.slab(index) for index in range(4)]
    for slab in slabs:
        slab.calc, results = EMT(), slab.calc.results
        slab.calc = SinglePointCalculator(slab, **results, stress=slab.get_stress())
    return tiny.write_database(tmp_path_factory.mktemp("strained") / "train.db", slabs)


def with_stress(settings: Settings, database: Path, decompose: bool, n_layers: int = 2) -> Settings:
    """Give a run the head, outputs and losses of the stress, as fairchem's OMat24 models have."""
    settings = copy.deepcopy(settings)
    settings["model"] = tiny.model(num_layers=n_layers)
    settings["model"]["heads"]["stress"] = {
        "module": "rank2_symmetric_head",
        "output_name": "stress",
        "use_source_target_embedding": True,
        "decompose": decompose,
    }
    settings["dataset"].pop("val", None)
    settings["optim"]["scheduler_params"]["warmup_epochs"] = 1.0

    train = settings["dataset"]["train"]
    train["src"] = str(database)
    train["a2g_args"]["r_stress"] = True
    settings["outputs"]["stress"] = {"level": "system", "property": "stress"}
    if decompose:
        settings["outputs"]["stress"]["decomposition"] = copy.deepcopy(DECOMPOSITION)
        train["transforms"]["decompose_tensor"] = {
            "tensor": "stress",
            "rank": 2,
            "decomposition": copy.deepcopy(DECOMPOSITION),
        }
        for name, rmsd in zip(STRESS_PARTS, (0.01, 0.02), strict=True):
            train["transforms"]["normalizer"][name] = {"mean": 0.0, "rmsd": rmsd}
    else:
        train["transforms"]["normalizer"]["stress"] = {"mean": -0.002, "rmsd": 0.01}
    settings["loss_functions"] += (
        # A mean over five numbers, so five times as much is their sum.
        [
            {STRESS_PARTS[0]: {"fn": "mae", "coefficient": 1.0}},
            {STRESS_PARTS[1]: {"fn": "mae", "coefficient": 5.0}},
        ]
        if decompose
        else [{"stress": {"fn": "mse", "coefficient": 9.0}}]
    )
    return settings


@pytest.fixture(scope="module")
def stress_teacher(strained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose head decomposes the stress, trained by the plain host."""
    folder = tmp_path_factory.mktemp("stress_teacher")
    tiny.run(with_stress(tiny.config(folder, strained), strained, decompose=True, n_layers=3))
    return folder / "checkpoints" / "run" / "checkpoint.pt"


def soft_and_hard(trainer: Any) -> dict[str, Any]:
    """Return the soft term, and fairchem's own loss on labels that are the teacher's."""
    batch = first_batch(trainer)
    trainer.model.eval()
    out = trainer._forward(batch)
    trainer.loss_functions = [one for one in trainer.loss_functions if one[0].startswith("stress")]
    soft = trainer._compute_loss(out, batch) - OCPTrainer._compute_loss(trainer, out, batch)

    targets = trainer.distiller._targets(batch).values["stress"].double()
    full = np.array([voigt[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3) for voigt in targets.numpy()])
    assert np.array_equal([full_3x3_to_voigt_6_stress(one) for one in full], targets)
    labels = torch.tensor(full, dtype=torch.float32).reshape(-1, 9)
    batch.stress = labels
    parts = stress_parts({"stress": labels})
    batch.stress_isotropic, batch.stress_anisotropic = parts[:, :1], parts[:, 1:]
    hard = OCPTrainer._compute_loss(trainer, out, batch)
    return {"soft": float(soft), "hard": float(hard), "targets": targets, "ids": batch.sid}


@pytest.mark.parametrize("decompose", [True, False])
def test_a_soft_stress_is_a_label_from_the_teacher(
    make_config: Callable[..., Settings], strained: Path, stress_teacher: Path, decompose: bool
) -> None:
    """Compared as fairchem compares labels, in the student's units, whatever the teacher's are."""
    terms = copy.deepcopy(SOFT)
    if not decompose:
        terms["stress"]["distance"] = "squared_sum"
    task = tiny.distill(stress_teacher, terms)
    settings = with_stress(make_config(trainer=EQV2, task=task), strained, decompose)
    settings["optim"]["max_epochs"] = 0
    found = tiny.run(settings, soft_and_hard)
    assert found["soft"] == pytest.approx(found["hard"], rel=1e-4)
    assert found["hard"] > 1e-3


def test_stored_stress_is_the_models(
    make_config: Callable[..., Settings], strained: Path, stress_teacher: Path, tmp_path: Path
) -> None:
    """A store that `label` filled has the targets of the teacher in memory; a training ends."""
    quantities = dict.fromkeys(("energy", "forces", "stress"), "float32")
    name = tiny.teacher_name(stress_teacher)
    label(read_structures([strained]), name, tmp_path / "store", quantities, progress=False)
    task = stored(tmp_path / "store", SOFT)
    settings = with_stress(make_config(trainer=EQV2, task=task), strained, decompose=True)
    ours = tiny.run(settings, soft_and_hard)

    settings["task"] = tiny.distill(stress_teacher, SOFT)
    settings["optim"]["max_epochs"], settings["timestamp_id"] = 0, "online"
    theirs = tiny.run(settings, soft_and_hard)
    assert ours["ids"] == theirs["ids"]
    # EquiformerV2 draws other rolls of its edges for each batch.
    torch.testing.assert_close(ours["targets"], theirs["targets"], rtol=0.05, atol=2e-3)
    assert ours["soft"] == pytest.approx(ours["hard"], rel=1e-4)


def test_a_student_that_starts_as_its_teacher_has_no_loss(
    make_config: Callable[..., Settings], strained: Path, stress_teacher: Path
) -> None:
    """It takes over the units of the stress, too; the targets are what fairchem itself predicts."""
    task = tiny.distill(stress_teacher, SOFT, student={"initialize": "teacher"})
    settings = with_stress(make_config(trainer=EQV2, task=task), strained, True, n_layers=3)
    for name in STRESS_PARTS:
        settings["dataset"]["train"]["transforms"]["normalizer"][name] = dict(UNITS)
    settings["optim"]["max_epochs"] = 0

    def loss(trainer: Any) -> tuple[float, float]:
        batch = first_batch(trainer)
        trainer.model.eval()
        out = trainer._forward(batch)
        targets = trainer.distiller._targets(batch).values["stress"]
        own = [full_3x3_to_voigt_6_stress(one.reshape(3, 3)) for one in out["stress"].detach()]
        np.testing.assert_allclose(targets, own, rtol=1e-4, atol=1e-6)

        trainer._compute_loss(out, batch)
        metrics = trainer.distiller.take_metrics()
        rmsds = [float(trainer.normalizers[name].rmsd) for name in STRESS_PARTS]
        return float(metrics["kd_stress"]["metric"]), rmsds

    assert tiny.run(settings, loss) == (pytest.approx(0.0, abs=1e-5), pytest.approx([0.01, 0.02]))


def test_a_student_without_stress_is_refused(
    make_config: Callable[..., Settings], stress_teacher: Path
) -> None:
    settings = make_config(trainer=EQV2, task=tiny.distill(stress_teacher, SOFT))
    with pytest.raises(ConfigError, match=r"terms.stress needs an output of that name.*energy"):
        tiny.run(settings)


def test_a_teacher_without_stress_is_refused(
    make_config: Callable[..., Settings], strained: Path, teacher: Path
) -> None:
    task = tiny.distill(teacher, SOFT)
    settings = with_stress(make_config(trainer=EQV2, task=task), strained, decompose=True)
    with pytest.raises(ConfigError, match=r"terms.stress needs a stress head .*the teacher's"):
        tiny.run(settings)
