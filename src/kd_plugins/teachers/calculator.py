"""Any ASE calculator as a teacher, and any object that predicts one structure at a time."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from kd_plugins.core.quantities import QUANTITIES, quantity
from kd_plugins.numbers import shown
from kd_plugins.teachers.teacher import Teacher, TeacherError

ASE_NAMES = {"atomic_energies": "energies"}
"""Our name of a quantity to ASE's, where they differ."""


class CalculatorTeacher:
    """A teacher that predicts with an ASE calculator, one structure after the other.

    Constraints of a structure do not change its targets. Stress is predicted for structures that
    are periodic along all three lattice vectors.

    Args:
        calculator: with ASE's units: eV, Å.

    Raises:
        TeacherError: if it is no ASE calculator.

    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> (predicted,) = CalculatorTeacher(EMT()).predict([bulk("Cu")], ["energy"])
    >>> round(float(predicted["energy"]), 3)
    -0.006
    """

    batch_size = 1

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator
        self.quantities = _implemented_quantities(calculator)
        self.fingerprint = describe(calculator)

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of ASE, torch, numpy and the calculators' packages."""
        classes = [kind for one in components(self.calculator) for kind in type(one).__mro__]
        packages = {kind.__module__.partition(".")[0] for kind in classes}
        return _versions((packages | {"ase", "numpy", "torch"}) - sys.stdlib_module_names)

    @property
    def device(self) -> str:
        """The device of its weights, or else its attribute ``device``, or else ``cpu``.

        Calculators that are made of others report all devices, such as ``cpu and cuda:0``.
        """
        computing = [one for one in components(self.calculator) if not _inner_calculators(one)]
        return " and ".join(sorted({_device_of(one) for one in computing}))

    @property
    def receptive_field(self) -> float | None:
        """Its attribute ``receptive_field``; the largest one of calculators made of others.

        None where one has no such attribute; see `kd_plugins.teachers.Teacher`.
        """
        parts = [one for one in components(self.calculator) if not _inner_calculators(one)]
        return largest_receptive_field(parts)

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of each structure, one after the other.

        Raises:
            TeacherError: if the calculator does not compute a quantity that it lists.
        """
        return [self._predict_one(atoms, quantities) for atoms in structures]

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Predict one structure, as in version 0.1.0."""
        return self._predict_one(atoms, quantities)

    def _predict_one(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        self._clear_cache()
        atoms = atoms.copy()
        atoms.calc = self.calculator

        # Other structures have no volume to divide the virial by.
        has_stress = atoms.pbc.all() and atoms.cell.rank == 3
        names = [name for name in quantities if name != "stress" or has_stress]

        # Forces first: many calculators compute the energy with them, and if the energy came first
        # they would compute the structure twice.
        names.sort(key=lambda name: name != "forces")
        return {name: self._compute(name, atoms) for name in names}

    def _compute(self, name: str, atoms: Atoms) -> np.ndarray:
        read = _READERS.get(name, _reader_of_property(name))
        try:
            return np.asarray(read(atoms))
        except PropertyNotImplementedError as error:
            raise TeacherError(
                f"{type(self.calculator).__name__} promises but does not give {name} ({error}); "
                f"leave {name} out of the quantities, or set the calculator up to compute it"
            ) from error

    def _clear_cache(self) -> None:
        """Remove the results and neighbour lists of the last structure.

        ASE compares elements, positions, cell, charges and magnetic moments with those of the last
        structure, but not ``info``, where many learned potentials read charge and spin. A
        neighbour list that is kept also makes numbers depend on the order of structures.
        """
        for one in components(self.calculator):
            if hasattr(one, "reset"):
                one.reset()
            else:  # ASE's mixers have no `reset`, and compute anew once they hold no atoms
                one.atoms = None


class CallableTeacher:
    """An object that predicts one structure when it is called, as teachers of version 0.1.0 do.

    Args:
        predict_one: has ``quantities`` and ``fingerprint``, perhaps ``versions`` and ``device``,
            and is called with a structure and the names of quantities.
    """

    batch_size = 1

    def __init__(self, predict_one: Any) -> None:
        self.predict_one = predict_one
        self.quantities: tuple[str, ...] = tuple(predict_one.quantities)
        self.fingerprint: str = predict_one.fingerprint
        self.device = str(getattr(predict_one, "device", "cpu"))

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions that the object reports, if any."""
        return getattr(self.predict_one, "versions", {})

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of each structure, one after the other."""
        return [self.predict_one(atoms, quantities) for atoms in structures]

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Predict one structure, as in version 0.1.0."""
        return self.predict_one(atoms, quantities)


def as_teacher(thing: Any) -> Teacher:
    """Return a teacher as it is, and make one of an ASE calculator or of a callable object.

    Args:
        thing: a `Teacher`, an ASE calculator, or an object with ``quantities``, ``fingerprint``
            and ``__call__(atoms, quantities)``. A calculator that can also predict in batches has
            a method ``as_teacher()``, which returns the teacher.

    Raises:
        TeacherError: for anything else, also for a name, which `load_teacher` takes.

    >>> from ase.calculators.emt import EMT
    >>> as_teacher(EMT()).batch_size
    1
    """
    if hasattr(thing, "as_teacher") and not isinstance(thing, type):
        return thing.as_teacher()

    is_described = hasattr(thing, "quantities") and hasattr(thing, "fingerprint")
    if is_described and hasattr(thing, "predict"):
        members = ("versions", "device", "batch_size")
        missing = [name for name in members if not hasattr(thing, name)]
        if missing:
            raise TeacherError(
                f"teacher {type(thing).__name__} has `predict`, but no `{missing[0]}`; see "
                "kd_plugins.teachers.Teacher"
            )
        return thing

    if is_described and callable(thing):
        return CallableTeacher(thing)
    if hasattr(thing, "get_property"):
        return CalculatorTeacher(thing)
    raise TeacherError(f"expected a Teacher or an ASE calculator, got {shown(thing)}")


def _energy(atoms: Atoms) -> Any:
    return atoms.get_potential_energy(apply_constraint=False)


_READERS: dict[str, Callable[[Atoms], Any]] = {
    "energy": _energy,
    "energy_per_atom": lambda atoms: _energy(atoms) / len(atoms),
    "forces": lambda atoms: atoms.get_forces(apply_constraint=False),
    "stress": lambda atoms: atoms.get_stress(voigt=True, apply_constraint=False),
    "atomic_energies": lambda atoms: atoms.get_potential_energies(),
    "magmoms": lambda atoms: atoms.get_magnetic_moments(),
}


def _reader_of_property(name: str) -> Callable[[Atoms], Any]:
    """Return a reader of a quantity without an ASE name, which the calculator lists by ours."""
    return lambda atoms: atoms.calc.get_property(name, atoms)


def _implemented_quantities(calculator: Any) -> tuple[str, ...]:
    """Return the quantities that a calculator lists, in the order of the table.

    Raises:
        TeacherError: for what is no calculator, and for one without an energy.
    """
    listed = getattr(calculator, "implemented_properties", None)
    is_class = isinstance(calculator, type)
    if listed is None or is_class or not hasattr(calculator, "get_property"):
        kind = type(calculator).__name__
        found = f"the class {calculator.__name__}" if is_class else f"{kind} {calculator!r:.60}"
        raise TeacherError(f"expected an ASE calculator, got {found}")

    if "energy" not in listed:
        gives = ", ".join(sorted(listed)) or "nothing"
        raise TeacherError(f"{type(calculator).__name__} gives no energy; it gives {gives}")

    available = {*listed, "energy_per_atom"}
    return tuple(name for name in QUANTITIES if ASE_NAMES.get(name, name) in available)


def largest_receptive_field(parts: Iterable[Any]) -> float | None:
    """Return the largest attribute ``receptive_field`` in Å; None where one has none."""
    fields = [getattr(part, "receptive_field", None) for part in parts]
    return None if None in fields else max(fields, default=None)


def check_quantities(wanted: Sequence[str], offered: Sequence[str], who: str) -> None:
    """Refuse quantities that a teacher does not predict, or that do not exist.

    Args:
        wanted: names that the user gave.
        offered: names that the teacher has.
        who: the teacher's name, for the message.

    Raises:
        KeyError: for a name that is not in the table.
        TeacherError: naming what the teacher predicts.
    """
    for name in wanted:
        quantity(name)
        if name not in offered:
            raise TeacherError(f"{who} gives no {name!r}; it gives {', '.join(offered)}")
    if len(set(wanted)) < len(wanted) or not wanted:
        raise TeacherError(f"quantities: expected one or more different names, got {wanted}")


def describe(calculator: Any) -> str:
    """Return the identity of a calculator: its class, settings and the hash of its weights.

    Calculators that are made of others, such as ASE's ``SumCalculator``, are described one by
    one. Settings are ``calculator.parameters``; weights are those of the torch modules that it
    holds, also in lists and in objects of its own. Files that it reads are not part of it, and
    neither is the device.
    """
    inner = _inner_calculators(calculator)
    if inner:
        weights = getattr(calculator.mixer, "weights", None)
        names = ", ".join(describe(one) for one in inner)
        return f"{type(calculator).__name__}({names}; {list(weights)})"

    kind = f"{type(calculator).__module__}.{type(calculator).__qualname__}"
    settings = getattr(calculator, "parameters", None) or {}
    if isinstance(settings, Mapping):
        settings = {key: value for key, value in settings.items() if key != "device"}
    details = [json.dumps(_to_json(settings), sort_keys=True)] if settings else []

    # A module that stands in two attributes is hashed once.
    modules = dict.fromkeys(_find_modules(calculator))
    details += [f"weights {weights_hash(module)}" for module in modules]
    return f"{kind}({', '.join(details)})"


def components(calculator: Any) -> Iterator[Any]:
    """Yield a calculator and all those that it is made of."""
    yield calculator
    for inner in _inner_calculators(calculator):
        yield from components(inner)


def weights_hash(module: torch.nn.Module) -> str:
    """Return a hash of all parameters and buffers of a model, the same on every device."""
    digest = hashlib.sha256()

    for name, tensor in sorted(module.state_dict().items()):
        # `get_extra_state` of a module may put anything else beside its tensors.
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())

        # As bytes, because NumPy has no bfloat16.
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())

    return digest.hexdigest()[:32]


def count_weights(calculator: Any) -> int:
    """Return the number of weights in the torch modules of a calculator and its components.

    Parameters that are integers are tables, such as hippynn's of elements, and do not count.
    """
    return sum(one.numel() for one in _weights(calculator))


def weight_dtype(calculator: Any) -> str | None:
    """Return the dtypes of these weights, such as ``float32``; None where there are none."""
    names = {str(one.dtype).removeprefix("torch.") for one in _weights(calculator)}
    return " and ".join(sorted(names)) or None


def _weights(calculator: Any) -> set[torch.nn.Parameter]:
    modules = [module for one in components(calculator) for module in _find_modules(one)]
    shared_once = {parameter for module in modules for parameter in module.parameters()}
    return {one for one in shared_once if one.is_floating_point()}


def _inner_calculators(calculator: Any) -> list[Any]:
    """Return the calculators that one of ASE's mixers combines; of any other, none."""
    return list(getattr(getattr(calculator, "mixer", None), "calcs", []))


def _device_of(calculator: Any) -> str:
    for module in _find_modules(calculator):
        for tensor in module.state_dict().values():
            if isinstance(tensor, torch.Tensor):
                return str(tensor.device)
    return str(getattr(calculator, "device", "cpu"))


def _to_json(value: Any) -> Any:
    """Return a setting in JSON's types; None is left out, and an object becomes its type's name."""
    if isinstance(value, Mapping):
        # An argument that a later version adds, with None for its default, changes nothing.
        return {str(key): _to_json(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_to_json(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()

    # Not the object's `repr`, which may hold an address that changes from run to run.
    return value if isinstance(value, int | float | str | None) else type(value).__qualname__


def _find_modules(value: Any, depth: int = 4) -> Iterator[torch.nn.Module]:
    """Yield the torch modules among an object's attributes, or among those of its attributes.

    Calculators keep their model in different places: as an attribute, in a list of models, or in
    a predictor or trainer. Four levels reach all that we know, and end any circle.
    """
    if isinstance(value, torch.nn.Module):
        yield value
    elif depth and not isinstance(value, type | ModuleType):
        is_list = isinstance(value, list | tuple)
        attributes = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        for inner in value if is_list else attributes.values():
            yield from _find_modules(inner, depth - 1)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, by the name of the distribution that contains each."""
    found: dict[str, str] = {}

    for package in sorted(packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            # The distribution has another name, or there is none: the user's own module.
            names = _distributions_by_package().get(package, ())
            found |= {name: metadata.version(name) for name in names}

    return found


@cache
def _distributions_by_package() -> Mapping[str, Sequence[str]]:
    """Return the distributions of each package; finding them takes half a second."""
    return metadata.packages_distributions()
