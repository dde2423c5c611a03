"""fairchem's batch and model outputs <-> our names, shapes and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fairchem.core.models.base import GraphData, HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.modules.normalization.element_references import (
    LinearReferences,
    create_element_references,
)
from fairchem.core.modules.normalization.normalizer import Normalizer
from torch import Tensor, nn
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpoint import Checkpoint


@dataclass(frozen=True)
class Units:
    """What turns a fairchem model's numbers into eV and eV/Å, and back.

    Args:
        normalizers: target name to fairchem's normalizer; a missing one changes nothing.
        elementrefs: target name to fairchem's per-element references.
    """

    normalizers: Mapping[str, Normalizer]
    elementrefs: Mapping[str, LinearReferences]

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device) -> Units:
        """Return the units in which a checkpoint's model speaks."""
        normalizers = {
            name: _normalizer(state).to(device) for name, state in checkpoint.normalizers.items()
        }
        references = {
            name: create_element_references(state_dict=state).to(device)
            for name, state in checkpoint.elementrefs.items()
        }
        return cls(normalizers, references)

    def rmsd(self, target: str) -> float:
        """Return the physical size of one normalised unit of a target."""
        return float(self.normalizers[target].rmsd) if target in self.normalizers else 1.0

    def physical(self, target: str, normalised: Tensor, batch: Batch) -> Tensor:
        """Return a model's output in eV (energy, shape (B,)) or eV/Å (forces, (N, 3))."""
        if target in self.normalizers:
            normalised = self.normalizers[target].denorm(normalised)
        if target in self.elementrefs:
            normalised = self.elementrefs[target](normalised, batch, reshaped=False)
        return normalised

    def normalised(self, target: str, physical: Tensor, batch: Batch) -> Tensor:
        """Return energy (B,) or forces (N, 3) as fairchem's loss compares them with labels."""
        if target in self.elementrefs:
            physical = self.elementrefs[target].dereference(physical, batch, reshaped=False)
        if target in self.normalizers:
            physical = self.normalizers[target].norm(physical)
        return physical

    def atomic_energies(self, shares: Tensor, batch: Batch) -> Tensor:
        """Return atomic energies (N,) in eV that sum to the total energy.

        Args:
            shares: each atom's share of the normalised energy, (N,).
            batch: whose atoms they are.
        """
        energies = shares * self.rmsd("energy")
        if "energy" in self.normalizers:
            energies = energies + self.normalizers["energy"].mean / batch.natoms[batch.batch]
        if "energy" in self.elementrefs:
            references = self.elementrefs["energy"].element_references
            energies = energies + references[batch.atomic_numbers.long()]
        return energies


class Capture:
    """Keeps what an EquiformerV2 computes on the way to its outputs, through forward hooks.

    Args:
        model: a hydra model with an EquiformerV2 backbone.
        who: "teacher" or "student", for messages.

    Raises:
        ConfigError: if the model is of another architecture.
    """

    def __init__(self, model: nn.Module, who: str) -> None:
        self.model = check_architecture(model, who)
        self.backbone = self.model.backbone
        self.embeddings: Tensor | None = None
        self.graph: GraphData | None = None
        self.node_energies: Tensor | None = None
        self.backbone.register_forward_hook(self._keep_backbone)
        self.energy_head = energy_head(self.model)
        if self.energy_head is not None:
            self.energy_head.energy_block.register_forward_hook(self._keep_node_energies)

    def clear(self) -> None:
        """Let go of the last batch's tensors."""
        self.embeddings = self.graph = self.node_energies = None

    def energy_shares(self, batch: Batch) -> Tensor:
        """Return each atom's share of the model's normalised energy, (N,)."""
        if self.energy_head.reduce == "mean":
            return self.node_energies / batch.natoms[batch.batch]
        return self.node_energies / self.energy_head.avg_num_nodes

    def _keep_backbone(self, module: nn.Module, inputs: Any, output: Mapping[str, Any]) -> None:
        self.embeddings = output["node_embedding"].embedding
        self.graph = output["graph"]

    def _keep_node_energies(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.node_energies = output.embedding[:, 0, 0]


def _normalizer(state: Mapping[str, Any]) -> Normalizer:
    """Return a normalizer from its state, of today (mean, rmsd) or of old (mean, std)."""
    rmsd = state["rmsd"] if "rmsd" in state else state["std"]
    return Normalizer(torch.as_tensor(state["mean"]).float(), torch.as_tensor(rmsd).float())


def check_architecture(model: nn.Module, who: str) -> HydraModel:
    """Return the model if it is a hydra EquiformerV2.

    Raises:
        ConfigError: if it is not, or has embeddings of several resolutions.
    """
    found = type(model).__name__
    if isinstance(model, HydraModel):
        found = f"hydra model with a {type(model.backbone).__name__}"
        if isinstance(model.backbone, EquiformerV2Backbone):
            if len(model.backbone.lmax_list) == 1:
                return model
            found += f" of {len(model.backbone.lmax_list)} resolutions"
    raise ConfigError(
        f"the {who} is a {found}; expected a hydra model with an EquiformerV2 backbone of one "
        "resolution (model.name: hydra, model.backbone.model: equiformer_v2_backbone)"
    )


def energy_head(model: HydraModel) -> nn.Module | None:
    """Return the head that sums atomic energies to the energy, or None."""
    for head in model.output_heads.values():
        if hasattr(head, "energy_block") and getattr(head, "output_name", "energy") == "energy":
            return head
    return None


def flatten_outputs(out: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return property name to tensor, whether the heads' outputs are nested or not."""
    flat: dict[str, Tensor] = {}
    for name, value in out.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat


def energy_and_forces(out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of energy (B,) and forces (N, 3) that a model gives, in these shapes."""
    shapes = {"energy": (-1,), "forces": (-1, 3)}
    return {name: out[name].reshape(shape) for name, shape in shapes.items() if name in out}


def at_least_float32(value: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, any other as it is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def structure_ids(batch: Batch) -> tuple[str, ...]:
    """Return ``sid/fid`` of each structure, the identity that fairchem's data sets give."""
    n_structures = len(batch.natoms)
    columns = [_column(batch, name, n_structures) for name in ("sid", "fid")]
    return tuple("/".join(row) for row in zip(*columns, strict=True))


def _column(batch: Batch, name: str, n_structures: int) -> list[str]:
    values = batch[name] if name in batch else [0] * n_structures
    values = values.flatten().tolist() if isinstance(values, Tensor) else list(values)
    return [str(value) for value in values]
