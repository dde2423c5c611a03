"""Laws of the adapter, on fairchem's real trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.common.utils import new_trainer_context
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer

from kd_plugins.fairchem.convert import Units
from tests.fairchem import tiny
from tests.fairchem.stopping import Killed, StoppingTrainer

EQV2 = "kd_plugins.fairchem.EqV2DistillTrainer"
DROPOUT = {"alpha_drop": 0.1, "drop_path_rate": 0.1}


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Return whether two sets of tensors are the same to the last bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def plain_scheduler(optim: dict[str, Any]) -> dict[str, Any]:
    """Return optimizer settings that `OCPTrainer` reads."""
    return {**optim, "scheduler": "ExponentialLR", "gamma": 0.9}


@pytest.mark.parametrize(
    ("host", "ours", "width"),
    [("equiformerv2_forces", EQV2, 8), ("ocp", "kd_plugins.fairchem.DistillTrainer", 4)],
)
def test_zero_weights_are_the_plain_host(
    make_config, teacher: Path, host: str, ours: str, width: int
) -> None:
    """Every weight 0, dropout on, two validations in between: the same bits as without us."""
    settings = make_config(trainer=host, model=tiny.model(sphere_channels=width, **DROPOUT))
    settings["optim"].update(max_epochs=2, eval_every=2)
    if host == "ocp":
        settings["optim"] = plain_scheduler(settings["optim"])
    plain = tiny.run(settings, tiny.parameters)
    task = tiny.distill(teacher, tiny.without_weights(tiny.ALL_TERMS))
    settings.update(trainer=ours, task=task, timestamp_id="distilled")
    assert equal(tiny.run(settings, tiny.parameters), plain)


def test_weights_change_the_student(make_config, teacher: Path) -> None:
    """The proof that the law above can fail."""
    zero = tiny.distill(teacher, tiny.without_weights(tiny.ALL_TERMS))
    settings = make_config(trainer=EQV2, task=zero)
    plain = tiny.run(settings, tiny.parameters)
    settings.update(task=tiny.distill(teacher), timestamp_id="distilled")
    assert not equal(tiny.run(settings, tiny.parameters), plain)


@pytest.mark.parametrize(
    ("stop_at", "plateau", "negatives"),
    [(3, True, "local"), (4, False, "local"), (5, False, {"sample": 4, "seed": 1})],
    ids=["plateau", "validated", "sampled"],
)
def test_resumed_training_equals_uninterrupted(
    make_config, teacher: Path, stop_at: int, plateau: bool, negatives: Any
) -> None:
    """Killed in mid-epoch or after a validation: student, averages, projection and rate agree."""
    task = tiny.distill(teacher)
    for name in ("crack", "instance"):
        task["distill"]["terms"][name]["negatives"] = negatives
    settings = make_config(task=task, model=tiny.model(**DROPOUT), trainer=EQV2)
    settings["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=2)
    if plateau:
        settings["optim"].update(scheduler="ReduceLROnPlateau")
        settings["optim"]["scheduler_params"] = {"factor": 0.5, "patience": 0, "threshold": 10.0}
    tiny.run(settings)
    settings["timestamp_id"] = "stopped"
    StoppingTrainer.stop_at = stop_at
    with pytest.raises(Killed):
        tiny.run({**settings, "trainer": "tests.fairchem.stopping.StoppingTrainer"})
    tiny.run(settings)
    folder = Path(settings["run_dir"]) / "checkpoints"
    for name in ("checkpoint.pt", "kd_checkpoint.pt", "best_checkpoint.pt"):
        whole, resumed = (tiny.load(folder / run / name) for run in ("run", "stopped"))
        assert_same(without_names(whole), without_names(resumed), name)


def without_names(state: dict[str, Any]) -> dict[str, Any]:
    """Drop the run's name, and the scratch space in which fairchem swaps averages in and out."""
    if state.get("ema"):
        state["ema"].pop("collected_params")
    return {name: value for name, value in state.items() if name != "config"}


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Compare nested states bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def first_batch(trainer: Any) -> Any:
    """Return a training batch."""
    return next(iter(trainer.train_loader))


def student_equal_to_teacher(make_config, teacher: Path, **changes: Any) -> dict[str, Any]:
    """Return a run with a student that equals its teacher."""
    task = tiny.distill(teacher, student={"initialize": "teacher"}, **changes)
    settings = make_config(trainer=EQV2, task=task, model=tiny.model(num_layers=3))
    settings["optim"]["max_epochs"] = 0
    return settings


def losses(trainer: Any) -> dict[str, float]:
    """Return the metrics of one training batch."""
    trainer.model.train()
    trainer.step = 1
    batch = first_batch(trainer)
    trainer._compute_loss(trainer._forward(batch), batch)
    metrics = trainer.distiller.take_metrics()
    return {name: float(metric["metric"]) for name, metric in metrics.items()}


def test_a_student_equal_to_its_teacher_has_zero_loss(make_config, teacher: Path) -> None:
    """Every regression term is zero to rounding, and embeddings agree."""
    found = tiny.run(student_equal_to_teacher(make_config, teacher), losses)
    for name in ("n2n", "energy", "atomic_energies", "forces"):
        assert found[f"kd_{name}"] < 1e-6, name
    assert (
        found["kd_hessian"] < 1e-4
    )  # rounding of forces, 1e-7, over twice the step, 1e-2, squared
    assert found["embedding_mae"] < 1e-6
    assert found["embedding_cosine"] == pytest.approx(1.0, abs=1e-6)


def crack_gradient(temperature: float, teacher: Path, make_config, initialize: str) -> float:
    """Return the norm of CRACK's gradient over the student's parameters."""
    terms = {"crack": {"weight": 1.0, "temperature": temperature}}
    settings = student_equal_to_teacher(make_config, teacher, terms=terms)
    settings["task"]["distill"]["student"]["initialize"] = initialize
    settings["seed"] = 7  # not the teacher's own first weights
    for function in settings["loss_functions"]:
        next(iter(function.values()))["coefficient"] = 0.0

    def gradient(trainer: Any) -> float:
        trainer.model.train()
        trainer.step = 1
        batch = first_batch(trainer)
        trainer._compute_loss(trainer._forward(batch), batch).backward()
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        return float(torch.stack([grad.norm() for grad in grads]).norm())

    return tiny.run(settings, gradient)


def test_cracks_gradient_vanishes_at_the_teacher(make_config, teacher: Path) -> None:
    """As the temperature goes to 0; at 0.15 the negatives push a perfect student, too.

    Relations of this barely trained teacher differ by as little as 1e-4, hence so cold.
    """
    elsewhere = crack_gradient(1e-5, teacher, make_config, "scratch")
    assert elsewhere > 1e3
    assert crack_gradient(1e-5, teacher, make_config, "teacher") < 1e-3 * elsewhere


def test_teacher_never_changes(make_config, teacher: Path) -> None:
    """Parameters, buffers and mode stay; its outputs need no gradient."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))

    with new_trainer_context(config=settings) as context:
        trainer = context.trainer
        model = trainer.distiller.teacher.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        context.task.setup(trainer)
        context.task.run()
        assert equal(dict(model.state_dict()), before)
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        batch = first_batch(trainer)
        raw = trainer.distiller.teacher.forward(batch)
        assert all(value.grad_fn is None and not value.requires_grad for value in raw.values())
        assert trainer.distiller.teacher.hooks.embeddings.grad_fn is None


def test_a_plain_trainer_resumes_the_students_checkpoint(make_config, teacher: Path) -> None:
    """The checkpoint names fairchem's trainer and holds the student alone."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))
    tiny.run(settings)
    folder = Path(settings["run_dir"]) / "checkpoints" / "run"
    state = tiny.load(folder / "checkpoint.pt")
    assert state["config"]["trainer"] == "ocp"
    assert not [name for name in state["state_dict"] if "projection" in name or "teacher" in name]
    settings.update(trainer="equiformerv2_forces", task={})
    settings["optim"]["max_epochs"] = 2
    tiny.run(settings, lambda trainer: trainer.step == 6 or pytest.fail("did not go on"))


def test_soft_targets_are_labels_from_the_teacher(make_config, teacher: Path) -> None:
    """A soft target of weight c is fairchem's own loss of coefficient c on teacher labels."""
    terms = {
        "energy": {"weight": 1.0, "distance": "absolute_sum"},
        "forces": {"weight": 10.0, "distance": "norm"},
    }
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, terms))
    settings["optim"]["max_epochs"] = 0

    def both(trainer: Any) -> tuple[float, float]:
        batch = first_batch(trainer)
        trainer.model.eval()
        out = trainer._forward(batch)
        targets = trainer.distiller.teacher(batch)
        hard = EquiformerV2ForcesTrainer._compute_loss(trainer, out, batch)
        soft = trainer._compute_loss(out, batch) - hard
        batch.energy, batch.forces = targets.values["energy"], targets.values["forces"]
        labelled = EquiformerV2ForcesTrainer._compute_loss(trainer, out, batch)
        return float(soft), float(labelled)

    soft, labelled = tiny.run(settings, both)
    assert soft == pytest.approx(labelled, rel=1e-4)


def test_terms_and_embeddings_are_logged(make_config, teacher: Path) -> None:
    """Train and validation logs hold every term, embedding error and cosine."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))
    tiny.run(settings)
    events = EventAccumulator(str(Path(settings["run_dir"]) / "logs" / "tensorboard" / "run"))
    events.Reload()
    logged = set(events.Tags()["scalars"])
    names = [f"kd_{term}" for term in tiny.ALL_TERMS if term != "instance"]
    names += ["kd_instance_l0", "kd_instance_l1", "embedding_mae", "embedding_cosine"]
    names += ["embedding_mae_l0", "embedding_cosine_l0", "kd_masked_fraction"]
    for split in ("train", "val"):
        assert {f"{split}/{name}" for name in names} <= logged


def test_crack_over_all_degrees_logs_accuracy_and_excess(make_config, teacher: Path) -> None:
    """It trains the projection of every degree; a perfect student would have no excess."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    terms = {"crack": {"weight": 1.0, "features": "all", "excess": True}}
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher, terms))
    moved = tiny.run(
        settings,
        lambda trainer: [p.grad is not None for p in trainer.distiller.projection.parameters()],
    )
    events = EventAccumulator(str(Path(settings["run_dir"]) / "logs" / "tensorboard" / "run"))
    events.Reload()
    loss, excess, accuracy = (
        events.Scalars(f"val/kd_crack{what}")[-1].value
        for what in ("", "_excess", "_top1_accuracy")
    )
    assert 0 <= accuracy <= 1
    assert 0 < excess < loss
    assert all(moved)


def test_student_and_teacher_share_one_graph(make_config, teacher: Path) -> None:
    """The teacher gives the same targets on the student's graph as on its own."""
    settings = make_config(trainer=EQV2, task=tiny.distill(teacher))
    settings["optim"]["max_epochs"] = 0

    def compare(trainer: Any) -> None:
        batch = first_batch(trainer)
        trainer._forward(batch)
        distiller = trainer.distiller
        assert distiller.shares_graph
        torch.manual_seed(1)
        shared = distiller.teacher(batch, distiller.student.graph)
        torch.manual_seed(1)
        own = distiller.teacher(batch)
        for name, value in own.values.items():
            assert torch.equal(shared.values[name], value), name

    tiny.run(settings, compare)


@pytest.mark.parametrize("change", [{"max_radius": 4.0}, {"max_neighbors": 6}])
def test_a_students_other_graph_is_not_forced_on_the_teacher(
    make_config, teacher: Path, change: dict[str, Any]
) -> None:
    """The teacher's embeddings and force derivatives are those on its own graph."""
    from kd_plugins.fairchem.convert import given_graph, with_graph
    from kd_plugins.fairchem.loss import draw_directions, force_derivatives

    settings = make_config(trainer=EQV2, task=tiny.distill(teacher), model=tiny.model(**change))
    settings["optim"]["max_epochs"] = 0

    def compare(trainer: Any) -> None:
        distiller, batch = trainer.distiller, first_batch(trainer)
        teaching = distiller.teacher
        trainer.model.eval()
        trainer._forward(batch)
        found = distiller._targets(batch)
        _, with_derivatives = distiller._with_derivatives({}, found, batch, 1)
        probes = draw_directions(batch, 1, seed=0, step=1)
        torch.set_rng_state(distiller._student_state)
        own = teaching(batch)
        with given_graph(teaching.backbone), torch.no_grad():
            own_batch = with_graph(batch, teaching.hooks.graph)
            expected = force_derivatives(
                distiller._teacher_forces, own_batch, probes, 0.005, distiller._student_state
            )
        assert torch.equal(found.values["node_embeddings"], own.values["node_embeddings"])
        derivatives = with_derivatives.values["force_derivatives"]
        assert torch.allclose(derivatives, expected * teaching.units.rmsd("forces"), atol=1e-4)

    tiny.run(settings, compare)


def units(trainer: Any) -> Units:
    """Return the student's units."""
    return Units(trainer.normalizers, trainer.elementrefs)


def test_the_teachers_units_stay_when_a_checkpoint_is_loaded(
    make_config, teacher: Path, tmp_path: Path
) -> None:
    """A student that took them over has copies: loading its checkpoint changes its own only."""
    task = tiny.distill(teacher, student={"initialize": "teacher"})
    settings = make_config(trainer=EQV2, task=task)
    tiny.run(settings)
    path = Path(settings["run_dir"]) / "checkpoints" / "run" / "checkpoint.pt"
    state = tiny.load(path)
    state["normalizers"]["energy"]["mean"].fill_(9.0)
    torch.save(state, path)
    means = tiny.run(
        settings,
        lambda t: [
            float(u.normalizers["energy"].mean) for u in (units(t), t.distiller.teacher.units)
        ],
    )
    assert means == [9.0, 5.0]
