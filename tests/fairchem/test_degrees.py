"""``features: each``: relations and distances of each degree l by itself, added up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from kd_plugins.core import Degrees, crack_loss, squared_mean
from kd_plugins.fairchem.loss import compared_embeddings
from kd_plugins.structures import read_structures
from kd_plugins.teachers import label
from tests.fairchem import tiny
from tests.fairchem.test_laws import EQV2, equal, first_batch, losses, student_equal_to_teacher
from tests.fairchem.test_stored_targets import losses_of_first_batch, stored

Settings = dict[str, Any]
LMAX = 2
"""Of the tiny models."""
WEIGHTS = {"crack": 3.0, "n2n": 0.5}


def terms(**settings: Any) -> dict[str, Any]:
    """Return both terms with these settings."""
    return {
        "crack": {"weight": WEIGHTS["crack"], **settings},
        "n2n": {"weight": WEIGHTS["n2n"], "distance": "squared_mean", **settings},
    }


def set_up(settings: Settings) -> Settings:
    """Return a run that trains nothing, with other widths, so that the projection acts."""
    settings["optim"]["max_epochs"] = 0
    settings["model"] = tiny.model(sphere_channels=4)
    return settings


def compared(trainer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges of a batch, the projected student's embeddings and the teacher's."""
    trainer.model.train()
    batch = first_batch(trainer)
    torch.manual_seed(3)
    with torch.no_grad():
        trainer._forward(batch)
        distiller = trainer.distiller
        teacher = distiller.teacher(batch).values["equivariant_embeddings"]
        student = compared_embeddings(distiller.student.embeddings, teacher, distiller.projection)
    return distiller.student.graph.edge_index, student, teacher


@pytest.mark.parametrize(("student_lmax", "lmax"), [(2, None), (2, 1), (1, None)])
def test_the_terms_are_the_plain_equations_of_each_degree(
    make_config: Callable[..., Settings], labelled: Path, student_lmax: int, lmax: int | None
) -> None:
    """Of all degrees that both have, or of the first ones; with the targets of a store."""
    chosen = {"features": "each"} if lmax is None else {"features": "each", "lmax": lmax}
    settings = set_up(make_config(trainer=EQV2, task=stored(labelled, terms(**chosen))))
    settings["model"]["backbone"]["lmax_list"] = [student_lmax]

    def both(trainer: Any) -> Any:
        loss, metrics, _ = losses_of_first_batch(trainer)
        return loss - float(trainer._task_loss), metrics, compared(trainer)

    distillation, metrics, (edges, student, teacher) = tiny.run(settings, both)
    expected = {}
    for degree, rows in enumerate(Degrees(lmax).rows(student.shape[1])):
        sides = student[:, rows].flatten(1), teacher[:, rows].flatten(1)
        expected[f"kd_crack_l{degree}"] = float(crack_loss(*sides, edges))
        expected[f"kd_n2n_l{degree}"] = float(squared_mean(*sides).mean())

    n_degrees = 1 + (student_lmax if lmax is None else lmax)
    assert len(expected) == 2 * n_degrees
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert {f"kd_masked_fraction_l{degree}" for degree in range(n_degrees)} <= set(metrics)
    assert not {"kd_crack", "kd_n2n", f"kd_crack_l{n_degrees}"} & set(metrics)

    total = sum(WEIGHTS[name.split("_")[1]] * value for name, value in expected.items())
    assert distillation == pytest.approx(total, rel=1e-4)


def test_the_first_degree_alone_trains_as_l0(
    make_config: Callable[..., Settings], labelled: Path
) -> None:
    """Bit for bit, the projection included."""
    settings = make_config(trainer=EQV2, model=tiny.model(sphere_channels=4))
    trained = []
    for features in ({"features": "l0"}, {"features": "each", "lmax": 0}):
        settings.update(task=stored(labelled, terms(**features)), timestamp_id=features["features"])
        trained.append(
            tiny.run(
                settings,
                lambda trainer: (
                    tiny.parameters(trainer),
                    dict(trainer.distiller.projection.state_dict()),
                ),
            )
        )
    assert all(equal(*both) for both in zip(*trained, strict=True))


def test_a_student_equal_to_its_teacher_has_no_distance(make_config, teacher: Path) -> None:
    """Of no degree, and CRACK no excess."""
    chosen = terms(features="each")
    chosen["crack"]["excess"] = True
    found = tiny.run(student_equal_to_teacher(make_config, teacher, terms=chosen), losses)
    for degree in range(LMAX + 1):
        assert found[f"kd_n2n_l{degree}"] < 1e-6
        assert abs(found[f"kd_crack_l{degree}_excess"]) < 1e-3


def test_a_store_of_the_first_degrees_is_enough(
    make_config: Callable[..., Settings],
    teacher: Path,
    labelled: Path,
    databases: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """Labelled with lmax=1 it has less than half the rows, and the very losses of the whole one."""
    name, folder = f"{tiny.teacher_name(teacher)} lmax=1", tmp_path / "first"
    dtypes = dict.fromkeys(("energy", "forces", "equivariant_embeddings"), "float32")
    label(read_structures(databases), name, folder, dtypes, progress=False)
    chosen = terms(features="each", lmax=1)
    settings = make_config(trainer=EQV2, task=stored(labelled, chosen))
    settings["optim"]["max_epochs"] = 0
    whole, metrics, _ = tiny.run(settings, losses_of_first_batch)
    settings.update(task=stored(folder, terms(features="each")), timestamp_id="first")
    found, of_first, (targets, _) = tiny.run(settings, losses_of_first_batch)
    assert targets.values["equivariant_embeddings"].shape[1] == 4
    assert found == whole
    assert {key for key in metrics if key.startswith("kd_")} <= set(of_first)


def test_all_degrees_in_half_precision_leave_crack_as_it_is(
    make_config: Callable[..., Settings],
    teacher: Path,
    labelled: Path,
    databases: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """CRACK reads l = 0, which the store keeps in float32; n2n moves by the rounding alone."""
    folder = tmp_path / "half"
    dtypes = dict.fromkeys(("energy", "forces", "node_embeddings"), "float32")
    dtypes["equivariant_embeddings"] = "float16"
    label(read_structures(databases), tiny.teacher_name(teacher), folder, dtypes, progress=False)
    chosen = {"crack": {"weight": 1.0}, "n2n": terms(features="all")["n2n"]}
    settings = set_up(make_config(trainer=EQV2, task=stored(labelled, chosen)))
    _, whole, _ = tiny.run(settings, losses_of_first_batch)
    settings.update(task=stored(folder, chosen), timestamp_id="half")
    _, half, _ = tiny.run(settings, losses_of_first_batch)
    assert half["kd_crack"] == whole["kd_crack"]
    assert half["kd_n2n"] == pytest.approx(whole["kd_n2n"], rel=1e-3)
    assert half["kd_n2n"] != whole["kd_n2n"]


def test_a_turned_structure_has_the_same_values(make_config, teacher: Path) -> None:
    """To the rounding of EquiformerV2's own grid, which is coarse in so small a model."""
    settings = set_up(make_config(trainer=EQV2, task=tiny.distill(teacher, terms(features="each"))))
    turn = torch.tensor(Rotation.random(random_state=1).as_matrix(), dtype=torch.float32)

    def both(trainer: Any) -> list[dict[str, float]]:
        trainer.model.eval()
        batch, found = first_batch(trainer), []
        for matrix in (torch.eye(3), turn):
            turned = copy.copy(batch)
            turned.pos, turned.cell = batch.pos @ matrix.T, batch.cell @ matrix.T
            torch.manual_seed(3)
            trainer._compute_loss(trainer._forward(turned), turned)
            metrics = trainer.distiller.take_metrics()
            names = [f"kd_{term}_l{degree}" for term in WEIGHTS for degree in range(LMAX + 1)]
            found.append({name: float(metrics[name]["metric"]) for name in names})
        return found

    as_it_is, turned = tiny.run(settings, both)
    assert turned == pytest.approx(as_it_is, rel=5e-3)
