"""CHGNet as a teacher, alone and with dispersion, in batches and with node embeddings."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.mixing import SumCalculator
from chgnet.graph import CrystalGraph
from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator
from dftd3.ase import DFTD3
from torch import Tensor, nn

from kd_plugins.chgnet.convert import from_host, to_pymatgen
from kd_plugins.chgnet.run_folder import read_model
from kd_plugins.teachers.calculator import CalculatorTeacher
from kd_plugins.teachers.teacher import TeacherError, resolve_device

# On one CPU core, crystals of 48 and 72 atoms take 1.3 to 1.8 times as long in batches of 4 and 8
# as one by one, those of 16 atoms the same; only cells of two atoms gain. One by one, the numbers
# do not depend on the batch, to the bit. On an H200, cells of 37 atoms on average are predicted at
# 22 a second one by one, 97 in batches of 16 and 141 in batches of 96.
ON_CPU, ON_GPU = 1, 64
"""Structures of a batch."""


class EmbeddingCalculator(CHGNetCalculator):
    """CHGNet as an ASE calculator, with atomic energies and node embeddings among its results.

    The node embeddings (N, 64) are the input of the readout MLP, after the last convolution and its
    normalisation. A structure with an isolated atom or without a cell is outside CHGNet's domain
    and is refused.

    Args:
        model: whose readout comes before its pooling, as in all published weights.
        device: ``auto``, or a device of torch.

    Raises:
        TeacherError: if it pools before its readout, so that it has no atomic energies, or for a
            device that is not there.
    """

    def __init__(self, model: CHGNet, device: str = "auto") -> None:
        if not model.mlp_first:
            raise TeacherError("this CHGNet pools before its readout (mlp_first: false)")

        # Left alone, CHGNet would take Apple's MPS where there is one, which has no float64.
        super().__init__(model, use_device=resolve_device(device), on_isolated_atoms="error")
        self.implemented_properties = (*CHGNetCalculator.implemented_properties, "node_embeddings")

        # CHGNet returns no embeddings after its last normalisation, so they are taken on their way.
        self._node_embeddings: Tensor | None = None
        self.model.mlp.register_forward_pre_hook(self._keep_node_embeddings)

    def predict(self, structures: Sequence[Atoms]) -> list[dict[str, np.ndarray]]:
        """Predict all quantities of each structure, in one batch.

        Raises:
            ValueError: for a structure that is outside CHGNet's domain, before any is predicted.
        """
        graphs = [self._graph(atoms) for atoms in structures]
        if not graphs:
            return []

        found = self.model.predict_graph(
            [graph.to(self.device) for graph in graphs],
            task="efsm",
            return_site_energies=True,
            batch_size=len(graphs),
        )
        # CHGNet returns a mapping for one graph, and a list of them for several.
        predictions = [found] if isinstance(found, dict) else found

        sizes = [len(atoms) for atoms in structures]
        embeddings = self._node_embeddings.detach().cpu().split(sizes)
        self._node_embeddings = None
        results = []
        for prediction, of_atoms, size in zip(predictions, embeddings, sizes, strict=True):
            values = from_host({**prediction, "node_embeddings": of_atoms.numpy()}, size)
            # The total as CHGNet's own calculator computes it, to the bit: stores of version 0.1.0
            # hold such totals, and are continued.
            total = float(prediction["e"] * size)
            values["energy"] = np.asarray(total)
            values["energy_per_atom"] = np.asarray(total / size)
            results.append(values)
        return results

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        """Compute everything; see ASE."""
        Calculator.calculate(self, atoms, properties, system_changes or all_changes)
        (values,) = self.predict([self.atoms])

        energy = float(values["energy"])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": values["atomic_energies"],
            **{name: values[name] for name in ("forces", "stress", "magmoms", "node_embeddings")},
        }

    @property
    def receptive_field(self) -> float:
        """Å: the cutoff of its graphs times its convolutions."""
        return self.model.n_conv * float(self.model.graph_converter.atom_graph_cutoff)

    def as_teacher(self) -> CHGNetTeacher:
        """Return the teacher that predicts in batches with this calculator."""
        return CHGNetTeacher(self)

    def _graph(self, atoms: Atoms) -> CrystalGraph:
        return self.model.graph_converter(to_pymatgen(atoms))

    def _keep_node_embeddings(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._node_embeddings = inputs[0]


class CHGNetTeacher(CalculatorTeacher):
    """CHGNet as a teacher that predicts true batches, with another calculator's values or none.

    Args:
        calculator: an `EmbeddingCalculator`, or a ``SumCalculator`` of one and others, whose
            energies, forces and stress are added one structure after the other, on the CPU.
        batch_size: structures of a batch; by default what is fastest on the device of the model.

    Raises:
        TeacherError: if there is no `EmbeddingCalculator` first.
    """

    def __init__(self, calculator: Calculator, batch_size: int | None = None) -> None:
        super().__init__(calculator)
        self._chgnet, *others = getattr(getattr(calculator, "mixer", None), "calcs", [calculator])
        if not isinstance(self._chgnet, EmbeddingCalculator):
            raise TeacherError(f"expected an EmbeddingCalculator first, got {self._chgnet!r}")

        self._others = [CalculatorTeacher(other) for other in others]
        on_cpu = self._chgnet.device == "cpu"
        self.batch_size: int = batch_size or (ON_CPU if on_cpu else ON_GPU)

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of each structure, in batches of `batch_size`.

        The values of a structure differ between batches by float32's rounding, about 1e-5 of the
        largest. The stress of a structure that is not periodic is left out.

        Raises:
            ValueError: for a structure that is outside CHGNet's domain.
        """
        found: list[dict[str, np.ndarray]] = []
        for first in range(0, len(structures), self.batch_size):
            batch = structures[first : first + self.batch_size]
            predictions = self._chgnet.predict(batch)
            found += [
                self._select(atoms, values, quantities)
                for atoms, values in zip(batch, predictions, strict=True)
            ]
        return found

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Predict one structure, as in version 0.1.0."""
        (values,) = self.predict([atoms], quantities)
        return values

    def _select(
        self, atoms: Atoms, values: dict[str, np.ndarray], quantities: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Return the quantities that the structure can have, with the other calculators' added."""
        has_stress = atoms.pbc.all() and atoms.cell.rank == 3
        names = [name for name in quantities if name != "stress" or has_stress]

        chosen = {name: values[name] for name in names}
        for other in self._others:
            (added,) = other.predict([atoms], names)
            chosen = {name: np.asarray(value + added[name]) for name, value in chosen.items()}
        return chosen


def chgnet(
    model: str = "0.3.0", trust_pickle: bool = False, device: str = "auto"
) -> EmbeddingCalculator:
    """Return the teacher ``chgnet``: energy, forces, stress, magmoms, atomic energies, embeddings.

    It is an ASE calculator, of which `load_teacher` and `label` make a `CHGNetTeacher`.

    Args:
        model: name of pretrained weights (``0.3.0``, ``r2scan``), or path of a checkpoint.
        trust_pickle: read a checkpoint that holds pickled code, which may do anything.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        TeacherError: for a name that CHGNet does not know, a file that is no checkpoint, or a
            device that is not there.
    """
    return _make_calculator(model, trust_pickle, device)


def chgnet_d3(
    model: str = "0.3.0", trust_pickle: bool = False, device: str = "auto"
) -> SumCalculator:
    """Return the teacher ``chgnet+d3``: CHGNet and Grimme's D3 dispersion, an ASE calculator.

    D3 has Becke-Johnson damping with its parameters for PBE, on whose energies CHGNet was trained.
    Energy, forces and stress; an open stand-in for PFP on organic crystals. Dispersion is computed
    on the CPU, whatever the device: a tenth of CHGNet's own time there.

    Args:
        model: as for `chgnet`.
        trust_pickle: as for `chgnet`.
        device: of CHGNet, as for `chgnet`.
    """
    network = _make_calculator(model, trust_pickle, device)
    calculator = SumCalculator([network, DFTD3(method="PBE", damping="d3bj")])
    # An attribute, not a subclass: fingerprints, which stores hold, contain the class's name.
    calculator.as_teacher = partial(CHGNetTeacher, calculator)
    return calculator


def _make_calculator(model: str, trust_pickle: bool, device: str) -> EmbeddingCalculator:
    # CHGNet prints its size and its device, in between the labeller's progress bar.
    with redirect_stdout(io.StringIO()):
        path = Path(model).expanduser()
        made = _read_file(path, trust_pickle) if path.is_file() else _load_pretrained(model)
        return EmbeddingCalculator(made, device)


def _load_pretrained(name: str) -> CHGNet:
    try:
        return CHGNet.load(model_name=name, use_device="cpu", verbose=False)
    except ValueError as error:
        raise TeacherError(f"CHGNet has no weights {name!r}, nor is that a file") from error


def _read_file(path: Path, trust_pickle: bool) -> CHGNet:
    remedy = f"say so: chgnet model={path} trust_pickle=true"
    try:
        return read_model(path, trust_pickle=trust_pickle, remedy=remedy)
    except (OSError, ValueError) as error:
        raise TeacherError(str(error)) from error
