"""fairchem through compare: what is measured is what fairchem's own validation says."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import ase.io
import pytest
import yaml

from kd_plugins.cli import main
from kd_plugins.compare.hosts import curves_from_tensorboard
from tests.hosts import is_installed
from tests.house import ROOT

if not is_installed("fairchem-core"):
    pytest.skip("needs the extra kd_plugins[fairchem]", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from kd_plugins.fairchem import compat

    compat.install()
    from tests.fairchem.tiny import slab, write_database

RECIPE = ROOT / "recipes" / "crack_oc20"


def experiment(folder: Path) -> Path:
    """Write the recipe's experiment on a few slabs: one seed, two arms, one epoch."""
    raw = yaml.safe_load((RECIPE / "compare.yml").read_text())
    for split, indices in (("train", range(6)), ("val", range(6, 10))):
        (folder / split).mkdir()
        write_database(folder / split / "structures.db", [slab(index) for index in indices])
        raw["settings"][f"dataset.{split}.src"] = str(folder / split / "structures.db")
    ase.io.write(folder / "slab.extxyz", slab(0))
    own = "{runs}/teacher/seed{seed}/checkpoints/run/"  # the recipe's teacher is trained before
    raw["settings"] |= {
        "optim.max_epochs": 1,
        "optim.eval_every": 3,
        "task.distill.teacher.checkpoint": f"{own}checkpoint.pt",
    }
    raw["teacher"] = f"fairchem checkpoint={own.format(runs='{runs}', seed=0)}best_checkpoint.pt"
    alone = {"trainer": "equiformerv2_forces", "task.distill": None}
    arms = {"teacher": {**alone, "model.backbone.num_layers": 4}}
    arms |= {name: raw["arms"][name] for name in ("pretrained", "crack_n2n")}
    for arm in arms.values():
        if "includes" in arm:
            arm["includes"] = [str(ROOT / one) for one in arm["includes"]]
    raw["measure"]["structures"] = [str(folder / "val" / "structures.db")]
    raw["measure"]["dynamics"] |= {"structure": str(folder / "slab.extxyz"), "repeats": [1]}
    path = folder / "compare.yml"
    changes = {"base": str(RECIPE / "small.yml"), "arms": arms, "seeds": [0]}
    path.write_text(yaml.safe_dump({**raw, **changes}, sort_keys=False))
    return path


def test_three_commands_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["compare", str(experiment(tmp_path)), "--out", str(out)]) == 0
    assert "crack_n2n against pretrained: force MAE" in capsys.readouterr().out
    runs: dict[str, Any] = {
        arm: json.loads((out / "runs" / arm / "seed0" / "evaluation.json").read_text())
        for arm in ("teacher", "pretrained", "crack_n2n")
    }
    for run in runs.values():
        (logged,) = run["curves"]["valid forces_mae"]["values"]
        assert run["metrics"]["force_mae"] == pytest.approx(logged, rel=1e-4)
        assert run["curves"]["valid forces_mae"]["epochs"] == [1]
        assert len(run["terms"]["loss"]["values"]) == 3
        assert run["metrics"]["bytes_per_atom"] > 0 and run["metrics"]["speedup"] > 0
    assert {"kd_crack", "kd_n2n"} <= set(runs["crack_n2n"]["terms"])
    for name in ("mae", "cosine"):
        (logged,) = runs["crack_n2n"]["curves"][f"valid embedding_{name}"]["values"]
        assert runs["crack_n2n"]["metrics"][f"projected_embedding_{name}"] == logged
    assert not any(name.startswith("kd_") for name in runs["pretrained"]["terms"])
    assert runs["teacher"]["metrics"]["teacher_force_rmse"] == 0
    assert main(["report", str(out), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Balance of the loss terms" in page and "the teacher" in page
    assert "Learning curve: train forces_mae" in page
    assert "Learning curve: valid forces_mae" not in page  # of a single epoch


def test_long_logs_are_thinned(tmp_path: Path) -> None:
    """Evenly, each value at its own step, the last one too; short ones stay whole."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "logs" / "tensorboard" / "run") as log:
        for step in range(1, 2346):
            log.add_scalar("train/loss", step / 8, step)
            log.add_scalar("train/epoch", step / 4, step)
        log.add_scalar("val/forces_mae", 0.5, 2340)
    found = curves_from_tensorboard(tmp_path)
    loss = found["terms"]["loss"]
    assert len(loss["values"]) == 782 and loss["values"][-1] == 2345 / 8
    assert loss["epochs"] == [2 * value for value in loss["values"]]
    assert {b - a for a, b in itertools.pairwise(loss["values"])} == {3 / 8}
    assert found["curves"]["valid forces_mae"] == {"epochs": [585], "values": [0.5]}
