"""A frozen trunk: what the readout MLP needs of each structure, computed once and kept on disk."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stdout
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
from kd_plugins.numbers import check_whole, is_number, shown
from kd_plugins.processes import worker_pool
from kd_plugins.teachers.teacher import resolve_device

CHUNK = 4
"""Rows of the Jacobian that are differentiated at once: more is hardly faster and takes memory."""
ATOMS_ON_GPU = 256
"""Atoms of the structures whose features a GPU computes at once; no GPU has run this. A CPU takes
one structure at a time, whose numbers then depend on no other: 8 cells of 8 atoms at once took 1.08
times as long as one by one, 8 cells of 2 atoms 0.70 times (one thread, in turn, best of four)."""

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
        device: where features are computed: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``
            or ``cuda:1``.

    Raises:
        ValueError: if anything else trains, or for a device that is not there.
        UnsuitableTrunk: if the model pools before its MLP, or drops features at random.
    """

    def __init__(self, model: CHGNet, device: str = "auto") -> None:
        check_is_model(model)
        _check_suitable(model)
        self.device = resolve_device(device)
        self.model = model.cpu()

        # A copy, so that weights which the user unfreezes later do not change the features.
        self._frozen = copy.deepcopy(model).eval().requires_grad_(False)
        self._node_embeddings: Tensor | None = None
        self._frozen.mlp.register_forward_pre_hook(self._keep_node_embeddings)
        self.fingerprint = _hash_trunk(self._frozen)
        self._frozen.to(self.device)

    def embeddings(self, graph: CrystalGraph) -> Float[Tensor, "n D"]:
        """Return the node embeddings of one structure, without derivatives."""
        with torch.no_grad():
            return self._forward([graph.to(self.device)]).cpu()

    def features(
        self, graph: CrystalGraph, coordinates: Sequence[int] | None = None
    ) -> TrunkFeatures:
        """Compute the features of a structure.

        Args:
            graph: of the structure.
            coordinates: along which to differentiate, 3 * atom + axis; all if left out.
        """
        along = range(3 * len(graph.atomic_number)) if coordinates is None else coordinates
        (made,) = self.features_of([graph], [along])
        return made

    def features_of(
        self, graphs: Sequence[CrystalGraph], coordinates: Sequence[Sequence[int]]
    ) -> list[TrunkFeatures]:
        """Compute the features of several structures at once, on the device; they are on the CPU.

        A structure's features depend on the others by float32's rounding.

        Args:
            graphs: of the structures.
            coordinates: of each, along which to differentiate, 3 * atom + axis.
        """
        moved, shifts, strains = [], [], []
        for graph in graphs:
            # CHGNet's graph holds fractional coordinates; here Cartesian shifts and a strain of the
            # lattice, both zero, enter them, so that autograd differentiates along these.
            here = graph.to(self.device)
            lattice, places = here.lattice.detach(), here.atom_frac_coord.detach()
            shifts.append(torch.zeros_like(places, requires_grad=True))
            strains.append(torch.zeros_like(lattice, requires_grad=True))
            here.lattice = lattice + lattice @ strains[-1]
            here.atom_frac_coord = places + shifts[-1] @ torch.linalg.inv(lattice)
            moved.append(here)

        embeddings = self._forward(moved)
        jacobians = _compute_jacobians(embeddings, shifts, strains, coordinates)
        of_atoms = embeddings.detach().cpu().split([len(shift) for shift in shifts])
        return [
            TrunkFeatures(
                node_embeddings=found,
                jacobian=jacobian,
                coordinates=torch.tensor(list(along), dtype=torch.int64),
                atomic_numbers=graph.atomic_number.long(),
                # In double precision: single loses digits of the determinant of a long cell.
                volume=torch.linalg.det(graph.lattice.detach().double()).abs().float(),
            )
            for graph, along, found, jacobian in zip(
                graphs, coordinates, of_atoms, jacobians, strict=True
            )
        ]

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

    def _forward(self, graphs: Sequence[CrystalGraph]) -> Tensor:
        self._frozen(list(graphs), task="e")
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
        workers: processes that compute what is missing, with a share of the cores and GPUs each.

    Raises:
        ValueError: for a share that is not above 0 and at most 1, no worker, or if one was killed.
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
        workers: int = 1,
    ) -> None:
        check_force_share(force_share)
        check_whole("workers", workers, least=1)
        check_distill_data("data", data)
        if not isinstance(trunk, FrozenTrunk):
            raise ValueError(f"trunk: expected a FrozenTrunk, got {trunk!r}")

        self.data, self.trunk = data, trunk
        self.folder = check_run_folder(folder, "cache") / trunk.fingerprint
        self.force_share, self.seed = force_share, seed
        self.folder.mkdir(parents=True, exist_ok=True)

        files = [self._feature_file(sample) for sample in data.samples]
        with tqdm(
            desc="features of the frozen trunk", total=len(files), unit="", disable=not progress
        ) as bar:
            kept = [file.read() for file in files]
            # By path: one structure may stand there twice.
            missing = {
                file.path: file for file, one in zip(files, kept, strict=True) if one is None
            }
            bar.update(len(files) - len(missing))
            _write_missing(trunk, list(missing.values()), workers, bar)
        self.features = [
            file.read_written() if one is None else one
            for file, one in zip(files, kept, strict=True)
        ]
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

    def _feature_file(self, sample: GraphSample) -> _FeatureFile:
        along = choose_coordinates(sample, self.force_share, self.seed)
        return _FeatureFile(sample.graph, along, self.folder / _file_name(sample, along))


# --- What is missing, in one process or several ---------------------------------------------------


@dataclass(frozen=True)
class _FeatureFile:
    """A structure, the coordinates along which to differentiate, and the file of its features."""

    graph: CrystalGraph
    along: Sequence[int]
    path: Path

    def read(self) -> TrunkFeatures | None:
        """Return the features, or None where there is no file of them that is whole."""
        found = _read_features(self.path)
        # A file of another version of this package may have other rows.
        is_same = found is not None and len(found.jacobian) == len(self.along) + N_STRAINS
        return found if is_same else None

    def read_written(self) -> TrunkFeatures:
        """Return the features that must be there now."""
        found = self.read()
        if found is None:
            raise OSError(f"{self.path}: was written, and is damaged or gone; run this again")
        return found


def _write_missing(
    trunk: FrozenTrunk, files: Sequence[_FeatureFile], workers: int, bar: tqdm[None]
) -> None:
    """Write the features of structures, each file whole."""
    batches = _in_batches(files, trunk.device)
    n_workers = min(workers, len(batches))
    if n_workers < 2:
        for batch in batches:
            _write_features(trunk, batch)
            bar.update(len(batch))
        return

    # As plain tensors of the CPU: a process of its own builds the model on its GPU.
    frozen = trunk._frozen.as_dict()
    frozen["state_dict"] = {name: one.cpu() for name, one in frozen["state_dict"].items()}
    device = trunk.device
    with worker_pool(
        n_workers, "computed features", _open_trunk, frozen, device, device=device
    ) as pool:
        futures = {pool.submit(_work, batch): len(batch) for batch in batches}
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future])


def _in_batches(files: Sequence[_FeatureFile], device: str) -> list[list[_FeatureFile]]:
    """Return structures of similar size together, up to `ATOMS_ON_GPU`; on a CPU each alone.

    Every structure of a batch takes as many backward passes as the one with most coordinates.
    """
    if device == "cpu":
        return [[file] for file in files]

    batches: list[list[_FeatureFile]] = []
    n_atoms = ATOMS_ON_GPU
    for file in sorted(files, key=lambda one: len(one.along)):
        size = len(file.graph.atomic_number)
        if n_atoms + size > ATOMS_ON_GPU:
            batches.append([])
            n_atoms = 0
        batches[-1].append(file)
        n_atoms += size
    return batches


def _write_features(trunk: FrozenTrunk, files: Sequence[_FeatureFile]) -> None:
    made = trunk.features_of([file.graph for file in files], [file.along for file in files])
    for file, one in zip(files, made, strict=True):
        content = save({name: value.contiguous() for name, value in vars(one).items()})
        write_whole(file.path, content)


_trunks: list[FrozenTrunk] = []
"""The trunk of a worker's process."""


def _open_trunk(frozen: dict[str, Any], device: str) -> None:
    with redirect_stdout(io.StringIO()):  # CHGNet prints its size
        model = CHGNet.from_dict(frozen)
    model.requires_grad_(False)
    model.mlp.requires_grad_(True)
    _trunks.append(FrozenTrunk(model, device))


def _work(files: Sequence[_FeatureFile]) -> None:
    _write_features(_trunks[0], files)


# --- Coordinates and files ------------------------------------------------------------------------


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


def _compute_jacobians(
    embeddings: Tensor,
    shifts: Sequence[Tensor],
    strains: Sequence[Tensor],
    coordinates: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Return each structure's derivatives of its embeddings (n, D), (R + 6, n D) on the CPU.

    By double backward: the gradient of v . w with respect to the positions is linear in w, and its
    derivative with respect to w along a direction of the positions is the row J^T of that
    direction. That takes one backward pass a row, R + 6 in all, and not one for each of the n D
    embeddings. A structure's embeddings depend on its own positions alone, so that one pass gives a
    row of every structure.

    Args:
        embeddings: (n1 + n2 + ..., D).
        shifts: (n, 3) of each structure.
        strains: (3, 3) of each.
        coordinates: (R,) of each.
    """
    direction = torch.zeros_like(embeddings, requires_grad=True)
    inputs = (*shifts, *strains)
    linear = torch.autograd.grad((embeddings * direction).sum(), inputs, create_graph=True)

    directions = [
        _directions(along, len(shift)).to(shift.device)
        for along, shift in zip(coordinates, shifts, strict=True)
    ]
    n_rows = [len(one) for one in directions]
    padded = [nn.functional.pad(one, (0, 0, 0, max(n_rows) - len(one))) for one in directions]

    chunks = []
    for start in range(0, max(n_rows), CHUNK):
        parts = [one[start : start + CHUNK] for one in padded]
        moves = [
            part[:, :-9].reshape(-1, *shift.shape)
            for part, shift in zip(parts, shifts, strict=True)
        ]
        stretches = [part[:, -9:].reshape(-1, 3, 3) for part in parts]
        (found,) = torch.autograd.grad(
            linear, direction, (*moves, *stretches), retain_graph=True, is_grads_batched=True
        )
        chunks.append(found.cpu())

    of_structures = torch.cat(chunks).split([len(shift) for shift in shifts], dim=1)
    return [rows[:n].flatten(1) for rows, n in zip(of_structures, n_rows, strict=True)]


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
