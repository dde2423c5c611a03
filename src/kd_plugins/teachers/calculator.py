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
"""Our name to ASE's, where they differ."""


class CalculatorTeacher:
    """An ASE calculator that labels.

    Targets are those of the model: constraints of the structure are not applied to them. Stress is
    given for structures that are periodic along all three lattice vectors. Nothing that ASE
    remembers of one structure is used for the next, whose charge or spin in ``info`` it overlooks.

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

    batch_size = 1  # a calculator computes one structure at a time

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator
        self.quantities = _offered(calculator)
        self.fingerprint = describe(calculator)

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of ASE, torch, numpy and the calculators' packages."""
        classes = [kind for part in parts(self.calculator) for kind in type(part).__mro__]
        roots = {kind.__module__.partition(".")[0] for kind in classes}
        return _versions((roots | {"ase", "numpy", "torch"}) - sys.stdlib_module_names)

    @property
    def device(self) -> str:
        """Where its weights are, or else what it has as ``device``; of several parts, all places.

        A calculator with neither computes on the CPU, as ASE's own do.
        """
        return " and ".join(sorted({_device_of(part) for part in _leaves(self.calculator)}))

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Predict the targets of each structure, one after the other.

        Raises:
            TeacherError: if the calculator does not give a quantity that it promises.
        """
        return [self._predict_one(atoms, quantities) for atoms in structures]

    def __call__(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        """Predict one structure, as in version 0.1.0."""
        return self._predict_one(atoms, quantities)

    def _predict_one(self, atoms: Atoms, quantities: Sequence[str]) -> dict[str, np.ndarray]:
        self._forget()
        atoms = atoms.copy()
        atoms.calc = self.calculator
        has_stress = atoms.pbc.all() and atoms.cell.rank == 3
        names = [name for name in quantities if name != "stress" or has_stress]
        names.sort(key=lambda name: name != "forces")  # many compute the energy on their way
        return {name: self._read(name, atoms) for name in names}

    def _read(self, name: str, atoms: Atoms) -> np.ndarray:
        try:
            return np.asarray(_READ.get(name, _read_other(name))(atoms))
        except PropertyNotImplementedError as error:
            raise TeacherError(
                f"{type(self.calculator).__name__} promises but does not give {name} ({error}); "
                f"leave {name} out of the quantities, or set the calculator up to compute it"
            ) from error

    def _forget(self) -> None:
        """Let no structure's numbers depend on the one before, as neighbour lists kept on do."""
        for part in parts(self.calculator):
            if hasattr(part, "reset"):
                part.reset()
            else:  # ASE's mixers
                part.atoms = None


def _energy(atoms: Atoms) -> Any:
    return atoms.get_potential_energy(apply_constraint=False)


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
            and ``__call__(atoms, quantities)``.

    Raises:
        TeacherError: for anything else, a name too, which `load_teacher` takes.

    >>> from ase.calculators.emt import EMT
    >>> as_teacher(EMT()).batch_size
    1
    """
    described = hasattr(thing, "quantities") and hasattr(thing, "fingerprint")
    if described and hasattr(thing, "predict"):
        missing = [
            name for name in ("versions", "device", "batch_size") if not hasattr(thing, name)
        ]
        if missing:
            raise TeacherError(
                f"teacher {type(thing).__name__} has `predict`, but no `{missing[0]}`; see "
                "kd_plugins.teachers.Teacher"
            )
        return thing
    if described and callable(thing):
        return CallableTeacher(thing)
    if hasattr(thing, "get_property"):
        return CalculatorTeacher(thing)
    raise TeacherError(f"expected a Teacher or an ASE calculator, got {shown(thing)}")


_READ: dict[str, Callable[[Atoms], Any]] = {
    "energy": _energy,
    "energy_per_atom": lambda atoms: _energy(atoms) / len(atoms),
    "forces": lambda atoms: atoms.get_forces(apply_constraint=False),
    "stress": lambda atoms: atoms.get_stress(voigt=True, apply_constraint=False),
    "atomic_energies": lambda atoms: atoms.get_potential_energies(),
    "magmoms": lambda atoms: atoms.get_magnetic_moments(),
}


def _read_other(name: str) -> Callable[[Atoms], Any]:
    """Return a reader of what ASE has no name for; the calculator then uses ours."""
    return lambda atoms: atoms.calc.get_property(name, atoms)


def _offered(calculator: Any) -> tuple[str, ...]:
    promised = getattr(calculator, "implemented_properties", None)
    is_class = isinstance(calculator, type)
    if promised is None or is_class or not hasattr(calculator, "get_property"):
        kind = type(calculator).__name__
        found = f"the class {calculator.__name__}" if is_class else f"{kind} {calculator!r:.60}"
        raise TeacherError(f"expected an ASE calculator, got {found}")
    if "energy" not in promised:
        gives = ", ".join(sorted(promised)) or "nothing"
        raise TeacherError(f"{type(calculator).__name__} gives no energy; it gives {gives}")
    given = {*promised, "energy_per_atom"}
    return tuple(name for name in QUANTITIES if ASE_NAMES.get(name, name) in given)


def check_quantities(wanted: Sequence[str], offered: Sequence[str], who: str) -> None:
    """Refuse quantities that a teacher does not give, or that do not exist.

    Raises:
        KeyError: for a name that is not in the table.
        TeacherError: naming what the teacher gives.
    """
    for name in wanted:
        quantity(name)
        if name not in offered:
            raise TeacherError(f"{who} gives no {name!r}; it gives {', '.join(offered)}")
    if len(set(wanted)) < len(wanted) or not wanted:
        raise TeacherError(f"quantities: expected one or more different names, got {wanted}")


def describe(calculator: Any) -> str:
    """Return the identity of a calculator: its class, settings and the hash of its weights.

    Calculators that are made of others, such as ASE's ``SumCalculator``, are described part by
    part. Settings are ``calculator.parameters``; weights are those of the torch modules that it
    holds, also in lists and in objects of its own. Files that it reads are not part of it.
    """
    inner = _inner(calculator)
    if inner:
        weights = getattr(calculator.mixer, "weights", None)
        names = ", ".join(describe(part) for part in inner)
        return f"{type(calculator).__name__}({names}; {list(weights)})"
    kind = f"{type(calculator).__module__}.{type(calculator).__qualname__}"
    settings = dict(_plain(getattr(calculator, "parameters", None) or {}))
    settings.pop("device", None)  # where it computes is not what it computes
    details = [json.dumps(settings, sort_keys=True)] if settings else []
    details += [f"weights {weights_hash(module)}" for module in dict.fromkeys(_modules(calculator))]
    return f"{kind}({', '.join(details)})"


def parts(calculator: Any) -> Iterator[Any]:
    """Yield a calculator and those that it is made of."""
    yield calculator
    for inner in _inner(calculator):
        yield from parts(inner)


def _leaves(calculator: Any) -> Iterator[Any]:
    """Yield the calculators that compute, without those that only add others up."""
    inner = _inner(calculator)
    for part in inner:
        yield from _leaves(part)
    if not inner:
        yield calculator


def _device_of(calculator: Any) -> str:
    for module in _modules(calculator):
        for tensor in module.state_dict().values():
            if isinstance(tensor, torch.Tensor):
                return str(tensor.device)
    return str(getattr(calculator, "device", "cpu"))


def weights_hash(module: torch.nn.Module) -> str:
    """Return a hash of all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()[:32]


def count_weights(calculator: Any) -> int:
    """Return how many weights the torch modules of a calculator and of its parts hold.

    Parameters that are integers are tables, such as hippynn's of elements, and do not count.
    """
    modules = [module for part in parts(calculator) for module in _modules(part)]
    held = {parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in held if parameter.is_floating_point())


def _inner(calculator: Any) -> list[Any]:
    return list(getattr(getattr(calculator, "mixer", None), "calcs", []))


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it; what is unset is left out, of an object its type is left."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, int | float | str | None) else type(value).__qualname__


def _modules(value: Any, depth: int = 4) -> Iterator[torch.nn.Module]:
    """Yield the modules among an object's attributes, or those of what it holds."""
    if isinstance(value, torch.nn.Module):
        yield value
    elif depth and not isinstance(value, type | ModuleType):
        is_list = isinstance(value, list | tuple)
        held = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        for inner in value if is_list else held.values():
            yield from _modules(inner, depth - 1)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, by the name of the distribution that they came with."""
    found: dict[str, str] = {}
    for package in sorted(packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # another name, or none: the user's own module
            found |= {name: metadata.version(name) for name in _came_with().get(package, ())}
    return found


@cache
def _came_with() -> Mapping[str, Sequence[str]]:
    """Return the distributions of each package, which takes half a second to find out."""
    return metadata.packages_distributions()
