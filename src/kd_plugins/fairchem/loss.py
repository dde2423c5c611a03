"""The distillation loss of a fairchem batch: student and teacher in one unit, terms and metrics."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.curvature import force_derivative, random_directions
from kd_plugins.core.distances import absolute_mean, cosine_similarity
from kd_plugins.core.projection import Projection
from kd_plugins.core.schedules import Constant
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.core.terms import DistillationLoss, LossInputs, LossReport, Term
from kd_plugins.fairchem.checkpointing import drawing_from, random_state
from kd_plugins.fairchem.convert import (
    EMBEDDINGS,
    EmbeddingHooks,
    Units,
    energy_and_forces,
    flatten_outputs,
    given_graph,
    naming_lone_atoms,
    stress_parts,
    widen_half_precision,
    with_graph,
)
from kd_plugins.fairchem.data import StoredTargets, TargetProvider
from kd_plugins.fairchem.settings import DistillSettings

Sums = dict[str, tuple[Tensor | float, Tensor | float]]
"""Name of a metric to the sum and the number of its items, still on the device."""
Metric = dict[str, Tensor]


class Distiller:
    """The distillation of one run: student, teacher, loss, projection and its optimizer.

    It computes the loss of a batch after the student's forward.

    Args:
        settings: of the run.
        loss: that the settings describe.
        student: hooks on the student.
        teacher: a model in memory, or a store of its targets.
        device: of the run.
        labels: that the batches hold; the teacher's errors from them are logged.
    """

    def __init__(
        self,
        settings: DistillSettings,
        loss: DistillationLoss,
        student: EmbeddingHooks,
        teacher: TargetProvider,
        device: torch.device,
        labels: Sequence[str] = (),
    ) -> None:
        self.settings, self.loss, self.device = settings, loss, device
        self.student, self.teacher = student, teacher
        self.labels = tuple(labels)

        self.is_stored = isinstance(teacher, StoredTargets)
        self.shares_graph = not self.is_stored and teacher.shares_graph_with(student.backbone)

        # Where a store holds l = 0 only, the projection has the student's degrees, so that it
        # starts with the numbers that it has beside a model.
        lmax = student.backbone.lmax_list[0]
        self.lmax = lmax if teacher.lmax is None else min(lmax, teacher.lmax)
        self.projection = self._build_projection()
        self.optimizer: torch.optim.Optimizer | None = None
        self._metrics: Sums = {}
        self._student_state: Tensor | None = None

    def _build_projection(self) -> nn.Module | None:
        compares_embeddings = any(term.quantity in EMBEDDINGS for term in self.loss.terms)
        if self.settings.projection == "none" or not compares_embeddings:
            return None

        # One matrix for every degree that both models have.
        projection = Projection(
            student_width=self.student.backbone.sphere_channels,
            teacher_width=self.teacher.width,
            lmax=self.lmax,
            seed=self.settings.seed,
        ).to(self.device)
        return DistributedDataParallel(projection) if distutils.initialized() else projection

    def known_elements(self) -> dict[str, int]:
        """Return how many elements each model knows, of those that are in memory."""
        models = {"student": self.student} | ({} if self.is_stored else {"teacher": self.teacher})
        return {role: model.backbone.max_num_elements for role, model in models.items()}

    def before_student(self) -> None:
        """Note the random state from which the student's forward draws its edges' rolls.

        The teacher draws from the same state, so that equal models give equal embeddings.
        """
        self.student.clear()
        self._student_state = random_state(self.device)

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
        self._metrics = schedule_metrics(self.loss.terms, step)
        terms = self.loss.active(step) if training else self.loss.terms
        if training and not terms:
            self.student.clear()
            return None

        values = student_values(out, self.student, units, batch)
        has_overflow = torch.is_autocast_enabled() and replace_overflow(values)
        edge_index = self.student.graph.edge_index

        # Mixed precision ends with the student's forward: differences of embeddings need float32.
        with torch.autocast(self.device.type, enabled=False):
            targets = self._targets(batch)
            labels = {name: batch[name] for name in self.labels if name in batch}
            self._metrics |= teacher_metrics(targets, labels, evaluated)

            if any(term.quantity == "force_derivatives" for term in terms):
                values, targets = self._with_derivatives(values, targets, batch, step)

            inputs = self._loss_inputs(values, targets, units, batch)
            inputs = dataclasses.replace(inputs, edge_index=edge_index, masks=masks)
            report = self.loss(inputs, step=step, terms=terms)
            self._metrics |= loss_metrics(report)
            self._metrics |= embedding_metrics(inputs, self._measured_embeddings())

        # The embeddings of a batch are large, and the next forward would hold both batches'.
        self.student.clear()
        if not self.is_stored:
            self.teacher.hooks.clear()

        return report.total * float("nan") if has_overflow else report.total

    def _targets(self, batch: Batch) -> TeacherTargets:
        if self.is_stored:
            return self.teacher(batch)

        # With equal cutoffs both models would build the same graph.
        graph = self.student.graph if self.shares_graph else None
        with (
            naming_lone_atoms(self.teacher.backbone, batch, "teacher"),
            drawing_from(self._student_state, self.device),
        ):
            return self.teacher(batch, graph)

    def _with_derivatives(
        self, values: dict[str, Tensor], targets: TeacherTargets, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], TeacherTargets]:
        """Add force derivatives: the student's in normalised units, the teacher's in eV/Å²."""
        settings, state = self.settings.terms.hessian, self._student_state
        probes = draw_directions(batch, settings.probes, self.settings.seed, step)

        # Edges stay those of the structure as it is: one that appears or vanishes within the step
        # would be a jump of the forces, and not their derivative.
        student_batch = with_graph(batch, self.student.graph)
        teacher_batch = with_graph(batch, self.teacher.hooks.graph)
        with given_graph(self.student.backbone):
            student = force_derivatives(
                self._student_forces, student_batch, probes, settings.step, state
            )
        with given_graph(self.teacher.backbone), torch.no_grad():
            teacher = force_derivatives(
                self._teacher_forces, teacher_batch, probes, settings.step, state
            )

        teacher = teacher * self.teacher.units.rmsd("forces")
        with_teacher = {**targets.values, "force_derivatives": teacher}
        return {**values, "force_derivatives": student}, targets.with_values(with_teacher)

    def _student_forces(self, batch: Batch) -> Tensor:
        return flatten_outputs(self.student.model(batch))["forces"]

    def _teacher_forces(self, batch: Batch) -> Tensor:
        return flatten_outputs(self.teacher.model(batch))["forces"]

    def _loss_inputs(
        self, values: dict[str, Tensor], targets: TeacherTargets, units: Units, batch: Batch
    ) -> LossInputs:
        """Return student and teacher in the student's normalised units and the teacher's width."""
        teacher = teacher_in_student_units(dict(targets.values), units, batch)
        teacher_rows = teacher.get("equivariant_embeddings")
        if teacher_rows is None and "node_embeddings" in teacher:
            teacher_rows = teacher["node_embeddings"][:, None]  # as if its only row were l = 0

        student = dict(values)
        student_rows = student.pop("equivariant_embeddings")
        if teacher_rows is not None:
            student_rows = compared_embeddings(student_rows, teacher_rows, self.projection)
            student["equivariant_embeddings"] = student_rows
            student["node_embeddings"] = student_rows[:, 0]

        if "equivariant_embeddings" in teacher:
            teacher["equivariant_embeddings"] = teacher_rows[:, : student_rows.shape[1]]
        return LossInputs(student, targets.with_values(teacher))

    def _measured_embeddings(self) -> tuple[str, ...]:
        """Return the embeddings that can be measured: not those that a store leaves out.

        Nor, between other widths, all degrees where the projection of one of them starts at random
        and no term trains it.
        """
        held = tuple(name for name in EMBEDDINGS if name in self.teacher.quantities)
        if self.student.backbone.sphere_channels == self.teacher.width:
            return held
        trains_all = any(
            term.quantity == "equivariant_embeddings"
            and (term.degrees is None or term.degrees.lmax in (None, self.lmax))
            for term in self.loss.terms
        )
        return held if trains_all else held[:1]

    def take_metrics(self, **more: Tensor) -> dict[str, Metric]:
        """Return what the last batch adds to the log, once, by one copy from the device.

        Args:
            more: name to a number on the device that is to be logged as well.
        """
        sums: Sums = {name: (value.detach(), 1.0) for name, value in more.items()}
        sums |= self._metrics
        self._metrics = {}
        return _on_host(sums)

    def load_optimizer(self, optim: Mapping[str, Any]) -> None:
        """Give the projection an AdamW, without weight decay.

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

    def step(self, learning_rate: float, scale: float | None, clip_grad_norm: float | None) -> None:
        """Step the projection as fairchem has just stepped the student, unless it overflowed.

        Args:
            learning_rate: of the student.
            scale: by which mixed precision had multiplied the loss; None in full precision, where
                nothing overflows and the host need not wait for the answer.
            clip_grad_norm: largest gradient norm, or None.
        """
        if self.optimizer is None:
            return

        parameters = [p for p in self.projection.parameters() if p.grad is not None]
        if scale is not None and not _unscale(parameters, scale):
            return

        if clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad_norm)

        # fairchem's schedule is of its own optimizer, so the rate is copied in each step.
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the teacher's identity, the projection's state."""
        parts = {"projection": self.projection, "optimizer": self.optimizer}
        states = {n: _unwrapped(part).state_dict() for n, part in parts.items() if part is not None}
        return {"teacher": self.teacher.fingerprint, **states}

    def load_state_dict(self, state: Mapping[str, Any] | None, checkpoint: Path) -> None:
        """Load that state; without one the projection starts afresh, with a warning."""
        if self.projection is None:
            return
        if state is None or "projection" not in state:
            logging.warning(
                f"no projection for this teacher lies beside {checkpoint.name}; it starts afresh "
                "(expected when the checkpoint comes from another kind of run)"
            )
            return

        _unwrapped(self.projection).load_state_dict(state["projection"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])


def _unscale(parameters: Sequence[nn.Parameter], scale: float) -> bool:
    """Divide the gradients by the scale of mixed precision; return whether all are finite."""
    for parameter in parameters:
        parameter.grad.div_(scale)
    finite = [torch.isfinite(parameter.grad).all() for parameter in parameters]
    return bool(torch.stack(finite).all()) if finite else True


def _unwrapped(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def check_pair(
    student: EmbeddingHooks,
    teacher: TargetProvider,
    terms: Sequence[Term],
    projection: str,
    outputs: Collection[str],
) -> None:
    """Refuse a pair of models that the chosen terms cannot compare.

    Args:
        student: hooks on the student.
        teacher: the teacher, or a store.
        terms: of the loss.
        projection: ``linear`` or ``none``.
        outputs: names of the outputs that fairchem trains.

    Raises:
        ConfigError: naming the term and what does not fit.
    """
    quantities = {term.quantity: term.name for term in terms}

    widths = student.backbone.sphere_channels, teacher.width
    if projection == "none" and widths[0] != widths[1] and set(EMBEDDINGS) & set(quantities):
        raise ConfigError(
            f"projection: none needs equal widths; the student has {widths[0]} channels, "
            f"the teacher {widths[1]}; use projection: linear"
        )

    for term in terms:
        if term.quantity == "equivariant_embeddings":
            _check_degrees(term, student.backbone.lmax_list[0], teacher.lmax)

    for name in ("energy", "forces", "stress"):
        if name in quantities and name not in outputs:
            raise ConfigError(
                f"terms.{name} needs an output of that name; the YAML's outputs: {list(outputs)}"
            )

    _check_heads(student, "student", quantities)
    if not isinstance(teacher, StoredTargets):
        _check_heads(teacher.hooks, "teacher", quantities)

    if "force_derivatives" in quantities and student.backbone.activation_checkpoint:
        raise ConfigError(
            f"terms.{quantities['force_derivatives']} cannot be trained with "
            "model.backbone.activation_checkpoint: true: EquiformerV2 keeps the edge rotations of "
            "its latest forward, and recomputed blocks would take those of a displaced structure"
        )


def _check_degrees(term: Term, student_lmax: int, teacher_lmax: int) -> None:
    lmaxs = f"the student has {student_lmax}, the teacher {teacher_lmax}"
    if term.degrees is None and student_lmax != teacher_lmax:
        raise ConfigError(
            f"terms.{term.name}.features: all needs equal lmax; {lmaxs}; use features: l0, or "
            "each for the degrees that both have"
        )

    highest = min(student_lmax, teacher_lmax)
    if term.degrees is not None and (term.degrees.lmax or 0) > highest:
        raise ConfigError(
            f"terms.{term.name}.lmax: expected at most {highest}, the highest degree that both "
            f"models have ({lmaxs}), got {term.degrees.lmax}"
        )


def _check_heads(hooks: EmbeddingHooks, role: str, quantities: Mapping[str, str]) -> None:
    heads = list(hooks.model.output_heads)
    if hooks.energy_head is None and "atomic_energies" in quantities:
        raise ConfigError(
            f"terms.{quantities['atomic_energies']} needs an energy head that sums atomic energies "
            f"(equiformerV2_scalar_head); the {role}'s heads: {heads}"
        )
    needs_forces = [quantities[q] for q in ("forces", "force_derivatives") if q in quantities]
    if needs_forces and not hooks.has_force_head():
        raise ConfigError(
            f"terms.{needs_forces[0]} needs a force head; the {role}'s heads: {heads}"
        )
    if "stress" in quantities and not hooks.has_stress_head():
        raise ConfigError(
            f"terms.{quantities['stress']} needs a stress head (rank2_symmetric_head); the "
            f"{role}'s heads: {heads}"
        )


def student_values(
    out: dict[str, Tensor], hooks: EmbeddingHooks, units: Units, batch: Batch
) -> dict[str, Tensor]:
    """Return the student's predictions in float32 and in the host's normalised units.

    Atomic energies are in eV divided by the energy normalizer's rmsd, references included.
    """
    values = {"equivariant_embeddings": hooks.embeddings, **energy_and_forces(out)}
    stress = stress_parts(out)
    if stress is not None:
        values["stress"] = stress
    if hooks.node_energies is not None:
        energies = units.atomic_energies(hooks.energy_shares(batch), batch)
        values["atomic_energies"] = energies / units.rmsd("energy")
    return {name: widen_half_precision(value) for name, value in values.items()}


def replace_overflow(values: dict[str, Tensor]) -> bool:
    """Replace what overflowed in mixed precision by numbers, and return whether anything did.

    The loss is then made NaN, so that fairchem's scaler leaves the step out; meanwhile all ranks go
    through the same collective operations.
    """
    finite = [torch.isfinite(value).all() for value in values.values()]
    is_finite = bool(torch.stack(finite).all())
    if not is_finite:
        values.update({name: torch.nan_to_num(value) for name, value in values.items()})
    return not is_finite


def compared_embeddings(
    embeddings: Tensor, teacher_embeddings: Tensor, projection: nn.Module | None
) -> Tensor:
    """Return the student's (N, M, D) embeddings as they are compared with the teacher's.

    Rows of degrees that one of the models lacks are dropped; they come last.
    """
    common = min(embeddings.shape[1], teacher_embeddings.shape[1])
    return embeddings[:, :common] if projection is None else projection(embeddings[:, :common])


def teacher_in_student_units(
    values: dict[str, Tensor], units: Units, batch: Batch
) -> dict[str, Tensor]:
    """Return teacher targets in eV and eV/Å as fairchem's loss would take labels."""
    values = dict(values)
    for name in ("energy", "forces"):
        if name in values:
            values[name] = units.normalised(name, values[name], batch)
    if "stress" in values:
        values["stress"] = units.normalised_stress(values["stress"])
    if "atomic_energies" in values:
        values["atomic_energies"] = values["atomic_energies"] / units.rmsd("energy")
    if "force_derivatives" in values:
        values["force_derivatives"] = values["force_derivatives"] / units.rmsd("forces")
    return values


def draw_directions(batch: Batch, probes: int, seed: int, step: int) -> Tensor:
    """Return (K, N, 3) directions, a pure function of seed, training step and rank."""
    # No state between steps: a resumed run draws what it would have drawn. Integers hash alike in
    # every process.
    key = hash((seed, step, distutils.get_rank())) % 2**63
    generator = torch.Generator().manual_seed(key)
    return torch.stack([random_directions(batch.natoms, generator) for _ in range(probes)])


def force_derivatives(
    forces: Callable[[Batch], Tensor],
    batch: Batch,
    directions: Tensor,
    step: float,
    state: Tensor | None,
) -> Tensor:
    """Return (N, K, 3) derivatives of a model's force output along K directions.

    By differences, as EquiformerV2 detaches its edge rotations: its gradient by positions is wrong.
    It draws a random roll for every edge, and a student in training drops attention at random: all
    evaluations start from one random state, and the state outside is left alone.

    Args:
        forces: function from a batch that carries its graph to the model's forces.
        batch: with the neighbour graph, which is kept for displaced atoms too.
        directions: (K, N, 3).
        step: displacement in Å.
        state: the random state; seed 0 if left out.
    """

    def displaced_forces(positions: Tensor) -> Tensor:
        moved = copy.copy(batch)
        moved.pos = positions
        with drawing_from(state, batch.pos.device):
            return widen_half_precision(forces(moved).reshape(-1, 3))

    return torch.stack(
        [force_derivative(displaced_forces, batch.pos, along, step) for along in directions], dim=1
    )


def loss_metrics(report: LossReport) -> Sums:
    """Return each term's unweighted sum and measures, and the share of relations masked."""
    metrics: Sums = {f"kd_{term.name}": (term.total, term.count) for term in report.terms}
    for term in report.terms:
        for name, total in term.measures.items():
            metrics[f"kd_{term.name}_{name}"] = (total, term.count)
        name, _, degree = term.name.partition("_l")
        if name == "crack":
            suffix = f"_l{degree}" if degree else ""
            metrics[f"kd_masked_fraction{suffix}"] = (term.masked, term.masked + term.count)
    return metrics


def schedule_metrics(terms: Collection[Term], step: int) -> Sums:
    """Return the weight at a step of each term whose weight changes with the step."""
    changing = [term for term in terms if not isinstance(term.weight, Constant)]
    return {f"kd_{term.name}_weight": (term.weight(step), 1.0) for term in changing}


@torch.no_grad()
def teacher_metrics(targets: TeacherTargets, labels: Mapping[str, Tensor], free: Tensor) -> Sums:
    """Return the teacher's absolute errors, in the units of fairchem's own metrics.

    Args:
        targets: the teacher's energies (B,) in eV and forces (N, 3) in eV/Å.
        labels: of the same shapes and units; NaN where there is none.
        free: (N,) atoms whose forces count.
    """
    metrics: Sums = {}
    for name in ("energy", "forces"):
        if name not in targets.values or name not in labels:
            continue
        # Total energies of -1000 eV leave float32 with errors of their own.
        target = targets.values[name].double()
        error = (target - labels[name].double().view_as(target)).abs()

        counts = ~error.isnan() & targets.mask(name).view(-1, *[1] * (error.ndim - 1))
        if name == "forces":
            counts = counts & free[:, None]
        # Masked, not indexed: the number of chosen rows would have to come to the host.
        metrics[f"teacher_{name}_mae"] = (error.masked_fill(~counts, 0.0).sum(), counts.sum())
    return metrics


@torch.no_grad()
def embedding_metrics(inputs: LossInputs, quantities: Collection[str]) -> Sums:
    """Return absolute error and cosine similarity of the embeddings, as in CRACK's tables.

    ``embedding_*`` are over all degrees l that both models have, ``embedding_*_l0`` over l = 0. The
    student's are taken as the terms see them, so after the projection where there is one.
    """
    metrics: Sums = {}
    for suffix, name in (("", "equivariant_embeddings"), ("_l0", "node_embeddings")):
        if name not in quantities:
            continue
        student, teacher = inputs.student[name], inputs.teacher.values[name]
        if student.shape != teacher.shape:
            continue  # other widths, and no projection between them

        for measure, function in (("mae", absolute_mean), ("cosine", cosine_similarity)):
            items = function(student.detach(), teacher)
            has_target = inputs.teacher.mask(name)
            total = items.masked_fill(~has_target, 0.0).sum()
            metrics[f"embedding_{measure}{suffix}"] = (total, has_target.sum())
    return metrics


def _on_host(sums: Sums) -> dict[str, Metric]:
    """Return metrics as fairchem's evaluator adds them up, copied from the device at once.

    They are tensors, with which fairchem divides: a batch without items has a mean of NaN.
    """
    numbers = [number for pair in sums.values() for number in pair]

    # One copy for all: each would make the host wait for the device.
    on_device = [number.detach().double() for number in numbers if isinstance(number, Tensor)]
    copied = iter(torch.stack(on_device).cpu() if on_device else ())

    on_host = iter(
        next(copied)
        if isinstance(number, Tensor)
        else torch.tensor(float(number), dtype=torch.float64)
        for number in numbers
    )

    metrics: dict[str, Metric] = {}
    for name in sums:
        total, count = next(on_host), next(on_host)
        metrics[name] = {"metric": total / count, "total": total, "numel": count}
    return metrics
