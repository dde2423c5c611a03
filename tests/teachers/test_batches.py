"""Teachers predict in batches, on a device; the labeller copes with batches that fail."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from torch import nn

from kd_plugins.cli import main
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import (
    CalculatorTeacher,
    Ensemble,
    TeacherError,
    as_teacher,
    failures,
    label,
    load_teacher,
)
from kd_plugins.teachers.batches import Worker
from kd_plugins.teachers.teacher import check_device, resolve_device
from tests.house import ROOT
from tests.teachers import fixtures
from tests.teachers.batching import assert_batch_independent

LJ = "ase.calculators.lj:LennardJones rc=4.0 sigma=2.3"


class Batching:
    """EMT in batches that remembers their sizes, fails on silver and has little memory.

    Args:
        memory: the most atoms in a batch.
    """

    quantities = ("energy", "forces", "stress")
    fingerprint, versions, device, batch_size = "batching", {}, "cpu", 8

    def __init__(self, memory: int = 10**6) -> None:
        self.memory, self.sizes = memory, []
        self.one = CalculatorTeacher(EMT())

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict all or none."""
        if sum(map(len, structures)) > self.memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if any("Ag" in atoms.symbols for atoms in structures):
            raise RuntimeError("no silver")
        self.sizes.append(len(structures))
        return self.one.predict(structures, quantities)


class OnlyCallable:
    """A teacher as version 0.1.0 had them: no `predict`, no device, no batch size."""

    quantities, fingerprint, versions = ("energy",), "mine", {"mine": "1"}

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Return 1 eV an atom."""
        return {"energy": np.array(float(len(atoms)))}


class EMTInBatches(EMT):
    """A calculator with a teacher of its own."""

    def as_teacher(self) -> Batching:
        """Return the teacher."""
        return Batching()


class Movable(Calculator):
    """A calculator on a device that its factory is given."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, device: str, **settings: Any) -> None:
        super().__init__(device=device, **settings)
        self.device = torch.device(device)

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        """Give zeros."""
        super().calculate(atoms, *args, **kwargs)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def movable(device: str = "cpu", charge: int = 0) -> Movable:
    """Return a calculator on a device; torch's `meta` stands for one that is not the CPU."""
    return Movable(device, charge=charge)


def movable_with_correction(device: str) -> SumCalculator:
    """Return a calculator on a device, to whose energy another adds on the CPU."""
    return SumCalculator([Movable(device), EMT()])


def of_three_sizes() -> list[Atoms]:
    """Return crystals of 1, 4 and 8 atoms and one more of 4."""
    cubic = bulk("Cu", cubic=True)
    structures = [bulk("Cu"), cubic, cubic * (1, 1, 2), bulk("Ni", cubic=True)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    return structures


@pytest.mark.parametrize(
    "teacher",
    [load_teacher("emt"), load_teacher(f"emt & {LJ}"), Batching(), as_teacher(OnlyCallable())],
    ids=["calculator", "ensemble", "batching", "callable"],
)
def test_predictions_do_not_depend_on_the_batch(teacher: Any) -> None:
    names = [name for name in teacher.quantities if "magmoms" not in name]  # which EMT lacks
    assert_batch_independent(teacher, of_three_sizes(), names, tolerance=0.0)


def test_batch_dependence_is_found() -> None:
    class Leaking(Batching):
        """Adds to each energy a little of the batch's size."""

        def predict(self, structures: Any, quantities: Any) -> list[dict[str, np.ndarray]]:
            """Predict, then spoil the energies."""
            found = super().predict(structures, quantities)
            return [one | {"energy": one["energy"] + 1e-3 * len(found)} for one in found]

    with pytest.raises(AssertionError, match="energy of structure 0 in one batch"):
        assert_batch_independent(Leaking(), of_three_sizes())


def test_labelling_uses_the_teachers_batch_size(tmp_path: Path) -> None:
    teacher = Batching()
    report = label(fixtures.copper_cells(20), teacher, tmp_path, progress=False)
    assert report.labelled == 20
    assert teacher.sizes[0] == 8
    assert sum(teacher.sizes) == 20


def test_structure_that_fails_in_a_batch_costs_only_itself(tmp_path: Path) -> None:
    teacher = Batching()
    structures = [
        *fixtures.copper_cells(5),
        fixtures.crystal_of("Ag", "silver"),
        *(fixtures.crystal_of("Ni", "ni"),),
    ]
    report = label(structures, teacher, tmp_path / "batches", progress=False)
    assert report.failed == {"silver": "RuntimeError: no silver"}
    assert report.labelled == 6
    assert failures(TargetStore.open(tmp_path / "batches")) == report.failed

    one_by_one = Batching()
    one_by_one.batch_size = 1
    label(structures, one_by_one, tmp_path / "alone", progress=False)
    assert fixtures.packed_records(tmp_path / "batches") == fixtures.packed_records(
        tmp_path / "alone"
    )


def test_out_of_memory_halves_the_batch(tmp_path: Path) -> None:
    """It stays halved, so that memory runs out once; each structure has 4 atoms here."""
    teacher = Batching(memory=12)
    report = label(fixtures.copper_cells(20), teacher, tmp_path, progress=False)
    assert (report.labelled, report.failed) == (20, {})
    assert max(teacher.sizes) == 2
    assert teacher.sizes[:4] == [2, 2, 2, 2]


def test_large_structures_do_not_make_batches_of_small_ones_smaller(tmp_path: Path) -> None:
    """What memory holds is atoms: 3 structures of 64 and 40 of 4."""
    teacher = Batching(memory=110)
    large = [LabelledStructure(f"large-{n}", bulk("Cu") * (4, 4, 4)) for n in range(3)]
    report = label([*large, *fixtures.copper_cells(40)], teacher, tmp_path, progress=False)
    assert (report.labelled, report.failed) == (43, {})
    assert teacher.sizes[:4] == [1, 1, 6, 8]


def test_structure_too_large_for_the_memory_fails_alone(tmp_path: Path) -> None:
    large = LabelledStructure("large", bulk("Cu") * (4, 4, 4))
    structures = [*fixtures.copper_cells(6), large]
    report = label(structures, Batching(memory=40), tmp_path, progress=False)
    assert report.failed == {"large": "OutOfMemoryError: CUDA out of memory"}
    assert report.labelled == 6


def test_prediction_missing_from_a_batch_is_an_error(tmp_path: Path) -> None:
    class Short(Batching):
        """Loses the last structure."""

        def predict(self, structures: Any, quantities: Any) -> list[dict[str, np.ndarray]]:
            """Predict all but one."""
            return super().predict(structures, quantities)[:-1]

    with pytest.raises(TeacherError, match="Short returned 3 predictions for 4 structures"):
        label(fixtures.copper_cells(4), Short(), tmp_path, progress=False)


def test_callable_of_version_0_1_0_labels(tmp_path: Path) -> None:
    report = label(fixtures.copper_cells(3), OnlyCallable(), tmp_path, progress=False)
    assert (report.labelled, report.device) == (3, "cpu")
    assert TargetStore.open(tmp_path)["cu-0"].values["energy"].item() == 4.0
    assert as_teacher(OnlyCallable()).versions == {"mine": "1"}
    both = Ensemble([OnlyCallable(), load_teacher("emt")])
    assert both.predict([bulk("Cu")], ["energy"])[0]["energy"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("emt", "expected a Teacher or an ASE calculator, got 'emt'"),
        (None, "expected a Teacher or an ASE calculator, got None"),
        (EMT, "expected an ASE calculator, got the class EMT"),
    ],
)
def test_what_is_no_teacher_is_refused(thing: Any, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        as_teacher(thing)


def test_calculator_may_bring_its_own_teacher() -> None:
    """One that also predicts in batches: dynamics take the calculator, labelling the teacher."""
    assert isinstance(as_teacher(EMTInBatches()), Batching)
    assert isinstance(load_teacher(f"{__name__}:EMTInBatches"), Batching)


def test_teacher_with_predict_needs_the_rest_of_the_protocol() -> None:
    class Half:
        quantities, fingerprint, versions, device = ("energy",), "half", {}, "cpu"

        def predict(self, structures: Any, quantities: Any) -> list[Any]:
            return []

    with pytest.raises(TeacherError, match="teacher Half has `predict`, but no `batch_size`"):
        as_teacher(Half())


def test_auto_is_cuda_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto") == expected
    assert load_teacher("emt").device == "cpu"
    where = torch.device(load_teacher(f"{__name__}:movable").device)
    assert where.type == torch.device(expected).type


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 3.5])
def test_unknown_device_is_refused(device: Any) -> None:
    with pytest.raises(TeacherError, match="device: expected auto, cpu, cuda or cuda:NUMBER"):
        load_teacher("emt", device)


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(TeacherError, match="'cuda:99', but torch finds . CUDA devices"):
        load_teacher("emt", "cuda:99")


def test_factory_is_given_the_device() -> None:
    assert load_teacher(f"{__name__}:movable", "meta").device == "meta"
    assert load_teacher(f"{__name__}:movable device=meta").device == "meta"
    with pytest.raises(TeacherError, match="a device in its arguments, and 'cpu' is another"):
        load_teacher(f"{__name__}:movable device=meta", "cpu")


def test_teacher_that_cannot_compute_on_a_device_is_refused() -> None:
    for name in ("emt", f"{__name__}:movable & emt"):
        with pytest.raises(
            TeacherError, match="'emt' computes on cpu, not on meta: it takes no `d"
        ):
            load_teacher(name, "meta")


def test_correction_on_the_cpu_beside_a_potential_on_a_device_is_accepted() -> None:
    name = f"{__name__}:movable_with_correction"
    assert load_teacher(name, "meta").device == "cpu and meta"
    with pytest.raises(TeacherError, match="computes on cpu and meta, not on cpu"):
        check_device(load_teacher(name, "meta"), "cpu", "it")


def test_devices_of_an_ensemble_are_reported() -> None:
    ensemble = Ensemble([load_teacher(f"{__name__}:movable", "meta"), load_teacher("emt")])
    assert ensemble.device == "cpu and meta"


def test_device_of_a_calculator_is_that_of_its_weights() -> None:
    calculator = movable("meta")
    calculator.model = nn.Linear(2, 2)
    assert CalculatorTeacher(calculator).device == "cpu"
    assert CalculatorTeacher(SumCalculator([movable("meta"), EMT()])).device == "cpu and meta"


def test_fingerprint_does_not_depend_on_the_device() -> None:
    one, other = movable("cpu"), movable("meta")
    assert CalculatorTeacher(one).fingerprint == CalculatorTeacher(other).fingerprint
    assert CalculatorTeacher(movable(charge=1)).fingerprint != CalculatorTeacher(one).fingerprint


def test_command_reports_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_copper_cells(tmp_path / "copper.extxyz", 2)
    words = ["label", str(tmp_path / "copper.extxyz"), "--teacher", "emt", "--store"]
    assert main([*words, str(tmp_path / "a"), "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert " s on cpu: " in output.out
    assert "labelling with emt on cpu" in output.err
    assert main([*words, str(tmp_path / "b"), "--device", "cuda:99"]) == 2
    assert "'cuda:99', but torch finds" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_teacher_of_the_documentation_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import numpy.*?)```", page, flags=re.DOTALL)
    fixtures.write_copper_cells(tmp_path / "train.extxyz", 2)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    store = TargetStore.open(tmp_path / "targets")
    assert set(store["cu-0"].values) == {"energy", "forces"}


def test_worker_predicts_whole_batches(tmp_path: Path) -> None:
    """Those of the teacher, whatever number of structures the worker is given."""
    teacher = Batching()
    store = TargetStore.create(tmp_path, fixtures.make_manifest())
    worker = Worker(teacher, store, "main")
    outcome = worker.label(list(fixtures.copper_cells(19)))
    worker.writer.close()
    assert (outcome.labelled, outcome.device) == (19, "cpu")
    assert teacher.sizes == [8, 8, 3]
