"""Take the crystals of one kind out of MPtrj's JSON, and count all kinds (Taniguchi 2024)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import ijson
import numpy as np
from ase.data import atomic_numbers
from tqdm import tqdm

from kd_plugins.files import whole_file, write_json
from kd_plugins.names import suggestion
from kd_plugins.sampling.composition import Kind, kind
from kd_plugins.structures.mptrj import (
    energy_per_atom,
    frame_elements,
    is_mptrj,
    iterate_materials,
)

KINDS: tuple[Kind, ...] = get_args(Kind)
EDGES = tuple(float(edge) for edge in np.round(np.arange(-15, 5.05, 0.1), 1))
"""Edges of the histogram of energies in eV/atom (Taniguchi 2024, Figure 2)."""


@dataclass
class KindCounts:
    """Frames of one kind.

    Args:
        frames: how many.
        materials: of how many materials.
        energy_sum: of their corrected energies in eV/atom.
        with_energy: frames that have one.
        histogram: frames between two of `EDGES`; those beyond count in the first or last.
    """

    frames: int = 0
    materials: int = 0
    energy_sum: float = 0.0
    with_energy: int = 0
    histogram: Counter[int] = field(default_factory=Counter)

    def add(self, energy: float | None) -> None:
        """Count a frame with its corrected energy in eV/atom."""
        self.frames += 1
        if energy is None:
            return
        self.with_energy += 1
        self.energy_sum += energy
        place = int(np.searchsorted(EDGES, energy, side="right")) - 1
        self.histogram[min(max(place, 0), len(EDGES) - 2)] += 1

    def as_json(self, n_frames: int) -> dict[str, Any]:
        """Return what is counted.

        Args:
            n_frames: of all kinds together.
        """
        mean = self.energy_sum / self.with_energy if self.with_energy else None
        return {
            "frames": self.frames,
            "percent": 100 * self.frames / n_frames if n_frames else 0.0,
            "materials": self.materials,
            "mean_energy_per_atom": mean,
            "histogram": [self.histogram[place] for place in range(len(EDGES) - 1)],
        }


def take_kind(source: Path, wanted: Kind, out: Path, progress: bool = True) -> dict[str, Any]:
    """Write the frames of one kind as a JSON of the same layout, and count all kinds.

    MPtrj has 12 GB; one material is held at a time. ``out`` is there whole or not at all. Numbers
    and fields are those of the source. The counts also go to ``<out stem>_kinds.json``.

    Args:
        source: MPtrj's JSON, plain or compressed.
        wanted: which kind, see `kd_plugins.sampling.kind`.
        out: to write.
        progress: show a bar, of the bytes of a plain file.

    Returns:
        ``edges`` of the histograms in eV/atom, and ``kinds``: kind to ``frames``, ``percent`` of
        all, ``materials``, ``mean_energy_per_atom`` in eV and ``histogram``.

    Raises:
        KeyError: for an unknown kind.
        ValueError: naming the frame, for one without elements; if ``out`` is the source; for
            another JSON than MPtrj's, or a damaged one.
    """
    if wanted not in KINDS:
        raise KeyError(f"unknown kind of crystal {wanted!r}{suggestion(wanted, KINDS)}")
    if out.resolve() == source.resolve():
        raise ValueError(f"{out}: expected another file than the one that is read")

    try:
        if not is_mptrj(source):
            raise ValueError(
                f"{source}: no JSON of MPtrj; expected materials, each with frames, each with "
                "structure, force, stress and so on"
            )
        return _take_kind(source, wanted, out, progress)
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{source}: no JSON, or damaged: {reason}") from error


def _take_kind(source: Path, wanted: Kind, out: Path, progress: bool) -> dict[str, Any]:
    counts = {name: KindCounts() for name in KINDS}
    with whole_file(out) as file, _bar(source, progress) as bar:
        file.write(b"{")
        n_written = 0
        for material, frames in iterate_materials(source, bar.update):
            of_material = _sort_frames(frames, counts)
            bar.set_postfix_str(f"{counts[wanted].frames} {wanted}", refresh=False)
            if not of_material.get(wanted):
                continue
            start = ",\n" if n_written else "\n"
            entry = json.dumps(of_material[wanted], separators=(",", ":"), allow_nan=False)
            file.write(f"{start}{json.dumps(material)}:{entry}".encode())
            n_written += 1
        file.write(b"\n}\n")

    n_frames = sum(one.frames for one in counts.values())
    found = {name: one.as_json(n_frames) for name, one in counts.items()}
    summary = {"edges": list(EDGES), "kinds": found}
    write_json(out.with_name(f"{out.stem}_kinds.json"), summary)
    return summary


def _sort_frames(
    frames: Mapping[str, Any], counts: Mapping[str, KindCounts]
) -> dict[str, dict[str, Any]]:
    """Return kind to frames of one material, all counted."""
    found: dict[str, dict[str, Any]] = {}
    for frame_id, frame in frames.items():
        elements = frame_elements(frame_id, frame)
        of_kind = kind([atomic_numbers[element] for element in elements])
        found.setdefault(of_kind, {})[frame_id] = frame
        counts[of_kind].add(energy_per_atom(frame_id, frame, len(elements)))
    for of_kind in found:
        counts[of_kind].materials += 1
    return found


def _bar(source: Path, progress: bool) -> tqdm[Any]:
    size = None if source.suffix in (".gz", ".xz", ".bz2") else source.stat().st_size
    return tqdm(
        total=size, desc=source.name, unit="B", unit_scale=True, disable=not progress, mininterval=1
    )
