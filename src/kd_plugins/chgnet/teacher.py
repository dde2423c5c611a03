"""CHGNet as an ASE calculator that also tells its node embeddings, alone and with dispersion."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.mixing import SumCalculator
from chgnet.model import CHGNet
from chgnet.model.dynamics import CHGNetCalculator
from dftd3.ase import DFTD3
from torch import Tensor, nn

from kd_plugins.chgnet.run_folder import read_model
from kd_plugins.teachers.teacher import TeacherError


class EmbeddingCalculator(CHGNetCalculator):
    """CHGNet's own calculator with atomic energies and node embeddings among its results.

    The embeddings (N, 64) are what enters the readout MLP, so after the last convolution and its
    normalisation. A structure with an isolated atom or without a cell is outside CHGNet's domain
    and is refused.

    Args:
        model: whose readout comes before its pooling, as in all published weights.

    Raises:
        TeacherError: if its pooling comes first, so that it has no atomic energies.
    """

    def __init__(self, model: CHGNet) -> None:
        if not model.mlp_first:
            raise TeacherError("this CHGNet pools before its readout (mlp_first: false)")
        super().__init__(model, on_isolated_atoms="error", return_site_energies=True)
        self.implemented_properties = (*CHGNetCalculator.implemented_properties, "node_embeddings")
        self._node_embeddings: Tensor | None = None
        self.model.mlp.register_forward_pre_hook(self._keep)

    def calculate(self, atoms: Atoms, *args: Any, **kwargs: Any) -> None:
        """Compute everything; see ASE."""
        if atoms.cell.rank < 3:
            raise ValueError("CHGNet needs three lattice vectors; give a molecule a box")
        super().calculate(atoms, *args, **kwargs)
        self.results["energy"] = float(self.results["energy"])  # else dispersion is rounded off
        self.results["node_embeddings"] = self._node_embeddings.detach().cpu().numpy()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._node_embeddings = inputs[0]


def chgnet(model: str = "0.3.0", trust_pickle: bool = False) -> EmbeddingCalculator:
    """Return the teacher ``chgnet``: energy, forces, stress, magmoms, atomic energies, embeddings.

    Args:
        model: name of pretrained weights (``0.3.0``, ``r2scan``), or path of a checkpoint.
        trust_pickle: read a checkpoint that holds pickled code, which may do anything.

    Raises:
        TeacherError: for a name that CHGNet does not know, or a file that is no checkpoint.
    """
    with redirect_stdout(io.StringIO()):  # CHGNet says how large it is, over lines of progress
        path = Path(model).expanduser()
        made = _from_file(path, trust_pickle) if path.is_file() else _pretrained(model)
        return EmbeddingCalculator(made)


def _pretrained(name: str) -> CHGNet:
    try:
        return CHGNet.load(model_name=name, verbose=False)
    except ValueError as error:
        raise TeacherError(f"CHGNet has no weights {name!r}, nor is that a file") from error


def _from_file(path: Path, trust_pickle: bool) -> CHGNet:
    remedy = f"say so: chgnet model={path} trust_pickle=true"
    try:
        return read_model(path, trust_pickle=trust_pickle, remedy=remedy)
    except (OSError, ValueError) as error:
        raise TeacherError(str(error)) from error


def chgnet_d3(model: str = "0.3.0", trust_pickle: bool = False) -> SumCalculator:
    """Return the teacher ``chgnet+d3``: CHGNet and Grimme's D3 dispersion.

    D3 has Becke-Johnson damping with its parameters for PBE, on whose energies CHGNet was trained.
    Energy, forces and stress; an open stand-in for PFP on organic crystals.

    Args:
        model: as for `chgnet`.
        trust_pickle: as for `chgnet`.
    """
    return SumCalculator([chgnet(model, trust_pickle), DFTD3(method="PBE", damping="d3bj")])
