"""Bad input ends in one clear error before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from chgnet.graph import CrystalGraphConverter
from chgnet.trainer import Trainer

from kd_plugins import TargetStore
from kd_plugins.chgnet import (
    CachedData,
    DistillData,
    DistillLoss,
    DistillTrainer,
    FitSettings,
    FrozenTrunk,
    Ratios,
)
from kd_plugins.chgnet.data import DataError
from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.structures.readers import to_structure
from tests.chgnet import fixtures
from tests.chgnet.fixtures import Labelled

NAN = np.nan


@dataclass(frozen=True)
class Case:
    """What there is to spoil.

    Args:
        salts: labelled structures.
        data: of them, with all targets.
        folder: that is empty.
    """

    salts: Labelled
    data: DistillData
    folder: Path

    @property
    def structure(self) -> LabelledStructure:
        """The first structure."""
        return self.salts.structures[0]

    def labelled(self, **labels: Any) -> DistillData:
        """Make data of one structure with other labels."""
        return self.salts.data([fixtures.with_label(self.structure, **labels)], hard=tuple(labels))

    def of(self, atoms: Atoms) -> DistillData:
        """Make data of one structure with an energy."""
        return self.salts.data([LabelledStructure("x", atoms, {"energy": np.array(-1.0)})], **HARD)

    def train(self, data: DistillData | None = None, **settings: Any) -> DistillTrainer:
        """Train, with the data as validation too, which `fixtures.trainer` allows."""
        data, batch = data or self.data, settings.pop("batch_size", 2)
        loaders = (fixtures.loader(data, batch), fixtures.loader(data, batch))
        made = fixtures.trainer(**settings)
        made.train(*loaders, save_dir=str(self.folder / "run"))
        return made


SOME = {"energy": "float64", "magmoms": "float64"}
HARD = {"store": None, "hard": ("energy",)}
Bad = Callable[[Case], Any]
DATA: dict[str, tuple[Bad, str]] = {
    "NaN label": (lambda c: c.labelled(forces=[[NAN] * 3] * 2), "label forces holds NaN or inf"),
    "infinite label": (
        lambda c: c.salts.data(
            [fixtures.with_label(c.structure, energy=np.inf)], hard=("energy",), missing=("energy",)
        ),
        "label energy holds NaN or inf",
    ),
    "no label": (lambda c: c.labelled(stress=None), "no label stress; it has "),
    "label of another shape": (
        lambda c: c.labelled(forces=[[0.0] * 3] * 3),
        r"label forces has shape \(3, 3\), expected \(2, 3\)",
    ),
    "soft label that is missing": (
        lambda c: c.salts.data([LabelledStructure("NaCl/1", c.structure.atoms)]),
        "NaCl/1: the store teacher has no structure 'NaCl/1'",
    ),
    "ids shuffled": (
        lambda c: c.salts.data([LabelledStructure("NaCl/0", c.salts.structures[1].atoms)]),
        "not the one that was labelled: .* were ids shuffled or structures edited",
    ),
    "store of other structures": (
        lambda c: c.salts.data([LabelledStructure("urea", c.structure.atoms)], bad="leave_out"),
        "1 of 1 structures cannot be trained on",
    ),
    "id twice": (lambda c: c.salts.data([c.structure] * 2), "NaCl/0: its id comes twice"),
    "no structures": (lambda c: c.salts.data([]), "there are no structures"),
    "no cell": (lambda c: c.of(Atoms("Ar")), "needs three lattice vectors; give a molecule a box"),
    "isolated atom": (
        lambda c: c.of(Atoms("Ar", cell=[20] * 3, pbc=True)),
        r"x: .*[Ii]solated|x: .*isolated",
    ),
    "element beyond": (
        lambda c: c.of(Atoms([96], cell=[3] * 3, pbc=True)),
        "CHGNet knows the elements from 1 to 94; it has atomic number 96",
    ),
    "no atom": (lambda c: c.of(Atoms(cell=[3] * 3, pbc=True)), "it has no atom"),
    "unknown hard quantity": (
        lambda c: c.salts.data(hard=("energie",)),
        "hard: unknown quantity 'energie'; did you mean 'energy'",
    ),
    "soft magmoms": (
        lambda c: c.salts.data(store=c.salts.own, soft=("magmoms",)),
        "soft: unknown quantity 'magmoms'; known: energy, forces, stress",
    ),
    "missing that is not hard": (
        lambda c: c.salts.data(hard=("energy",), missing=("forces",)),
        "missing: unknown quantity 'forces'",
    ),
    "soft without a store": (
        lambda c: c.salts.data(store=None, soft=("energy",)),
        "give the store that holds these targets",
    ),
    "nothing to learn": (lambda c: c.salts.data(store=None), "nothing to learn from: give a store"),
    "unknown way with bad ones": (lambda c: c.salts.data(bad="skip"), "'refuse' or 'leave_out'"),
    "share of no forces": (lambda c: share(c, 0.0), "above 0 and at most 1, got 0.0"),
    "share beyond all": (lambda c: share(c, 1.5), "above 0 and at most 1, got 1.5"),
    "share that is NaN": (lambda c: share(c, NAN), "above 0 and at most 1, got nan"),
}


def share(case: Case, force_share: float) -> CachedData:
    """Make features of a share of the forces."""
    return CachedData(
        case.data,
        FrozenTrunk(fixtures.frozen()),
        case.folder,
        force_share=force_share,
        progress=False,
    )


SETTINGS: dict[str, tuple[Bad, str]] = {
    "unknown quantity": (
        lambda c: c.train(soft={"energie": 1}),
        "soft: unknown quantity 'energie'; did you mean 'energy'",
    ),
    "soft magmoms": (lambda c: c.train(soft={"magmoms": 1}), "soft: unknown quantity 'magmoms'"),
    "negative weight": (
        lambda c: c.train(soft={"energy": -1}),
        "soft.energy: a weight must be finite and >= 0",
    ),
    "weight that is NaN": (
        lambda c: c.train(hard={"forces": NAN}),
        "hard.forces: expected a finite number",
    ),
    "weight as text": (lambda c: c.train(soft={"energy": "1"}), "soft.energy: expected a number"),
    "unknown schedule of a weight": (
        lambda c: c.train(soft={"energy": {"schedule": "linaer"}}),
        "soft.energy: unknown schedule 'linaer'; did you mean 'linear'",
    ),
    "no weight": (lambda c: c.train(soft={"energy": 0}), "no target has a weight"),
    "weights that are none": (lambda c: c.train(soft=["energy"]), "expected quantities with"),
    "unknown criterion": (
        lambda c: c.train(criterion="Hubre"),
        "unknown criterion 'Hubre'; did you mean 'Huber'",
    ),
    "delta of nothing": (lambda c: c.train(criterion="Huber", delta=0), "delta: expected .* above"),
    "unknown select": (lambda c: c.train(select="sfot"), "select: expected 'hard' or 'soft'"),
    "unknown schedule": (lambda c: c.train(schedule="cosine"), "schedule: expected 'finishing'"),
    "prefix that matches nothing": (
        lambda c: c.train(trainable=("mpl.",)),
        "no parameter's name starts with 'mpl.'; the model's parts are .*mlp., readout_norm.",
    ),
    "CHGNet's weights of a loss": (
        lambda c: c.train(energy_loss_ratio=2),
        "energy_loss_ratio follows from soft, hard and seed here",
    ),
    "magmoms that nothing decides": (
        lambda c: c.train(hard={"energy": 1, "magmoms": 1}),
        "no weight that trains decides CHGNet's magnetic moments",
    ),
    "target that the data lack": (
        lambda c: c.train(c.salts.data(soft=("energy",))),
        "the loss weighs soft forces, but the data have no forces of the teacher",
    ),
    "label that the data lack": (
        lambda c: c.train(c.salts.data(), hard={"energy": 0, "stress": 1}),
        "the loss weighs hard stress, but the data have no stress among the labels",
    ),
    "chosen by what the data lack": (
        lambda c: c.train(c.salts.data(), soft={"energy": 1}, select="hard"),
        "the best model is chosen by its errors against the labels of e, of which",
    ),
    "graphs of another cutoff": (
        lambda c: c.train(
            c.salts.data(converter=CrystalGraphConverter(atom_graph_cutoff=5, bond_graph_cutoff=3))
        ),
        "atom_graph_cutoff 5 Å, the student's 6 Å; make DistillData with converter=model",
    ),
    "no epochs": (lambda c: FitSettings(epochs=0), "epochs: expected .* of 1 or more, got 0"),
    "no batch": (lambda c: FitSettings(batch_size=0), "batch_size: .* of 1 or more, got 0"),
    "no batch of steps": (
        lambda c: FitSettings.for_steps(10, 5, batch_size=0),
        "batch_size: expected .* of 1 or more, got 0",
    ),
    "learning rate that is NaN": (lambda c: FitSettings(learning_rate=NAN), "learning_rate: exp"),
}


@pytest.fixture
def case(salts: Labelled, data: DistillData, tmp_path: Path) -> Case:
    """What there is to spoil."""
    return Case(salts, data, tmp_path)


@pytest.mark.parametrize("name", [*(f"data: {name}" for name in DATA), *SETTINGS])
def test_bad_input_is_refused(case: Case, name: str) -> None:
    bad, message = DATA[name[6:]] if name.startswith("data: ") else SETTINGS[name]
    with pytest.raises(ValueError, match=message):
        bad(case)
    assert not (case.folder / "run").exists()


UNITS: dict[str, tuple[str, Callable[[Any, int], Any], str]] = {
    "stress in GPa": ("stress", lambda s, n: s * 160.2, "GPa"),
    "stress in kBar": ("stress", lambda s, n: s * 1602.0, "kBar"),
    "stress of the other sign": ("stress", lambda s, n: -s, "sign"),
    "stress as VASP has it": ("stress", lambda s, n: s * -1602.0, "kBar"),
    "gradients for forces": ("forces", lambda f, n: -f, "sign|gradient"),
    "forces in kcal/mol/Å": ("forces", lambda f, n: f * 23.06, "kcal/mol/Å"),
    "energy per atom": ("energy", lambda e, n: e / n, "per atom"),
    "energy times atoms": ("energy", lambda e, n: e * n, "eV/atom|per atom|total"),
    "energy of another zero": ("energy", lambda e, n: e + 5 * n, r"align_references\(model, data"),
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A dozen salts, strained and rattled, so that there is enough to tell from."""
    generator, made = np.random.default_rng(0), []
    for index in range(12):
        atoms = list(fixtures.salts())[index % 4].atoms
        strain = generator.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.rattle(0.1, seed=index)
        made.append(LabelledStructure(f"salt/{index}", atoms))
    return fixtures.labelled(made, tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("source", ["hard", "soft"])
@pytest.mark.parametrize("name", UNITS)
def test_units_and_signs_are_refused(
    many: Labelled, tmp_path: Path, name: str, source: str
) -> None:
    """In labels and in the store, by what pretrained CHGNet says of the structures."""
    quantity, change, message = UNITS[name]
    structures, store = many.structures, None

    if source == "hard":
        structures = [
            fixtures.with_label(structure, **{quantity: change(structure.labels[quantity], 2)})
            for structure in structures
        ]
    else:
        store = fixtures.changed_store(
            many.store,
            tmp_path / "store",
            lambda key, value: change(value, 2) if key == quantity else value,
        )

    weights = {"energy": 1, "forces": 1, "stress": 1}
    data = many.data(structures, store=store, **{source: tuple(weights)})
    match = f"the {source} targets cannot be right.*(\n.*)*({message})"

    with pytest.raises(DataError, match=match):
        fixtures.trainer(**{source: weights}).train(
            fixtures.loader(data, 2), fixtures.loader(data, 2), save_dir=str(tmp_path / "run")
        )
    assert not (tmp_path / "run").exists()


def test_stores_refuse_nan_and_name_missing_targets(case: Case) -> None:
    store = TargetStore.create(case.folder / "store", Manifest("t", "f", SOME))
    structure = to_structure(case.structure.atoms)

    with pytest.raises(ValueError, match="energy.*(NaN|finite)"):
        store.append([Record("NaCl/0", structure, {"energy": torch.tensor(NAN)})])

    store.append([Record("NaCl/0", structure, {"energy": torch.tensor(-6.0)})])
    with pytest.raises(KeyError, match="has no stress, it has energy, magmoms; label with --quan"):
        case.salts.data([case.structure], store=store, soft=("energy", "stress"))
    assert case.salts.data([case.structure], store=store).soft == ("energy",)

    other = Record(
        "GaAs/0", to_structure(case.salts.structures[1].atoms), {"magmoms": torch.zeros(2)}
    )
    store.append([other])

    with pytest.raises(DataError, match="the store has no energy of it; label it again"):
        case.salts.data([case.salts.structures[1]], store=store)


def test_a_corrupt_record_of_mptrj_is_named(case: Case) -> None:
    site = {"species": [{"element": "Cu", "occu": 1}], "abc": [0, 0, 0]}
    structure = {"lattice": {"matrix": np.eye(3).tolist()}, "sites": [site]}
    good = {"structure": structure, "energy_per_atom": -4.0, "force": [[0, 0, 0]], "stress": None}

    for bad in ({"corrected_total_energy": 7.0}, {"structure": {"sites": [site]}}):
        path = case.folder / "mptrj.json"
        path.write_text(json.dumps({"mp-1": {"mp-1-0-0": good, "mp-1-0-1": {**good, **bad}}}))
        with pytest.raises(
            ValueError, match="mptrj.json cannot be read beyond its first 1.*mp-1-0-1"
        ):
            case.salts.data(read_structures([path]), **HARD)


def test_a_folder_of_another_run_is_refused(case: Case) -> None:
    settings = {"epochs": 1, "soft": {"energy": 1}}
    part = case.data.part([0, 1])
    case.train(part, **settings)
    held = {path.name: path.read_bytes() for path in (case.folder / "run").iterdir()}

    with pytest.raises(
        FileExistsError, match=r"another run; go on with DistillTrainer.load\('last"
    ):
        case.train(part, **settings)
    assert held == {path.name: path.read_bytes() for path in (case.folder / "run").iterdir()}


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning:chgnet")
def test_a_run_resumes_with_the_same_data_only(case: Case) -> None:
    part = case.data.part([0, 1])
    case.train(part, epochs=1, soft={"energy": 1})
    resumed = DistillTrainer.load(str(case.folder / "run" / "last.pth.tar"))
    other = fixtures.loader(case.data.part([0, 2]), 2)

    with pytest.raises(DataError, match="learned from other structures or targets"):
        resumed.train(other, other, save_dir=str(case.folder / "run"))


def test_a_checkpoint_of_chgnets_trainer_is_refused(case: Case) -> None:
    Trainer(fixtures.student(), use_device="cpu").save(str(case.folder / "stock.pth.tar"))
    with pytest.raises(ValueError, match="stock.pth.tar was not written by DistillTrainer"):
        DistillTrainer.load(str(case.folder / "stock.pth.tar"))


def test_a_test_loader_is_checked_before_training(case: Case) -> None:
    lacking = case.salts.data(soft=("energy",))
    with pytest.raises(DataError, match="the loss weighs soft forces"):
        fixtures.trainer().train(
            *[fixtures.loader(each, 2) for each in (case.data, case.data, lacking)],
            save_dir=str(case.folder / "run"),
        )


def test_a_model_without_references_is_refused() -> None:
    model = fixtures.student()
    model.composition_model = None
    with pytest.raises(ValueError, match="needs a model with a composition_model"):
        fixtures.trainer(model)


def test_the_loss_refuses_an_unknown_criterion() -> None:
    with pytest.raises(ValueError, match="unknown criterion 'mae'"):
        DistillLoss(Ratios(soft={"energy": 1}), "mae")
