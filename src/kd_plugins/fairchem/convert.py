"""fairchem's batches and model outputs in our names, shapes and units, and back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fairchem.core.common.utils import cg_change_mat
from fairchem.core.models.base import GraphData, HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.heads import Rank2SymmetricTensorHead
from fairchem.core.modules.normalization.element_references import (
    LinearReferences,
    create_element_references,
)
from fairchem.core.modules.normalization.normalizer import Normalizer
from torch import Tensor, nn
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpointing import Checkpoint
from kd_plugins.store.structure import Structure

STRESS_PARTS = ("stress_isotropic", "stress_anisotropic")
"""fairchem's outputs where a model's head decomposes the stress: of degree l = 0 and l = 2."""
VOIGT = (0, 4, 8, 5, 2, 1)
"""Places of xx, yy, zz, yz, xz, xy among the nine numbers of a tensor."""
FROM_VOIGT = (0, 5, 4, 5, 1, 3, 4, 3, 2)
"""Places of the nine numbers of a symmetric tensor among those six."""
EMBEDDINGS = ("node_embeddings", "equivariant_embeddings")
"""Quantities that are node embeddings: of l = 0, and of all degrees l."""


@dataclass(frozen=True)
class Units:
    """The normalizers and element references between a model's outputs and eV and eV/Å.

    Args:
        normalizers: target name to fairchem's normalizer; a missing one changes nothing.
        elementrefs: target name to fairchem's per-element references.
    """

    normalizers: Mapping[str, Normalizer]
    elementrefs: Mapping[str, LinearReferences]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: torch.device) -> Units:
        """Return the units of a checkpoint's model."""
        normalizers = {
            name: _normalizer(state).to(device) for name, state in checkpoint.normalizers.items()
        }
        references = {
            name: create_element_references(state_dict=state).to(device)
            for name, state in checkpoint.elementrefs.items()
        }
        return cls(normalizers, references)

    def rmsd(self, target: str) -> Tensor | float:
        """Return the physical size of one normalised unit of a target.

        It stays a tensor, as a float would make the host wait for the device in every step.
        """
        return self.normalizers[target].rmsd if target in self.normalizers else 1.0

    def physical(self, target: str, normalised: Tensor, batch: Batch) -> Tensor:
        """Return a model's output in eV (energy, shape (B,)) or eV/Å (forces, (N, 3))."""
        if target in self.normalizers:
            normalised = self.normalizers[target].denorm(normalised)
        if target in self.elementrefs:
            normalised = self.elementrefs[target](normalised, batch, reshaped=False)
        return normalised

    def physical_stress(self, parts: Tensor) -> Tensor:
        """Return a model's stress, from its trace and the rest as `stress_parts` gives them.

        Args:
            parts: (B, 6), normalised.

        Returns:
            (B, 6) in eV/Å³, as ASE has it.
        """
        whole, trace, rest = self._of_stress()
        full = torch.cat([trace.denorm(parts[:, :1]), rest.denorm(parts[:, 1:])], dim=1)
        full = whole.denorm(full @ _parts_of_tensor(parts))
        return full[:, VOIGT]

    def normalised_stress(self, stress: Tensor) -> Tensor:
        """Return a stress (B, 6) in eV/Å³ as `stress_parts` of this model would be of it."""
        whole, trace, rest = self._of_stress()
        parts = whole.norm(stress[:, FROM_VOIGT]) @ _parts_of_tensor(stress).T
        return torch.cat([trace.norm(parts[:, :1]), rest.norm(parts[:, 1:])], dim=1)

    def _of_stress(self) -> tuple[Normalizer, ...]:
        """Return the normalizers of the stress as a whole, of its trace and of the rest.

        fairchem has the first, or the others where the stress is decomposed.
        """
        parts = [self.normalizers.get(name) for name in STRESS_PARTS]
        whole = self.normalizers.get("stress") if parts == [None, None] else None
        device = next((n.mean.device for n in self.normalizers.values()), None)
        nothing = Normalizer(torch.tensor(0.0, device=device), torch.tensor(1.0, device=device))
        return tuple(one if one is not None else nothing for one in (whole, *parts))

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
            batch: of these atoms.
        """
        energies = shares * self.rmsd("energy")

        # The normalizer's mean belongs to a structure, so each of its atoms gets an equal part.
        if "energy" in self.normalizers:
            energies = energies + self.normalizers["energy"].mean / batch.natoms[batch.batch]

        if "energy" in self.elementrefs:
            references = self.elementrefs["energy"].element_references
            energies = energies + references[batch.atomic_numbers.long()]
        return energies


@dataclass(frozen=True)
class EnergyOffsets:
    """What a teacher's energies have more than the labels, an atom of each element.

    Args:
        offsets: (Z,) in eV by atomic number, in float64; NaN where an element is not known.
    """

    offsets: Tensor

    @classmethod
    def of(cls, offsets: Mapping[int, float]) -> EnergyOffsets:
        """Return offsets that were fitted, by atomic number."""
        table = torch.full((max(offsets) + 1,), float("nan"), dtype=torch.float64)
        table[list(offsets)] = torch.tensor(list(offsets.values()), dtype=torch.float64)
        return cls(table)

    def subtract(
        self, values: Mapping[str, Tensor], atomic_numbers: Tensor, structure_index: Tensor
    ) -> dict[str, Tensor]:
        """Return a teacher's values, with all energies at the labels' zero.

        Args:
            values: quantity name to tensor; energies (B,) and atomic energies (N,) in eV.
            atomic_numbers: (N,).
            structure_index: (N,) to which structure an atom belongs.
        """
        # An element beyond the table is one that is not known, too.
        table = torch.nn.functional.pad(self.offsets, (0, 256), value=float("nan"))
        of_atoms = table.to(atomic_numbers.device)[atomic_numbers.long()]

        # In float64, since what is left can be small beside what is subtracted.
        shifted = dict(values)
        if "atomic_energies" in values:
            shifted["atomic_energies"] = values["atomic_energies"].double() - of_atoms
        if "energy" in values:
            energy = values["energy"].double()
            shifted["energy"] = energy.index_add(0, structure_index, of_atoms, alpha=-1)
        return shifted


class EmbeddingHooks:
    """Forward hooks that keep an EquiformerV2's node embeddings, graph and atomic energies.

    Args:
        model: a hydra model with an EquiformerV2 backbone.
        role: "teacher" or "student", for messages.

    Raises:
        ConfigError: if the model is of another architecture.
    """

    def __init__(self, model: nn.Module, role: str) -> None:
        self.model = check_architecture(model, role)
        self.backbone = self.model.backbone

        self.embeddings: Tensor | None = None
        self.graph: GraphData | None = None
        self.node_energies: Tensor | None = None

        # Hooks of submodules also run inside DistributedDataParallel, and add nothing to the
        # checkpoint; fairchem's HydraModel keeps the backbone's output to itself.
        self.backbone.register_forward_hook(self._keep_backbone_output)
        self.energy_head = find_energy_head(self.model)
        if self.energy_head is not None:
            self.energy_head.energy_block.register_forward_hook(self._keep_node_energies)

    def clear(self) -> None:
        """Drop the last batch's tensors, and with them their memory."""
        self.embeddings = self.graph = self.node_energies = None

    def energy_shares(self, batch: Batch) -> Tensor:
        """Return each atom's share of the model's normalised energy, (N,)."""
        if self.energy_head.reduce == "mean":
            return self.node_energies / batch.natoms[batch.batch]
        return self.node_energies / self.energy_head.avg_num_nodes

    def has_force_head(self) -> bool:
        """Return whether a head predicts forces directly."""
        return any(hasattr(head, "force_block") for head in self.model.output_heads.values())

    def has_stress_head(self) -> bool:
        """Return whether a head predicts the stress."""
        return any(
            isinstance(head, Rank2SymmetricTensorHead) and head.output_name == "stress"
            for head in self.model.output_heads.values()
        )

    def _keep_backbone_output(
        self, module: nn.Module, inputs: Any, output: Mapping[str, Any]
    ) -> None:
        self.embeddings = output["node_embedding"].embedding
        self.graph = output["graph"]

    def _keep_node_energies(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.node_energies = output.embedding[:, 0, 0]


def check_architecture(model: nn.Module, role: str) -> HydraModel:
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
        f"the {role} is a {found}; expected a hydra model with an EquiformerV2 backbone of one "
        "resolution (model.name: hydra, model.backbone.model: equiformer_v2_backbone)"
    )


def find_energy_head(model: HydraModel) -> nn.Module | None:
    """Return the head that sums atomic energies to the energy, or None."""
    for head in model.output_heads.values():
        if hasattr(head, "energy_block") and getattr(head, "output_name", "energy") == "energy":
            return head
    return None


def _normalizer(state: Mapping[str, Any]) -> Normalizer:
    """Return a normalizer from its state, of today (mean, rmsd) or of old (mean, std)."""
    rmsd = state["rmsd"] if "rmsd" in state else state["std"]
    return Normalizer(torch.as_tensor(state["mean"]).float(), torch.as_tensor(rmsd).float())


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


def stress_parts(out: Mapping[str, Tensor]) -> Tensor | None:
    """Return a model's normalised stress as its trace and the rest, (B, 6), or None.

    These are the numbers of degree l = 0 and l = 2, in an orthonormal basis, so that the length of
    a difference does not depend on the orientation of the axes, as it would in Voigt's notation.

    Args:
        out: of a model, decomposed as `STRESS_PARTS` or whole.
    """
    if all(name in out for name in STRESS_PARTS):
        trace, rest = (out[name] for name in STRESS_PARTS)
        return torch.cat([trace.reshape(-1, 1), rest.reshape(-1, 5)], dim=1)
    if "stress" in out:
        whole = out["stress"].reshape(-1, 9)
        return whole @ _parts_of_tensor(whole).T
    return None


def _parts_of_tensor(like: Tensor) -> Tensor:
    """Return the (6, 9) matrix from a tensor's nine numbers to degrees l = 0 and 2.

    fairchem's rows for l = 1 are left out: a stress is symmetric.
    """
    every = cg_change_mat(2, like.device).to(like.dtype)
    return torch.cat([every[:1], every[4:]])


def widen_half_precision(value: Tensor) -> Tensor:
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


def structures(batch: Batch) -> list[Structure]:
    """Return elements, positions, cell and periodicity of each structure of a batch."""
    ends = batch.natoms.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    numbers, positions = batch.atomic_numbers.long().cpu().numpy(), batch.pos.cpu().numpy()
    cells = batch.cell.reshape(-1, 3, 3).cpu().numpy()

    # Data sets of before fairchem stored `pbc` are periodic in all directions.
    periodic = np.ones(cells.shape[:2], dtype=bool)
    if "pbc" in batch:
        periodic = batch.pbc.reshape(-1, 3).bool().cpu().numpy()

    return [
        Structure(numbers[start:end], positions[start:end], cell, pbc)
        for start, end, cell, pbc in zip(starts, ends, cells, periodic, strict=True)
    ]


@contextmanager
def given_graph(backbone: EquiformerV2Backbone) -> Iterator[None]:
    """Make a backbone take the neighbour graph from the batch instead of building it."""
    before = backbone.otf_graph
    backbone.otf_graph = False
    try:
        yield
    finally:
        backbone.otf_graph = before


def with_graph(batch: Batch, graph: GraphData) -> Batch:
    """Return a shallow copy of a batch that carries a neighbour graph as fairchem stores it."""
    batch = copy.copy(batch)
    batch.edge_index = graph.edge_index
    batch.cell_offsets = graph.cell_offsets
    batch.neighbors = graph.neighbors
    return batch


def has_edges(backbone: EquiformerV2Backbone, batch: Batch) -> bool:
    """Return whether any atom of a batch has a neighbour within the backbone's cutoff."""
    return backbone.generate_graph(batch).edge_index.shape[1] > 0


@contextmanager
def naming_lone_atoms(backbone: EquiformerV2Backbone, batch: Batch, role: str) -> Iterator[None]:
    """Name the structures on which a model failed because no atom of the batch has a neighbour.

    EquiformerV2 takes the minimum over all edges, which a batch of lone atoms does not have.

    Args:
        backbone: of the model that is run inside.
        batch: that it gets.
        role: "teacher" or "student".

    Raises:
        ConfigError: naming the structures and the cutoff; any other error as it was.
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        with torch.no_grad():
            is_lone = not has_edges(backbone, batch)
        if not is_lone:
            raise
        raise ConfigError(
            f"no atom of a batch has a neighbour within the {role}'s {backbone.cutoff} Å "
            f"(structures {', '.join(structure_ids(batch))}), which EquiformerV2 cannot compute; "
            "leave such structures out, or take larger batches, in which others stand beside them"
        ) from error
