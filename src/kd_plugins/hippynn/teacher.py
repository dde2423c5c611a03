"""A hippynn model, or several, as a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hippynn.graphs import GraphModule, Predictor, find_relatives, find_unique_relative, physics
from hippynn.graphs.ensemble import get_graphs, make_ensemble
from hippynn.graphs.gops import swap_pairfinders
from hippynn.graphs.nodes.base.node_functions import NodeNotFound
from hippynn.graphs.nodes.inputs import CellNode, PositionsNode, SpeciesNode
from hippynn.graphs.nodes.pairs import DynamicPeriodicPairs, PairUncacher, PeriodicPairIndexer
from hippynn.graphs.nodes.tags import Encoder, Energies, PairIndexer
from hippynn.tools import device_fallback
from numpy.typing import NDArray

from kd_plugins.hippynn.convert import ArrayNames, DataError, check_geometry
from kd_plugins.hippynn.folder import STRUCTURE, load_model
from kd_plugins.numbers import check_whole

QUANTITIES = ("atomic_energies", "energy", "forces")
SPREAD = "_std"
_SAME_NAMES = ArrayNames()


class HippynnTeacher:
    """What hippynn models say of a database's structures; ``species`` are those that all know.

    It works on a copy, in evaluation mode, whose weights never change. A model that was trained on
    cached pairs finds its pairs again. Several models make one teacher through hippynn's own
    ensemble: the mean of what they say, with its spread.

    Args:
        models: a ``GraphModule`` such as ``training_modules.model``, a folder that hippynn trained
            in, an energy node, or a list of these. Of a model with several energies, give the node.
        batch_size: structures at a time.
        trust_pickle: let a folder's files run any code, which parts that are not hippynn's own
            need; for folders that you trust.

    Raises:
        DataError: for a model without atomic energies, with several energies, or a folder without
            one.
    """

    def __init__(self, models: Any, batch_size: int = 32, *, trust_pickle: bool = False) -> None:
        given = list(models) if isinstance(models, list | tuple) else [models]
        if not given:
            raise DataError("expected one hippynn model or more, got an empty list")
        self.batch_size = check_whole("batch_size", batch_size, least=1)
        self._models = [
            (_load(model, trust_pickle), hasattr(model, "main_output")) for model in given
        ]
        self.species = frozenset.intersection(*(graph.species for graph in self._graphs()))
        self._predictors: dict[tuple[str, ...], tuple[Predictor, dict[str, Any]]] = {}

    def _graphs(self) -> list[_Graph]:
        return [_Graph(model, is_node) for model, is_node in self._models]

    def __call__(
        self,
        arrays: Mapping[str, torch.Tensor],
        quantities: Sequence[str],
        names: ArrayNames = _SAME_NAMES,
    ) -> dict[str, NDArray[np.float64]]:
        """Return quantity name to values of n structures, padded as their arrays are.

        Of several models, also ``<name>_std``, the sample standard deviation over them.

        Args:
            arrays: those of a split, (n, ...).
            quantities: some of ``atomic_energies`` (n, atoms), ``energy`` (n,) and ``forces``
                (n, atoms, 3).
            names: what the arrays are called.

        Raises:
            DataError: for an element that a model does not know, which hippynn would take for
                padding, or an array that is missing.
        """
        check_geometry(arrays, names)
        self._check_species(arrays[names.species])
        wanted = tuple(quantities)
        if wanted not in self._predictors:
            self._predictors[wanted] = self._predictor(wanted)
        predictor, outputs = self._predictors[wanted]
        given: dict[str, Any] = dict(_inputs(predictor, arrays, names))
        values = predictor(batch_size=self.batch_size, **given)
        found = {name: values[node.name].double().numpy() for name, node in outputs.items()}
        return {
            name: value[..., 0] if "forces" not in name else value for name, value in found.items()
        }

    def _check_species(self, species: torch.Tensor) -> None:
        unknown = sorted(set(species.unique().tolist()) - self.species - {0})
        if unknown:
            known = ", ".join(map(str, sorted(self.species)))
            raise DataError(
                f"the database has element {unknown[0]}, which the teacher does not know; it knows "
                f"{known}"
            )

    def _predictor(self, quantities: Sequence[str]) -> tuple[Predictor, dict[str, Any]]:
        graphs = self._graphs()
        nodes = [graph.nodes(quantities) for graph in graphs]
        if len(graphs) == 1:
            return _on_its_device(Predictor(graphs[0].inputs, list(nodes[0].values()))), nodes[0]
        members = [
            GraphModule(graph.inputs, list(one.values()))
            for graph, one in zip(graphs, nodes, strict=True)
        ]
        ensemble, _ = make_ensemble(members, quiet=True)
        parts = {node.name: node for node in ensemble.nodes_to_compute}
        outputs = {}
        for name in quantities:
            outputs[name] = parts[f"ensemble_{name}.mean"]
            outputs[name + SPREAD] = parts[f"ensemble_{name}.std"]
        return _on_its_device(Predictor(ensemble.input_nodes, list(outputs.values()))), outputs


class _Graph:
    """A copy of one model that says what the teacher needs, and that hippynn may rewire."""

    def __init__(self, model: GraphModule, is_node: bool) -> None:
        graph = copy.deepcopy(model).eval()
        self.energy = graph.nodes_to_compute[0].parents[0] if is_node else _energy(graph)
        if not hasattr(self.energy, "atom_energies"):
            raise DataError(
                f"energy node {self.energy.name!r} ({type(self.energy).__name__}) has no atomic "
                "energies; of an AtomizationEnergyNode, give its create_henergy_equivalent()"
            )
        finder = find_unique_relative(self.energy, PairIndexer)
        if isinstance(finder, PairUncacher | DynamicPeriodicPairs):  # which no ensemble takes
            cutoff = {"dist_hard_max": finder.dist_hard_max}
            swap_pairfinders(self.energy, PeriodicPairIndexer, module_kwargs=cutoff)
        encoder: Any = find_unique_relative(self.energy, Encoder)
        self.species = frozenset(encoder.torch_module.species_set.tolist()) - {0}
        self.positions = find_unique_relative(self.energy, PositionsNode)
        self.inputs = [find_unique_relative(self.energy, SpeciesNode), self.positions]
        self.inputs += _cells(self.energy)
        for node, name in zip(self.inputs, _SAME_NAMES.geometry, strict=False):
            node.set_dbname(name)

    def nodes(self, quantities: Sequence[str]) -> dict[str, Any]:
        makers = {
            "atomic_energies": lambda: self.energy.atom_energies,
            "energy": lambda: self.energy.main_output,
            "forces": lambda: physics.GradientNode(
                "teacher_forces", (self.energy, self.positions), sign=-1
            ),
        }
        found = {name: makers[name]() for name in quantities}
        for name, node in found.items():
            node.set_dbname(name)
        return found


def _load(model: Any, trust_pickle: bool) -> GraphModule:
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
        model = load_model(folder, trust_pickle=trust_pickle, remedy="give trust_pickle=True")
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error
    return model.to(device_fallback())


def _on_its_device(predictor: Predictor) -> Predictor:
    """Let it send a database's arrays to where the first of its weights is."""
    predictor.model_device = next(predictor.graph.parameters()).device
    return predictor


def _energy(graph: GraphModule) -> Any:
    try:
        found = find_relatives(graph.nodes_to_compute, lambda node: isinstance(node, Energies))
    except NodeNotFound as error:
        raise DataError("the model has no energy node, so it cannot teach energies") from error
    if len(found) > 1:
        names = ", ".join(sorted(node.name for node in found))
        raise DataError(f"the model has several energies ({names}); give the node of one")
    return next(iter(found))


def _cells(energy: Any) -> list[Any]:
    try:
        return list(find_relatives(energy, lambda node: isinstance(node, CellNode)))
    except NodeNotFound:
        return []


def _inputs(
    predictor: Predictor, arrays: Mapping[str, torch.Tensor], names: ArrayNames
) -> dict[str, torch.Tensor]:
    dtype = next(p.dtype for p in predictor.graph.parameters() if p.is_floating_point())
    own = {"numbers": names.species, "positions": names.positions, "cell": names.cell}
    wanted = {node.db_name: own[node.db_name] for node in predictor.inputs}
    if None in wanted.values():
        raise DataError("the teacher needs cells, but names=ArrayNames(cell=None) has none")
    if names.cell is not None and "cell" not in wanted:
        raise DataError(
            "the teacher was trained without cells, so that nothing is periodic for it, but the "
            f"database has cells ({names.cell!r}); if its structures are not periodic either, say "
            "names=ArrayNames(cell=None)"
        )
    found = {name: arrays[theirs].detach().cpu() for name, theirs in wanted.items()}
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in found.items()}
