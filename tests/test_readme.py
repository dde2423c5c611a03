"""What README and the pages under docs show is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.cli import main
from kd_plugins.config import read_config
from kd_plugins.fairchem.settings import DistillSettings
from kd_plugins.structures.readers import LabelledStructure, read_structures
from kd_plugins.teachers import label, load_teacher
from tests.hosts import in_one_environment
from tests.house import ROOT
from tests.teachers import fixtures

README = "README.md"
PAGES = [README, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
RECIPES = [f"recipes/{path.parent.name}" for path in sorted((ROOT / "recipes").glob("*/README.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)|src=\"([^\"]+)\"")


def blocks(language: str, holding: str, page: str = README) -> list[str]:
    """Return a page's fenced blocks of a language that hold some text."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in found if holding in block]


@pytest.mark.parametrize("page", [*PAGES, *(f"{recipe}/README.md" for recipe in RECIPES)])
def test_links_lead_somewhere(page: str) -> None:
    """Within the project; pictures too."""
    named = ["".join(found) for found in LINK.findall((ROOT / page).read_text())]
    assert [name for name in named if not (ROOT / page).parent.joinpath(name).exists()] == []


def test_every_page_is_linked() -> None:
    """From README."""
    text = (ROOT / README).read_text()
    assert [page for page in PAGES[1:] if f"]({page})" not in text] == []


def test_python_of_the_core_runs() -> None:
    """As a reader would paste it."""
    (block,) = blocks("python", "crack_loss", "docs/loss.md")
    exec(compile(block, "docs/loss.md", "exec"), {})


def test_python_of_the_store_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On what the command above it would have written."""
    monkeypatch.chdir(tmp_path)
    fixtures.write_copper_cells(Path("train.extxyz"), 3)
    label(fixtures.copper_cells(3), "emt", "targets", progress=False)
    (block,) = blocks("python", "store.read", "docs/targets.md")
    exec(compile(block, "docs/targets.md", "exec"), {})


@in_one_environment
def test_python_of_chgnet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On what the command above it labels, and the student is then CHGNet's alone."""
    pytest.importorskip("chgnet")
    monkeypatch.chdir(tmp_path)
    for name, count, seed in (("train", 32, 0), ("validation", 4, 1)):
        ase.io.write(f"{name}.extxyz", rattled_silicon(count, seed))
    words = ["label", "train.extxyz", "validation.extxyz", "--teacher", "chgnet+d3"]
    assert main([*words, "--store", "targets"]) == 0
    (block,) = blocks("python", "distill(", "docs/chgnet.md")
    names: dict[str, Any] = {}
    exec(compile(block, "docs/chgnet.md", "exec"), names)
    (block,) = blocks("python", "CHGNetCalculator")
    assert [block] == blocks("python", "CHGNetCalculator", "docs/chgnet.md")
    (names["atoms"],) = rattled_silicon(1, seed=2)
    exec(compile(block, "README.md", "exec"), names)
    taught = load_teacher("chgnet+d3")(names["atoms"], ["stress"])["stress"]
    before = load_teacher("chgnet")(names["atoms"], ["stress"])["stress"]
    after = names["atoms"].get_stress()
    assert np.abs(after - taught).mean() < 0.3 * np.abs(before - taught).mean()


@in_one_environment
def test_python_of_hippynn_runs(
    shared_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, student and control on real molybdenum; the student is then hippynn's alone."""
    pytest.importorskip("hippynn")
    monkeypatch.chdir(tmp_path)
    frames = list(read_structures([shared_file("metals/mlearn_Mo_train.extxyz.xz")]))
    small = [frame for frame in frames if len(frame.atoms) < 50]
    write_frames(Path("train.extxyz"), [*small, *frames[:: len(frames) // 16]])
    (block,) = blocks("python", "import add_teacher_targets", "docs/hippynn.md")
    for written, quick in ((", 100\n", ", 8\n"), ("learning_rate=0.001", "learning_rate=0.01")):
        assert written in block
        block = block.replace(written, quick)
    exec(compile(block, "docs/hippynn.md", "exec"), {})
    assert (tmp_path / "my-student" / "best_model.pt").is_file()
    assert all((tmp_path / name / "best_model.pt").is_file() for name in ("teacher", "control"))
    (block,) = blocks("python", "atoms.calc = hippynn(")
    block = block.replace("runs/quickstart/compare/runs/energies_forces/seed0", "my-student")
    names = {"atoms": bulk("Mo", cubic=True) * (3, 3, 3)}
    exec(compile(block, "README.md", "exec"), names)
    assert np.isfinite(names["atoms"].get_potential_energy())


def test_lines_of_hippynn_are_of_the_script_that_runs() -> None:
    """README shows some of it, to the letter but for comments."""
    (script,) = blocks("python", "import add_teacher_targets", "docs/hippynn.md")
    (few,) = blocks("python", "add_teacher_targets")
    whole = {line.strip() for line in script.splitlines()}
    assert [line for line in few.splitlines() if line.partition("  #")[0] not in whole] == []


def write_frames(path: Path, frames: Sequence[LabelledStructure]) -> None:
    """Write labelled structures as an extended xyz."""
    for frame in {one.structure_id: one for one in frames}.values():
        atoms = frame.atoms.copy()
        atoms.info = {"structure_id": frame.structure_id}
        labels = {"energy": float(frame.labels["energy"]), "forces": frame.labels["forces"]}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        ase.io.write(path, atoms, append=True)


def rattled_silicon(count: int, seed: int) -> list[Atoms]:
    """Return strained cells of two atoms."""
    generator, frames = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = bulk("Si")
        strain = np.eye(3) + generator.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += generator.normal(scale=0.05, size=(2, 3))
        frames.append(atoms)
    return frames


def test_yaml_of_fairchem_is_valid() -> None:
    """Every key of the block is one that the adapter knows."""
    yaml = pytest.importorskip("yaml")
    found = [*blocks("yaml", "distill"), *blocks("yaml", "distill", "docs/fairchem.md")]
    assert len(found) == 7
    for block in found:
        read_config(DistillSettings, yaml.safe_load(block)["task"]["distill"], "task.distill")
