"""A frozen EquiformerV2 that says what a batch should look like."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fairchem.core.models.base import GraphData, HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from torch import Tensor
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem.checkpoint import Checkpoint
from kd_plugins.fairchem.convert import (
    Capture,
    Units,
    at_least_float32,
    check_architecture,
    energy_and_forces,
    flatten_outputs,
    structure_ids,
)

GRAPH_SETTINGS = (
    *("cutoff", "max_neighbors", "enforce_max_neighbors_strictly"),
    *("use_pbc", "use_pbc_single", "otf_graph"),
)


class Teacher:
    """A teacher: in evaluation mode for good, its parameters frozen, its forward without a graph.

    Args:
        checkpoint: what the file says.
        device: where the student lives.

    Raises:
        ConfigError: if the model is no EquiformerV2 or its weights do not fit it.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model = _build(checkpoint).to(device)
        self.units = Units.of(checkpoint, device)
        self.capture = Capture(self.model, "teacher")
        self.fingerprint = _fingerprint(self.model, self.units)

    @property
    def backbone(self) -> EquiformerV2Backbone:
        """The teacher's backbone."""
        return self.capture.backbone

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
        """What it gives of a batch, by its heads."""
        heads = self.model.output_heads.values()
        energies = ("energy", "atomic_energies") if self.capture.energy_head is not None else ()
        forces = ("forces",) if any(hasattr(head, "force_block") for head in heads) else ()
        return (*energies, *forces, "node_embeddings", "equivariant_embeddings")

    @torch.no_grad()
    def __call__(self, batch: Batch, graph: GraphData | None = None) -> TeacherTargets:
        """Return the targets of a batch: energies, forces, atomic energies and embeddings.

        Args:
            batch: of fairchem's data loader.
            graph: a neighbour graph to use; the teacher builds its own if left out.
        """
        out = self.forward(batch, graph)
        values = {
            name: self.units.physical(name, output, batch)
            for name, output in energy_and_forces(out).items()
        }
        if self.capture.node_energies is not None:
            shares = self.capture.energy_shares(batch)
            values["atomic_energies"] = self.units.atomic_energies(shares, batch)
        values["equivariant_embeddings"] = self.capture.embeddings
        values["node_embeddings"] = self.capture.embeddings[:, 0]
        values = {name: at_least_float32(value.detach()) for name, value in values.items()}
        return TeacherTargets(structure_ids(batch), batch.natoms, values)

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


@contextmanager
def given_graph(backbone: EquiformerV2Backbone) -> Iterator[None]:
    """Have a backbone take the neighbour graph from the batch instead of building it."""
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


def _build(checkpoint: Checkpoint) -> HydraModel:
    """Build the model without touching the random state that the student will start from."""
    name = checkpoint.path.name
    with torch.random.fork_rng(devices=[]):
        try:
            model = check_architecture(HydraModel(**checkpoint.model), "teacher")
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"{name}: its model cannot be built: {error}") from error
    _load_weights(model, checkpoint)
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
    """Give fairchem's unnamed averages to the parameters that it had trained, in file order."""
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
