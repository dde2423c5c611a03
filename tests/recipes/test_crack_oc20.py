"""recipes/crack_oc20: what is prepared is what was given, and every experiment can start."""

from __future__ import annotations

import copy
import json
import lzma
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from tests.hosts import is_installed
from tests.house import ROOT
from tests.tolerances import EXACT

if not is_installed("fairchem-core"):
    pytest.skip("needs the extra kd_plugins[fairchem]", allow_module_level=True)

import torch

from kd_plugins.compare.experiment import fill_fields, read_experiment
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.fairchem import compat
from kd_plugins.structures import oc20 as prepare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    compat.install()
    from kd_plugins.fairchem.settings import read_settings
    from tests.fairchem.test_configs import SMALL

OSTAR = "oc20/s2ef_Ostar_all.extxyz.xz"
RECIPE = ROOT / "recipes" / "crack_oc20"
CONFIGS = ROOT / "configs" / "fairchem"
ARM_FILES = CONFIGS / "arms"


def settings(source: Path, **changes: Any) -> prepare.Settings:
    chosen = {
        "val": None,
        "reference": "last-frame",
        "val_fraction": 0.2,
        "split_by": "frame",
        "seed": 0,
        "systems": None,
    }
    return prepare.Settings(str(source), **{**chosen, **changes})


def dataset(folder: Path) -> Any:
    """Open a split as fairchem does for configs/fairchem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compat.install()
        from fairchem.core.common.utils import load_config
        from fairchem.core.datasets.ase_datasets import AseDBDataset

        train = load_config(str(ROOT / "configs/fairchem/base/data.yml"))[0]["dataset"]["train"]
    del train["transforms"]
    return AseDBDataset({**train, "src": str(folder / "structures.db")})


def frame(energy: float = -10.0, sid: str = "random1", fid: int = 0) -> Atoms:
    """A slab of three atoms whose fixed one feels a force."""
    atoms = Atoms("CuCuO", positions=[(0, 0, 0), (1.8, 1.8, 0), (0, 1.8, 1.5)], cell=[5, 5, 20])
    atoms.pbc = True
    atoms.positions[2, 2] += 0.01 * fid
    atoms.set_tags([0, 1, 2])
    atoms.set_constraint(FixAtoms([0]))
    atoms.info = {"sid": sid, "fid": fid, "E_last": -12.0}
    forces = np.arange(9.0).reshape(3, 3) + 1.0
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def write(path: Path, frames: list[Atoms]) -> Path:
    ase.io.write(path, frames, format="extxyz")
    return path


@pytest.fixture(scope="module")
def ostar(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    source = shared_data / OSTAR
    if not source.is_file():
        pytest.skip(f"no {OSTAR} among the reference data")
    out = tmp_path_factory.mktemp("prepared") / "ostar"
    return out, prepare.prepare(settings(source), out)


def raw_frames(path: Path) -> dict[tuple[str, int], tuple[float, np.ndarray]]:
    """Read ids, relative energy and the table of each frame by hand, as an independent witness."""
    lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    frames, start = {}, 0
    while start < len(lines):
        n_atoms, comment = int(lines[start]), lines[start + 1]
        words = dict(word.split("=") for word in comment.split() if word.count("=") == 1)
        rows = [line.split() for line in lines[start + 2 : start + 2 + n_atoms]]
        table = np.array([[*row[1:8], row[8] == "F"] for row in rows], dtype=float)
        energy = float(words["energy"]) - float(words["E_last"])
        frames[words["sid"], int(words["fid"])] = energy, table
        start += 2 + n_atoms
    return frames


def test_real_frames_come_back_from_fairchems_dataset(
    ostar: tuple[Path, dict[str, Any]], shared_data: Path
) -> None:
    out, manifest = ostar
    expected = raw_frames(shared_data / OSTAR)
    for split in prepare.SPLITS:
        found = dataset(out / split)
        assert len(found) == manifest["splits"][split]["structures"]
        natoms = [found.get_metadata("natoms", index) for index in range(len(found))]
        for data, n_atoms in zip(found, natoms, strict=True):
            energy, table = expected.pop((data.sid, data.fid))
            assert data.natoms == n_atoms == len(table)
            assert data.energy == pytest.approx(energy, abs=1e-9)
            forces = torch.tensor(table[:, 3:6], dtype=torch.float32)
            torch.testing.assert_close(data.forces, forces, **EXACT[torch.float32])
            assert data.tags.tolist() == table[:, 6].tolist()
            assert data.fixed.tolist() == table[:, 7].tolist()
    assert expected == {}


def test_manifest_tells_the_normalizer_of_train(ostar: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = ostar
    structures = list(dataset(out / "train"))
    energies = np.array([data.energy for data in structures])
    free = torch.cat([data.forces[data.fixed == 0] for data in structures]).double()
    normalizer = manifest["normalizer"]
    assert normalizer["energy"]["mean"] == pytest.approx(energies.mean())
    assert normalizer["energy"]["rmsd"] == pytest.approx(energies.std())
    assert normalizer["forces"]["rmsd"] == pytest.approx(free.square().mean().sqrt().item())
    assert json.loads((out / prepare.MANIFEST).read_text()) == manifest
    assert manifest["splits"]["train"]["structures_with_zero_force_on_every_fixed_atom"] == 0


def test_again_with_the_same_settings_changes_nothing(
    ostar: tuple[Path, dict[str, Any]], shared_data: Path
) -> None:
    out, manifest = ostar
    before = (out / "train" / "structures.db").stat().st_mtime_ns
    assert prepare.prepare(settings(shared_data / OSTAR), out) == manifest
    assert (out / "train" / "structures.db").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="other settings .reference, seed.; choose another"):
        prepare.prepare(settings(shared_data / OSTAR, reference="none", seed=1), out)


def official(folder: Path, references: list[float]) -> Path:
    """Write OC20's layout: a plain pair of files and a compressed one, frames without ids."""
    folder.mkdir()
    for chunk, reference in enumerate(references):
        frames = [frame(energy=-10.0 - fid, fid=fid) for fid in range(3)]
        for atoms in frames:
            atoms.info = {}
        structures = write(folder / f"{chunk}.extxyz", frames)
        log = folder / f"{chunk}.txt"
        log.write_text("".join(f"random{chunk},frame{7 * n},{reference}\n" for n in range(3)))
        if chunk:
            for file in (structures, log):
                file.with_name(file.name + ".xz").write_bytes(lzma.compress(file.read_bytes()))
                file.unlink()
    return folder


def test_official_folders_give_ids_and_adsorption_energies(tmp_path: Path) -> None:
    train = official(tmp_path / "train_raw", [-9.5, -8.0])
    val = write(tmp_path / "val.extxyz", [frame(fid=3)])
    with pytest.raises(ValueError, match="val.extxyz, frame 0: no reference energy"):
        prepare.prepare(settings(train, val=str(val), reference="official"), tmp_path / "other")
    val = official(tmp_path / "val_raw", [-9.0])
    (val / "0.txt").write_text("random9,frame0,-9\nrandom9,frame1,-9\nrandom9,frame2,-9\n")
    manifest = prepare.prepare(
        settings(train, val=str(val), reference="official"), tmp_path / "out"
    )
    assert manifest["splits"]["train"]["systems"] == 2
    found = {(data.sid, data.fid): data.energy for data in dataset(tmp_path / "out" / "train")}
    assert found == {
        ("random0", 0): -0.5,
        ("random0", 7): -1.5,
        ("random0", 14): -2.5,
        ("random1", 0): -2.0,
        ("random1", 7): -3.0,
        ("random1", 14): -4.0,
    }
    assert {data.sid for data in dataset(tmp_path / "out" / "val")} == {"random9"}


def test_a_split_by_system_divides_none_and_systems_can_be_chosen(tmp_path: Path) -> None:
    frames = [frame(sid=f"random{n}", fid=fid) for n in range(8) for fid in range(4)]
    source = write(tmp_path / "all.extxyz", frames)
    (tmp_path / "kept.txt").write_text("\n".join(f"random{n}" for n in range(7)))
    chosen = {"split_by": "system", "val_fraction": 0.5, "systems": str(tmp_path / "kept.txt")}
    prepare.prepare(settings(source, **chosen), tmp_path / "out")
    sids = [{data.sid for data in dataset(tmp_path / "out" / split)} for split in prepare.SPLITS]
    assert sids[0] & sids[1] == set()
    assert sids[0] | sids[1] == {f"random{n}" for n in range(7)}


def test_element_references_take_off_what_the_composition_explains(tmp_path: Path) -> None:
    frames = [frame(energy=0.0, fid=fid) for fid in range(6)]
    for index, atoms in enumerate(frames):
        atoms.numbers[0] = 78 if index % 2 else 29
        atoms.calc.atoms.numbers[0] = atoms.numbers[0]
        atoms.calc.results["energy"] = -3.0 * (atoms.numbers == 29).sum() - 1.25
    source = write(tmp_path / "all.extxyz", frames)
    val = write(tmp_path / "val.extxyz", [frame(energy=-5.25, fid=9)])
    chosen = settings(source, val=str(val), reference="elements")
    manifest = prepare.prepare(chosen, tmp_path / "out")
    assert set(manifest["reference_energies_eV"]) == {"O", "Cu", "Pt"}
    energies = [data.energy for data in dataset(tmp_path / "out" / "train")]
    np.testing.assert_allclose(energies, 0.0, atol=1e-9)
    assert dataset(tmp_path / "out" / "val")[0].energy == pytest.approx(2.0)
    unknown = frame(fid=10)
    unknown.symbols[0] = "Au"
    val = write(tmp_path / "unknown.extxyz", [unknown])
    with pytest.raises(ValueError, match="unknown.extxyz, frame 0: holds Au, which train lacks"):
        prepare.prepare(settings(source, val=str(val), reference="elements"), tmp_path / "other")


def without(quantity: str) -> Atoms:
    atoms = frame()
    del atoms.calc.results[quantity]
    return atoms


def spoiled(change: Callable[[Atoms], Any]) -> Atoms:
    atoms = frame()
    change(atoms)
    return atoms


BAD_FRAMES = {
    "forces": (without("forces"), "frame 1: no forces"),
    "energy": (without("energy"), "frame 1: no energy"),
    "NaN": (spoiled(lambda a: a.calc.results["forces"].fill(np.nan)), "frame 1: forces hold NaN"),
    "tags": (spoiled(lambda a: a.arrays.pop("tags")), "frame 1: no tags"),
    "sid": (spoiled(lambda a: a.info.pop("sid")), "frame 1: no sid among its info"),
    "E_last": (spoiled(lambda a: a.info.pop("E_last")), "frame 1: no E_last"),
    "twice": (frame(fid=5), "frame 1: sid random1, fid 5 was there before"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_is_named_and_nothing_is_left(bad: Atoms, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "bad.extxyz", [frame(fid=5), bad])
    with pytest.raises(ValueError, match=message):
        prepare.prepare(settings(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_sources_give_one_error_each(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no .*nowhere"):
        prepare.prepare(settings(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"no \*.extxyz.xz in this folder"):
        prepare.prepare(settings(tmp_path), tmp_path / "out")
    folder = official(tmp_path / "raw", [-9.0])
    (folder / "0.txt").write_text("random0,frame0,-9\n")
    with pytest.raises(ValueError, match=r"0.extxyz has 3 frames, 0.txt has 1 lines"):
        prepare.prepare(settings(folder, reference="official"), tmp_path / "out")
    (folder / "0.txt").unlink()
    with pytest.raises(ValueError, match=r"0.txt with ids and reference energies is missing"):
        prepare.prepare(settings(folder, reference="official"), tmp_path / "out")
    one = write(tmp_path / "one.extxyz", [frame()])
    with pytest.raises(ValueError, match="split is empty; change --val-fraction"):
        prepare.prepare(settings(one), tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="is no prepared folder"):
        prepare.prepare(settings(one), tmp_path / "taken")


EXPERIMENTS = ("compare", "temperature", "ostar", "ostar_temperature", "200k")
TABLES_1_AND_3 = {"vanilla", "pretrained", "n2n", "hessian", "crack", "crack_n2n"} | {
    *("instance", "instance_n2n", "each", "crack_hessian")
}
TEMPERATURES = {"0.05", "0.07", "0.1", "0.15", "0.2"}  # Table 4


def settings_of(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what fairchem makes of each arm's YAML, as kd-plugins compare writes it."""
    from fairchem.core.common.utils import load_config

    found, experiment = {}, read_experiment(RECIPE / f"{name}.yml")
    for arm, one in experiment.swept_arms.items():
        fields = {"run": str(folder / arm), "runs": str(folder), "seed": 0, **one.point}
        changes = fill_fields({**experiment.settings, **one.changes}, fields)
        file = folder / f"{arm}.yml"
        file.write_text(yaml.safe_dump(HOSTS["fairchem"].settings(Path(experiment.base), changes)))
        found[arm] = load_config(str(file))[0]
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_of_an_experiment_is_configured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # from where the recipe's commands are typed
    compat.install()
    found, experiment = settings_of(name, tmp_path), read_experiment(RECIPE / f"{name}.yml")
    if "temperature" in name:
        assert set(found) == {"pretrained", *(f"crack_n2n-{one}" for one in TEMPERATURES)}
    else:
        assert set(found) == TABLES_1_AND_3

    for arm, config in found.items():
        block = read_settings(config["task"])
        assert block.seed == 0
        own, _, point = arm.partition("-")
        terms = yaml.safe_load((ARM_FILES / f"{own}.yml").read_text())["task"]["distill"]["terms"]
        if point:
            terms["crack"]["temperature"] = float(point)
        assert config["task"]["distill"]["terms"] == terms

    teachers = {f"teacher {size}" for size in ("153M", "83M", "31M")}
    for numbers in experiment.published.values():
        assert set(numbers) <= {*found, *teachers}
    subset = {"200k": "200k"}.get(name, "ostar")
    if name in ("ostar", "ostar_temperature", "200k"):
        base = load(CONFIGS / "base" / f"{subset}.yml")
        arm = found["pretrained"]
        assert {key: arm[key] for key in ("model", "optim", "dataset")} == {
            key: base[key] for key in ("model", "optim", "dataset")
        }


def load(path: Path) -> dict[str, Any]:
    from fairchem.core.common.utils import load_config

    return load_config(str(path))[0]


def shrink(config: dict[str, Any], folder: Path, database: Path) -> dict[str, Any]:
    """Make a run of the paper's settings one of few channels and steps."""
    from tests.fairchem import tiny

    run = {**tiny.config(folder, database), **copy.deepcopy(config)}
    sizes = {name: tiny.BACKBONE[name] for name in SMALL}
    run["model"]["backbone"].update(sizes)
    for split in run["dataset"].values():
        split["src"] = str(database)
    run["optim"].update(batch_size=2, num_workers=0, checkpoint_every=-1, max_epochs=1)
    run["optim"].update(load_balancing=False, eval_every=2)
    return run


@pytest.fixture(scope="module")
def a_teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Prepared slabs, and a checkpoint of the paper's teacher with few channels and layers."""
    from tests.fairchem import tiny

    compat.install()
    folder = tmp_path_factory.mktemp("full")
    source = write(folder / "all.extxyz", [frame(energy=-10.0 - fid, fid=fid) for fid in range(8)])
    prepare.prepare(settings(source, val_fraction=0.5), folder / "data")
    database = folder / "data" / "train" / "structures.db"
    config = shrink(load(CONFIGS / "ostar" / "teacher_153m.yml"), folder, database)
    config["model"]["backbone"]["num_layers"] = 3
    tiny.run(config)
    return database, folder / "checkpoints" / "run" / "checkpoint.pt"


@pytest.mark.filterwarnings("ignore:.*weights_only:FutureWarning")
@pytest.mark.parametrize(
    ("name", "arm"),
    [("ostar", "crack_hessian"), ("200k", "vanilla"), ("ostar_temperature", "crack_n2n-0.05")],
)
def test_the_papers_experiments_take_their_first_steps(
    name: str,
    arm: str,
    a_teacher: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.fairchem import tiny

    monkeypatch.chdir(ROOT)
    database, checkpoint = a_teacher
    config = shrink(settings_of(name, tmp_path)[arm], tmp_path / "run", database)
    config["task"]["distill"]["teacher"] = {"checkpoint": str(checkpoint), "weights": "ema"}
    metrics = tiny.run(config, lambda trainer: trainer.validate(split="val"))
    terms = config["task"]["distill"]["terms"]
    logged = {"energy_mae", "forces_mae", "embedding_mae", *(f"kd_{term}" for term in terms)}
    assert logged <= set(metrics)
    assert all(np.isfinite(metrics[one]["metric"]) for one in logged)
