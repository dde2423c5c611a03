"""A frozen trunk's features of each structure, and a data set of them on disk."""

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
from kd_plugins.chgnet.data import DistillData, GraphSample, check_kind
from kd_plugins.chgnet.run_folder import check_folder, write_whole
from kd_plugins.chgnet.student import HEAD, check_module, trainable
from kd_plugins.numbers import is_number, shown

CHUNK = 4
"""Rows of the Jacobian that are differentiated at once: more is hardly faster and takes memory."""


class UnsuitableTrunk(ValueError):
    """A model whose trunk's features cannot be kept."""


@dataclass(frozen=True, eq=False)
class Features:
    """What the trunk gives of one structure of n atoms.

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
    """The part of a CHGNet before its readout MLP, for students of whom only that MLP trains.

    With v the input of the MLP, E the sum of its outputs and g = dE/dv, forces are -J g and the
    stress is J_s g / V, where J and J_s, the derivatives of v along positions and strain, do not
    change while the trunk is frozen. So they are computed once, and training needs only the MLP:
    exact, and hundreds of times faster a step.

    Args:
        model: of which nothing but the readout MLP trains. It is moved to the CPU, where the
            features are; a step there takes a millisecond.

    Raises:
        ValueError: if anything else trains.
        UnsuitableTrunk: if the model pools before its MLP, or drops features at random.
    """

    def __init__(self, model: CHGNet) -> None:
        check_module(model)
        _check(model)
        self.model = model.cpu()
        self._frozen = copy.deepcopy(model).eval().requires_grad_(False)
        self._seen: Tensor | None = None
        self._frozen.mlp.register_forward_pre_hook(self._keep)
        self.fingerprint = _hash_of_trunk(self._frozen)

    def embeddings(self, graph: CrystalGraph) -> Float[Tensor, "n D"]:
        """Return the input of the readout MLP for one structure."""
        with torch.no_grad():
            self._frozen([graph], task="e")
        embeddings, self._seen = self._seen, None
        return embeddings

    def features(self, graph: CrystalGraph, coordinates: Sequence[int] | None = None) -> Features:
        """Compute the features of a structure.

        One backward pass a row, through the gradient of v . w with respect to positions, which is
        linear in w: its derivative along w is the row.

        Args:
            graph: of the structure.
            coordinates: for which to compute rows, 3 * atom + axis; all if left out.
        """
        n_atoms = len(graph.atomic_number)
        rows = list(range(3 * n_atoms)) if coordinates is None else list(coordinates)
        lattice = graph.lattice.detach()
        shift = torch.zeros(n_atoms, 3, requires_grad=True)
        strain = torch.zeros(3, 3, requires_grad=True)
        moved = copy.copy(graph)
        moved.lattice = lattice + lattice @ strain
        moved.atom_frac_coord = graph.atom_frac_coord.detach() + shift @ torch.linalg.inv(lattice)
        self._frozen([moved], task="e")
        embeddings, self._seen = self._seen, None
        return Features(
            node_embeddings=embeddings.detach(),
            jacobian=_jacobian(embeddings, shift, strain, rows),
            coordinates=torch.tensor(rows, dtype=torch.int64),
            atomic_numbers=graph.atomic_number.long(),
            volume=torch.linalg.det(lattice.double()).abs().float(),
        )

    def predict(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Return energy, forces and stress of the model as it is now, differentiable once.

        ``e`` (B,) in eV/atom, ``f`` (R1 + R2 + ...,) force components in eV/Å, one structure after
        another, ``s`` (B, 3, 3) in GPa.
        """
        embeddings = torch.cat([one.node_embeddings for one in features]).requires_grad_()
        shares = self.model.mlp(embeddings).squeeze(1)
        (gradients,) = torch.autograd.grad(shares.sum(), embeddings, create_graph=True)
        jacobians = [one.jacobian for one in features]
        slopes = _RowProducts.apply(gradients, jacobians, [len(one) for one in features])
        ends = torch.tensor([len(jacobian) for jacobian in jacobians]).cumsum(0)
        strains = ends[:, None] + torch.arange(-6, 0)
        along_atoms = torch.ones(len(slopes), dtype=torch.bool)
        along_atoms[strains] = False
        scales = GPA / torch.stack([one.volume for one in features])
        stresses = slopes[strains[:, _FULL]] * scales[:, None, None]
        return {
            "e": self._energies(shares, features),
            "f": -slopes[along_atoms],
            "s": stresses,
        }

    def _energies(self, shares: Tensor, features: Sequence[Features]) -> Tensor:
        """Return energies per atom, element references included."""
        references = self.model.composition_model
        if references is not None:
            numbers = torch.cat([one.atomic_numbers for one in features])
            shares = shares + references.fc.weight.detach()[0, numbers - 1]
        sizes = torch.tensor([len(one) for one in features])
        owners = torch.repeat_interleave(sizes)
        return torch.zeros(len(sizes)).index_add(0, owners, shares) / sizes

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]


_FULL = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Where the components of a symmetric (3, 3) stand among xx, yy, zz, yz, xz, xy."""


class _RowProducts(torch.autograd.Function):
    """Every structure's Jacobian times its own gradients, one after another."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor, jacobians: list[Tensor], sizes: list[int]) -> Tensor:
        ctx.jacobians, ctx.sizes, ctx.width = jacobians, sizes, gradients.shape[1]
        parts = gradients.detach().split(sizes)
        return torch.cat([j @ part.reshape(-1) for j, part in zip(jacobians, parts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        parts = slopes.split([len(jacobian) for jacobian in ctx.jacobians])
        rows = [part @ j for j, part in zip(ctx.jacobians, parts, strict=True)]
        return torch.cat([row.view(-1, ctx.width) for row in rows]), None, None


def _jacobian(embeddings: Tensor, shift: Tensor, strain: Tensor, rows: Sequence[int]) -> Tensor:
    direction = torch.zeros_like(embeddings, requires_grad=True)
    along = torch.autograd.grad((embeddings * direction).sum(), (shift, strain), create_graph=True)
    found = []
    for chunk in _directions(rows, len(shift)).split(CHUNK):
        moves, strains = chunk.split([shift.numel(), 9], dim=1)
        outputs = (moves.reshape(-1, *shift.shape), strains.reshape(-1, 3, 3))
        (made,) = torch.autograd.grad(
            along, direction, outputs, retain_graph=True, is_grads_batched=True
        )
        found.append(made.flatten(1))
    return torch.cat(found)


def _directions(rows: Sequence[int], n_atoms: int) -> Tensor:
    """Return (R + 6, 3n + 9): each row's direction among positions and strains."""
    directions = torch.zeros(len(rows) + 6, 3 * n_atoms + 9)
    directions[range(len(rows)), list(rows)] = 1.0
    for row, (one, other) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        for place in (3 * one + other, 3 * other + one):
            directions[len(rows) + row, 3 * n_atoms + place] += 0.5
    return directions


def _check(model: CHGNet) -> None:
    names = trainable(model).names
    others = [name for name in names if not name.startswith(HEAD)]
    if others or not names:
        what = f"{others[0]} trains as well" if others else "nothing trains"
        raise ValueError(
            f"a frozen trunk is for students of whom only the readout MLP trains, but {what}; "
            "call freeze_except(model), or train with DistillTrainer"
        )
    if not (model.mlp_first and model.is_intensive):
        raise UnsuitableTrunk("a frozen trunk needs a CHGNet that pools atoms' energies to a mean")
    parts = list(model.modules())
    drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts)
    if drops or any(isinstance(part, nn.BatchNorm1d) for part in parts):
        raise UnsuitableTrunk("a frozen trunk needs a CHGNet without dropout and batch norms")


def _hash_of_trunk(model: CHGNet) -> str:
    """Return a hash of the weights and settings that decide the features."""
    digest = hashlib.sha256(repr(sorted(model.model_args.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith((*HEAD, "composition_model.")):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()[:32]


_FORCES = ("f", "soft_f")


class CachedData(Dataset[tuple[Features, dict[str, Tensor]]]):
    """A `DistillData` whose structures are features of a frozen trunk.

    What is on disk is mapped, not read into memory. Forces are compared along the coordinates that
    the cache has: a random share of each structure's, so the mean over them is an unbiased
    estimate of the mean over all.

    Args:
        data: structures with their targets.
        trunk: that the student has.
        folder: of the cache; it may hold those of other trunks and structures, too. What is
            missing is computed and written, a whole file at a time, so that a run that was killed
            goes on and several may fill one folder.
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
        check_share(force_share)
        check_kind("data", data)
        if not isinstance(trunk, FrozenTrunk):
            raise ValueError(f"trunk: expected a FrozenTrunk, got {trunk!r}")
        self.data, self.trunk = data, trunk
        self.folder = check_folder(folder, "cache") / trunk.fingerprint
        self.force_share, self.seed = force_share, seed
        self.folder.mkdir(parents=True, exist_ok=True)
        bar = tqdm(data.rows, "features of the frozen trunk", unit="", disable=not progress)
        self.features = [self._features(row) for row in bar]
        self.targets = [
            chosen(row.targets, found.coordinates)
            for row, found in zip(data.rows, self.features, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Features, dict[str, Tensor]]:
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

    def _features(self, row: GraphSample) -> Features:
        along = coordinates(row, self.force_share, self.seed)
        path = self.folder / _name(row.graph, along)
        if (found := _read(path)) is not None and len(found.jacobian) == len(along) + 6:
            return found
        made = self.trunk.features(row.graph, along)
        write_whole(path, save({name: value.contiguous() for name, value in vars(made).items()}))
        return made


def check_share(force_share: float) -> None:
    """Raise a ValueError for a share that is not above 0 and at most 1."""
    if not is_number(force_share) or not 0 < force_share <= 1:
        raise ValueError(f"force_share: expected above 0 and at most 1, got {shown(force_share)}")


def n_coordinates(row: GraphSample, force_share: float) -> int:
    """Return along how many coordinates forces count; at least one."""
    return math.ceil(force_share * 3 * row.case.n_atoms)


def coordinates(row: GraphSample, force_share: float, seed: int) -> list[int]:
    """Return the coordinates whose forces count, 3 * atom + axis, in order."""
    n_all, n_chosen = 3 * row.case.n_atoms, n_coordinates(row, force_share)
    if n_chosen == n_all:
        return list(range(n_all))
    generator = np.random.default_rng([seed, zlib.crc32(row.structure_id.encode())])
    return sorted(generator.choice(n_all, n_chosen, replace=False).tolist())


def is_cached(
    trunk: FrozenTrunk, folder: str | Path, row: GraphSample, force_share: float, seed: int = 0
) -> bool:
    """Return whether a structure's features are on disk."""
    name = _name(row.graph, coordinates(row, force_share, seed))
    return (Path(folder) / trunk.fingerprint / name).is_file()


def chosen(targets: Mapping[str, Tensor], coordinates: Tensor) -> dict[str, Tensor]:
    """Return the targets of a row with forces flat and along the coordinates only, (R,)."""
    return {
        name: value.reshape(-1)[coordinates] if name in _FORCES else value
        for name, value in targets.items()
    }


def _read(path: Path) -> Features | None:
    """Return what is on disk, or None where there is nothing whole."""
    try:
        return Features(**load_file(path))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None


def _name(graph: CrystalGraph, along: Sequence[int]) -> str:
    digest = hashlib.sha256(np.asarray(along, dtype=np.int64).tobytes())
    for tensor in (graph.atomic_number, graph.atom_frac_coord, graph.lattice):
        digest.update(np.ascontiguousarray(tensor.detach().numpy()).tobytes())
    digest.update(f"{graph.atom_graph_cutoff} {graph.bond_graph_cutoff}".encode())
    return f"{digest.hexdigest()[:32]}.safetensors"
