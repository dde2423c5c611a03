"""How a student starts, what of it is trained, and what lies beside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_plugins.fairchem import checkpointing
from kd_plugins.fairchem.loss import replace_overflow
from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2, first_batch

CRACK = {"crack": {"weight": 1.0}}


def untrained(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run that builds everything and trains nothing."""
    settings["optim"]["max_epochs"] = 0
    return settings


def test_start_from_the_teachers_first_blocks(make_config, teacher: Path) -> None:
    """A 2-layer student equals its 3-layer teacher without the last block."""
    task = tiny.distill(teacher, student={"initialize": "teacher"})
    settings = untrained(make_config(trainer=EQV2, task=task))

    def compare(trainer: Any) -> None:
        teaching = trainer.distiller.teacher
        del teaching.backbone.blocks[2]
        teaching.backbone.num_layers = 2
        batch = first_batch(trainer)
        trainer.model.eval()
        torch.manual_seed(0)
        ours = trainer._forward(batch)
        torch.manual_seed(0)
        theirs = teaching.forward(batch)
        assert torch.allclose(ours["energy"].flatten(), theirs["energy"], atol=1e-6)
        assert torch.allclose(ours["forces"], theirs["forces"], atol=1e-6)

    tiny.run(settings, compare)


def test_a_student_that_starts_as_its_teacher_takes_its_units(
    make_config, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Normalizers come from the teacher, with a warning where the YAML has others."""
    task = tiny.distill(teacher, student={"initialize": "teacher"})
    settings = untrained(make_config(trainer=EQV2, task=task))
    settings["dataset"]["train"]["transforms"]["normalizer"]["energy"]["mean"] = 7.0
    mean = tiny.run(settings, lambda trainer: float(trainer.normalizers["energy"].mean))
    assert mean == 5.0
    assert "takes over the teacher's mean 5, rmsd 2 in place of mean 7, rmsd 2" in caplog.text


def test_frozen_parameters_stay(make_config, teacher: Path) -> None:
    """They keep the teacher's values, the rest moves, and averaging goes on working."""
    pattern = "backbone.sphere_embedding.*"
    student = {"initialize": "teacher", "freeze": [pattern]}
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, student=student))

    def changed(trainer: Any) -> list[str]:
        start = trainer.distiller.teacher.model.state_dict()
        return [n for n, p in tiny.parameters(trainer).items() if not torch.equal(p, start[n])]

    moved = tiny.run(settings, changed)
    assert "backbone.sphere_embedding.weight" not in moved
    assert "backbone.blocks.0.ga.proj.weight" in moved


def projection(trainer: Any) -> dict[str, torch.Tensor]:
    """Return copies of the projection's parameters."""
    module = trainer.distiller.projection.module
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_the_projection_is_trained(make_config, teacher: Path) -> None:
    """Every parameter of the loss is in an optimizer and moves, at the student's rate."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))
    before = tiny.run(untrained(make_config(trainer=EQV2, task=tiny.distill(teacher))), projection)
    after, rate = tiny.run(
        settings, lambda t: (projection(t), t.distiller.optimizer.param_groups[0]["lr"])
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert 0 < rate < settings["optim"]["lr_initial"]


@pytest.mark.parametrize("widths", [4, 16])
def test_another_width(make_config, teacher: Path, widths: int) -> None:
    """A narrower or wider student is projected to its teacher's width and trains."""
    settings = make_config(
        trainer=EQV2, task=tiny.distill(teacher), model=tiny.model(sphere_channels=widths)
    )
    shape = tiny.run(settings, lambda t: tuple(t.distiller.projection.module.weight.shape))
    assert shape == (3, 8, widths)


def test_another_lmax(make_config, teacher: Path) -> None:
    """CRACK and l = 0 matching need no common lmax."""
    terms = {**CRACK, "n2n": {"weight": 1.0, "features": "l0", "distance": "squared_mean"}}
    settings = make_config(
        trainer=EQV2, task=tiny.distill(teacher, terms), model=tiny.model(lmax_list=[1])
    )
    tiny.run(settings)


@pytest.mark.parametrize("moment", ["before the checkpoint", "after the checkpoint"])
def test_killed_between_the_two_files(make_config, teacher: Path, moment: str) -> None:
    """Whichever file is older, the state that fits the checkpoint is found."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, CRACK))
    expected = tiny.run(settings, projection)
    checkpoint = Path(settings["run_dir"]) / "checkpoints" / "run" / "checkpoint.pt"
    ours, pending = checkpointing.sidecar_path(checkpoint), checkpointing.pending_path(checkpoint)
    if moment == "after the checkpoint":
        ours.rename(pending)
    state = tiny.load(pending if pending.exists() else ours)
    state["step"] += 1
    state["projection"]["weight"].zero_()
    torch.save(state, pending if moment == "before the checkpoint" else ours)
    found = tiny.run(settings, projection)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_lost_projection_is_named(
    make_config, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts afresh, with a warning."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, CRACK))
    tiny.run(settings)
    checkpoint = Path(settings["run_dir"]) / "checkpoints" / "run" / "checkpoint.pt"
    checkpointing.sidecar_path(checkpoint).unlink()
    tiny.run(settings)
    assert (
        "no projection for this teacher lies beside checkpoint.pt; it starts afresh" in caplog.text
    )


def test_a_scheduled_weight_follows_the_step(make_config, teacher: Path) -> None:
    """Before its first step a term is off, and the run is the plain host's until then."""
    late = {"schedule": "piecewise", "steps": [3], "weights": [1.0]}
    losses: dict[int, bool] = {}
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, {"crack": {"weight": late}}))
    untrained(settings)

    def active(trainer: Any) -> None:
        batch = first_batch(trainer)
        trainer.model.train()
        for trainer.step in (1, 2, 3):
            trainer._compute_loss(trainer._forward(batch), batch)
            losses[trainer.step] = "kd_crack" in trainer.distiller.take_metrics()

    tiny.run(settings, active)
    assert losses == {1: False, 2: False, 3: True}


def test_hessian_agrees_with_plain_differences(make_config, teacher: Path) -> None:
    """The student's derivative is the difference of its forces at two displaced batches."""
    terms = {"hessian": {**tiny.ALL_TERMS["hessian"], "step": 0.02, "probes": 2}}
    settings = untrained(make_config(trainer=EQV2, task=tiny.distill(teacher, terms)))

    def compare(trainer: Any) -> None:
        from kd_plugins.fairchem.convert import given_graph, with_graph
        from kd_plugins.fairchem.loss import draw_directions, force_derivatives

        batch = first_batch(trainer)
        trainer.model.eval()
        trainer._forward(batch)
        distiller, graph = trainer.distiller, trainer.distiller.student.graph
        probes = draw_directions(batch, 2, seed=0, step=1)
        assert probes.shape == (2, len(batch.pos), 3)
        with given_graph(distiller.student.backbone):
            batch = with_graph(batch, graph)
            ours = force_derivatives(distiller._student_forces, batch, probes, 0.02, None)
            sides = []
            for sign in (1.0, -1.0):
                moved = with_graph(batch, graph)
                moved.pos = batch.pos + sign * 0.02 * probes[1]
                torch.manual_seed(0)
                sides.append(trainer._unwrapped_model(moved)["forces"])
        assert torch.allclose(ours[:, 1], (sides[0] - sides[1]) / 0.04, atol=1e-5)

    tiny.run(settings, compare)


def test_distillation_leaves_the_random_state_alone(make_config, teacher: Path) -> None:
    """Teacher, Hessian and all: the student's next draws are those of the plain host."""
    settings = untrained(make_config(trainer=EQV2, task=tiny.distill(teacher)))

    def compare(trainer: Any) -> None:
        batch = first_batch(trainer)
        trainer.model.train()
        trainer.step = 1
        out = trainer._forward(batch)
        before = torch.get_rng_state()
        trainer._compute_loss(out, batch)
        assert torch.equal(torch.get_rng_state(), before)

    tiny.run(settings, compare)


def stepped(trainer: Any, scale: float) -> dict[str, torch.Tensor]:
    """Return the projection after one step from gradients of one that were scaled up."""
    distiller = trainer.distiller
    for parameter in distiller.projection.parameters():
        parameter.grad = torch.full_like(parameter, scale)
    distiller.step(learning_rate=1e-2, scale=scale, clip_grad_norm=1.0)
    return projection(trainer)


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_the_projection_undoes_the_scale_of_mixed_precision(
    make_config, teacher: Path, scale: float
) -> None:
    """A scaled loss gives the same step, clipped by its true norm."""
    settings = untrained(make_config(trainer=EQV2, task=tiny.distill(teacher)))
    expected = tiny.run(settings, lambda trainer: stepped(trainer, 1.0))
    found = tiny.run(settings, lambda trainer: stepped(trainer, scale))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_projection_leaves_out_an_overflow(make_config, teacher: Path) -> None:
    """As the student's own step is left out."""
    settings = untrained(make_config(trainer=EQV2, task=tiny.distill(teacher)))

    def unmoved(trainer: Any) -> bool:
        before = projection(trainer)
        after = stepped(trainer, float("inf"))
        return all(torch.equal(before[name], after[name]) for name in before)

    assert tiny.run(settings, unmoved)


def test_an_overflow_becomes_numbers_and_is_reported() -> None:
    """What is finite stays as it is, and is no overflow."""
    values = {"energy": torch.tensor([1.0, float("inf")]), "forces": torch.ones(1, 3)}
    assert replace_overflow(values)
    assert all(bool(torch.isfinite(value).all()) for value in values.values())
    assert torch.equal(values["forces"], torch.ones(1, 3))
    assert not replace_overflow(values)
