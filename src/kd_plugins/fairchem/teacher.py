"""A frozen EquiformerV2 as a teacher: in memory during a training, and for `kd-plugins label`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from fairchem.core.models.base import GraphData, HydraModel
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.preprocessing import AtomsToGraphs
from torch import Tensor
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError, read_config
from kd_plugins.core.quantities import quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem.checkpointing import Checkpoint, drawing_from, read_checkpoint
from kd_plugins.fairchem.convert import (
    EmbeddingHooks,
    Units,
    check_architecture,
    energy_and_forces,
    flatten_outputs,
    given_graph,
    structure_ids,
    widen_half_precision,
    with_graph,
)
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.teachers.teacher import TeacherError, resolve_device

GRAPH_SETTINGS = (
    *("cutoff", "max_neighbors", "enforce_max_neighbors_strictly"),
    *("use_pbc", "use_pbc_single", "otf_graph"),
)
"""What decides which edges a backbone gives a structure."""
BATCH_SIZES = {"cpu": 1, "cuda": 8}
"""Structures that are labelled at a time; see `EqV2Teacher.batch_size`."""


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
        if self.hooks.node_energies is not None:
            shares = self.hooks.energy_shares(batch)
            values["atomic_energies"] = self.units.atomic_energies(shares, batch)

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


class EqV2Teacher:
    """An EquiformerV2 that labels batches of structures, in eV and eV/Å.

    EquiformerV2 rolls the frame of every edge at random, and its outputs depend on the roll. Here
    the rolls of each structure are drawn from seed 0, so that a structure's targets are always the
    same, whatever else is in its batch.

    Args:
        model: the frozen model, which from now on draws its rolls so.
        device: of the model.
    """

    quantities = (
        *("energy", "energy_per_atom", "forces", "atomic_energies"),
        *("node_embeddings", "equivariant_embeddings"),
    )

    def __init__(self, model: FrozenEquiformerV2, device: torch.device) -> None:
        self.model = model
        self.device = str(device)
        self.name = "eqv2"
        self.fingerprint = f"EquiformerV2 {model.fingerprint}"
        self._to_graph = AtomsToGraphs(r_edges=False, r_pbc=True)

        # Structures come without edges, whatever the checkpoint's data set had.
        model.backbone.otf_graph = True
        model.backbone._init_edge_rot_mat = frames_by_structure

    @property
    def batch_size(self) -> int:
        """Structures of a batch that is fast on its device.

        One on a CPU: four layers of 64 channels take 0.46 s of one core for 45 atoms alone and
        0.65 s in batches of 4. Only a handful of atoms in a tiny model gain by batches there.
        """
        return BATCH_SIZES.get(torch.device(self.device).type, 1)

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of fairchem-core and torch."""
        return {name: metadata.version(name) for name in ("fairchem-core", "torch")}

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Return the targets of each structure, without a batch axis.

        Raises:
            TeacherError: if the model has no head for a quantity.
            ValueError: for a structure without any neighbours within the cutoff.
        """
        self._check_quantities(quantities)

        predicted: dict[int, dict[str, np.ndarray]] = {}
        for places in self._batches(structures):
            graphs = [self._to_graph.convert(structures[place]) for place in places]
            batch = Batch.from_data_list(graphs).to(self.device)

            with drawing_from(None, torch.device(self.device)):
                targets = self.model(batch).to("cpu")

            for place, alone in zip(places, targets.unbatch(), strict=True):
                predicted[place] = _without_batch_axis(alone, quantities)
        return [predicted[place] for place in range(len(structures))]

    def _check_quantities(self, quantities: Sequence[str]) -> None:
        held = self.model.quantities
        if "energy" in held:
            held = (*held, "energy_per_atom")

        missing = [name for name in quantities if name not in held]
        if missing:
            raise TeacherError(
                f"this EquiformerV2 gives no {missing[0]!r}; leave that out of the quantities"
            )

    def _batches(self, structures: Sequence[Atoms]) -> Iterator[list[int]]:
        """Yield the places of structures that can be computed together."""
        # fairchem refuses a batch of structures that are periodic in different directions.
        periodic: dict[tuple[bool, ...], list[int]] = {}
        for place, atoms in enumerate(structures):
            periodic.setdefault(tuple(map(bool, atoms.pbc)), []).append(place)

        for places in periodic.values():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]


def frames_by_structure(batch: Batch, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
    """Return the rotation of each edge's frame, drawn as if its structure were alone.

    It stands in the place of the backbone's own method, which draws for all edges of a batch.
    """
    # fairchem lists the edges structure by structure.
    owner = batch.batch[edge_index[1]]
    n_edges = torch.bincount(owner, minlength=len(batch.natoms)).tolist()
    if 0 in n_edges:
        raise ValueError(
            "no atom of the structure has a neighbour within the teacher's cutoff, which "
            "EquiformerV2 cannot compute; leave such structures out"
        )

    frames = []
    for vectors in edge_vectors.split(n_edges):
        torch.manual_seed(0)
        frames.append(init_edge_rot_mat(vectors))
    return torch.cat(frames)


def _without_batch_axis(
    targets: TeacherTargets, quantities: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return some targets of a single structure as arrays."""
    values = dict(targets.values)
    if "energy" in values:
        values["energy_per_atom"] = values["energy"] / targets.n_items("atom")
    return {
        name: (values[name][0] if quantity(name).scope == "structure" else values[name]).numpy()
        for name in quantities
    }


def eqv2(
    checkpoint: str,
    weights: Literal["ema", "raw"] | None = None,
    trust_pickle: bool = False,
    device: str | None = None,
) -> EqV2Teacher:
    """Return the teacher ``eqv2``.

    Args:
        checkpoint: of fairchem.
        weights: ``ema`` or ``raw``, where the file holds both.
        trust_pickle: read a file that holds pickled code, which may do anything.
        device: such as ``cpu`` or ``cuda``; ``auto``, or left out, is a GPU where there is one.

    Raises:
        TeacherError: if the file is no EquiformerV2 checkpoint, or an argument is not valid.
    """
    where = torch.device(resolve_device(device or "auto"))
    given = {"checkpoint": checkpoint, "weights": weights, "trust_pickle": trust_pickle}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        settings = read_config(TeacherSettings, given, "teacher eqv2")
        return EqV2Teacher(FrozenEquiformerV2(read_checkpoint(settings), where), where)
    except (ConfigError, FileNotFoundError) as error:
        raise TeacherError(str(error).replace("task.distill.teacher.", "")) from error
