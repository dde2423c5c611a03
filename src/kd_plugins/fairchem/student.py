"""How a student starts, and what it says of a batch in our names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import torch
from fairchem.core.models.base import HydraModel
from torch import Tensor, nn
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.loss import DistillationLoss
from kd_plugins.core.projection import Projection
from kd_plugins.fairchem.cached import StoredTargets
from kd_plugins.fairchem.convert import Capture, Units, at_least_float32, energy_and_forces
from kd_plugins.fairchem.filling import AnyTeacher
from kd_plugins.fairchem.settings import DistillSettings

EMBEDDINGS = ("node_embeddings", "equivariant_embeddings")


def start_from_teacher(student: HydraModel, teacher: HydraModel) -> None:
    """Copy every student tensor from the teacher's tensor of the same name.

    A shallower student gets the teacher's first blocks, its norm and its heads.

    Raises:
        ConfigError: if a tensor has no counterpart of its shape, or energies are scaled otherwise.
    """
    source = teacher.state_dict()
    unmatched = [
        f"{name}: student {tuple(tensor.shape)}, teacher {_shape(source.get(name))}"
        for name, tensor in student.state_dict().items()
        if name not in source or source[name].shape != tensor.shape
    ]
    if unmatched:
        raise ConfigError(
            f"student.initialize: teacher needs a student that differs from its teacher in "
            f"num_layers only; {len(unmatched)} tensors have no counterpart, first {unmatched[0]}"
        )
    for name in ("avg_num_nodes", "avg_degree"):
        ours, theirs = getattr(student.backbone, name), getattr(teacher.backbone, name)
        if ours != theirs:
            raise ConfigError(
                f"student.initialize: teacher needs the teacher's model.backbone.{name}: "
                f"{theirs}, got {ours}"
            )
    student.load_state_dict({name: source[name] for name in student.state_dict()})
    logging.info(f"student started from {len(student.state_dict())} tensors of its teacher")


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "none" if tensor is None else tuple(tensor.shape)


def freeze(student: nn.Module, patterns: Sequence[str]) -> int:
    """Stop training the parameters whose names match a shell-style pattern; return how many.

    Raises:
        ConfigError: if a pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(student.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(
                f"student.freeze: {pattern!r} matches no parameter; names look like "
                f"{next(iter(parameters))!r}"
            )
        for name in matching:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("student.freeze leaves no parameter to train")
    frozen = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    logging.info(f"student: {frozen} of {sum(p.numel() for p in parameters.values())} frozen")
    return frozen


def check_pair(
    student: Capture,
    teacher: AnyTeacher,
    settings: DistillSettings,
    outputs: Collection[str],
) -> None:
    """Refuse a pair of models that the chosen terms cannot compare.

    Args:
        student: hooks on the student.
        teacher: the teacher.
        settings: of the run.
        outputs: names of the outputs that fairchem trains.

    Raises:
        ConfigError: naming the term and what does not fit.
    """
    quantities = {term.quantity: term.name for term in settings.terms.loss().terms}
    widths = student.backbone.sphere_channels, teacher.width
    if (
        settings.projection == "none"
        and widths[0] != widths[1]
        and set(EMBEDDINGS) & set(quantities)
    ):
        raise ConfigError(
            f"projection: none needs equal widths; the student has {widths[0]} channels, "
            f"the teacher {widths[1]}; use projection: linear"
        )
    degrees = student.backbone.lmax_list[0], teacher.lmax
    if "equivariant_embeddings" in quantities and degrees[0] != degrees[1]:
        raise ConfigError(
            f"terms.{quantities['equivariant_embeddings']}.features: all needs equal lmax; the "
            f"student has {degrees[0]}, the teacher {degrees[1]}; use features: l0"
        )
    for name in ("energy", "forces"):
        if name in quantities and name not in outputs:
            raise ConfigError(
                f"terms.{name} needs an output of that name; the YAML's outputs: {list(outputs)}"
            )
    _check_heads(student, "student", quantities)
    if not isinstance(teacher, StoredTargets):
        _check_heads(teacher.capture, "teacher", quantities)
    if "force_derivatives" in quantities and student.backbone.activation_checkpoint:
        raise ConfigError(
            f"terms.{quantities['force_derivatives']} cannot be trained with "
            "model.backbone.activation_checkpoint: true: EquiformerV2 keeps the edge rotations of "
            "its latest forward, and recomputed blocks would take those of a displaced structure"
        )


def _check_heads(capture: Capture, who: str, quantities: dict[str, str]) -> None:
    heads = list(capture.model.output_heads)
    if capture.energy_head is None and "atomic_energies" in quantities:
        raise ConfigError(
            f"terms.{quantities['atomic_energies']} needs an energy head that sums atomic energies "
            f"(equiformerV2_scalar_head); the {who}'s heads: {heads}"
        )
    forces = any(hasattr(head, "force_block") for head in capture.model.output_heads.values())
    needs_forces = [quantities[q] for q in ("forces", "force_derivatives") if q in quantities]
    if needs_forces and not forces:
        raise ConfigError(f"terms.{needs_forces[0]} needs a force head; the {who}'s heads: {heads}")


def needs_projection(loss: DistillationLoss) -> bool:
    """Return whether a term compares embeddings, with a weight or for the log."""
    return any(term.quantity in EMBEDDINGS for term in loss.terms)


def build_projection(student: Capture, teacher: AnyTeacher, seed: int) -> Projection:
    """Return the projection head, with one matrix for every degree that both models have.

    Where only l = 0 was cached it has those of the student, so that it starts as it would online.
    """
    lmax = student.backbone.lmax_list[0]
    return Projection(
        student_width=student.backbone.sphere_channels,
        teacher_width=teacher.width,
        lmax=lmax if teacher.lmax is None else min(lmax, teacher.lmax),
        seed=seed,
    )


def student_values(
    out: dict[str, Tensor], capture: Capture, units: Units, batch: Batch
) -> dict[str, Tensor]:
    """Return what the student says of a batch, in float32 and in the host's normalised units.

    Atomic energies are in eV divided by the energy normalizer's rmsd, references included.
    """
    values = {"equivariant_embeddings": capture.embeddings, **energy_and_forces(out)}
    if capture.node_energies is not None:
        energies = units.atomic_energies(capture.energy_shares(batch), batch)
        values["atomic_energies"] = energies / units.rmsd("energy")
    return {name: at_least_float32(value) for name, value in values.items()}


def replace_overflow(values: dict[str, Tensor]) -> bool:
    """Replace what overflowed in mixed precision by numbers, and say whether anything did.

    The loss is then made NaN, so that fairchem's scaler leaves the step out; meanwhile all ranks go
    through the same collective operations.
    """
    finite = all(bool(torch.isfinite(value).all()) for value in values.values())
    if not finite:
        values.update({name: torch.nan_to_num(value) for name, value in values.items()})
    return not finite


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
    if "atomic_energies" in values:
        values["atomic_energies"] = values["atomic_energies"] / units.rmsd("energy")
    if "force_derivatives" in values:
        values["force_derivatives"] = values["force_derivatives"] / units.rmsd("forces")
    return values
