"""Write what a version of kd_plugins leaves on disk, half-done runs among it, and how they end.

    python -m tests.golden.make FOLDER [NAME ...]

`test_golden.py` beside it reads what the first version wrote, goes on with its runs, and compares
their ends. Run this on a commit whose files must stay readable; paths in them are relative to
FOLDER. What it wrote is kept as an archive, ``tar -C FOLDER -cJf tests/golden/VERSION.tar.xz .``
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from ase.build import bulk
from ase.io import write

from kd_plugins.cli import main

EXPECTED = "expected.json"
EXPERIMENT = {
    "title": "Two scripts",
    "host": "script",
    "base": "script.py",
    "model": "emt",
    "control": "one",
    "seeds": [0, 1],
    "arms": {"one": {"width": 1}, "two": {"width": 2}},
    "metrics": ["force_rmse"],
    "measure": {"structures": ["store.extxyz"]},
}
SCRIPT = """import json, sys, yaml
from pathlib import Path

settings = yaml.safe_load(open(sys.argv[1]))
curve = {"train loss": {"epochs": [1, 2], "values": [2.0, 1.0 / settings["width"]]}}
Path(settings["out"], "curves.json").write_text(json.dumps(curve))
"""


def write_cells(path: Path, count: int = 6) -> None:
    """Write rattled copper cells of four atoms, each with an id."""
    cells = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.info["structure_id"] = f"cu/{seed}"
        cells.append(atoms)
    write(path, cells)


def called(*words: str) -> None:
    """Run ``kd-plugins``."""
    if code := main(words):
        raise SystemExit(f"kd-plugins {' '.join(words)}: exit code {code}")


def store() -> dict[str, Any]:
    """Label six cells with EMT, and four of them in another store; return the six energies."""
    from kd_plugins import TargetStore

    write_cells(Path("cells.extxyz"))
    quantities = ["energy", "forces", "stress", "atomic_energies"]
    teacher = ["--teacher", "emt", "--quantities", *quantities, "--store"]
    called("label", "cells.extxyz", *teacher, "all")
    called("export", "all", "store.extxyz")
    write_cells(Path("few.extxyz"), 4)
    called("label", "few.extxyz", *teacher, "few")
    held = TargetStore.open("all")
    return {name: held[name].values["energy"].item() for name in held.ids()}


def evaluation() -> dict[str, Any]:
    """Measure EMT beside its own labels; return what was found but for speed and memory."""
    write(Path("cell.extxyz"), bulk("Cu", cubic=True) * (3, 3, 3))
    words = ["--student", "emt", "--reference", "store.extxyz", "--dynamics", "cell.extxyz"]
    words += ["--steps", "40", "--repeats", "1", "--cutoff", "5", "--out", "evaluation"]
    called("evaluate", *words)
    found = json.loads(Path("evaluation/evaluation.json").read_text())
    return found["metrics"]


def compare() -> dict[str, Any]:
    """Compare two scripts, then lose one run's end; return every run's metrics."""
    Path("script.py").write_text(SCRIPT)
    Path("experiment.yml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
    called("compare", "experiment.yml", "--out", "compare")
    paths = sorted(Path("compare").rglob("evaluation.json"))
    found = {path.parent.as_posix(): json.loads(path.read_text())["metrics"] for path in paths}
    for name in ("evaluation.json", "trained.json"):
        (Path("compare/runs/two/seed1") / name).unlink()
    return found


def fairchem_settings(stop: bool = False, timestamp_id: str = "run") -> dict[str, Any]:
    """Return the configuration of the run that is stopped, with paths as seen from FOLDER."""
    from tests.fairchem import tiny

    settings = tiny.config(Path("fairchem"), Path("train/a.db"), Path("val/a.db"))
    settings["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=2)
    teacher = Path("fairchem/checkpoints/teacher/checkpoint.pt")
    trainer = "kd_plugins.fairchem.EqV2DistillTrainer"
    stopping = "tests.fairchem.stopping.StoppingTrainer"
    return {
        **settings,
        # The terms as they were when these artefacts were made.
        "task": tiny.distill(teacher, {**tiny.ALL_TERMS, "instance": {"weight": 0.5}}),
        "trainer": stopping if stop else trainer,
        "timestamp_id": timestamp_id,
    }


def fairchem() -> dict[str, Any]:
    """Stop a distillation in its fourth step; return the weights of one that was not stopped."""
    from kd_plugins.fairchem import compat

    compat.install()
    from tests.fairchem import tiny
    from tests.fairchem.stopping import Killed, StoppingTrainer

    for name, slabs in (("train", range(6)), ("val", range(6, 9))):
        Path(name).mkdir()
        tiny.write_database(Path(name) / "a.db", [tiny.slab(index) for index in slabs])
    plain = tiny.config(Path("fairchem"), Path("train/a.db"), Path("val/a.db"))
    tiny.run({**plain, "timestamp_id": "teacher", "model": tiny.model(num_layers=3)})
    found = tiny.run(fairchem_settings(timestamp_id="whole"), tiny.parameters)
    StoppingTrainer.stop_at = 4
    with suppress(Killed):
        tiny.run(fairchem_settings(stop=True))
    for name in ("checkpoints/whole", "logs", "results"):
        shutil.rmtree(Path("fairchem") / name, ignore_errors=True)
    return sizes(found)


def chgnet_loaders() -> tuple[Any, Any]:
    """Return the loaders of CHGNet's run, with the targets of the store in FOLDER."""
    from kd_plugins import TargetStore
    from kd_plugins.chgnet import DistillData
    from tests.chgnet import fixtures

    data = DistillData(list(fixtures.salts()), TargetStore.open("salts"), progress=False)
    return fixtures.loader(data, 2), fixtures.loader(data, 4)


def chgnet() -> dict[str, Any]:
    """Train CHGNet's readout for one epoch of two; return the weights after two."""
    from kd_plugins.teachers import label
    from tests.chgnet import fixtures

    quantities = ("energy", "forces", "stress")
    label(list(fixtures.salts()), "chgnet+d3", "salts", quantities, progress=False)
    trainer = fixtures.trainer()
    trainer.train(*chgnet_loaders(), save_dir="whole")
    stopped = fixtures.trainer()
    stopped.save_checkpoint = _then_stop(stopped.save_checkpoint)
    with suppress(KeyboardInterrupt):
        stopped.train(*chgnet_loaders(), save_dir="chgnet")
    shutil.rmtree("whole")
    for path in Path("chgnet").iterdir():
        if path.name != "last.pth.tar":
            path.unlink()
    return sizes(dict(trainer.model.mlp.named_parameters()))


def _then_stop(call: Callable[..., None]) -> Callable[..., None]:
    def stop(*arguments: Any, **keywords: Any) -> None:
        call(*arguments, **keywords)
        raise KeyboardInterrupt

    return stop


def hippynn_database() -> Any:
    """Return the database of hippynn's run, with the targets of the store in FOLDER."""
    from hippynn.databases import Database

    from kd_plugins import TargetStore
    from kd_plugins.hippynn import add_teacher_targets, to_arrays
    from kd_plugins.structures import read_structures

    arrays = to_arrays(read_structures(["store.extxyz"]))
    database = Database(arrays, None, None, seed=0, test_size=1, valid_size=1, quiet=True)
    add_teacher_targets(database, TargetStore.open("all"))
    return database


def hippynn() -> dict[str, Any]:
    """Train a HIPNN for four epochs; return its weights, and keep the second's checkpoint."""
    from kd_plugins.core.schedules import Piecewise
    from kd_plugins.hippynn import LossSchedule, distillation_loss
    from tests.hippynn import fixtures

    weights = {"energy": 1, "forces": 10, "atomic_energies": Piecewise((0, 3), (100.0, 1.0))}
    model, database = fixtures.make_hipnn(elements=[29]), hippynn_database()
    loss = distillation_loss(model.energy, model.forces, weights=weights, energies="total")
    schedule = LossSchedule(loss)
    modules, controller, metrics = fixtures.set_up(model, database, loss, [schedule], max_epochs=4)
    fixtures.train(Path("hippynn"), modules, database, controller, metrics, store_every=1)
    kept = {"experiment_structure.pt", "checkpoint_epoch_1.pt", "best_model.pt"}
    shutil.rmtree("hippynn/plots")
    for path in Path("hippynn").iterdir():
        if path.name not in kept:
            path.unlink()
    return sizes(dict(modules.model.named_parameters()))


def sizes(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return a norm of each tensor: two runs that end alike agree in all of them."""
    return {name: float(value.detach().double().norm()) for name, value in tensors.items()}


MAKERS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "store": store,
    "evaluation": evaluation,
    "compare": compare,
    "fairchem": fairchem,
    "chgnet": chgnet,
    "hippynn": hippynn,
}


def make(folder: Path, names: list[str]) -> None:
    """Write artefacts into a folder; those that need others come after them."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    path = Path(EXPECTED)
    expected = json.loads(path.read_text()) if path.is_file() else {}
    for name in names or MAKERS:
        torch.manual_seed(0)
        expected[name] = MAKERS[name]()
        path.write_text(json.dumps(expected, indent=1) + "\n")
    for lock in Path().rglob("*.lmdb-lock"):  # LMDB makes it anew
        lock.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2:])
