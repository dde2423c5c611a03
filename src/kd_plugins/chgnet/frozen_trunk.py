"""A frozen trunk: what the readout MLP needs of each structure, computed once and kept on disk."""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chgnet.graph import CrystalGraph
from chgnet.model import CHGNet
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.data import Dataset
from tqdm import tqdm

from kd_plugins.chgnet.convert import GPA
from kd_plugins.chgnet.data import DistillData, GraphSample, check_distill_data
from kd_plugins.chgnet.loss import WEIGHT
from kd_plugins.chgnet.run_folder import check_run_folder, write_whole
from kd_plugins.chgnet.student import HEAD, check_is_model, count_trainable
from kd_plugins.numbers import is_number, shown

CHUNK = 4
"""Rows of the Jacobian that are differentiated at once: more is hardly faster and takes memory."""

N_STRAINS = 6
"""Symmetric strains, the last rows of every Jacobian."""

_FORCES = ("f", "soft_f", f"{WEIGHT}f", f"{WEIGHT}soft_f")


class UnsuitableTrunk(ValueError):
    """A model whose trunk's features cannot be kept."""


@dataclass(frozen=True, eq=False)
class TrunkFeatures:
    """Node embeddings of one structure of n atoms, and their derivatives.

    Args:
        node_embeddings: (n, D) input of the readout MLP.
        jacobian: (R + 6, n * D) their derivatives: first along R Cartesian coordinates of atoms
            (1/Å), then along the six symmetric strains xx, yy, zz, yz, xz, xy.
        coordinates: (R,) which coordinates, 3 * atom + axis.
        atomic_numbers: (n,).
        volume: of the cell, () in Å³.
    """

    node_embeddings: Float[Tensor, "n D"]
    jacobian: Float[Tensor, "R6 nD"]
    coordinates: Int[Tensor, " R"]
    atomic_numbers: Int[Tensor, " n"]
    volume: Float[Tensor, ""]

    def __len__(self) -> int:
        return len(self.atomic_numbers)


class FrozenTrunk:
    """The part of a CHGNet before its readout MLP, for students of which only that MLP trains.

    With v the node embeddings, E the sum of the MLP's outputs and g = dE/dv, the chain rule gives
    forces F = -J g and stress S = J_s g / V. The Jacobians J = dv/dr and J_s = dv/dstrain do not
    change while the trunk is frozen. So they are computed once, and a training step needs only the
    MLP: exact, and hundreds of times faster.

    Args:
        model: of which only the readout MLP trains. It is moved to the CPU, where the features are;
            a step there takes a millisecond.

    Raises:
        ValueError: if anything else trains.
        UnsuitableTrunk: if the model pools before its MLP, or drops features at random.
    """

    def __init__(self, model: CHGNet) -> None:
        check_is_model(model)
        _check_suitable(model)
        self.model = model.cpu()

        # A copy, so that weights which the user unfreezes later do not change the features.
        self._frozen = copy.deepcopy(model).eval().requires_grad_(False)
        self._node_embeddings: Tensor | None = None
        self._frozen.mlp.register_forward_pre_hook(self._keep_node_embeddings)
        self.fingerprint = _hash_trunk(self._frozen)

    def embeddings(self, graph: CrystalGraph) -> Float[Tensor, "n D"]:
        """Return the node embeddings of one structure, without derivatives."""
        with torch.no_grad():
            return self._forward(graph)

    def features(
        self, graph: CrystalGraph, coordinates: Sequence[int] | None = None
    ) -> TrunkFeatures:
        """Compute the features of a structure.

        Args:
            graph: of the structure.
            coordinates: along which to differentiate, 3 * atom + axis; all if left out.
        """
        n_atoms = len(graph.atomic_number)
        along = list(range(3 * n_atoms)) if coordinates is None else list(coordinates)

        # CHGNet's graph holds fractional coordinates; here Cartesian shifts and a strain of the
        # lattice, both zero, enter them, so that autograd differentiates along these.
        lattice = graph.lattice.detach()
        shift = torch.zeros(n_atoms, 3, requires_grad=True)
        strain = torch.zeros(3, 3, requires_grad=True)
        moved = copy.copy(graph)
        moved.lattice = lattice + lattice @ strain
        moved.atom_frac_coord = graph.atom_frac_coord.detach() + shift @ torch.linalg.inv(lattice)
        embeddings = self._forward(moved)

        return TrunkFeatures(
            node_embeddings=embeddings.detach(),
            jacobian=_compute_jacobian(embeddings, shift, strain, along),
            coordinates=torch.tensor(along, dtype=torch.int64),
            atomic_numbers=graph.atomic_number.long(),
            # In double precision: single loses digits of the determinant of a long cell.
            volume=torch.linalg.det(lattice.double()).abs().float(),
        )

    def predict(self, features: Sequence[TrunkFeatures]) -> dict[str, Tensor]:
        """Return energy, forces and stress of the model as it is now, differentiable once.

        ``e`` (B,) in eV/atom, ``f`` (R1 + R2 + ...,) force components in eV/Å, one structure after
        another, ``s`` (B, 3, 3) in GPa.
        """
        embeddings = torch.cat([one.node_embeddings for one in features]).requires_grad_()
        atomic_energies = self.model.mlp(embeddings).squeeze(1)
        (gradients,) = torch.autograd.grad(atomic_energies.sum(), embeddings, create_graph=True)

        # dE/dr along the coordinates, then dE/dstrain, of one structure after another.
        jacobians = [one.jacobian for one in features]
        slopes = _RowProducts.apply(gradients, jacobians, [len(one) for one in features])
        ends = torch.tensor([len(jacobian) for jacobian in jacobians]).cumsum(0)
        of_strains = ends[:, None] + torch.arange(-N_STRAINS, 0)
        is_force = torch.ones(len(slopes), dtype=torch.bool)
        is_force[of_strains] = False

        scales = GPA / torch.stack([one.volume for one in features])
        return {
            "e": self._energies_per_atom(atomic_energies, features),
            "f": -slopes[is_force],
            "s": slopes[of_strains[:, _VOIGT]] * scales[:, None, None],
        }

    def _energies_per_atom(
        self, atomic_energies: Tensor, features: Sequence[TrunkFeatures]
    ) -> Tensor:
        """Return energies per atom (B,), element references included."""
        references = self.model.composition_model
        if references is not None:
            # Detached: they do not train here, as the trunk would not be frozen then.
            numbers = torch.cat([one.atomic_numbers for one in features])
            atomic_energies = atomic_energies + references.fc.weight.detach()[0, numbers - 1]

        n_atoms = torch.tensor([len(one) for one in features])
        structure_index = torch.repeat_interleave(n_atoms)
        return torch.zeros(len(n_atoms)).index_add(0, structure_index, atomic_energies) / n_atoms

    def _forward(self, graph: CrystalGraph) -> Tensor:
        self._frozen([graph], task="e")
        embeddings, self._node_embeddings = self._node_embeddings, None
        return embeddings

    def _keep_node_embeddings(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._node_embeddings = inputs[0]


_VOIGT = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Where the components of a symmetric (3, 3) stand among xx, yy, zz, yz, xz, xy."""


class _RowProducts(torch.autograd.Function):
    """Every structure's Jacobian times its own gradients, one after another.

    One node of the graph in the place of several a structure. The Jacobians are constants, so its
    backward pass is a product with each transpose.
    """

    @staticmethod
    def forward(ctx: Any, gradients: Tensor, jacobians: list[Tensor], n_atoms: list[int]) -> Tensor:
        ctx.jacobians, ctx.n_atoms, ctx.width = jacobians, n_atoms, gradients.shape[1]
        parts = gradients.detach().split(n_atoms)
        return torch.cat([j @ part.reshape(-1) for j, part in zip(jacobians, parts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        parts = slopes.split([len(jacobian) for jacobian in ctx.jacobians])
        rows = [part @ j for j, part in zip(ctx.jacobians, parts, strict=True)]
        return torch.cat([row.view(-1, ctx.width) for row in rows]), None, None


class CachedData(Dataset[tuple[TrunkFeatures, dict[str, Tensor]]]):
    """A `DistillData` whose structures are features of a frozen trunk, kept on disk.

    The files are mapped, not read into memory. Forces are compared along the coordinates that the
    cache has: a random share of each structure's, so that the mean over them is an unbiased
    estimate of the mean over all.

    Args:
        data: structures with their targets.
        trunk: of the student.
        folder: of the cache; it may hold those of other trunks and structures, too. What is missing
            is computed and written, a whole file at a time, so that a run that was killed resumes
            and several runs may fill one folder.
        force_share: of the force components, above 0; 1 is exact.
        seed: of the choice of components.
        progress: show a bar.

    Raises:
        ValueError: for a share that is not above 0 and at most 1.
        OSError: naming what cannot be written; features that are whole stay.
    """

    def __init__(
        self,
        data: DistillData,
        trunk: FrozenTrunk,
        folder: str | Path,
        *,
        force_share: float = 1.0,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        check_force_share(force_share)
        check_distill_data("data", data)
        if not isinstance(trunk, FrozenTrunk):
            raise ValueError(f"trunk: expected a FrozenTrunk, got {trunk!r}")

        self.data, self.trunk = data, trunk
        self.folder = check_run_folder(folder, "cache") / trunk.fingerprint
        self.force_share, self.seed = force_share, seed
        self.folder.mkdir(parents=True, exist_ok=True)

        bar = tqdm(data.samples, "features of the frozen trunk", unit="", disable=not progress)
        self.features = [self._read_or_compute(sample) for sample in bar]
        self.targets = [
            _keep_along(sample.targets, found.coordinates)
            for sample, found in zip(data.samples, self.features, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[TrunkFeatures, dict[str, Tensor]]:
        return self.features[index], dict(self.targets[index])

    def part(self, indices: Sequence[int]) -> CachedData:
        """Return some of the structures as a data set of their own."""
        made = object.__new__(CachedData)
        made.__dict__.update(self.__dict__)
        made.data = self.data.part(indices)
        made.features = [self.features[index] for index in indices]
        made.targets = [self.targets[index] for index in indices]
        return made

    @property
    def size(self) -> int:
        """Bytes of the features of all its structures."""
        return sum(one.jacobian.nbytes + one.node_embeddings.nbytes for one in self.features)

    def _read_or_compute(self, sample: GraphSample) -> TrunkFeatures:
        along = choose_coordinates(sample, self.force_share, self.seed)
        path = self.folder / _file_name(sample, along)

        # A file of another version of this package may have other rows.
        found = _read_features(path)
        if found is not None and len(found.jacobian) == len(along) + N_STRAINS:
            return found

        made = self.trunk.features(sample.graph, along)
        write_whole(path, save({name: value.contiguous() for name, value in vars(made).items()}))
        return made


def check_force_share(force_share: float) -> None:
    """Raise a ValueError for a share that is not above 0 and at most 1."""
    if not is_number(force_share) or not 0 < force_share <= 1:
        raise ValueError(f"force_share: expected above 0 and at most 1, got {shown(force_share)}")


def count_coordinates(sample: GraphSample, force_share: float) -> int:
    """Return along how many coordinates forces count; at least one."""
    return math.ceil(force_share * 3 * sample.n_atoms)


def choose_coordinates(sample: GraphSample, force_share: float, seed: int) -> list[int]:
    """Return the coordinates along which forces count, 3 * atom + axis, in order.

    The choice depends on the structure's id and the seed alone, so every run makes the same one.
    """
    n_all, n_chosen = 3 * sample.n_atoms, count_coordinates(sample, force_share)
    if n_chosen == n_all:
        return list(range(n_all))

    # Python's hash() of a text differs between processes.
    generator = np.random.default_rng([seed, zlib.crc32(sample.structure_id.encode())])
    return sorted(generator.choice(n_all, n_chosen, replace=False).tolist())


def is_cached(
    trunk: FrozenTrunk, folder: str | Path, sample: GraphSample, force_share: float, seed: int = 0
) -> bool:
    """Return whether a structure's features are on disk."""
    name = _file_name(sample, choose_coordinates(sample, force_share, seed))
    return (Path(folder) / trunk.fingerprint / name).is_file()


def _keep_along(targets: Mapping[str, Tensor], coordinates: Tensor) -> dict[str, Tensor]:
    """Return a sample's targets, with the forces (R,) along some coordinates only."""
    return {
        name: value.reshape(-1)[coordinates] if name in _FORCES else value
        for name, value in targets.items()
    }


def _read_features(path: Path) -> TrunkFeatures | None:
    """Return the features in a file, or None where there is none that is whole."""
    try:
        return TrunkFeatures(**load_file(path))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None


def _file_name(sample: GraphSample, along: Sequence[int]) -> str:
    """Return the name of a structure's file: a hash of all that decides its features."""
    graph = sample.graph
    digest = hashlib.sha256(np.asarray(along, dtype=np.int64).tobytes())
    for tensor in (graph.atomic_number, graph.atom_frac_coord, graph.lattice):
        digest.update(np.ascontiguousarray(tensor.detach().numpy()).tobytes())
    digest.update(f"{graph.atom_graph_cutoff} {graph.bond_graph_cutoff}".encode())

    # Only where it differs from a crystal, so that caches of earlier versions stay in use.
    periodic = sample.doctor_input.structure.pbc
    if not periodic.all():
        digest.update(periodic.tobytes())
    return f"{digest.hexdigest()[:32]}.safetensors"


def _compute_jacobian(
    embeddings: Tensor, shift: Tensor, strain: Tensor, along: Sequence[int]
) -> Tensor:
    """Return the derivatives of the embeddings (n, D) along coordinates and strains, (R + 6, n D).

    By double backward: the gradient of v . w with respect to the positions is linear in w, and its
    derivative with respect to w along a direction of the positions is the row J^T of that
    direction. That takes one backward pass a row, R + 6 in all, and not one for each of the n D
    embeddings.
    """
    direction = torch.zeros_like(embeddings, requires_grad=True)
    linear = torch.autograd.grad((embeddings * direction).sum(), (shift, strain), create_graph=True)

    rows = []
    for chunk in _directions(along, len(shift)).split(CHUNK):
        moves, strains = chunk.split([shift.numel(), 9], dim=1)
        outputs = (moves.reshape(-1, *shift.shape), strains.reshape(-1, 3, 3))
        (found,) = torch.autograd.grad(
            linear, direction, outputs, retain_graph=True, is_grads_batched=True
        )
        rows.append(found.flatten(1))
    return torch.cat(rows)


def _directions(along: Sequence[int], n_atoms: int) -> Tensor:
    """Return (R + 6, 3n + 9): each row's direction among shifts and strains."""
    directions = torch.zeros(len(along) + N_STRAINS, 3 * n_atoms + 9)
    directions[range(len(along)), list(along)] = 1.0

    # A symmetric strain moves both off-diagonal components by half.
    for row, (one, other) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        for place in (3 * one + other, 3 * other + one):
            directions[len(along) + row, 3 * n_atoms + place] += 0.5
    return directions


def _check_suitable(model: CHGNet) -> None:
    names = count_trainable(model).names
    others = [name for name in names if not name.startswith(HEAD)]
    if others or not names:
        what = f"{others[0]} trains as well" if others else "nothing trains"
        raise ValueError(
            f"a frozen trunk is for students of which only the readout MLP trains, but {what}; "
            "call freeze_except(model), or train with DistillTrainer"
        )

    if not (model.mlp_first and model.is_intensive):
        raise UnsuitableTrunk("a frozen trunk needs a CHGNet that pools atoms' energies to a mean")

    parts = list(model.modules())
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts)
    if drops or any(isinstance(part, nn.BatchNorm1d) for part in parts):
        raise UnsuitableTrunk("a frozen trunk needs a CHGNet without dropout and batch norms")


def _hash_trunk(model: CHGNet) -> str:
    """Return a hash of the weights and settings that decide the features."""
    digest = hashlib.sha256(repr(sorted(model.model_args.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        # Students of one trunk share features whatever their readout and references.
        if not name.startswith((*HEAD, "composition_model.")):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()[:32]
