"""The manifest of a target store: which teacher made it, which quantities, and in which dtypes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from kd_plugins.core.quantities import QUANTITIES, quantity
from kd_plugins.numbers import check_number
from kd_plugins.store._integrity import FORMAT, StoreError

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

_DOUBLE = ("energy", "energy_per_atom", "atomic_energies")

DEFAULT_DTYPES: Mapping[str, str] = MappingProxyType(
    {name: "float64" if name in _DOUBLE else "float32" for name in QUANTITIES}
)
"""Quantity to dtype. Energies are differences of large numbers: float32 leaves a total energy of
-1000 eV with 0.06 meV. Of all else its seven digits are more than a teacher's own noise."""


def default_dtypes(names: Iterable[str]) -> dict[str, str]:
    """Return the default dtypes of some quantities, for a new store.

    Raises:
        KeyError: for a quantity that is not in the table.

    >>> default_dtypes(["energy", "forces"])
    {'energy': 'float64', 'forces': 'float32'}
    """
    return {name: DEFAULT_DTYPES[quantity(name).name] for name in names}


@dataclass(frozen=True)
class Manifest:
    """What holds for every record of a store.

    Args:
        teacher: its name.
        fingerprint: hash of its weights, or a description of a calculator.
        dtypes: quantity name to ``float16``, ``float32`` or ``float64``.
        versions: package name to version, of what made the targets.
        energy_offsets: eV per atom that were added, by chemical symbol.
        receptive_field: Å, how far the atoms are on which an atomic energy of the teacher depends;
            None, and not in the file, if it is not known.
        format: of the store.

    Raises:
        KeyError: for a quantity that is not in the table.
        ValueError: for an unknown dtype, no quantity, or a field of another type.
    """

    teacher: str
    fingerprint: str
    dtypes: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    energy_offsets: Mapping[str, float] = field(default_factory=dict)
    receptive_field: float | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Check the quantities and their dtypes."""
        for name in ("teacher", "fingerprint"):
            _check_text(name, getattr(self, name))
        for name in ("dtypes", "versions"):
            _check_mapping(name, getattr(self, name), (str,), "text")
        _check_mapping("energy_offsets", self.energy_offsets, (int, float), "a number")
        if self.receptive_field is not None:
            check_number("receptive_field", self.receptive_field, above=0, unit="Å")

        if not self.teacher.strip():
            raise ValueError("teacher: expected a name, got an empty one")
        if not self.dtypes:
            raise ValueError("a store needs at least one quantity")

        for name, dtype in self.dtypes.items():
            quantity(name)
            if dtype not in DTYPES:
                raise ValueError(f"{name}: unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            StoreError: if it is not JSON, of a newer format, or holds something else.
        """
        content = _parse_json(text, where)

        form = content.get("format", 1)  # version 0.1.0's first stores do not name theirs
        if type(form) is not int or form < 1:
            raise StoreError(
                f"{where}: its manifest.json is damaged (format: expected a whole number, got "
                f"{_shortened(form)}); restore it from a copy"
            )
        if form > FORMAT:
            raise StoreError(
                f"{where} has format {_shortened(form)}, this version reads up to {FORMAT}; update "
                "kd_plugins"
            )

        arguments = {name: value for name, value in content.items() if name not in _FOR_READERS}
        try:
            return cls(**arguments)
        except (TypeError, ValueError, KeyError) as error:
            why = error.args[0] if error.args else error
            raise StoreError(
                f"{where}: its manifest.json is damaged ({why}); restore it from a copy"
            ) from error

    def to_json(self) -> str:
        """Return the manifest as JSON, with units for people who read the file."""
        units = {name: quantity(name).unit for name in self.dtypes}
        content = {**_as_dict(self), "units": units, "checksum": _checksum(_as_dict(self))}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def faults(text: bytes) -> list[str]:
        """Return a line if a manifest has changed since it was written, else nothing.

        A manifest that was edited by hand on purpose is read all the same.
        """
        content = _parse_json(text, "the store")
        written_checksum = content.get("checksum")
        names = {field.name for field in fields(Manifest)}
        checked = {name: value for name, value in content.items() if name in names}

        # Format 1 had no checksum.
        is_unchecked = written_checksum is None and checked.get("format") == 1
        if is_unchecked or written_checksum == _checksum(checked):
            return []
        return [
            "manifest.json is not what was written: it is damaged, or was edited by hand; restore "
            "it from a copy"
        ]


_FOR_READERS = ("units", "checksum")
"""Keys of the file that are not fields of `Manifest`."""


def check_same_teacher(manifest: Manifest, wanted: Manifest, folder: Path) -> None:
    """Refuse two manifests that may not share a store.

    Raises:
        StoreError: naming the first field that differs.
    """
    for name in ("teacher", "fingerprint", "dtypes", "energy_offsets"):
        here, there = getattr(manifest, name), getattr(wanted, name)
        if name == "fingerprint" and _without_device(here) == _without_device(there):
            continue
        if here != there:
            raise StoreError(
                f"{folder} was made with another {name}: {here!r}, not {there!r}; one store holds "
                "one teacher's targets, so choose another folder"
            )


def _without_device(fingerprint: str) -> str:
    """Return a fingerprint without the setting ``device``, which version 0.1.0 had in it.

    >>> _without_device('mace.Calculator({"device": "cuda", "head": 1}, weights 0)')
    'mace.Calculator({"head": 1}, weights 0)'
    """
    text = re.sub(r'"device": "[^"]*"(, )?', "", fingerprint).replace(", }", "}")
    return text.replace("({}, ", "(").replace("({})", "()")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {_shortened(value)}")


def _check_mapping(name: str, value: object, types: tuple[type, ...], kind: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping of names to {kind}, got {_shortened(value)}")

    for key, inner in value.items():
        # In Python, True is an int.
        is_expected = isinstance(inner, types) and not isinstance(inner, bool)
        if not isinstance(key, str) or not is_expected:
            raise ValueError(f"{name}.{key}: expected {kind}, got {_shortened(inner)}")
        if isinstance(inner, int | float) and not _is_finite(inner):
            raise ValueError(f"{name}.{key}: expected a finite number, got {_shortened(inner)}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False


def _shortened(value: object) -> str:
    return f"{value!r:.60}"


def _parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        why: object = error
        if isinstance(error, RecursionError):
            why = "nested too deeply"
        elif isinstance(error, UnicodeDecodeError):
            why = "not UTF-8"

        raise StoreError(
            f"{where}: its manifest.json is not JSON ({why}); restore it from a copy"
        ) from error

    if not isinstance(content, dict):
        raise StoreError(
            f"{where}: its manifest.json is no mapping, but {_shortened(content)}; restore it from "
            "a copy"
        )
    return content


def _as_dict(manifest: Manifest) -> dict[str, Any]:
    content = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    # Without its receptive field, a store can be read by versions that have no such field.
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in content.items()
        if not (name == "receptive_field" and value is None)
    }


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()
