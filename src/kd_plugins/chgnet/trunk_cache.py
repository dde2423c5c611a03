"""Features of a frozen trunk on disk, a file a structure, and a data set of them."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from chgnet.graph import CrystalGraph
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from kd_plugins.chgnet.data import DistillData, GraphSample, check_kind
from kd_plugins.chgnet.run_folder import check_folder, write_whole
from kd_plugins.chgnet.trunk import Features, FrozenTrunk
from kd_plugins.numbers import is_number, shown

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
