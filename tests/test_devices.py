"""``device`` reaches the model: of every command, and of every worker of several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from kd_plugins.cli import main
from kd_plugins.compare.trainings import Trainings
from kd_plugins.processes import take_share
from kd_plugins.teachers import load_teacher
from tests.devices import moves_a_model_to_meta
from tests.hosts import is_installed

STAND_IN = "tests.test_devices:EmtBesideWeights"


class EmtBesideWeights(EMT):
    """ASE's EMT with weights of torch that have a device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1).to(device)


@pytest.fixture
def copper(tmp_path: Path) -> str:
    path = tmp_path / "copper.extxyz"
    write(path, bulk("Cu", cubic=True))
    return str(path)


@pytest.fixture
def store(tmp_path: Path, copper: str) -> str:
    folder = str(tmp_path / "store")
    assert main(["label", copper, "--teacher", "emt", "--store", folder]) == 0
    return folder


EXPERIMENT = """
title: devices
host: script
base: nothing.py
model: tests.test_devices:EmtBesideWeights
teacher: tests.test_devices:EmtBesideWeights
control: plain
arms: {{plain: , other: {{rate: 1}}}}
seeds: [0]
measure: {{structures: [{copper}]}}
metrics: [teacher_force_rmse]
"""


@pytest.mark.parametrize("command", ["label", "evaluate", "sample", "doctor", "student", "compare"])
def test_every_command_hands_its_device_to_the_potential(
    command: str, tmp_path: Path, copper: str, store: str
) -> None:
    (tmp_path / "nothing.py").touch()
    (tmp_path / "experiment.yml").write_text(EXPERIMENT.format(copper=copper))
    out = str(tmp_path / "out")
    words = {
        "label": ["label", copper, "--teacher", STAND_IN, "--store", out],
        "evaluate": ["evaluate", "--student", STAND_IN, "--dynamics", copper, "--out", out],
        "sample": ["sample", copper, "--md", "1", "--temperatures", "300", "--potential", STAND_IN]
        + ["--out", f"{out}.extxyz"],
        "doctor": ["doctor", "--store", store, "--ask-teacher", STAND_IN],
        "student": ["doctor", "--store", store, "--student", STAND_IN],
        "compare": ["compare", str(tmp_path / "experiment.yml"), "--out", out],
    }
    with moves_a_model_to_meta():
        main([*words[command], "--device", "meta"])


@pytest.mark.parametrize("name", ["emt", "dftd3.ase:DFTD3 method=PBE damping=d3bj"])
def test_what_computes_on_the_cpu_alone_reports_it(name: str) -> None:
    if name.startswith("dftd3"):
        pytest.importorskip("dftd3")
    assert load_teacher(name).device == "cpu"


# --- Workers ------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs for functions that only count and choose them; return those that were chosen."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    return chosen


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", ["cuda:1"] * 3),
        ("cpu", []),
    ],
)
def test_workers_take_the_gpus_in_turn(
    device: str, expected: list[str], two_gpus: list[str]
) -> None:
    for worker in range(3):
        take_share(device, worker, 3)
    assert two_gpus == expected


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"workers": 2}, ["6", "7"]),
        ({"workers": 2, "device": "cuda:1"}, ["7", "7"]),
        ({"workers": 2, "device": "cpu"}, ["", ""]),
        # What nobody asked for stays as it is: one training, or one that takes several GPUs.
        ({"workers": 1}, ["6,7"]),
        ({"workers": 2, "several_gpus": True}, ["6,7", "6,7"]),
    ],
)
def test_trainings_at_a_time_see_one_gpu_each(
    settings: dict[str, Any],
    seen: list[str],
    two_gpus: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    trainings = Trainings(**settings)
    shown = [trainings._environment(worker)["CUDA_VISIBLE_DEVICES"] for worker in range(len(seen))]
    assert shown == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"


# --- Native teachers ----------------------------------------------------------------------------

NATIVE = {
    "chgnet": ("chgnet", "chgnet"),
    "chgnet+d3": ("chgnet", "chgnet+d3"),
    "sevenn": ("sevenn", "sevenn"),
    "sevenn+d3": ("sevenn", "sevenn+d3"),
}
"""Distribution and name of teachers whose weights come with a package."""


@pytest.mark.parametrize(("distribution", "name"), NATIVE.values(), ids=NATIVE)
def test_native_teachers_move_their_model_to_the_device(distribution: str, name: str) -> None:
    if not is_installed(distribution):
        pytest.skip(f"{distribution} is not installed")
    with moves_a_model_to_meta():
        load_teacher(name, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize(("distribution", "name"), NATIVE.values(), ids=NATIVE)
def test_native_teachers_predict_the_same_on_a_gpu(distribution: str, name: str) -> None:
    if not is_installed(distribution):
        pytest.skip(f"{distribution} is not installed")
    here, there = (load_teacher(name, device=device) for device in ("cpu", "cuda"))
    assert "cuda" in there.device and here.device == "cpu"
    (one,), (two,) = (
        teacher.predict([bulk("NaCl", "rocksalt", 5.6)], ["energy", "forces"])
        for teacher in (here, there)
    )
    assert float(one["energy"]) == pytest.approx(float(two["energy"]), abs=1e-4)
    assert np.abs(one["forces"] - two["forces"]).max() < 1e-4
