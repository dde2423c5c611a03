"""Folders that hippynn trained in are read as hippynn reads them, without running their code."""

from __future__ import annotations

import builtins
import collections
import functools
import operator
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hippynn.graphs import GraphModule
from hippynn.layers.algebra import LambdaModule, ValueMod

from kd_plugins.hippynn import DataError, HippynnTeacher, cache_pairs, export_student
from kd_plugins.hippynn.folder import find_unread, load_model, load_structure
from kd_plugins.teachers.registry import load_teacher
from kd_plugins.teachers.teacher import TeacherError
from tests.hippynn import fixtures

WEIGHTS = {"energy": 1, "forces": 1}


def write_run(folder: Path, model: fixtures.Hipnn, **more: Any) -> Path:
    """Write a folder as hippynn does, without training."""
    folder.mkdir(exist_ok=True)
    graph = GraphModule(fixtures.input_nodes(model), [model.energy.main_output, model.forces])
    structure = {"training_modules": _modules(graph), "controller": None, **more}
    torch.save(structure, folder / "experiment_structure.pt")
    torch.save(graph.state_dict(), folder / "best_model.pt")
    return folder


def _modules(model: Any) -> Any:
    from hippynn.experiment.assembly import TrainingModules

    return TrainingModules(model, None, None)


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models hold the same numbers."""
    found, expected = one.state_dict(), other.state_dict()
    return list(found) == list(expected) and all(
        torch.equal(found[name], value)
        for name, value in expected.items()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize("cached", [False, True])
def test_safe_reading_equals_hippynns_own(
    shared_file: Callable[[str], Path], tmp_path: Path, cached: bool
) -> None:
    """With cached pairs, a scheduler, a loss, an optimizer; and so is what was exported."""
    data, model = fixtures.make_initialised(shared_file, small=6, large=8)
    if cached:
        graph = GraphModule(fixtures.input_nodes(model), [model.energy.main_output, model.forces])
        cache_pairs(graph, data)
    fixtures.train_student(tmp_path / "run", model, data, WEIGHTS, max_epochs=2)
    export_student(tmp_path / "run", tmp_path / "student")
    for folder in (tmp_path / "run", tmp_path / "student"):
        safe, trusted = load_model(folder), load_model(folder, trust_pickle=True)
        assert same_weights(safe, trusted)
        names = [node.name for node in trusted.forward_output_list]
        assert [node.name for node in safe.forward_output_list] == names
        found = load_structure(folder, trust_pickle=False, remedy="")
        assert not set(find_unread(tuple(found["training_modules"])))


def test_ensemble_of_folders_equals_ensemble_of_models(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each folder is read without running code."""
    folders = [write_run(tmp_path / str(seed), fixtures.make_hipnn(seed)) for seed in range(2)]
    models = [load_model(folder) for folder in folders]
    data = fixtures.make_database(fixtures.read_molybdenum(shared_file, small=6, large=8)).splits[
        "train"
    ]
    by_folder = HippynnTeacher(list(map(str, folders))).predict_arrays(data, ("energy",))
    by_model = HippynnTeacher(models).predict_arrays(data, ("energy",))
    assert sorted(by_folder) == ["energy", "energy_std"]
    np.testing.assert_array_equal(by_folder["energy"], by_model["energy"])


def test_numpy_numbers_are_read(tmp_path: Path) -> None:
    """Such as a cutoff that a script has computed."""
    model = fixtures.make_hipnn()
    module = model.network.torch_module
    module.numbers = {"a": np.float64(1.5), "b": np.arange(6.0).reshape(2, 3), "c": np.int32(2)}
    found = load_model(write_run(tmp_path / "run", model))
    (numbers,) = [one.numbers for one in found.modules() if hasattr(one, "numbers")]
    assert numbers["a"] == 1.5 and numbers["c"] == 2
    np.testing.assert_array_equal(numbers["b"], module.numbers["b"])


class OwnLayer(torch.nn.Module):
    """A layer of a user's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        return x


def test_foreign_layer_needs_trust_pickle(tmp_path: Path) -> None:
    """The error names the class and the remedy, wherever the folder is opened."""
    model = fixtures.make_hipnn()
    model.network.torch_module.extra = OwnLayer()
    folder = write_run(tmp_path / "run", model)
    with pytest.raises(ValueError, match="has a part of class .*OwnLayer, .*trust_pickle=True"):
        load_model(folder)
    with pytest.raises(DataError, match="OwnLayer, .*give trust_pickle=True"):
        HippynnTeacher(str(folder))
    with pytest.raises(TeacherError, match="OwnLayer, .*hippynn folder=.* trust_pickle=true"):
        load_teacher(f"hippynn folder={folder}")
    with pytest.raises(ValueError, match="OwnLayer, .*trust_pickle=True"):
        export_student(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    assert HippynnTeacher(str(folder), trust_pickle=True).species == {42}
    assert load_teacher(f"hippynn folder={folder} trust_pickle=true").quantities
    export_student(folder, tmp_path / "out", trust_pickle=True)
    assert (tmp_path / "out" / "best_model.pt").is_file()


def test_trust_pickle_must_be_a_boolean(tmp_path: Path) -> None:
    """A text such as "no" is refused and not taken for true."""
    folder = write_run(tmp_path / "run", fixtures.make_hipnn())
    with pytest.raises(TeacherError, match="trust_pickle: expected true or false, got 'no'"):
        load_teacher(f"hippynn folder={folder} trust_pickle=no")


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        """Return the call."""
        return self.function, self.arguments


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "getattr": lambda mark: Calls(Calls(getattr, os, "system"), f"touch {mark}"),
    "getattr of builtins": lambda mark: Calls(Calls(getattr, builtins, "open"), str(mark), "w"),
    "from_file": lambda mark: Calls(torch.from_file, str(mark), True, 8),
    "partial": lambda mark: Calls(functools.partial(os.system, f"touch {mark}")),
    "methodcaller": lambda mark: Calls(operator.methodcaller("touch"), mark),
    "defaultdict": lambda mark: collections.defaultdict(
        functools.partial(os.system, f"touch {mark}")
    ),
    "a module's forward": lambda mark: Calls(LambdaModule(os.system), f"touch {mark}"),
    "a module's own call": lambda mark: Calls(_with(ValueMod(1.0), forward=os.system), f"a {mark}"),
    "torch.load": lambda mark: Calls(torch.load, str(mark)),
    "torch.save": lambda mark: Calls(torch.save, 1, str(mark)),
    "numpy.save": lambda mark: Calls(np.save, str(mark), 1),
    "numpy.load": lambda mark: Calls(np.load, str(mark)),
    "an array of objects": lambda mark: np.array([Calls(os.system, f"touch {mark}")], object),
    "hippynn's own": lambda mark: Calls(_active_directory(), str(mark)),
}


def _with(made: Any, **attributes: Any) -> Any:
    vars(made).update(attributes)
    return made


def _active_directory() -> Any:
    from hippynn.tools import param_print

    return param_print


@pytest.mark.parametrize("where", ["alone", "in the model", "beside it"])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "getattr of builtins"])
def test_no_code_of_a_structure_file_runs(tmp_path: Path, name: str, where: str) -> None:
    """Refused in one line, or left unread where no model needs it."""
    mark, folder, model = tmp_path / "mark.npy", tmp_path / "run", fixtures.make_hipnn()
    try:
        attack = ATTACKS[name](mark)
        if where == "in the model":
            vars(model.network.torch_module)["extra"] = attack
        write_run(folder, model, **({"database": attack} if where == "beside it" else {}))
        if where == "alone":
            torch.save(attack, folder / "experiment_structure.pt")
    except (pickle.PicklingError, TypeError):
        pytest.skip("Python does not write this")
    assert not mark.exists()
    before = sorted(tmp_path.rglob("*"))
    for read in (load_model, lambda one: export_student(one, tmp_path / "out")):
        try:
            read(folder)
        except ValueError as error:
            assert "\n" not in str(error)
            assert "experiment_structure.pt" in str(error)
        else:
            assert where == "beside it"  # it stands there unread
            assert not mark.exists()
    if (tmp_path / "out").exists():
        return
    assert sorted(tmp_path.rglob("*")) == before


def test_no_code_of_a_weights_file_runs(tmp_path: Path) -> None:
    """The other of the two files."""
    folder, mark = write_run(tmp_path / "run", fixtures.make_hipnn()), tmp_path / "mark"
    torch.save({"a": Calls(os.system, f"touch {mark}")}, folder / "best_model.pt")
    for read in (load_model, lambda one: export_student(one, tmp_path / "out")):
        with pytest.raises(ValueError, match="best_model.pt: holds .*posix.system"):
            read(folder)
    assert not mark.exists() and not (tmp_path / "out").exists()


def replace_pickle(folder: Path, operations: bytes) -> Path:
    """Replace the pickle of a folder's structure."""
    path = folder / "experiment_structure.pt"
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, operations if name.endswith("/data.pkl") else content)
    return folder


LINEAR = b"ctorch.nn.modules.linear\nLinear\n"
OPERATIONS = {
    "an attribute of a class": LINEAR + b"N}U\x07forwardctorch.nn.functional\nrelu\ns\x86b.",
    "attributes by slots": LINEAR + b")\x81N}U\x07forwardK\x01s\x86b.",
    "a constructor": LINEAR + b"K\x02K\x03\x86R.",
    "a constructor by new": LINEAR + b"K\x02K\x03\x86\x81.",
    "an old instance": b"(K\x02K\x03itorch.nn.modules.linear\nLinear\n.",
    "an old object": b"(" + LINEAR + b"K\x02K\x03o.",
    "an extension": b"\x82\x01.",
    "a dotted name": b"\x8c\x18torch.nn.modules.linear\x8c\x16Linear.forward.__code__\x93.",
    "a module's import": b"ctorch.nn.modules.linear\ntorch\n.",
    "a method": b"cbuiltins\ngetattr\nctorch._C\n_VariableFunctionsClass\nU\tfrom_file\x86R.",
    "items of a class": LINEAR + b"U\x01aK\x01s.",
    "appended to a class": LINEAR + b"K\x01a.",
    "attributes of a number": b"K\x01}U\x01aK\x01sb.",
    "a text that is called": b"U\x01a)R.",
    "an array of objects": b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    "a byte codec": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    "an enum made anew": b"chippynn.graphs.indextypes.type_def\nIdxType\nU\x01a]\x86R.",
    "an end without a start": b".",
    "no end": b"\x80\x02}",
    "an operation that is none": b"\x80\x02\xff.",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_crafted_operations_are_refused(tmp_path: Path, name: str) -> None:
    """One line, and torch's own classes stay as they were."""
    before = dict(vars(torch.nn.Linear))
    folder = replace_pickle(
        write_run(tmp_path / "run", fixtures.make_hipnn()), b"\x80\x02" + OPERATIONS[name]
    )
    with pytest.raises(ValueError, match=r"experiment_structure\.pt: ") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert dict(vars(torch.nn.Linear)) == before
    expected = torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2))
    assert expected.tolist() == [[2.0, 2.0, 2.0]]


@pytest.mark.parametrize("name", ["experiment_structure.pt", "best_model.pt"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", r"is a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (None, "is cut short"),
    ],
)
def test_damaged_files_are_refused_without_advice_to_trust(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    """Trusting the file would not help, so the message does not say so."""
    folder = write_run(tmp_path / "run", fixtures.make_hipnn())
    half = (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    (folder / name).write_bytes(half if content is None else content)
    for read in (HippynnTeacher, load_model, lambda one: load_teacher(f"hippynn folder={one}")):
        with pytest.raises(ValueError, match=f"{name}: {expected}") as caught:
            read(folder)
        assert "trust" not in str(caught.value)


def test_weights_of_another_run_are_refused(tmp_path: Path) -> None:
    """Weights that do not fit the model."""
    folder = write_run(tmp_path / "run", fixtures.make_hipnn())
    other = write_run(tmp_path / "other", fixtures.make_hipnn(width=6))
    (folder / "best_model.pt").write_bytes((other / "best_model.pt").read_bytes())
    with pytest.raises(ValueError, match="its weights do not fit the model"):
        load_model(folder)


def test_file_without_a_model_is_refused(tmp_path: Path) -> None:
    """A state where the structure should be."""
    folder = write_run(tmp_path / "run", fixtures.make_hipnn())
    torch.save({"a": torch.ones(2)}, folder / "experiment_structure.pt")
    with pytest.raises(ValueError, match="holds no model of hippynn"):
        load_model(folder)
