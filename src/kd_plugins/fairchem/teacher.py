"""A frozen EquiformerV2 as the teacher of a training: it predicts the targets of each batch."""

from __future__ import annotations

import hashlib

import torch
from fairchem.core.models.base import GraphData, HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from torch import Tensor
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem.checkpointing import Checkpoint
from kd_plugins.fairchem.convert import (
    EmbeddingHooks,
    EnergyOffsets,
    Units,
    check_architecture,
    energy_and_forces,
    flatten_outputs,
    given_graph,
    stress_parts,
    structure_ids,
    widen_half_precision,
    with_graph,
)

GRAPH_SETTINGS = (
    *("cutoff", "max_neighbors", "enforce_max_neighbors_strictly"),
    *("use_pbc", "use_pbc_single", "otf_graph"),
)
"""What decides which edges a backbone gives a structure."""


class FrozenEquiformerV2:
    """A teacher in memory that gives the targets of fairchem's batches.

    It is in evaluation mode for good, its parameters are frozen and its forward builds no graph.

    Args:
        checkpoint: as `read_checkpoint` returns it.
        device: of the student.

    Raises:
        ConfigError: if the model is no EquiformerV2 or its weights do not fit it.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model = _build(checkpoint).to(device)
        self.units = Units.from_checkpoint(checkpoint, device)
        self.hooks = EmbeddingHooks(self.model, "teacher")
        self.fingerprint = _fingerprint(self.model, self.units)
        self.energy_offsets: EnergyOffsets | None = None

    @property
    def backbone(self) -> EquiformerV2Backbone:
        """The model's backbone."""
        return self.hooks.backbone

    @property
    def width(self) -> int:
        """Channels of its embeddings."""
        return self.backbone.sphere_channels

    @property
    def lmax(self) -> int:
        """Highest degree of its embeddings."""
        return self.backbone.lmax_list[0]

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that it predicts, by its heads."""
        energies = ("energy", "atomic_energies") if self.hooks.energy_head is not None else ()
        forces = ("forces",) if self.hooks.has_force_head() else ()
        stress = ("stress",) if self.hooks.has_stress_head() else ()
        return (*energies, *forces, *stress, "node_embeddings", "equivariant_embeddings")

    @torch.no_grad()
    def __call__(self, batch: Batch, graph: GraphData | None = None) -> TeacherTargets:
        """Return the targets of a batch: energies, forces, stress, atomic energies, embeddings.

        Args:
            batch: of fairchem's data loader.
            graph: a neighbour graph to use; the teacher builds its own if left out.
        """
        out = self.forward(batch, graph)
        values = {
            name: self.units.physical(name, output, batch)
            for name, output in energy_and_forces(out).items()
        }
        parts = stress_parts(out)
        if parts is not None:
            values["stress"] = self.units.physical_stress(parts)
        if self.hooks.node_energies is not None:
            shares = self.hooks.energy_shares(batch)
            values["atomic_energies"] = self.units.atomic_energies(shares, batch)
        if self.energy_offsets is not None:
            shifted = self.energy_offsets.subtract(values, batch.atomic_numbers, batch.batch)
            values = {name: value.to(values[name].dtype) for name, value in shifted.items()}

        # Row 0 is l = 0: the invariant part, which CRACK compares.
        values["equivariant_embeddings"] = self.hooks.embeddings
        values["node_embeddings"] = self.hooks.embeddings[:, 0]

        values = {name: widen_half_precision(value.detach()) for name, value in values.items()}
        return TeacherTargets(_ids(batch), batch.natoms, values)

    @torch.no_grad()
    def forward(self, batch: Batch, graph: GraphData | None = None) -> dict[str, Tensor]:
        """Return the model's raw, normalised outputs."""
        if graph is None:
            return flatten_outputs(self.model(batch))
        with given_graph(self.backbone):
            return flatten_outputs(self.model(with_graph(batch, graph)))

    def shares_graph_with(self, student: EquiformerV2Backbone) -> bool:
        """Return whether both models would build the same neighbour graph."""
        return all(
            getattr(self.backbone, name) == getattr(student, name) for name in GRAPH_SETTINGS
        )


def _ids(batch: Batch) -> tuple[str, ...]:
    """Return the ids that the collater read on the CPU, or read them here."""
    # A batch that moves to a device makes lists of its tuples.
    return tuple(batch.kd_structure_ids) if "kd_structure_ids" in batch else structure_ids(batch)


def _build(checkpoint: Checkpoint) -> HydraModel:
    """Build the model without touching the random state that the student will start from."""
    with torch.random.fork_rng(devices=[]):
        try:
            model = check_architecture(HydraModel(**checkpoint.model), "teacher")
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"{checkpoint.path.name}: its model cannot be built: {error}"
            ) from error

    _load_weights(model, checkpoint)

    # no_grad alone is not enough: EquiformerV2's forward turns gradients on again, and its graph
    # would take six times the memory.
    return model.eval().requires_grad_(False)


def _load_weights(model: HydraModel, checkpoint: Checkpoint) -> None:
    try:
        model.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{checkpoint.path.name}: its weights do not fit the model in its config: {first}"
        ) from error

    if checkpoint.averages is not None:
        _load_averages(model, checkpoint)

    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ConfigError(f"{checkpoint.path.name}: its weights are not finite, first {name}")


def _load_averages(model: HydraModel, checkpoint: Checkpoint) -> None:
    """Copy fairchem's unnamed averages to the parameters that it had trained, in file order."""
    parameters = dict(model.named_parameters())
    trained = [
        parameters[name]
        for name in checkpoint.state
        if name in parameters and parameters[name].requires_grad
    ]

    shapes = [tuple(parameter.shape) for parameter in trained]
    if shapes != [tuple(average.shape) for average in checkpoint.averages]:
        raise ConfigError(
            f"{checkpoint.path.name}: its {len(checkpoint.averages)} averaged tensors do not fit "
            f"its {len(trained)} trained parameters (were parts of it frozen?); "
            "use task.distill.teacher.weights: raw"
        )
    with torch.no_grad():
        for parameter, average in zip(trained, checkpoint.averages, strict=True):
            parameter.copy_(average)


def _fingerprint(model: HydraModel, units: Units) -> str:
    """Return a hash of all parameters and units, the teacher's identity."""
    digest = hashlib.sha256()
    modules = {"model": model, **units.normalizers, **units.elementrefs}
    for module_name, module in modules.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(f"{module_name}.{name}".encode())
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy())
    return digest.hexdigest()
