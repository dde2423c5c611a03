"""The parts of `gpu_check` about hippynn and CHGNet: steps of a student, labels of a teacher."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from functools import partial
from typing import Any

import torch
from gpu_check_measuring import (
    CheckFailed,
    Found,
    Setup,
    both,
    check_errors,
    error_of,
    timed,
    waits,
)


def hippynn(setup: Setup, found: Found) -> None:
    """Train a HIPNN on a teacher's targets, on the CPU and on the device."""
    from hippynn import custom_kernels
    from hippynn.experiment import assemble_for_training
    from step_overhead import hipnn, metals

    from kd_plugins.hippynn import STUDENT, HippynnTeacher, distillation_loss, to_arrays

    torch.manual_seed(0)
    arrays = to_arrays(itertools.islice(metals(), 4 if setup.dry else 16))
    found["structures"], found["atoms a structure"] = arrays["numbers"].shape
    found["kernels"] = str(custom_kernels.CUSTOM_KERNELS_ACTIVE)
    width, sensitivities, layers = (8, 4, 1) if setup.dry else (128, 40, 4)

    taught, _ = hipnn(width, sensitivities, layers)
    given = {name: torch.as_tensor(one) for name, one in arrays.items()}
    said: Found = {}

    for device in both(setup):
        teacher = HippynnTeacher(taught, device=device)
        ask = partial(teacher.predict_arrays, given, ["atomic_energies", "forces"])
        said[device] = ask()
        found[f"teacher ms, {device}"] = timed(ask, setup, 3)

    for name, expected in said["cpu"].items():
        actual = torch.as_tensor(said[setup.device.type][name])
        found[f"teacher's {name}, error"] = error_of(actual, torch.as_tensor(expected))

    nodes = hipnn(width=24, sensitivities=16, layers=2)
    loss = distillation_loss(*nodes, weights=STUDENT, energies="total")
    modules, info = assemble_for_training(loss.train, dict(loss.validation))

    data = hippynn_data(arrays, teacher, info, {})
    (whole,) = data.make_generator("train", "train", len(arrays["numbers"]))
    hippynn_steps(modules, whole, len(data.inputs), setup, found)

    data = hippynn_data(arrays, teacher, info, {"valid_size": 0.25, "test_size": 0.25})
    hippynn_training(modules, data, next(iter(loss.validation)), setup)
    found["epochs of hippynn's own loop"] = 2
    check_errors(found, 1e-3)


def hippynn_data(arrays: Any, teacher: Any, info: Any, splits: Found) -> Any:
    """Return a database with the teacher's targets."""
    from hippynn.databases import Database

    from kd_plugins.hippynn import add_teacher_targets

    data = Database(dict(arrays), None, None, seed=0, quiet=True, **splits)
    if not splits:
        data.split_the_rest("train")
    add_teacher_targets(data, teacher, align=True)
    data.inputs, data.targets = info["inputs"], info["targets"]
    return data


def hippynn_steps(modules: Any, given: Any, n_inputs: int, setup: Setup, found: Found) -> None:
    """Compare loss and gradient, and time steps."""
    from hippynn.experiment.step_functions import get_step_function

    seen: Found = {}

    for device in both(setup):
        model, loss = (copy.deepcopy(one).to(device) for one in (modules.model, modules.loss))
        moved = [one.to(device) for one in given]
        inputs, targets = moved[:n_inputs], moved[n_inputs:]

        total = loss(*model(*inputs), *targets)[0].mean()
        weights = [one for one in model.parameters() if one.requires_grad]
        slopes = torch.autograd.grad(total, weights, materialize_grads=True, allow_unused=True)
        seen[device] = {"loss": total, "gradient": torch.cat([one.flatten() for one in slopes])}

        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        take = get_step_function(optimizer)
        step = partial(take, optimizer, model, loss, inputs, targets)
        found[f"step ms, {device}"] = timed(step, setup)

    found["waits of a step"] = waits(step, setup)
    for name, expected in seen["cpu"].items():
        found[f"{name}, error"] = error_of(seen[setup.device.type][name], expected)


def hippynn_training(modules: Any, data: Any, key: str, setup: Setup) -> None:
    """Run two epochs of hippynn's own training loop, which sends everything to the device."""
    from hippynn.experiment import SetupParams, setup_training, train_model
    from hippynn.experiment.controllers import Controller
    from hippynn.tools import active_directory

    optimizer = torch.optim.Adam(modules.model.parameters(), lr=1e-3)
    controller = Controller(optimizer, None, 4, 2, key, fraction_train_eval=1.0, quiet=True)

    setup_params = SetupParams(controller=controller, device=setup.device.type)
    modules, controller, metrics = setup_training(modules, setup_params)

    with tempfile.TemporaryDirectory() as folder, active_directory(folder):
        train_model(modules, data, controller, metrics, None, None, quiet=True)


def salts(count: int, setup: Setup) -> list[Any]:
    """Return rattled rocksalt cells of 16 to 64 atoms, or of 8."""
    from ase.build import bulk

    lengths = {"NaCl": 5.6, "MgO": 4.2, "LiF": 4.0, "CaO": 4.8}
    shapes = ((2, 2, 1),) if setup.dry else ((2, 2, 2), (4, 2, 2), (4, 4, 2))
    structures = []
    for index in range(count):
        name = list(lengths)[index % len(lengths)]
        atoms = bulk(name, "rocksalt", lengths[name]) * shapes[index % len(shapes)]
        atoms.rattle(0.08, seed=index)
        structures.append(atoms)
    return structures


def chgnet(setup: Setup, found: Found) -> None:
    """Compare CHGNet's predictions in batches with those one by one and with the CPU's."""
    from chgnet.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    models = {name: CHGNet.load(use_device=name, verbose=False) for name in both(setup)}
    structures = salts(2 if setup.dry else 64, setup)
    found["structures"], found["atoms"] = len(structures), sum(map(len, structures))

    start = time.perf_counter()
    convert = models["cpu"].graph_converter
    graphs = [convert(AseAtomsAdaptor.get_structure(atoms)) for atoms in structures]
    found["graph ms a structure"] = 1e3 * (time.perf_counter() - start) / len(graphs)

    # CHGNet moves graphs to the device for each prediction, as it does where it labels
    few, said = graphs[: 2 if setup.dry else 8], {}
    for device, model in models.items():
        some = few if device == "cpu" else graphs
        for size in (1, 2) if setup.dry else (1, 16, 64):
            ask = partial(model.predict_graph, some, task="efs", batch_size=size)

            start = time.perf_counter()
            said[device, size] = ask()
            ms = 1e3 * (time.perf_counter() - start)
            if device != "cpu":
                ms = timed(ask, setup, 3)
            found[f"structures/s, {device}, batches of {size}"] = 1e3 * len(some) / ms

    for kind in "efs":
        expected = torch.cat([torch.as_tensor(one[kind]).flatten() for one in said["cpu", 1]])
        for (device, size), all_ in said.items():
            actual = torch.cat([torch.as_tensor(one[kind]).flatten() for one in all_[: len(few)]])
            found[f"{kind}, {device}, batches of {size}, error"] = error_of(actual, expected)
    check_errors(found, 1e-3)


def labeller(setup: Setup, found: Found) -> None:
    """Label with the package's own teacher ``chgnet``, and compare with CHGNet's calculator."""
    from chgnet.model.dynamics import CHGNetCalculator

    from kd_plugins import TargetStore
    from kd_plugins.structures import LabelledStructure
    from kd_plugins.teachers import label, load_teacher

    teacher = load_teacher("chgnet", setup.device.type)
    found |= {"device": teacher.device, "batch size": teacher.batch_size}

    cells = salts(2 if setup.dry else 64, setup)
    structures = [LabelledStructure(f"salt-{place}", atoms) for place, atoms in enumerate(cells)]
    with tempfile.TemporaryDirectory() as folder:
        # the first prediction on a GPU takes seconds
        label(structures[:1], teacher, f"{folder}/first", ("energy",), progress=False)
        report = label(structures, teacher, f"{folder}/all", ("energy", "forces"), progress=False)
        store = TargetStore.open(f"{folder}/all")
        labels = [store[one.structure_id].values for one in structures[:8]]
    found |= {"labelled": report.labelled, "structures/s": report.labelled / report.seconds}

    calculator = CHGNetCalculator(use_device="cpu")
    ask = {"energy": calculator.get_potential_energy, "forces": calculator.get_forces}
    for kind, expect in ask.items():
        expected = [torch.as_tensor(expect(atoms)).flatten() for atoms in cells[:8]]
        actual = [one[kind].flatten() for one in labels]
        found[f"{kind}, error"] = error_of(torch.cat(actual), torch.cat(expected))

    if torch.device(teacher.device).type != setup.device.type:
        raise CheckFailed(f"the teacher ran on {teacher.device}")
    check_errors(found, 1e-3)
