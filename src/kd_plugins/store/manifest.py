"""What is true of every record of a target store."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from kd_plugins.core.quantities import quantity
from kd_plugins.store.shard import FORMAT, StoreError

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Manifest:
    """What is true of every record of a store.

    Args:
        teacher: its name.
        fingerprint: hash of its weights, or a description of a calculator.
        dtypes: quantity name to ``float16``, ``float32`` or ``float64``.
        versions: package name to version, of what made the targets.
        energy_offsets: eV per atom that were added, by chemical symbol.
        format: of the store.

    Raises:
        KeyError: for a quantity that is not in the table.
        ValueError: for an unknown dtype, or no quantity.
    """

    teacher: str
    fingerprint: str
    dtypes: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    energy_offsets: Mapping[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Check the quantities and their dtypes."""
        for name, expected in _EXPECTED.items():
            _check(name, getattr(self, name), expected)
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
        content = _read(text, where)
        form = content.get("format", 1)
        if type(form) is not int or form < 1:
            raise StoreError(
                f"{where}: its manifest.json is damaged (format: expected a whole number, got "
                f"{_shortly(form)}); restore it from a copy"
            )
        if form > FORMAT:
            raise StoreError(
                f"{where} has format {_shortly(form)}, this version reads up to {FORMAT}; update "
                "kd_plugins"
            )
        given = {name: value for name, value in content.items() if name not in _BESIDE}
        try:
            return cls(**given)
        except (TypeError, ValueError, KeyError) as error:
            why = error.args[0] if error.args else error
            raise StoreError(
                f"{where}: its manifest.json is damaged ({why}); restore it from a copy"
            ) from error

    def to_json(self) -> str:
        """Return the manifest as JSON, units included for whoever reads the file."""
        units = {name: quantity(name).unit for name in self.dtypes}
        content = {**_plain(self), "units": units, "checksum": _checksum(_plain(self))}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def faults(text: bytes) -> list[str]:
        """Return what has changed in a manifest since it was written, one line at most.

        One that is edited by hand on purpose can be read all the same.
        """
        content = _read(text, "the store")
        written = content.get("checksum")
        known = {field.name for field in fields(Manifest)}
        kept = {name: value for name, value in content.items() if name in known}
        is_whole = written == _checksum(kept)
        if is_whole or (written is None and kept.get("format") == 1):
            return []
        return [
            "manifest.json is not what was written: it is damaged, or was edited by hand; restore "
            "it from a copy"
        ]


_BESIDE = ("units", "checksum")
"""What the file holds for others than `Manifest`."""
_EXPECTED: Mapping[str, tuple[type, ...]] = {
    "teacher": (str,),
    "fingerprint": (str,),
    "dtypes": (str,),
    "versions": (str,),
    "energy_offsets": (int, float),
}


def _check(name: str, value: object, expected: tuple[type, ...]) -> None:
    """Refuse what is no text, or no mapping from text to what is expected."""
    if name in ("teacher", "fingerprint"):
        if not isinstance(value, str):
            raise ValueError(f"{name}: expected text, got {_shortly(value)}")
        return
    kind = "a number" if float in expected else "text"
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping of names to {kind}, got {_shortly(value)}")
    for key, inner in value.items():
        fits = isinstance(inner, expected) and not isinstance(inner, bool)
        if not isinstance(key, str) or not fits:
            raise ValueError(f"{name}.{key}: expected {kind}, got {_shortly(inner)}")
        if isinstance(inner, int | float) and not _is_finite(inner):
            raise ValueError(f"{name}.{key}: expected a finite number, got {_shortly(inner)}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False


def _shortly(value: object) -> str:
    return f"{value!r:.60}"


def _read(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        why: object = "nested too deeply" if isinstance(error, RecursionError) else error
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else why
        raise StoreError(
            f"{where}: its manifest.json is not JSON ({why}); restore it from a copy"
        ) from error
    if not isinstance(content, dict):
        raise StoreError(
            f"{where}: its manifest.json is no mapping, but {_shortly(content)}; restore it from a "
            "copy"
        )
    return content


def _plain(manifest: Manifest) -> dict[str, Any]:
    plain = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def check_same(manifest: Manifest, wanted: Manifest, folder: Path) -> None:
    """Raise a StoreError if two manifests may not share a store."""
    for name in ("teacher", "fingerprint", "dtypes", "energy_offsets"):
        here, there = getattr(manifest, name), getattr(wanted, name)
        if here != there:
            raise StoreError(
                f"{folder} was made with another {name}: {here!r}, not {there!r}; one store holds "
                "one teacher's targets, so choose another folder"
            )
