"""What the commands of this recipe share: the crystals of a study, its files and stores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kd_plugins import TargetStore
from kd_plugins.config import read_config
from kd_plugins.files import write_bytes
from kd_plugins.structures import LabelledStructure, read_structures

HERE = Path(__file__).resolve().parent
GROUPS = ("train", "selection", "test")
STARTS = {"hexamine": "hexamine_dftH.extxyz"}
"""Crystals whose CIF lacks hydrogen, and where they start from."""


@dataclass(frozen=True)
class Crystals:
    """Names of crystals, three groups."""

    train: tuple[str, ...]
    selection: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        names = [name for group in GROUPS for name in getattr(self, group)]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"{sorted(repeated)[0]} stands in two groups; each must be in one")


@dataclass(frozen=True)
class Counts:
    """Deformations of each crystal, of the groups that are labelled."""

    train: int
    selection: int


@dataclass(frozen=True)
class Settings:
    """A study's description, study.yml."""

    crystals: Crystals
    structures: Counts
    seed: int
    teacher: str
    labels: str
    relaxed_by: str = ""


@dataclass(frozen=True)
class Study:
    """A folder with what one study makes: its settings, the folder of X23 and its own."""

    settings: Settings
    x23: Path
    out: Path

    def structures(self, group: str) -> Path:
        """Return the file with a group's structures and their labels."""
        return self.out / f"{group}.extxyz"

    def store(self, group: str, source: str) -> TargetStore:
        """Return what ``teacher`` or ``labels`` says of a group."""
        return TargetStore.open(self.out / source / group)

    def crystals(self, groups: Sequence[str] = GROUPS) -> Iterator[LabelledStructure]:
        """Yield the experiments' crystals."""
        for group in groups:
            for name in getattr(self.settings.crystals, group):
                path = self.x23 / STARTS.get(name, f"{name}.cif")
                (frame,) = read_structures([path])
                yield replace(frame, structure_id=name, labels={})


def open_study(out: Path, x23: Path | None = None, settings: Path = HERE / "study.yml") -> Study:
    """Return a study; without ``x23``, the one that the folder holds.

    Raises:
        SystemExit: if the folder holds a study with other settings, or the crystals are missing.
    """
    path = out / "study.json"
    if x23 is None and not path.is_file():
        raise SystemExit(f"{out} holds no study; run label.py first")
    if x23 is not None:
        _claim(path, yaml.safe_load(settings.read_text()), x23)

    kept = json.loads(path.read_text())
    folder = Path(kept["x23"])
    if not (folder / "index.csv").is_file():
        raise SystemExit(f"{folder}: no index.csv; expected the folder of the X23 crystals")
    return Study(read_config(Settings, kept["settings"], settings.name), folder, out)


def _claim(path: Path, settings: dict[str, Any], x23: Path) -> None:
    """Note what is studied, or check that the folder holds this very study."""
    if path.is_file() and json.loads(path.read_text())["settings"] != settings:
        raise SystemExit(f"{path.parent} holds a study with other settings; choose another --out")
    read_config(Settings, settings, "the study's settings")
    write_json(path, {"settings": settings, "x23": str(x23)})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all; the NaN of a student that diverged stays."""
    write_bytes(path, f"{json.dumps(content, indent=1)}\n".encode())
