"""Figures 2, 3, 4b and 7 of Taniguchi 2024, of folders of ``kd-plugins mptrj`` and ``evaluate``.

    python recipes/chgnet_organic/figures.py --kinds mptrj_organic_kinds.json --out figures
    python recipes/chgnet_organic/figures.py --out figures \
        --frames organic=runs/frames_organic inorganic=runs/frames_inorganic
    python recipes/chgnet_organic/figures.py --out figures \
        --crystals pretrained=runs/cod_pretrained student=runs/cod_student

``--kinds`` draws energies.png (2), ``--frames`` errors.png (3a to 3c), and ``--crystals`` volumes,
densities and RMSD15 (3d, 3e, 4b, 7a to 7c) and, where one was measured, Young's moduli (7d). Of
frames, the points are those of evaluate's parity plot, 2,000 at most. Figures 4a, 5 and 6 are those
of ``kd-plugins report``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

Evaluations = dict[str, dict[str, Any]]


def energies(counts: dict[str, Any], path: Path) -> None:
    """Draw the energies of organic and inorganic frames: counts, and their density (Figure 2)."""
    edges = np.array(counts["edges"])
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for kind in ("inorganic", "organic"):
        one = counts["kinds"][kind]
        found = np.array(one["histogram"], dtype=float)
        label = f"{kind}: {one['frames']:,} ({one['percent']:.1f} %)"
        panels[0].stairs(found, edges, fill=True, alpha=0.6, label=label)
        share = found / max(found.sum(), 1) / np.diff(edges)
        panels[1].stairs(share, edges, fill=True, alpha=0.6, label=kind)
    panels[0].set(xlabel="energy (eV/atom)", ylabel="structures", yscale="log")
    panels[1].set(xlabel="energy (eV/atom)", ylabel="density (atom/eV)")
    save(figure, panels, path)


def errors(evaluations: Evaluations, path: Path) -> None:
    """Draw parity, errors and absolute errors of frames' energies (Figure 3a to 3c)."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    misses = {}
    for name, one in evaluations.items():
        points = one["parity"]["labels"]["energy_per_atom"]
        target, found = np.array(points["reference"]), np.array(points["student"])
        misses[name] = np.abs(found - target)
        label = f"{name}: MAE {one['metrics']['energy_per_atom_mae']:.3f}"
        panels[0].plot(target, found, ".", ms=3, label=label)
        panels[1].plot(target, found - target, ".", ms=3, label=name)
    panels[0].set(xlabel="DFT (eV/atom)", ylabel="predicted (eV/atom)")
    panels[1].set(xlabel="DFT (eV/atom)", ylabel="predicted - DFT (eV/atom)")
    panels[2].boxplot(list(misses.values()), showfliers=False)
    panels[2].set_xticks(range(1, len(misses) + 1), list(misses))
    panels[2].set_ylabel("absolute error (eV/atom)")
    save(figure, panels[:2], path)


def crystals(evaluations: Evaluations, folder: Path) -> None:
    """Draw volumes, densities, RMSD15 and Young's moduli (Figures 3d, 3e, 4b and 7)."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    moduli = {}
    for name, one in evaluations.items():
        held = [each for each in one["volumes"].values() if each["student"]]
        reference, volume = (
            np.array([each[key] for each in held]) for key in ("reference", "student")
        )
        density = np.array([each["density"] for each in held])
        metrics = one["metrics"]
        label = f"{name}: {metrics['volume_error_percent']:.2f} %"
        panels[0].plot(reference, volume, ".", label=label)
        label = f"{name}: {metrics['density_error']:.2f} g/cm³"
        panels[1].plot(density, density * reference / volume, ".", label=label)
        packing = [each["rmsd15"] for each in held if each.get("rmsd15") is not None]
        if packing:
            panels[2].hist(packing, bins=np.arange(0, 2.05, 0.05), alpha=0.6, label=name)
        pairs = [
            (sides["reference"]["young"], sides["student"]["young"])
            for sides in one.get("elasticity", {}).values()
            if "young" in (sides.get("reference") or {}) and "young" in (sides["student"] or {})
        ]
        moduli |= {name: np.array(pairs).T} if pairs else {}
    panels[0].set(xlabel="measured volume (Å³)", ylabel="relaxed volume (Å³)")
    panels[1].set(xlabel="measured density (g/cm³)", ylabel="relaxed density (g/cm³)")
    panels[2].set(xlabel="RMSD15 (Å)", ylabel="crystals")
    save(figure, panels, folder / "crystals.png", diagonal=panels[:2])

    if moduli:
        figure, axes = plt.subplots(figsize=(4, 3.5), layout="constrained")
        for name, (measured, computed) in moduli.items():
            axes.plot(measured, computed, "o", label=name)
        axes.set(xlabel="measured E_RH (GPa)", ylabel="computed E_RH (GPa)")
        save(figure, [axes], folder / "moduli.png", diagonal=[axes])


def save(figure: Any, panels: Any, path: Path, diagonal: Any = ()) -> None:
    """Write a figure with its legends, and the line on which both axes are the same."""
    for axes in diagonal:
        axes.axline((1, 1), slope=1, color="grey", lw=0.8)
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(path)


def named(words: list[str]) -> Evaluations:
    """Return the evaluations of NAME=FOLDER, by name."""
    pairs = [word.partition("=") for word in words]
    return {
        name: json.loads((Path(folder) / "evaluation.json").read_text())
        for name, _, folder in pairs
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", type=Path, help="counts of kd-plugins mptrj")
    parser.add_argument("--frames", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--crystals", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    options = parser.parse_args()
    if options.kinds:
        energies(json.loads(options.kinds.read_text()), options.out / "energies.png")
    if options.frames:
        errors(named(options.frames), options.out / "errors.png")
    if options.crystals:
        crystals(named(options.crystals), options.out)


if __name__ == "__main__":
    main()
