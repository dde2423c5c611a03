"""What the distillation adds to fairchem's training and validation logs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from kd_plugins.core.distances import absolute_mean, cosine_similarity
from kd_plugins.core.loss import LossInputs, LossReport, Term
from kd_plugins.core.schedules import Constant

Metric = dict[str, Any]


def loss_metrics(report: LossReport) -> dict[str, Metric]:
    """Return each term's unweighted mean and measures, and the share of relations masked."""
    metrics = {f"kd_{term.name}": _mean(term.total, term.count) for term in report.terms}
    for term in report.terms:
        for name, total in term.measures.items():
            metrics[f"kd_{term.name}_{name}"] = _mean(total, term.count)
    for term in report.terms:
        if term.name == "crack":
            masked = torch.tensor(float(term.masked))
            metrics["kd_masked_fraction"] = _mean(masked, term.masked + term.count)
    return metrics


def schedule_metrics(terms: Collection[Term], step: int) -> dict[str, Metric]:
    """Return the weight at a step of each term whose weight changes with the step."""
    changing = [term for term in terms if not isinstance(term.weight, Constant)]
    return {
        f"kd_{term.name}_weight": _mean(torch.tensor(term.weight(step)), 1) for term in changing
    }


@torch.no_grad()
def teacher_metrics(
    targets: Mapping[str, Tensor], labels: Mapping[str, Tensor], free: Tensor
) -> dict[str, Metric]:
    """Return the teacher's own mean absolute errors, in the units of fairchem's own metrics.

    Args:
        targets: the teacher's energies (B,) in eV and forces (N, 3) in eV/Å.
        labels: of the same shapes and units.
        free: (N,) atoms whose forces count.
    """
    metrics: dict[str, Metric] = {}
    for name in ("energy", "forces"):
        if name in targets and name in labels:
            error = (targets[name].double() - labels[name].double().view_as(targets[name])).abs()
            error = error[free] if name == "forces" else error
            metrics[f"teacher_{name}_mae"] = _mean(error.sum(), error.numel())
    return metrics


@torch.no_grad()
def embedding_metrics(sample: LossInputs, quantities: Collection[str]) -> dict[str, Metric]:
    """Return mean absolute error and cosine similarity of the embeddings, as in the paper's tables.

    ``embedding_*`` are over all degrees l that both models have, ``embedding_*_l0`` over l = 0. The
    student's are taken as the terms see them, so after the projection where there is one.
    """
    metrics: dict[str, Metric] = {}
    for suffix, name in (("", "equivariant_embeddings"), ("_l0", "node_embeddings")):
        if name not in quantities:
            continue
        student, teacher = sample.student[name], sample.teacher.values[name]
        if student.shape == teacher.shape:
            for measure, of in (("mae", absolute_mean), ("cosine", cosine_similarity)):
                items = of(student.detach(), teacher)
                metrics[f"embedding_{measure}{suffix}"] = _mean(items.sum(), len(items))
    return metrics


def _mean(total: Tensor, count: int) -> Metric:
    """Return what fairchem's evaluator adds up; tensors, so that an empty batch divides to NaN."""
    total = total.detach().double().cpu()
    numel = torch.tensor(float(count), dtype=torch.float64)
    return {"metric": total / numel, "total": total, "numel": numel}
