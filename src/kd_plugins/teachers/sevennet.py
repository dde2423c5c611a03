"""SevenNet as a teacher, alone and with dispersion: the teachers ``sevenn`` and ``sevenn+d3``."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ase import Atoms
from ase.calculators.mixing import SumCalculator

from kd_plugins.numbers import shown
from kd_plugins.teachers.teacher import TeacherError, resolve_device
from kd_plugins.torch_files import load_torch_file

try:
    from dftd3.ase import DFTD3
    from sevenn.calculator import SevenNetCalculator
except ImportError as error:
    raise ImportError(f"{error}: pip install 'kd_plugins[sevenn]'") from error

_PARTS = ("config", "model_state_dict")
"""Keys of a checkpoint that the model is built of."""


def sevenn(
    model: str = "7net-0",
    modal: str | None = None,
    trust_pickle: bool = False,
    device: str = "auto",
) -> SevenNetCalculator:
    """Return the teacher ``sevenn``: energy, forces, stress and atomic energies.

    It is SevenNet's own ASE calculator, which predicts one structure at a time. Its total energies
    are float32 numbers. SevenNet-0 was trained on PBE energies of MPtrj.

    Args:
        model: name of pretrained weights, or path of a checkpoint. The package has ``7net-0``,
            ``7net-l3i5`` and ``7net-mf-0`` in it and downloads others.
        modal: the data set of a model that was trained on several, such as ``PBE`` of
            ``7net-mf-0``.
        trust_pickle: read a checkpoint that holds pickled objects, which may do anything. Those
            that SevenNet writes hold NumPy arrays.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        TeacherError: for a name that SevenNet does not have, a file that is no checkpoint, a modal
            that the model does not have, or a device that is not there.
    """
    path, where = Path(model).expanduser(), resolve_device(device)
    if path.is_file():
        content = _read_checkpoint(path, trust_pickle)
        with TemporaryDirectory() as folder:
            # SevenNet unpickles whatever a file holds, so it is given what was read, not the file.
            safe = Path(folder) / path.name
            torch.save(content, safe)
            calculator = _make_calculator(str(safe), modal, where)
    else:
        calculator = _make_calculator(model, modal, where)

    # The fingerprint is made of these and the weights, which all modals share.
    calculator.parameters = {"modal": modal} if modal else {}
    calculator.receptive_field = calculator.cutoff * _count_layers(calculator)
    _warm_up(calculator)
    return calculator


def sevenn_d3(
    model: str = "7net-0",
    modal: str | None = None,
    trust_pickle: bool = False,
    device: str = "auto",
) -> SumCalculator:
    """Return the teacher ``sevenn+d3``: SevenNet and Grimme's D3 dispersion, an ASE calculator.

    D3 has Becke-Johnson damping with its parameters for PBE, which only fit weights that were
    trained on PBE energies. Energy, forces and stress. Dispersion is computed on the CPU.

    Args:
        model: as for `sevenn`.
        modal: as for `sevenn`.
        trust_pickle: as for `sevenn`.
        device: of SevenNet, as for `sevenn`.
    """
    network = sevenn(model, modal, trust_pickle, device)
    calculator = SumCalculator([network, DFTD3(method="PBE", damping="d3bj")])
    # ASE calls it for a structure's elements, but not for the calculators of a sum.
    calculator.set_atoms = network.set_atoms
    return calculator


def _make_calculator(model: str, modal: str | None, device: str) -> SevenNetCalculator:
    # SevenNet warns of accelerators that it could use, and prints what it downloads, in between the
    # labeller's progress bar.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            calculator = SevenNetCalculator(model, modal=modal, device=device)
        except ValueError as error:
            raise TeacherError(" ".join(str(error).split())) from error

    if modal and calculator.modal is None:
        raise TeacherError(f"SevenNet {model} has no modals, got modal={modal}; leave it out")
    return calculator


def _read_checkpoint(path: Path, trust_pickle: bool) -> dict:
    remedy = f"say so: sevenn model={path} trust_pickle=true"
    try:
        content = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    except (OSError, ValueError) as error:
        raise TeacherError(str(error)) from error

    missing = [name for name in _PARTS if not (isinstance(content, dict) and content.get(name))]
    if missing:
        raise TeacherError(
            f"{path}: expected a checkpoint of SevenNet, with {' and '.join(_PARTS)}, got "
            f"{shown(list(content) if isinstance(content, dict) else content)}"
        )
    return content


def _count_layers(calculator: SevenNetCalculator) -> int:
    return sum(name.endswith("_convolution") for name, _ in calculator.model.named_children())


def _warm_up(calculator: SevenNetCalculator) -> None:
    """Predict one atom thrice, so that predictions do not depend on which came before.

    torch's compiler counts calls before it fuses operations, which then round differently.
    """
    cell = [4.0, 4.0, 4.0]
    atoms = Atoms([next(iter(calculator.type_map))], cell=cell, pbc=True)
    for _ in range(3):
        calculator.calculate(atoms)
    calculator.reset()
