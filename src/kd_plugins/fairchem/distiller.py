"""The distillation of one run: student, teacher, loss, projection and its optimizer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from kd_plugins.core.loss import LossInputs, LossReport, Term
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem import random_state
from kd_plugins.fairchem.cached import StoredTargets
from kd_plugins.fairchem.convert import Capture, Units, flatten_outputs
from kd_plugins.fairchem.filling import AnyTeacher
from kd_plugins.fairchem.hessian import draw_directions, force_derivatives
from kd_plugins.fairchem.metrics import (
    Metric,
    embedding_metrics,
    loss_metrics,
    schedule_metrics,
    teacher_metrics,
)
from kd_plugins.fairchem.settings import DistillSettings
from kd_plugins.fairchem.student import (
    EMBEDDINGS,
    build_projection,
    compared_embeddings,
    needs_projection,
    replace_overflow,
    student_values,
    teacher_in_student_units,
)
from kd_plugins.fairchem.teacher import given_graph, with_graph
from kd_plugins.fairchem.watching import naming_lone_atoms


class Distiller:
    """Computes the distillation loss of a batch after the student's forward.

    Args:
        settings: of the run.
        student: hooks on the student.
        teacher: the frozen teacher, its targets in a store, or both.
        device: of the run.
        labels: that the batches hold, of which the teacher's own errors are logged.
    """

    def __init__(
        self,
        settings: DistillSettings,
        student: Capture,
        teacher: AnyTeacher,
        device: torch.device,
        labels: Sequence[str] = (),
    ) -> None:
        self.labels = tuple(labels)
        self.settings, self.student, self.teacher, self.device = settings, student, teacher, device
        self.loss = settings.terms.loss()
        self.cached = isinstance(teacher, StoredTargets)
        self.shares_graph = not self.cached and teacher.shares_graph_with(student.backbone)
        self.projection = self._projection()
        self.optimizer: torch.optim.Optimizer | None = None
        self._metrics: dict[str, Metric] = {}
        self._student_drew_from: Tensor | None = None

    def _projection(self) -> nn.Module | None:
        if self.settings.projection == "none" or not needs_projection(self.loss):
            return None
        projection = build_projection(self.student, self.teacher, self.settings.seed)
        projection = projection.to(self.device)
        return DistributedDataParallel(projection) if distutils.initialized() else projection

    def known_elements(self) -> dict[str, int]:
        """Return how many elements each model knows, of those that are in memory."""
        models = {"student": self.student} | ({} if self.cached else {"teacher": self.teacher})
        return {who: model.backbone.max_num_elements for who, model in models.items()}

    def before_student(self) -> None:
        """Note the random state from which the student's forward draws its edges' rolls.

        The teacher draws from the same state, so that equal models give equal embeddings.
        """
        self.student.clear()
        self._student_drew_from = random_state.current(self.device)

    def __call__(
        self,
        out: dict[str, Tensor],
        batch: Batch,
        *,
        step: int,
        training: bool,
        units: Units,
        masks: Mapping[str, Tensor],
        evaluated: Tensor,
    ) -> Tensor | None:
        """Return the weighted loss of a batch, or None where training has nothing to add.

        Args:
            out: the student's normalised outputs.
            batch: of fairchem's data loader.
            step: at which the weights are taken.
            training: terms without a weight are left out; or validation, which logs all.
            units: of the student.
            masks: quantity name to the items that count.
            evaluated: (N,) atoms whose forces count in the log.
        """
        self._metrics = dict(schedule_metrics(self.loss.terms, step))
        terms = self.loss.active(step) if training else self.loss.terms
        if training and not terms:
            self.student.clear()
            return None
        values = student_values(out, self.student, units, batch)
        overflow = torch.is_autocast_enabled() and replace_overflow(values)
        edge_index = self.student.graph.edge_index
        with torch.autocast(self.device.type, enabled=False):
            targets = self._targets(batch)
            labels = {name: batch[name] for name in self.labels if name in batch}
            self._metrics |= teacher_metrics(targets.values, labels, evaluated)
            if any(term.quantity == "force_derivatives" for term in terms):
                values, targets = self._with_derivatives(values, targets, batch, step)
            sample = self._sample(values, targets, units, batch)
            sample = dataclasses.replace(sample, edge_index=edge_index, masks=masks)
            report = self._report(sample, step, terms)
        self.student.clear()
        if not self.cached:
            self.teacher.capture.clear()
        return report.total * float("nan") if overflow else report.total

    def _targets(self, batch: Batch) -> TeacherTargets:
        if self.cached:
            return self.teacher(batch)
        graph = self.student.graph if self.shares_graph else None
        with (
            naming_lone_atoms(self.teacher.backbone, batch, "teacher"),
            random_state.drawing_from(self._student_drew_from, self.device),
        ):
            return self.teacher(batch, graph)

    def _with_derivatives(
        self, values: dict[str, Tensor], targets: TeacherTargets, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], TeacherTargets]:
        """Add force derivatives: the student's in normalised units, the teacher's in eV/Å²."""
        settings, drew_from = self.settings.terms.hessian, self._student_drew_from
        probes = draw_directions(batch, settings.probes, self.settings.seed, step)
        ours, theirs = self.student.graph, self.teacher.capture.graph
        with given_graph(self.student.backbone):
            student = force_derivatives(
                self._student_forces, with_graph(batch, ours), probes, settings.step, drew_from
            )
        with given_graph(self.teacher.backbone), torch.no_grad():
            teacher = force_derivatives(
                self._teacher_forces, with_graph(batch, theirs), probes, settings.step, drew_from
            )
        teacher = teacher * self.teacher.units.rmsd("forces")
        both = {**targets.values, "force_derivatives": teacher}
        return {**values, "force_derivatives": student}, dataclasses.replace(targets, values=both)

    def _student_forces(self, batch: Batch) -> Tensor:
        return flatten_outputs(self.student.model(batch))["forces"]

    def _teacher_forces(self, batch: Batch) -> Tensor:
        return flatten_outputs(self.teacher.model(batch))["forces"]

    def _sample(
        self, values: dict[str, Tensor], targets: TeacherTargets, units: Units, batch: Batch
    ) -> LossInputs:
        """Return both sides in the student's normalised units and the teacher's width."""
        teacher = teacher_in_student_units(dict(targets.values), units, batch)
        theirs = teacher.get("equivariant_embeddings")
        if theirs is None and "node_embeddings" in teacher:
            theirs = teacher["node_embeddings"][:, None]
        student = dict(values)
        ours = student.pop("equivariant_embeddings")
        if theirs is not None:
            ours = compared_embeddings(ours, theirs, self.projection)
            student |= {"equivariant_embeddings": ours, "node_embeddings": ours[:, 0]}
        if "equivariant_embeddings" in teacher:
            teacher["equivariant_embeddings"] = theirs[:, : ours.shape[1]]
        return LossInputs(student, dataclasses.replace(targets, values=teacher))

    def _report(self, sample: LossInputs, step: int, terms: tuple[Term, ...]) -> LossReport:
        report = self.loss(sample, step=step, terms=terms)
        self._metrics |= {**loss_metrics(report), **embedding_metrics(sample, self._degrees())}
        return report

    def _degrees(self) -> tuple[str, ...]:
        """Return the embeddings that can be measured: not those that a store leaves out.

        Nor, between other widths, those whose projection starts at random and no term trains.
        """
        held = tuple(name for name in EMBEDDINGS if name in self.teacher.quantities)
        if self.student.backbone.sphere_channels == self.teacher.width:
            return held
        trained = {term.quantity for term in self.loss.terms}
        return held if "equivariant_embeddings" in trained else held[:1]

    def take_metrics(self) -> dict[str, Metric]:
        """Return what the last batch added to the log, once."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def load_optimizer(self, optim: Mapping[str, Any]) -> None:
        """Give the projection an AdamW of its own, without weight decay.

        Outside fairchem's, so that a plain trainer can resume a student without frozen parts.
        """
        if self.projection is not None:
            self.optimizer = torch.optim.AdamW(
                self.projection.parameters(), lr=optim["lr_initial"], weight_decay=0.0
            )

    def zero_grad(self) -> None:
        """Clear the projection's gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def step(self, learning_rate: float, scale: float, clip_grad_norm: float | None) -> None:
        """Step the projection as fairchem has just stepped the student, unless it overflowed.

        Args:
            learning_rate: that the student had.
            scale: by which mixed precision had multiplied the loss.
            clip_grad_norm: largest gradient norm, or None.
        """
        if self.optimizer is None:
            return
        parameters = [p for p in self.projection.parameters() if p.grad is not None]
        for parameter in parameters:
            parameter.grad.div_(scale)
        if not all(bool(torch.isfinite(parameter.grad).all()) for parameter in parameters):
            return
        if clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the teacher's identity, the projection's state."""
        parts = {"projection": self.projection, "optimizer": self.optimizer}
        states = {n: _unwrapped(part).state_dict() for n, part in parts.items() if part is not None}
        return {"teacher": self.teacher.fingerprint, **states}

    def load_state_dict(self, state: Mapping[str, Any] | None, checkpoint: Path) -> None:
        """Take up that state; without one the projection starts afresh, and says so."""
        if self.projection is None:
            return
        if state is None or "projection" not in state:
            expected = "(expected when the checkpoint comes from another kind of run)"
            what = f"no projection for this teacher lies beside {checkpoint.name}"
            logging.warning(f"{what}; it starts afresh {expected}")
            return
        _unwrapped(self.projection).load_state_dict(state["projection"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module
