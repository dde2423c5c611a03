"""Teachers of every form of fairchem checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.models.equiformer_v2.equiformer_v2_deprecated import EquiformerV2
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpointing import read_checkpoint
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.fairchem.teacher import FrozenEquiformerV2
from tests.fairchem import tiny


@pytest.fixture(scope="module")
def batch() -> Any:
    """Two slabs as fairchem batches them."""
    from fairchem.core.datasets import data_list_collater
    from fairchem.core.preprocessing import AtomsToGraphs

    convert = AtomsToGraphs(r_energy=True, r_forces=True, r_fixed=True).convert
    return data_list_collater([convert(tiny.slab(index)) for index in range(2)], otf_graph=True)


def teach(path: Path, batch: Any, **settings: Any) -> dict[str, torch.Tensor]:
    """Return the targets that a checkpoint's model gives, from one random state."""
    teacher = FrozenEquiformerV2(
        read_checkpoint(TeacherSettings(str(path), **settings)), torch.device("cpu")
    )
    torch.manual_seed(0)
    return dict(teacher(batch).values)


def single_class_file(folder: Path) -> tuple[EquiformerV2, Path]:
    """Write a checkpoint as fairchem did in 2023, and return the model that it holds."""
    setup_imports()
    arguments = {name: value for name, value in tiny.BACKBONE.items() if name != "model"}
    torch.manual_seed(3)
    model = EquiformerV2(**arguments).eval()
    average = ExponentialMovingAverage(model.parameters(), 0.9)
    for tensor in average.shadow_params:
        tensor.mul_(1.01)
    state = {
        "state_dict": {f"module.module.{k}": v for k, v in model.state_dict().items()},
        "normalizers": {
            "target": {"mean": torch.tensor(-0.7), "std": torch.tensor(2.0)},
            "grad_target": {"mean": torch.tensor(0.0), "std": torch.tensor(3.0)},
        },
        "config": {
            "model": "equiformer_v2",
            "model_attributes": {
                "num_atoms": 0,
                "bond_feat_dim": 50,
                "num_targets": 1,
                **arguments,
            },
        },
        "ema": average.state_dict(),
    }
    torch.save(state, folder / "old.pt")
    return model, folder / "old.pt"


def test_single_class_checkpoint(tmp_path: Path, batch: Any) -> None:
    """The 2023 form gives the old model's energies and forces, in eV by its old normalizers."""
    model, path = single_class_file(tmp_path)
    values = teach(path, batch, weights="raw")
    torch.manual_seed(0)
    out = model(batch)
    assert torch.allclose(values["energy"], out["energy"].flatten() * 2.0 - 0.7, atol=1e-5)
    assert torch.allclose(values["forces"], out["forces"] * 3.0, atol=1e-5)


def test_averages_of_a_single_class_checkpoint(tmp_path: Path, batch: Any) -> None:
    """Unnamed averages find their parameters though the names have changed since."""
    model, path = single_class_file(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01)
    torch.manual_seed(0)
    energy = model(batch)["energy"].flatten() * 2.0 - 0.7
    assert torch.allclose(teach(path, batch, weights="ema")["energy"], energy, atol=1e-5)


def test_averages_are_what_the_host_validates_with(teacher: Path, batch: Any) -> None:
    """``weights: ema`` of checkpoint.pt equals best_checkpoint.pt, saved at the same step."""
    best = teach(teacher.with_name("best_checkpoint.pt"), batch)
    average = teach(teacher, batch, weights="ema")
    raw = teach(teacher, batch, weights="raw")
    assert torch.equal(average["energy"], best["energy"])
    assert not torch.equal(average["energy"], raw["energy"])


def test_atomic_energies_sum_to_the_energy(teacher: Path, batch: Any) -> None:
    """In eV, normalizer's mean and all."""
    values = teach(teacher, batch, weights="raw")
    totals = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, values["atomic_energies"])
    assert torch.allclose(totals, values["energy"], rtol=1e-5)


def test_element_references_are_added(teacher: Path, tmp_path: Path, batch: Any) -> None:
    """Per-element references enter the energy and the atomic energies alike."""
    state = tiny.load(teacher)
    references = torch.zeros(100)
    references[8], references[29], references[78] = -4.0, -1.0, -2.0
    state["elementrefs"] = {"energy": {"element_references": references}}
    torch.save(state, tmp_path / "referenced.pt")
    plain = teach(teacher, batch, weights="raw")
    ours = teach(tmp_path / "referenced.pt", batch, weights="raw")
    expected = references[batch.atomic_numbers.long()]
    assert torch.allclose(ours["atomic_energies"], plain["atomic_energies"] + expected, atol=1e-5)
    totals = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, ours["atomic_energies"])
    assert torch.allclose(totals, ours["energy"], rtol=1e-5)


def test_prefixes_nested_outputs_and_extra_heads(teacher: Path, tmp_path: Path, batch: Any) -> None:
    """Any number of ``module.``, heads beside energy and forces, nested outputs, a stale key."""
    setup_imports()
    state = tiny.load(teacher)
    model = copy.deepcopy(state["config"]["model"])
    model.pop("name")
    model["heads"]["stress"] = {"module": "rank2_symmetric_head", "output_name": "stress"}
    model["pass_through_head_outputs"] = False
    hydra = registry.get_model_class("hydra")(**copy.deepcopy(model))
    hydra.load_state_dict(
        {k.removeprefix("module."): v for k, v in state["state_dict"].items()}, strict=False
    )
    state["state_dict"] = {f"module.module.{k}": v for k, v in hydra.state_dict().items()}
    model["finetune_config"] = {"starting_checkpoint": "/nowhere"}
    state["config"]["model"] = {"name": "hydra", **model}
    torch.save(state, tmp_path / "heads.pt")
    plain = teach(teacher, batch, weights="raw")
    ours = teach(tmp_path / "heads.pt", batch, weights="raw")
    for name, value in plain.items():
        assert torch.allclose(ours[name], value, atol=1e-5), name


def test_reading_a_teacher_leaves_the_random_state_alone(teacher: Path) -> None:
    """So that the student starts as it would without one."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    FrozenEquiformerV2(read_checkpoint(TeacherSettings(str(teacher), "raw")), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_atomic_energies_come_from_the_energy_head(
    teacher: Path, tmp_path: Path, batch: Any
) -> None:
    """Not from another scalar head that stands before it in the alphabet."""
    setup_imports()
    state = tiny.load(teacher)
    model = copy.deepcopy(state["config"]["model"])
    model.pop("name")
    model["heads"]["band_gap"] = {
        "module": "equiformerV2_scalar_head",
        "output_name": "band_gap",
        "reduce": "mean",
    }
    hydra = registry.get_model_class("hydra")(**copy.deepcopy(model))
    hydra.load_state_dict(
        {k.removeprefix("module."): v for k, v in state["state_dict"].items()}, strict=False
    )
    state["state_dict"] = hydra.state_dict()
    state["config"]["model"] = {"name": "hydra", **model}
    torch.save(state, tmp_path / "band_gap.pt")
    plain = teach(teacher, batch, weights="raw")
    ours = teach(tmp_path / "band_gap.pt", batch, weights="raw")
    assert torch.allclose(ours["atomic_energies"], plain["atomic_energies"], atol=1e-5)


def test_references_inside_the_model_are_refused(tmp_path: Path) -> None:
    """The single class could add them itself; today's model cannot."""
    _, path = single_class_file(tmp_path)
    state = tiny.load(path)
    state["config"]["model_attributes"]["use_energy_lin_ref"] = True
    torch.save(state, path)
    with pytest.raises(ConfigError, match="use_energy_lin_ref: true"):
        read_checkpoint(TeacherSettings(str(path), "raw"))
