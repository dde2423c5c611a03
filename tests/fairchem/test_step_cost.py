"""What a training step costs beside the plain host's: waits for the device, and modules loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2, first_batch
from tests.fairchem.test_stored_targets import stored
from tests.waits import counted

Settings = dict[str, Any]
REGRESSION = {name: tiny.ALL_TERMS[name] for name in ("n2n", "atomic_energies", "energy", "forces")}
CRACK = {"crack": {"weight": 1.0}}
EACH = {
    "crack": {"weight": 1.0, "features": "each"},
    "n2n": {"weight": 1.0, "features": "each", "distance": "squared_mean"},
}
ALLOWED = 2
"""Waits of a step beyond the plain host's: one to check the targets, one for all metrics."""
ALLOWED_IN_CRACK = 3
"""Further ones of CRACK, whose relations are as many as the batch happens to have."""
MODULES = 48


def waits_of_a_step(
    monkeypatch: pytest.MonkeyPatch, teacher: bool = False
) -> Callable[[Any], Counter[str]]:
    """Return a function that counts the waits of one training step, or of the teacher alone."""

    def count(trainer: Any) -> Counter[str]:
        trainer.model.train()
        trainer.step = 1
        batch = first_batch(trainer)
        with counted(monkeypatch) as found:
            out = trainer._forward(batch)
            graph = trainer.distiller.student.graph if teacher else None
            if teacher:
                found.clear()
                trainer.distiller.teacher.forward(batch, graph)
                return Counter(found)
            loss = trainer._compute_loss(out, batch)
            trainer._compute_metrics(out, batch, trainer.evaluator, {})
            trainer._backward(loss)
        return found

    return count


@pytest.fixture
def waits(
    make_config: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Counter[str]]:
    """Return the waits of a step of a run, by the kind of operation."""

    def run(teacher: bool = False, **changes: Any) -> Counter[str]:
        settings = make_config(**changes)
        settings["optim"]["max_epochs"] = 0
        return tiny.run(settings, waits_of_a_step(monkeypatch, teacher))

    return run


def test_stored_targets_add_two_waits_at_most(
    waits: Callable[..., Counter[str]], labelled: Path
) -> None:
    """CRACK as many more as it cannot do without, however many degrees it compares."""
    plain = waits()
    assert plain["aten::_local_scalar_dense"] > 0
    found = waits(trainer=EQV2, task=stored(labelled, REGRESSION), timestamp_id="regression")
    assert (found - plain).total() <= ALLOWED, found - plain
    for name, terms in (("crack", CRACK), ("each", EACH)):
        found = waits(trainer=EQV2, task=stored(labelled, terms), timestamp_id=name)
        assert (found - plain).total() <= ALLOWED + ALLOWED_IN_CRACK, found - plain


def test_a_teacher_in_memory_adds_two_waits_beside_its_own_forward(
    waits: Callable[..., Counter[str]], teacher: Path
) -> None:
    plain = waits()
    task = tiny.distill(teacher, REGRESSION)
    forward = waits(teacher=True, trainer=EQV2, task=task, timestamp_id="forward")
    found = waits(trainer=EQV2, task=task, timestamp_id="teacher")
    assert (found - plain - forward).total() <= ALLOWED, found - plain - forward


SCRIPT = """
import json, sys
from kd_plugins.fairchem import compat

compat.install()
from tests.fairchem import tiny

tiny.run(json.loads(sys.argv[1]))
print(json.dumps([name for name in sys.modules if name.startswith("kd_plugins")]))
"""


def test_a_training_loads_only_the_rooms_that_it_needs(
    make_config: Callable[..., Settings], labelled: Path
) -> None:
    """Neither the labeller nor the readers of structures, and few modules altogether."""
    settings = make_config(trainer=EQV2, task=stored(labelled, CRACK))
    settings["dataset"]["train"]["first_n"] = 2
    settings["dataset"].pop("val")
    settings["optim"]["scheduler_params"]["warmup_epochs"] = 1.0
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    rooms = {".".join(name.split(".")[:2]) for name in loaded}
    assert not rooms & {f"kd_plugins.{room}" for room in ("structures", "evaluate", "sampling")}
    assert "kd_plugins.teachers.labelling" not in loaded
    assert len(loaded) <= MODULES, sorted(loaded)
