"""Tiny crystals with labels and a teacher's targets, and short runs of the real student on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from chgnet.data.dataset import collate_graphs
from chgnet.model import CHGNet
from torch.utils.data import DataLoader

from kd_plugins import TargetStore
from kd_plugins.chgnet import (
    CachedData,
    DistillData,
    DistillLoss,
    DistillTrainer,
    FitSettings,
    Fitted,
    FrozenTrunk,
    Ratios,
    fit,
    freeze_except,
)
from kd_plugins.store.record import Record
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.teachers import label

HEAD_SIZE, SIZE = 12_545, 412_525
"""Weights of CHGNet's readout MLP, and in all."""
ALL_SOFT = {"energy": 1, "forces": 1, "stress": 0.1}
EVERYTHING = tuple(
    f"{name}."
    for name in (
        *("atom_embedding", "bond_basis_expansion", "bond_embedding", "bond_weights_ag"),
        *("bond_weights_bg", "angle_basis_expansion", "angle_embedding", "atom_conv_layers"),
        *("bond_conv_layers", "angle_layers", "site_wise", "readout_norm", "mlp"),
    )
)
"""Prefixes of all that trains in CHGNet as it is loaded."""
ALLOW = ("same_validation",)
"""Most tests validate on the few structures that they learn from."""
NOISE = {"energy": 0.1, "forces": 0.1, "stress": 0.002, "magmoms": 0.1}
"""By how much labels and targets are off."""
CACHED = {"rtol": 1e-5, "atol": 1e-5}
"""Of weights that were trained with the whole model and on features."""


@cache
def _pretrained() -> CHGNet:
    return CHGNet.load(verbose=False, use_device="cpu")


def student() -> CHGNet:
    """Return pretrained CHGNet."""
    return copy.deepcopy(_pretrained())


def frozen() -> CHGNet:
    """Return pretrained CHGNet of which the readout MLP trains."""
    model = student()
    freeze_except(model)
    return model


def salts() -> Iterator[LabelledStructure]:
    """Yield rattled crystals of two atoms."""
    for index, (symbols, kind, length) in enumerate(
        [
            ("NaCl", "rocksalt", 5.7),
            ("GaAs", "zincblende", 5.7),
            ("ZnS", "zincblende", 5.4),
            ("AlP", "zincblende", 5.5),
        ]
    ):
        atoms = bulk(symbols, kind, a=length)
        atoms.rattle(0.1, seed=index)
        yield LabelledStructure(f"{symbols}/0", atoms)


def molecular(shared_file: Callable[[str], Path], *names: str) -> Iterator[LabelledStructure]:
    """Yield rattled molecular crystals of X23."""
    for index, name in enumerate(names):
        (structure,) = read_structures([shared_file(f"molecular_crystals/x23/{name}.cif")])
        structure.atoms.rattle(0.03, seed=index)
        yield LabelledStructure(name, structure.atoms)


@dataclass(frozen=True)
class Labelled:
    """Structures, with the predictions of pretrained CHGNet as labels, and two teachers' targets.

    Args:
        structures: with labels.
        store: of CHGNet with dispersion, a little off: dispersion moves atoms of salts by less than
            rounding, whose sign decides a gradient of absolute errors.
        own: of CHGNet itself.
    """

    structures: tuple[LabelledStructure, ...]
    store: TargetStore
    own: TargetStore

    def data(
        self, structures: Sequence[LabelledStructure] | None = None, **settings: Any
    ) -> DistillData:
        """Return a data set, with the store unless `settings` name another."""
        settings = {"store": self.store, "progress": False, **settings}
        return DistillData(self.structures if structures is None else structures, **settings)

    def noisy(self) -> list[LabelledStructure]:
        """Return the structures with labels a little off, so that no error is zero by rounding."""
        generator = np.random.default_rng(0)
        made = []

        for structure in self.structures:
            labels = {
                name: value + NOISE[name] * generator.normal(size=value.shape)
                for name, value in structure.labels.items()
            }
            made.append(with_label(structure, **labels))

        return made


def labelled(structures: Sequence[LabelledStructure], folder: Path) -> Labelled:
    """Label structures."""
    quantities = ("energy", "forces", "stress")
    label(structures, "chgnet+d3", folder / "d3", quantities, progress=False)
    generator = torch.Generator().manual_seed(0)

    def noisy(name: str, value: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return value + NOISE[name] * noise

    changed_store(TargetStore.open(folder / "d3"), folder / "teacher", noisy)
    own = (*quantities, "magmoms")
    label(structures, "chgnet", folder / "own", own, progress=False)
    stores = [TargetStore.open(folder / name) for name in ("teacher", "own")]
    return Labelled(tuple(_with_labels(structure, stores[1]) for structure in structures), *stores)


def changed_store(
    source: TargetStore, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> TargetStore:
    """Return a store with other values."""
    made = TargetStore.create(folder, source.manifest)
    for name in source.ids():
        record = source.record(name)
        values = {key: change(key, value) for key, value in record.values.items()}
        made.append([Record(name, record.structure, values)])
    return made


def _with_labels(structure: LabelledStructure, store: TargetStore) -> LabelledStructure:
    values = store[structure.structure_id].values
    labels = {name: value.double().numpy() for name, value in values.items()}

    for name in ("energy", "stress"):
        labels[name] = labels[name][0]

    return replace(structure, labels=labels)


def with_label(structure: LabelledStructure, **labels: Any) -> LabelledStructure:
    """Return a structure with other labels; None takes one away."""
    changed = {**structure.labels, **labels}
    return replace(
        structure,
        labels={
            name: np.asarray(value, float) for name, value in changed.items() if value is not None
        },
    )


def moved(structure: LabelledStructure, atoms: Atoms) -> LabelledStructure:
    """Return another structure of the same id and labels."""
    return replace(structure, atoms=atoms)


def loader(data: Any, batch_size: int, shuffle: bool = True) -> DataLoader[Any]:
    """Return a loader as CHGNet's users make it."""
    return DataLoader(data, batch_size, shuffle=shuffle, collate_fn=collate_graphs)


def trainer(model: CHGNet | None = None, **settings: Any) -> DistillTrainer:
    """Return a trainer of the readout MLP."""
    usual = {"epochs": 2, "learning_rate": 1e-2, "print_freq": 1000, "use_device": "cpu"}
    usual["allow"] = ALLOW

    if not {"soft", "hard"} & set(settings):
        usual["soft"] = ALL_SOFT

    return DistillTrainer(model or student(), **{**usual, **settings})


def fitted(
    data: DistillData, cache_folder: Path, folder: Path | None = None, **settings: Any
) -> tuple[Fitted, CHGNet]:
    """Train on features of all of the data, validated on the same."""
    ratios = Ratios(soft=settings.pop("soft", ALL_SOFT), hard=settings.pop("hard", {}))
    model = settings.pop("model", None) or frozen()
    trunk = FrozenTrunk(model)
    cached = CachedData(data, trunk, cache_folder, progress=False)
    usual = {"epochs": 2, "batch_size": 2, "seed": 5}
    found = fit(
        trunk,
        cached,
        cached,
        DistillLoss(ratios),
        FitSettings(**{**usual, **settings}),
        folder,
        progress=False,
        allow=ALLOW,
    )
    return found, model


def differs(one: CHGNet, other: CHGNet) -> float:
    """Return the largest difference between weights of two models."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((here - there).abs().max()) for here, there in pairs)


def has_changed(model: CHGNet) -> set[str]:
    """Return the parameters that are not as in pretrained CHGNet."""
    before = dict(_pretrained().named_parameters())
    return {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
