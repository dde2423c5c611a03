"""hippynn models as a teacher: targets of a database's padded arrays, or of ASE structures."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress
from hippynn.graphs import (
    GraphModule,
    Predictor,
    find_relatives,
    find_unique_relative,
    physics,
    replace_node,
)
from hippynn.graphs.ensemble import get_graphs
from hippynn.graphs.gops import swap_pairfinders
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.inputs import CellNode, PositionsNode, SpeciesNode
from hippynn.graphs.nodes.misc import StrainInducer
from hippynn.graphs.nodes.pairs import DynamicPeriodicPairs, PairUncacher, PeriodicPairIndexer
from hippynn.graphs.nodes.tags import Encoder, Energies, PairIndexer
from numpy.typing import NDArray

from kd_plugins.core.quantities import quantity
from kd_plugins.hippynn.convert import ArrayNames, DataError, check_geometry, pad
from kd_plugins.hippynn.folder import STRUCTURE, load_model
from kd_plugins.numbers import check_whole, shown
from kd_plugins.teachers.calculator import weights_hash
from kd_plugins.teachers.ensemble import SPREAD
from kd_plugins.teachers.teacher import TeacherError, resolve_device

BATCH_SIZES = {"cpu": 16, "cuda": 64}
"""Structures of a batch by kind of device. On one CPU core, structures of 16 to 54 atoms take as
long in batches of 16 as in larger ones, and two thirds of the time that they take one by one."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_DEFAULT_NAMES = ArrayNames()


def resolve_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of that name.

    Raises:
        TeacherError: for another than ``float32`` and ``float64``, in which hippynn computes.
    """
    if dtype not in DTYPES:
        raise TeacherError(f"dtype: expected {' or '.join(DTYPES)}, got {shown(dtype)}")
    return DTYPES[dtype]


class HippynnTeacher:
    """One or several hippynn models that predict targets in batches, in eV and Å.

    The models are copies in evaluation mode, so those of the user never change. A model that was
    trained on cached pairs finds its pairs itself. Of several models the targets are their mean,
    and ``<name>_std`` is the sample standard deviation over them.

    Attributes:
        quantities: that `predict` gives; ``stress`` needs models with cells.
        species: atomic numbers that all models have.
        device: where they compute.
        batch_size: structures of a batch.

    Args:
        models: a ``GraphModule`` such as ``training_modules.model``, a folder that hippynn trained
            in, an energy node, or a list of these. Of a model with several energies, give the node.
        batch_size: structures of a batch; chosen for the device if left out.
        trust_pickle: let a folder's files run any code, which parts that are not hippynn's own
            need; for folders that you trust.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
        dtype: in which they compute, ``float32`` or ``float64``; that of each model if left out.

    Raises:
        DataError: for a model without atomic energies, with several energies, or a folder without
            one.
        TeacherError: for a device that this machine does not have, or another dtype.
    """

    def __init__(
        self,
        models: Any,
        batch_size: int | None = None,
        *,
        trust_pickle: bool = False,
        device: str = "auto",
        dtype: str | None = None,
    ) -> None:
        given = list(models) if isinstance(models, list | tuple) else [models]
        if not given:
            raise DataError("expected one hippynn model or more, got an empty list")

        self.device = resolve_device(device)
        if batch_size is None:
            batch_size = BATCH_SIZES.get(torch.device(self.device).type, BATCH_SIZES["cpu"])
        self.batch_size = check_whole("batch_size", batch_size, least=1)

        precision = None if dtype is None else resolve_dtype(dtype)
        self._models = [_Model(one, trust_pickle, self.device, precision) for one in given]
        self.species = frozenset.intersection(*(model.species for model in self._models))
        self.has_cells = all(model.has_cells for model in self._models)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of what `predict` gives."""
        found = ["energy", "energy_per_atom", "forces", "atomic_energies"]
        found += ["stress"] if self.has_cells else []
        # The table of quantities has no spread of energies per atom.
        spreads = [name + SPREAD for name in found if name != "energy_per_atom"]
        return (*found, *spreads) if len(self._models) > 1 else tuple(found)

    @property
    def fingerprint(self) -> str:
        """A hash of all weights, the same on every device."""
        return f"hippynn {' '.join(weights_hash(model.graph) for model in self._models)}"

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of hippynn, torch and numpy."""
        return {name: metadata.version(name) for name in ("hippynn", "numpy", "torch")}

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, NDArray[np.float64]]]:
        """Predict the targets of ASE structures; see `kd_plugins.teachers.Teacher`.

        Raises:
            DataError: for an element that a model does not have, or structures that are periodic
                where the models have no cells, or the other way round.
        """
        names = ArrayNames() if self.has_cells else ArrayNames(cell=None)
        needed = ["energy" if name == "energy_per_atom" else name for name in quantities]

        predicted = []
        for start in range(0, len(structures), self.batch_size):
            batch = structures[start : start + self.batch_size]
            _check_periodic(batch, self.has_cells)
            arrays = _to_arrays(batch, self.has_cells)
            found = self.predict_arrays(arrays, needed, names)
            predicted += [_unpad(found, row, atoms, quantities) for row, atoms in enumerate(batch)]
        return predicted

    def predict_arrays(
        self,
        arrays: Mapping[str, torch.Tensor],
        quantities: Sequence[str],
        names: ArrayNames = _DEFAULT_NAMES,
    ) -> dict[str, NDArray[np.float64]]:
        """Predict the targets of n structures that are laid out as in a hippynn database.

        Args:
            arrays: those of a split, (n, ...).
            quantities: some of ``atomic_energies`` (n, atoms), ``energy`` (n,), ``forces``
                (n, atoms, 3) and ``stress`` (n, 6), and of their spreads.
            names: of the arrays.

        Returns:
            Quantity name to values, padded as the arrays are. Of several models also each spread.

        Raises:
            DataError: for an element that a model does not have, which hippynn would take for
                padding, or an array that is missing.
        """
        check_geometry(arrays, names)
        self._check_species(arrays[names.species])

        means = list(dict.fromkeys(name.removesuffix(SPREAD) for name in quantities))
        members = [model.predict(arrays, means, names, self.batch_size) for model in self._models]
        if len(members) == 1:
            return members[0]

        predicted = {}
        for name in means:
            stacked = np.stack([member[name] for member in members])
            predicted[name] = stacked.mean(axis=0)
            predicted[name + SPREAD] = stacked.std(axis=0, ddof=1)
        return predicted

    def __call__(
        self,
        arrays: Mapping[str, torch.Tensor],
        quantities: Sequence[str],
        names: ArrayNames = _DEFAULT_NAMES,
    ) -> dict[str, NDArray[np.float64]]:
        """Return `predict_arrays`, the name of this method since version 0.2."""
        warnings.warn(
            "HippynnTeacher(...)(arrays) is now HippynnTeacher(...).predict_arrays(arrays)",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.predict_arrays(arrays, quantities, names)

    def _check_species(self, species: torch.Tensor) -> None:
        unknown = sorted(set(species.unique().tolist()) - self.species - {0})
        if unknown:
            known = ", ".join(map(str, sorted(self.species)))
            raise DataError(
                f"the database has element {unknown[0]}, which the teacher does not know; it knows "
                f"{known}"
            )


class _Model:
    """A copy of one model on a device, and the predictors that were made of it."""

    def __init__(
        self, model: Any, trust_pickle: bool, device: str, dtype: torch.dtype | None
    ) -> None:
        self.graph = copy.deepcopy(_load(model, trust_pickle)).eval().to(device, dtype)
        self._is_node = hasattr(model, "main_output")
        self._predictors: dict[tuple[str, ...], tuple[Predictor, dict[str, Any]]] = {}

        nodes = _Nodes(self.graph, self._is_node)
        encoder: Any = find_unique_relative(nodes.energy, Encoder)
        self.species = frozenset(encoder.torch_module.species_set.tolist()) - {0}
        self.has_cells = nodes.cell is not None

    def predict(
        self,
        arrays: Mapping[str, torch.Tensor],
        quantities: Sequence[str],
        names: ArrayNames,
        batch_size: int,
    ) -> dict[str, NDArray[np.float64]]:
        """Predict the targets of n structures, padded as their arrays are."""
        wanted = tuple(quantities)
        if wanted not in self._predictors:
            # Forces and stress add nodes to a graph, so each predictor has a graph of its own.
            nodes = _Nodes(copy.deepcopy(self.graph), self._is_node)
            outputs = nodes.outputs(wanted)
            device = next(self.graph.parameters()).device
            predictor = Predictor(nodes.inputs, list(outputs.values()), model_device=device)
            self._predictors[wanted] = predictor, outputs
        predictor, outputs = self._predictors[wanted]

        values = predictor(batch_size=batch_size, **_inputs(predictor, arrays, names))
        found = {name: values[node.name].double().numpy() for name, node in outputs.items()}
        return {name: _drop_axes(name, value) for name, value in found.items()}


class _Nodes:
    """The nodes of one model's graph that a teacher needs; it rewires the graph."""

    def __init__(self, graph: GraphModule, is_node: bool) -> None:
        self.energy = graph.nodes_to_compute[0].parents[0] if is_node else energy_node(graph)
        if not hasattr(self.energy, "atom_energies"):
            raise DataError(
                f"energy node {self.energy.name!r} ({type(self.energy).__name__}) has no atomic "
                "energies; of an AtomizationEnergyNode, give its create_henergy_equivalent()"
            )

        # A model on cached pairs cannot find any. And finding pairs structure by structure takes a
        # fifth of the time of hippynn's default, which tries all images for all structures.
        finder = find_unique_relative(self.energy, PairIndexer)
        if isinstance(finder, PairUncacher | PeriodicPairIndexer):
            cutoff = {"dist_hard_max": finder.dist_hard_max}
            swap_pairfinders(self.energy, DynamicPeriodicPairs, module_kwargs=cutoff)

        self.positions = find_unique_relative(self.energy, PositionsNode)
        self.cell = _cell_node(self.energy)
        self.inputs = [find_unique_relative(self.energy, SpeciesNode), self.positions]
        self.inputs += [] if self.cell is None else [self.cell]
        for node, name in zip(self.inputs, _DEFAULT_NAMES.geometry, strict=False):
            node.set_dbname(name)

    def outputs(self, quantities: Sequence[str]) -> dict[str, Any]:
        """Return quantity name to the node that computes it."""
        if "stress" in quantities:
            forces, stress = self._add_stress()
        else:
            parents = (self.energy, self.positions)
            forces, stress = physics.GradientNode("teacher_forces", parents, sign=-1), None

        nodes = {
            "atomic_energies": self.energy.atom_energies,
            "energy": self.energy.main_output,
            "forces": forces,
            "stress": stress,
        }
        found = {name: nodes[name] for name in quantities}
        for name, node in found.items():
            node.set_dbname(name)
        return found

    def _add_stress(self) -> tuple[Any, Any]:
        """Return nodes of forces and stress; the model then sees strained positions and cells."""
        if self.cell is None:
            raise DataError("the teacher was trained without cells, so it has no stress")

        # As hippynn's ASE calculator does it: the stress is the energy's derivative by a strain
        # of 0, divided by the volume.
        inducer: Any = StrainInducer("teacher_strain", (self.positions, self.cell))
        parents = (self.energy, inducer.strain, self.positions, self.cell)
        derivatives: Any = physics.StressForceNode("teacher_derivatives", parents)
        replace_node(self.positions, inducer.strained_coordinates)
        replace_node(self.cell, inducer.strained_cell)
        return derivatives.forces, derivatives.stress


def _load(model: Any, trust_pickle: bool) -> GraphModule:
    """Return the graph of a model, of a node, or of a folder that hippynn trained in."""
    if isinstance(model, str | Path):
        return _from_folder(Path(model).expanduser(), trust_pickle)

    graphs = get_graphs([model])
    if not graphs:
        raise DataError(
            f"expected a hippynn GraphModule, a folder that hippynn trained in or an energy node, "
            f"got {type(model).__name__}"
        )
    return graphs[0]


def _from_folder(folder: Path, trust_pickle: bool) -> GraphModule:
    if not (folder / STRUCTURE).is_file():
        raise DataError(f"{folder} holds no hippynn model (no {STRUCTURE})")
    try:
        return load_model(folder, trust_pickle=trust_pickle, remedy="give trust_pickle=True")
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error


def energy_node(graph: GraphModule) -> Any:
    """Return the node of a model's energy.

    Raises:
        DataError: if there is none, or several.
    """
    try:
        found = find_relatives(graph.nodes_to_compute, lambda node: isinstance(node, Energies))
    except NodeNotFound as error:
        raise DataError("the model has no energy node, so it cannot teach energies") from error
    if len(found) > 1:
        names = ", ".join(sorted(node.name for node in found))
        raise DataError(f"the model has several energies ({names}); give the node of one")
    return next(iter(found))


def _cell_node(energy: Any) -> Any | None:
    try:
        return find_unique_relative(energy, CellNode)
    except NodeNotFound:
        return None


def _inputs(
    predictor: Predictor, arrays: Mapping[str, torch.Tensor], names: ArrayNames
) -> dict[str, torch.Tensor]:
    """Return the arrays that a model reads, by the names of its nodes and in its dtype."""
    array_of = {"numbers": names.species, "positions": names.positions, "cell": names.cell}
    wanted = {node.db_name: array_of[node.db_name] for node in predictor.inputs}
    if None in wanted.values():
        raise DataError("the teacher needs cells, but names=ArrayNames(cell=None) has none")
    if names.cell is not None and "cell" not in wanted:
        raise DataError(
            "the teacher was trained without cells, so that nothing is periodic for it, but the "
            f"database has cells ({names.cell!r}); if its structures are not periodic either, give "
            "names=ArrayNames(cell=None)"
        )

    dtype = next(p.dtype for p in predictor.graph.parameters() if p.is_floating_point())
    found = {node: arrays[array].detach().cpu() for node, array in wanted.items()}
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in found.items()}


def _drop_axes(name: str, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a node's values in our layout: hippynn has an axis of one number, and 3x3 stress."""
    if name == "stress":
        return full_3x3_to_voigt_6_stress(value)
    return value if name == "forces" else value[..., 0]


# ASE structures


def _check_periodic(structures: Sequence[Atoms], has_cells: bool) -> None:
    for atoms in structures:
        if not (atoms.pbc == has_cells).all():
            expected = "periodic along all three vectors" if has_cells else "not periodic"
            raise DataError(
                f"{atoms.get_chemical_formula()}: expected a structure that is {expected}, as "
                f"those that the teacher was trained on, got pbc {atoms.pbc.tolist()}"
            )


def _to_arrays(structures: Sequence[Atoms], has_cells: bool) -> dict[str, torch.Tensor]:
    size = max(len(atoms) for atoms in structures)
    arrays = {
        "numbers": pad([atoms.numbers for atoms in structures], size).astype(np.int64),
        "positions": pad([atoms.positions for atoms in structures], size),
    }
    if has_cells:
        arrays["cell"] = np.stack([atoms.cell.array for atoms in structures])
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def _unpad(
    predicted: Mapping[str, NDArray[np.float64]],
    row: int,
    atoms: Atoms,
    quantities: Sequence[str],
) -> dict[str, NDArray[np.float64]]:
    """Return the targets of one structure of a batch."""
    found = {}
    for name in quantities:
        if name == "energy_per_atom":
            found[name] = predicted["energy"][row] / len(atoms)
            continue
        value = predicted[name][row]
        found[name] = value[: len(atoms)] if quantity(name).scope == "atom" else value
    return found
