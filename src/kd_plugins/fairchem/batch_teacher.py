"""EquiformerV2 as a teacher for ``kd-plugins label``: structures in, targets in eV and eV/Å out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
from fairchem.core.preprocessing import AtomsToGraphs
from torch import Tensor
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError, read_config
from kd_plugins.core.quantities import quantity
from kd_plugins.core.targets import TeacherTargets
from kd_plugins.fairchem.checkpointing import drawing_from, read_checkpoint
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.fairchem.teacher import FrozenEquiformerV2
from kd_plugins.numbers import check_whole
from kd_plugins.teachers.teacher import TeacherError, resolve_device

BATCH_SIZES = {"cpu": 1, "cuda": 8}
"""Structures that are labelled at a time; see `EqV2Teacher.batch_size`."""


class EqV2Teacher:
    """An EquiformerV2 that labels batches of structures, in eV and eV/Å.

    EquiformerV2 rolls the frame of every edge at random, and its outputs depend on the roll. Here
    the rolls of each structure are drawn from seed 0, so that a structure's targets are always the
    same, whatever else is in its batch.

    Args:
        model: the frozen model, which from now on draws its rolls so.
        device: of the model.
        lmax: highest degree of the equivariant embeddings that are given; all if left out.

    Raises:
        TeacherError: if the model has no such degree.
    """

    quantities: tuple[str, ...] = (
        *("energy", "energy_per_atom", "forces", "atomic_energies"),
        *("node_embeddings", "equivariant_embeddings"),
    )

    def __init__(
        self, model: FrozenEquiformerV2, device: torch.device, lmax: int | None = None
    ) -> None:
        self.model = model
        self.device = str(device)
        self.name = "eqv2"
        self.fingerprint = f"EquiformerV2 {model.fingerprint}"
        if "stress" in model.quantities:
            self.quantities = (*self.quantities, "stress")

        self.lmax = model.lmax if lmax is None else lmax
        if lmax is not None:
            _check_lmax(lmax, model.lmax)
            self.fingerprint += f" lmax={lmax}"  # not the targets of a store with all degrees
        self.receptive_field = float(model.backbone.cutoff * model.backbone.num_layers)
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

            embeddings = targets.values["equivariant_embeddings"][:, : (self.lmax + 1) ** 2]
            targets = targets.with_values({**targets.values, "equivariant_embeddings": embeddings})
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


def _check_lmax(lmax: int, highest: int) -> None:
    try:
        check_whole("lmax", lmax, least=0)
    except ValueError as error:
        raise TeacherError(str(error)) from None
    if lmax > highest:
        raise TeacherError(
            f"lmax: expected at most {highest}, the highest degree of this model, got {lmax}"
        )


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
    lmax: int | None = None,
) -> EqV2Teacher:
    """Return the teacher ``eqv2``.

    Args:
        checkpoint: of fairchem.
        weights: ``ema`` or ``raw``, where the file holds both.
        trust_pickle: read a file that holds pickled code, which may do anything.
        device: such as ``cpu`` or ``cuda``; ``auto``, or left out, is a GPU where there is one.
        lmax: highest degree of the equivariant embeddings, for a store that takes less space.

    Raises:
        TeacherError: if the file is no EquiformerV2 checkpoint, or an argument is not valid.
    """
    where = torch.device(resolve_device(device or "auto"))
    given = {"checkpoint": checkpoint, "weights": weights, "trust_pickle": trust_pickle}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        settings = read_config(TeacherSettings, given, "teacher eqv2")
        return EqV2Teacher(FrozenEquiformerV2(read_checkpoint(settings), where), where, lmax)
    except (ConfigError, FileNotFoundError) as error:
        raise TeacherError(str(error).replace("task.distill.teacher.", "")) from error
