"""Two gloo ranks give the gradients of one process on the union of their batches."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch.distributed.elastic.utils.distributed import get_free_port

from kd_plugins.core.terms import DistillationLoss
from kd_plugins.fairchem.unlabelled import note_labelled

BATCHES = ([0, 1], [2, 3, 4])
"""Structures of each rank, uneven on purpose."""
TERMS = ("crack", "instance", "n2n", "atomic_energies", "energy", "forces")
LOCAL = ("crack_local", "instance_local")
"""Not as the YAML has them, but with each rank's own negatives only."""
EACH = ("crack_each", "n2n_each")
"""Nor these, but of each degree by itself."""
LABELS = "labels"
"""Not a term, but fairchem's own loss."""
ROUNDED = 1e-5
"""Relations are differences of near-parallel embeddings, which the union batch rounds otherwise."""


def collate(trainer: Any, indices: list[int]) -> Any:
    """Return a batch of chosen structures."""
    return trainer.collater([trainer.train_dataset[index] for index in indices])


def draw_as_in_the_union(trainer: Any, rank: int) -> None:
    """Bring the random state to where this rank's edges stand in the union of all batches."""
    torch.manual_seed(0)
    for indices in BATCHES[:rank]:
        with torch.no_grad():
            trainer._unwrapped_model(collate(trainer, indices))


def gradients(trainer: Any, indices: list[int], rank: int, term: Any) -> tuple[dict, int]:
    """Return the gradients of one term alone on one batch, and how many items counted."""
    batch = collate(trainer, indices)
    trainer.distiller.loss = DistillationLoss((term,))
    trainer.step = 1
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.distiller.zero_grad()
    draw_as_in_the_union(trainer, rank)
    trainer._compute_loss(trainer._forward(batch), batch).backward()
    modules = {"student": trainer.model, "projection": trainer.distiller.projection}
    found = {
        f"{who}.{name}": parameter.grad.clone()
        for who, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    metrics = trainer.distiller.take_metrics()
    name = f"kd_{term.name}" if term.degrees is None else f"kd_{term.name}_l0"
    return found, int(metrics[name]["numel"])


def all_gradients(trainer: Any, indices: list[int], rank: int) -> dict[str, Any]:
    """Return the gradients of every term, each alone."""
    chosen = trainer.settings.terms
    local = [
        replace(getattr(chosen, name.removesuffix("_local")), negatives="local").term(name)
        for name in LOCAL
    ]
    each = [
        replace(getattr(chosen, name.removesuffix("_each")), features="each").term(name)
        for name in EACH
    ]
    terms = (*chosen.loss().terms, *local, *each)
    found = {term.name: gradients(trainer, indices, rank, term) for term in terms}
    return {**found, LABELS: (label_gradients(trainer, indices, rank), 0)}


def label_gradients(trainer: Any, indices: list[int], rank: int) -> dict[str, torch.Tensor]:
    """Return the gradients of fairchem's loss where only the first rank has labels."""
    structures = [copy.copy(trainer.train_dataset[index]) for index in indices]
    for index, structure in zip(indices, structures, strict=True):
        structure.kd_labelled = index in BATCHES[0]
    batch = note_labelled(trainer.collater(structures))
    switched_off = trainer.loss_functions
    trainer.loss_functions = [(name, {**info, "coefficient": 1.0}) for name, info in switched_off]
    trainer.model.zero_grad()
    draw_as_in_the_union(trainer, rank)
    trainer._label_loss(trainer._forward(batch), batch).backward()
    trainer.loss_functions = switched_off
    return {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}


def rank_main(rank: int, port: int, settings: dict[str, Any], results: Path) -> None:
    """Run one of two ranks."""
    from kd_plugins.fairchem import compat

    compat.install()
    from tests.fairchem import tiny

    def keep(trainer: Any) -> None:
        found = all_gradients(trainer, BATCHES[rank], rank)
        if rank == 0:
            torch.save(found, results)

    tiny.run_rank(rank, port, settings, keep)


@pytest.fixture
def settings(make_config, teacher: Path) -> dict[str, Any]:
    """Every term, fairchem's own losses switched off, nothing trained."""
    from tests.fairchem import tiny

    terms = {name: dict(tiny.ALL_TERMS[name]) for name in TERMS}
    for name in ("crack", "instance"):
        terms[name]["negatives"] = "global"
    terms["instance"]["temperature"] = 1.0  # colder, float32 rounds these near-parallel embeddings
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher, terms)
    )
    settings["optim"]["max_epochs"] = 0
    settings["dataset"].pop("val")
    for function in settings["loss_functions"]:
        next(iter(function.values()))["coefficient"] = 0.0
    return settings


@pytest.mark.slow
def test_two_ranks_equal_one_process(settings: dict[str, Any], tmp_path: Path) -> None:
    """Counts are global, and so are negatives where the YAML sets `negatives: global`.

    The reference is the union batch. Where negatives are each rank's own, it adds up the two
    batches' sums and divides by the joint count.
    """
    from tests.fairchem import tiny

    results = tmp_path / "gradients.pt"
    both = {**settings, "world_size": 2, "timestamp_id": "two"}
    mp.spawn(rank_main, (get_free_port(), both, results), nprocs=2)
    two = torch.load(results, weights_only=True)
    *parts, whole = tiny.run(settings, one_process)
    references = {name: whole[name][0] for name in (*TERMS, *EACH)}
    references[LABELS] = whole[LABELS][0]
    references |= {name: union(*(part[name] for part in parts)) for name in LOCAL}
    for name, reference in references.items():
        assert two[name][0].keys() == reference.keys()
        limit = ROUNDED if name in ("crack", "instance", "crack_each") else 1e-6
        assert relative_error(two[name][0], reference) < limit, name
    assert relative_error(references["crack"], references["crack_local"]) > 1e-3


def one_process(trainer: Any) -> list[dict[str, Any]]:
    """Return the gradients on each rank's batch, and those on the union of the batches."""
    parts = [all_gradients(trainer, indices, rank) for rank, indices in enumerate(BATCHES)]
    return [*parts, all_gradients(trainer, sum(BATCHES, []), 0)]


def relative_error(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Return the length of the difference of two gradients over the length of the second."""
    difference = torch.stack([(ours[name] - reference[name]).norm() for name in reference]).norm()
    return float(difference / torch.stack([value.norm() for value in reference.values()]).norm())


def union(one: tuple[dict, int], other: tuple[dict, int]) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean over two batches from those of the two means."""
    total = one[1] + other[1]
    return {name: (one[0][name] * one[1] + other[0][name] * other[1]) / total for name in one[0]}
