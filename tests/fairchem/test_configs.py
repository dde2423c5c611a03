"""The YAML files of configs/fairchem have the paper's settings, and fairchem can read them."""

from __future__ import annotations

import copy
import fnmatch
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairchem", reason="needs the extra kd_plugins[fairchem]")

from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.fairchem import compat
from kd_plugins.fairchem.settings import read_settings
from tests.fairchem import tiny

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "fairchem"
SMALL = (
    *("max_radius", "max_neighbors", "sphere_channels", "attn_hidden_channels", "num_heads"),
    *("attn_alpha_channels", "attn_value_channels", "ffn_hidden_channels", "lmax_list"),
    *("mmax_list", "grid_resolution", "edge_channels"),
)
"""Sizes that a test takes from the tiny models."""
COMMAND = "python -m kd_plugins.fairchem --mode"
SUBSETS = {"ostar": 459_715, "200k": 198_823}  # structures, Table 5
ARMS = {
    "vanilla": ("scratch", set()),
    "pretrained": ("teacher", set()),
    "n2n": ("teacher", {"n2n"}),
    "hessian": ("teacher", {"hessian"}),
    "crack": ("teacher", {"crack"}),
    "crack_n2n": ("teacher", {"crack", "n2n"}),
    "each": ("teacher", {"crack", "n2n"}),
    "crack_hessian": ("teacher", {"crack", "hessian"}),
    "instance": ("teacher", {"instance"}),
    "instance_n2n": ("teacher", {"instance", "n2n"}),
}
OMAT24_OVERRIDES = (
    "task.distill.teacher.checkpoint",
    "model.backbone.max_num_elements",
    "model.backbone.enforce_max_neighbors_strictly",
    "optim.batch_size",
    "optim.eval_batch_size",
    "optim.lr_initial",
)
"""What an OMat24 model has otherwise than one of OC20."""
every_arm = pytest.mark.parametrize(
    ("subset", "arm"), [(subset, arm) for subset in SUBSETS for arm in ARMS]
)


@pytest.fixture(scope="module", autouse=True)
def fairchem() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compat.install()
        from fairchem.core.common.utils import setup_imports

        setup_imports()


def load(name: str, overridden: tuple[str, ...] = ()) -> dict[str, Any]:
    from fairchem.core.common.utils import load_config

    config, overwritten, conflicts = load_config(str(CONFIGS / name))
    assert conflicts == []
    assert tuple(overwritten) == overridden
    return config


def build(config: dict[str, Any]) -> Any:
    from fairchem.core.common.registry import registry

    arguments = copy.deepcopy(config["model"])
    return registry.get_model_class(arguments.pop("name"))(**arguments)


def n_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_file_opens_with_a_command_that_uses_it() -> None:
    files = sorted(CONFIGS.rglob("*.yml"))
    assert len(files) > 25
    for file in files:
        first = file.read_text().splitlines()[0]
        named = first.partition("--config-yml ")[2].split()[0]
        assert first.startswith(("# " + COMMAND, "# Part of: " + COMMAND)), file
        assert (ROOT / named).is_file(), file
        own = file.parent.name in (*SUBSETS, "omat24") or file.parent == CONFIGS
        assert not own or ROOT / named == file, file


@every_arm
def test_arm_differs_from_its_base_in_the_distill_block_alone(subset: str, arm: str) -> None:
    base, config = load(f"base/{subset}.yml"), load(f"{subset}/{arm}.yml")
    shared = base["task"].pop("distill")
    block = config["task"].pop("distill")
    assert config == base
    assert {key: block[key] for key in shared} == shared


@every_arm
def test_arm_has_the_start_and_terms_of_the_paper(subset: str, arm: str) -> None:
    settings = read_settings(load(f"{subset}/{arm}.yml")["task"])
    start, terms = ARMS[arm]
    assert settings.student.initialize == start
    assert settings.projection == "linear"
    assert {name for name, term in vars(settings.terms).items() if term is not None} == terms


@pytest.mark.parametrize("file", sorted((CONFIGS / "omat24").glob("*.yml")), ids=lambda f: f.stem)
def test_an_omat24_arm_differs_from_its_base_in_start_and_terms_alone(file: Path) -> None:
    base, config = (
        load(name, OMAT24_OVERRIDES) for name in ("base/omat24.yml", f"omat24/{file.name}")
    )
    settings = read_settings(config["task"])
    start, terms = ARMS[file.stem]
    assert settings.student.initialize == start
    assert {name for name, term in vars(settings.terms).items() if term is not None} == terms
    for block in (base["task"]["distill"], config["task"]["distill"]):
        for arms_own in ("student", "terms"):
            block.pop(arms_own, None)
    assert config == base


def test_omat24_has_arks_coefficients_and_degrees() -> None:
    """Both terms of each degree up to 2; the task loss of fairchem's own OMat24 models."""
    config = load("omat24/each.yml", OMAT24_OVERRIDES)
    crack, n2n = (config["task"]["distill"]["terms"][name] for name in ("crack", "n2n"))
    assert (crack["weight"], crack["temperature"], n2n["weight"]) == (1.0, 0.15, 1.0)
    assert all((term["features"], term["lmax"]) == ("each", 2) for term in (crack, n2n))
    assert n2n["distance"] == "squared_mean"
    coefficients = {
        name: loss["coefficient"]
        for function in config["loss_functions"]
        for name, loss in function.items()
    }
    assert coefficients == {
        "energy": 2.5,
        "forces": 20,
        "stress_isotropic": 5,
        "stress_anisotropic": 5,
    }
    backbone = config["model"]["backbone"]
    assert (backbone["num_layers"], backbone["lmax_list"]) == (2, [6])
    assert n_parameters(build(config)) == pytest.approx(22.12e6, rel=1e-3)


def cells(n: int) -> list[Any]:
    """Return small cells of a metal, whose energy, forces and stress EMT gives."""
    found = []
    for index in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=index)
        atoms.set_cell(atoms.cell * (1 + 0.01 * index), scale_atoms=True)
        atoms.calc = EMT()
        labels = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info = {"sid": f"cell{index}", "fid": 0}
        found.append(atoms)
    return found


def test_the_omat24_settings_train_a_student(tmp_path: Path) -> None:
    """Of a few cells and a few channels: labels with stress, and both terms of each degree."""
    database = tiny.write_database(tmp_path / "cells.db", cells(4))
    small = {name: tiny.BACKBONE[name] for name in SMALL} | {"avg_num_nodes": 4.0}

    def settings(name: str, **changes: Any) -> dict[str, Any]:
        config = {
            **tiny.config(tmp_path / name, database),
            **load("omat24/each.yml", OMAT24_OVERRIDES),
        }
        config["model"]["backbone"].update(small)
        for split in config["dataset"].values():
            split["src"] = str(database)
        for kind in ("normalizer", "element_references"):
            config["dataset"]["train"]["transforms"][kind]["fit"]["num_batches"] = 1
        config["optim"].update(
            batch_size=2, num_workers=0, checkpoint_every=-1, load_balancing=False
        )
        config["optim"]["scheduler_params"]["warmup_epochs"] = 1.0
        return {**config, **changes}

    teacher = settings("teacher", trainer="equiformerv2_forces", task={})
    teacher["model"]["backbone"]["num_layers"] = 3
    tiny.run(teacher)
    student = settings("student")
    checkpoint = tmp_path / "teacher" / "checkpoints" / "run" / "checkpoint.pt"
    student["task"]["distill"]["teacher"] = {"checkpoint": str(checkpoint), "weights": "ema"}
    metrics = tiny.run(student, lambda trainer: trainer.validate(split="val"))
    names = [f"kd_{term}_l{degree}" for term in ("crack", "n2n") for degree in range(3)]
    assert all(math.isfinite(metrics[name]["metric"]) for name in (*names, "stress_mae"))


def test_weights_and_temperature_are_those_of_table_6() -> None:
    terms = load("ostar/crack_n2n.yml")["task"]["distill"]["terms"]
    assert terms["crack"]["weight"] == 10.0
    assert terms["crack"]["temperature"] == 0.15
    assert terms["crack"]["anchor"] == "teacher"
    assert terms["n2n"]["weight"] == 1.0
    assert terms["n2n"]["distance"] == "squared_sum"


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_optimizer_is_that_of_table_6(subset: str) -> None:
    optim = load(f"base/{subset}.yml")["optim"]
    assert (optim["batch_size"], optim["lr_initial"]) == (4, 5e-4)
    assert optim["scheduler_params"]["warmup_steps"] == 30_000
    assert "warmup_epochs" not in optim["scheduler_params"]


def test_student_has_22_million_parameters_and_the_forks_patterns_fit_it() -> None:
    model = build(load("base/ostar.yml"))
    assert n_parameters(model) == pytest.approx(21.98e6, rel=1e-3)
    overridden = ("task.distill.projection", "optim.scheduler_params.warmup_steps")
    fork = load("ostar/fork.yml", overridden)["task"]["distill"]
    names = [name for name, _ in model.named_parameters()]
    for pattern in fork["student"]["freeze"]:
        assert fnmatch.filter(names, pattern), pattern
    assert read_settings({"distill": fork}).projection == "none"
    per_raw_output = model.output_heads["energy"].avg_num_nodes
    assert fork["terms"]["atomic_energies"]["weight"] == pytest.approx(0.5 * per_raw_output**2)


TEACHERS = {  # parameters, and what its backbone has otherwise than the student's
    "153m": (153.60e6, {"num_layers": 20}),
    "83m": (83.2e6, {"num_layers": 12, "mmax_list": [2], "drop_path_rate": 0.05}),
    "31m": (31.1e6, {"num_layers": 8, "lmax_list": [4], "mmax_list": [2]}),
}


def extrapolated_parameters(config: dict[str, Any]) -> int:
    """Count them without building a large model: its blocks are all of one size."""
    few = copy.deepcopy(config)
    counts = []
    for n_layers in (1, 2):
        few["model"]["backbone"]["num_layers"] = n_layers
        counts.append(n_parameters(build(few)))
    return counts[0] + (config["model"]["backbone"]["num_layers"] - 1) * (counts[1] - counts[0])


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("size", TEACHERS)
def test_a_teachers_row_has_its_published_size(subset: str, size: str) -> None:
    count, differences = TEACHERS[size]
    overridden = tuple(f"model.backbone.{name}" for name in differences if name != "num_layers")
    teacher, student = load(f"{subset}/teacher_{size}.yml", overridden), load(f"base/{subset}.yml")
    for settings in (teacher, student):
        del settings["optim"]["scheduler_params"]
    assert teacher["trainer"] == "equiformerv2_forces"
    assert teacher["dataset"] == student["dataset"]
    assert teacher["outputs"] == student["outputs"]
    backbone = student["model"]["backbone"]
    assert teacher["model"]["backbone"] == {**backbone, **differences}
    if subset == "ostar":
        assert extrapolated_parameters(teacher) == pytest.approx(count, rel=2e-3)


def test_the_teacher_of_before_is_the_row_of_ostar() -> None:
    assert load("teacher_153m.yml") == load("ostar/teacher_153m.yml")
