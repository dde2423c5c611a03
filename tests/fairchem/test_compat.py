"""How the stand-ins get onto the path, who wins over them, and who finds them there."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kd_plugins.fairchem
from kd_plugins.fairchem import compat
from kd_plugins.fairchem.__main__ import main

BOTH = ("torch_scatter", "torch_sparse")
FIND_FAIRCHEM = "import fairchem.core.common.utils as utils; print(utils.scatter.__module__)"

if compat.install() != BOTH:
    pytest.skip("a real package is installed and wins", allow_module_level=True)


def run(code: str, *folders: Path) -> str:
    """Run code in a fresh interpreter, with these folders on its path, and return its output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def bare_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the stand-ins off both paths, until the test is over."""
    standins = {str(folder) for folder in compat.FOLDERS.values()}
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in standins])
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.usefixtures("bare_path")
def test_install_appends_to_both_paths_once(caplog: pytest.LogCaptureFixture) -> None:
    folders = [str(folder) for folder in compat.FOLDERS.values()]
    os.environ["PYTHONPATH"] = "mine"
    with caplog.at_level(logging.INFO, logger=compat.__name__):
        assert compat.install() == BOTH
        assert compat.install() == BOTH
    assert sys.path[-2:] == folders
    assert os.environ["PYTHONPATH"].split(os.pathsep) == ["mine", *folders]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "torch_scatter, torch_sparse" in caplog.text


def test_a_real_package_wins_here_and_in_child_processes(tmp_path: Path) -> None:
    package = tmp_path / "torch_scatter"
    package.mkdir()
    package.joinpath("__init__.py").write_text("print('real')\n")
    code = (
        "import subprocess, sys; from kd_plugins.fairchem import compat; print(compat.install())\n"
        "import torch_scatter; subprocess.run([sys.executable, '-c', 'import torch_scatter'])"
    )
    # Python puts PYTHONPATH before its own site-packages, so the folder is only added when needed.
    assert run(code, tmp_path).split("\n", 1)[0] == "('torch_sparse',)"
    assert run(code, tmp_path).count("real") == 2


def test_a_real_package_in_site_packages_wins_in_child_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare_path: None
) -> None:
    tmp_path.joinpath("torch_sparse.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_sparse", raising=False)
    assert compat.install() == ("torch_scatter",)
    assert os.environ["PYTHONPATH"] == str(compat.FOLDERS["torch_scatter"])


def test_a_module_made_by_hand_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", type(sys)("torch_scatter"))
    assert compat.install() == ("torch_sparse",)


def test_a_mere_folder_of_that_name_is_no_package(tmp_path: Path) -> None:
    tmp_path.joinpath("torch_scatter").mkdir()
    code = (
        "from kd_plugins.fairchem import compat; assert len(compat.install()) == 2\n"
        "import torch_scatter; print(torch_scatter.scatter.__module__)"
    )
    assert run(code, tmp_path) == "torch_scatter"


def test_a_fresh_interpreter_finds_them_through_the_environment() -> None:
    inherit = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FIND_FAIRCHEM!r}])"
    code = f"from kd_plugins.fairchem import compat; compat.install(); {inherit}"
    assert run(code) == "torch_scatter"


def find_in_a_spawned_rank() -> str | None:
    """What a rank does first: it imports fairchem, without running the parent's main module."""
    from fairchem.core.common import utils

    return utils.scatter.__module__


def test_a_spawned_rank_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(find_in_a_spawned_rank) == "torch_scatter"


def test_fairchem_imports_all_its_models() -> None:
    code = """
from kd_plugins.fairchem import compat
compat.install()
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
setup_imports()
for name in ("hydra", "equiformer_v2_backbone", "equiformer_v2", "gemnet_oc", "painn"):
    assert registry.get_model_class(name), name
"""
    run(code)


def test_torch_geometric_uses_torch_scatter_and_sees_that_torch_sparse_is_missing() -> None:
    code = """
from kd_plugins.fairchem import compat
compat.install()
import torch
from torch_geometric import typing, utils
assert typing.WITH_TORCH_SCATTER and not typing.WITH_TORCH_SPARSE
assert typing.SparseTensor.__module__ == "torch_geometric.typing"
src, ptr = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 2, 2, 3])
assert utils.segment(src, ptr, "max").tolist() == [3.0, 0.0, 2.0]
assert utils.segment(src, ptr).tolist() == [4.0, 0.0, 2.0]
index = torch.tensor([0, 0, 2])
torch.testing.assert_close(utils.softmax(src, ptr=ptr), utils.softmax(src, index))
from torch_geometric.utils._scatter import scatter_argmax
assert scatter_argmax(src, index).tolist() == [0, 3, 2]
"""
    run(code)


def test_without_fairchem_one_line_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'kd_plugins\[fairchem\]'"):
        kd_plugins.fairchem.DistillTrainer  # noqa: B018
    assert main([]) == 2
    assert re.fullmatch(r"[^\n]*pip install 'kd_plugins\[fairchem\]'\n", capsys.readouterr().err)


def test_the_package_offers_its_trainers_and_nothing_else() -> None:
    assert {"DistillTrainer", "EqV2DistillTrainer"} <= set(dir(kd_plugins.fairchem))
    with pytest.raises(AttributeError, match="DistilTrainer"):
        kd_plugins.fairchem.DistilTrainer  # noqa: B018
