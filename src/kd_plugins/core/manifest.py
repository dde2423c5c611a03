"""What is true of every record of a target store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from kd_plugins.core.quantities import quantity
from kd_plugins.core.shard import StoreError

FORMAT = 1
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
        if not self.dtypes:
            raise ValueError("a store needs at least one quantity")
        for name, dtype in self.dtypes.items():
            quantity(name)
            if dtype not in DTYPES:
                raise ValueError(f"{name}: unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            StoreError: if it is not JSON, or of a newer format.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise StoreError(f"{where}: its manifest is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise StoreError(f"{where}: its manifest is no mapping; restore it from a copy")
        if content.get("format", 0) > FORMAT:
            raise StoreError(
                f"{where} has format {content['format']}, this version reads up to {FORMAT}; "
                "update kd_plugins"
            )
        content.pop("units", None)
        try:
            return cls(**content)
        except (TypeError, ValueError, KeyError) as error:
            raise StoreError(f"{where}: its manifest is damaged ({error})") from error

    def to_json(self) -> str:
        """Return the manifest as JSON, units included for whoever reads the file."""
        units = {name: quantity(name).unit for name in self.dtypes}
        return json.dumps({**asdict(self), "units": units}, indent=2, sort_keys=True) + "\n"


def check_same(manifest: Manifest, wanted: Manifest, folder: Path) -> None:
    """Raise a StoreError if two manifests may not share a store."""
    for name in ("teacher", "fingerprint", "dtypes", "energy_offsets"):
        here, there = getattr(manifest, name), getattr(wanted, name)
        if here != there:
            raise StoreError(
                f"{folder} was made with another {name}: {here!r}, not {there!r}; one store holds "
                "one teacher's targets, so choose another folder"
            )
