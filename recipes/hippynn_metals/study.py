"""What all commands of the recipe share: settings, structures and the runs' folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from ani_al import Convention, read_ani_al

from kd_plugins.config import read_config
from kd_plugins.files import write_bytes
from kd_plugins.sampling import nested_subset
from kd_plugins.structures import LabelledStructure, read_structures

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Cutoffs:
    """Of the sensitivities, in Å."""

    soft_min: float
    soft_max: float
    hard: float


@dataclass(frozen=True)
class Size:
    """Of a model: width of its layers, sensitivities, atom layers; and how fast it learns."""

    width: int
    sensitivities: int
    layers: int
    learning_rate: float


@dataclass(frozen=True)
class Sizes:
    """Those that a study has."""

    tiny: Size
    small: Size
    large: Size
    paper: Size


@dataclass(frozen=True)
class Lattice:
    """Of a crystal as ASE's ``bulk`` takes it, and of its liquid.

    Args:
        structure: such as bcc.
        constant: in Å.
        liquid_constant: in Å, of a crystal with the liquid's density.
        temperature: of the liquid in K.
    """

    structure: str
    constant: float
    liquid_constant: float
    temperature: float


@dataclass(frozen=True)
class Settings:
    """A study's description, study.yml."""

    element: int
    train: str
    test: str
    validation: int
    split_seed: int
    cutoffs: Cutoffs
    lattice: Lattice
    batch_size: int
    steps: int
    sizes: Sizes
    ani_al: Convention | None = None

    def size(self, name: str) -> Size:
        """Return one of the sizes."""
        if name not in vars(self.sizes):
            raise SystemExit(f"no size {name!r} in the study; it has {', '.join(vars(self.sizes))}")
        return getattr(self.sizes, name)


@dataclass(frozen=True)
class Run:
    """One model: how it is taught, how large it is, from which share of the structures."""

    method: str
    size: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.size}-{self.share:g}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A folder with everything that one study makes."""

    settings: Settings
    data: Path
    out: Path

    def folder(self, run: Run) -> Path:
        """Return where a run is, finished or not."""
        return self.out / "runs" / run.name

    @cached_property
    def frames(self) -> dict[str, list[LabelledStructure]]:
        """Structures by split."""
        held = self.read(self.settings.train)
        ids = [frame.structure_id for frame in held]
        chosen = set(nested_subset(ids, self.settings.validation, self.settings.split_seed))
        return {
            "train": [frame for frame in held if frame.structure_id not in chosen],
            "valid": [frame for frame in held if frame.structure_id in chosen],
            "test": self.read(self.settings.test),
        }

    def read(self, name: str) -> list[LabelledStructure]:
        """Return the structures of a file, or of a folder of the ANI-Al release."""
        path = self.data / name
        if path.is_dir():
            return list(read_ani_al(path, self.settings.ani_al))
        return list(read_structures([path]))

    def part(self, share: float, seed: int) -> dict[str, list[LabelledStructure]]:
        """Return the splits with a share of the training structures, larger ones nested."""
        ids = [frame.structure_id for frame in self.frames["train"]]
        chosen = set(nested_subset(ids, max(1, round(share * len(ids))), seed))
        train = [frame for frame in self.frames["train"] if frame.structure_id in chosen]
        return {**self.frames, "train": train}


def open_study(out: Path, data: Path | None = None, settings: Path = HERE / "study.yml") -> Study:
    """Return a study; without ``data``, the one that the folder holds.

    Raises:
        SystemExit: if the folder holds a study with other settings, or none.
    """
    path = out / "study.json"
    if data is None and not path.is_file():
        raise SystemExit(f"{out} holds no study; run train.py with --data first")
    if data is not None:
        ours = yaml.safe_load(settings.read_text())
        if path.is_file() and json.loads(path.read_text())["settings"] != ours:
            raise SystemExit(f"{out} holds a study with other settings; choose another --out")
        read_config(Settings, ours, settings.name)
        write_json(path, {"settings": ours, "data": str(data)})
    kept = json.loads(path.read_text())
    return Study(read_config(Settings, kept["settings"], settings.name), Path(kept["data"]), out)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all; the NaN of a run that diverged stays."""
    write_bytes(path, f"{json.dumps(content, indent=1)}\n".encode())
