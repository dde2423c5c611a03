"""What keeping a teacher's embeddings in float16 changes in the losses that compare them.

    python benchmarks/stored_precision.py ../shared/data/oc20/s2ef_Ostar_all.extxyz.xz

Two EquiformerV2s of the paper's width and degrees (128 channels, l = 0 .. 6), one and two layers
deep and untrained, on real slabs: the two-layer one teaches. Prints for CRACK over l = 0 and for
n2n over all degrees and the first ones how far loss and gradient move when the teacher's
embeddings are rounded to float16, and what a store of O* takes.
"""

from __future__ import annotations

import argparse
import copy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_plugins.core import crack_loss, squared_sum
from kd_plugins.fairchem import compat
from kd_plugins.structures.oc20_frames import find_chunks, read_frames

ROOT = Path(__file__).resolve().parents[1]
OSTAR, ATOMS = 459_715, 80
"""Structures of O* (Table 5), and about how many atoms one has."""


def embed(structures: Path, n_slabs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges of a batch, and the embeddings (N, M, D) of student and teacher."""
    compat.install()
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import load_config, setup_imports
    from fairchem.core.datasets import data_list_collater
    from fairchem.core.preprocessing import AtomsToGraphs

    from kd_plugins.fairchem.convert import EmbeddingHooks

    setup_imports()
    settings = load_config(str(ROOT / "configs/fairchem/base/student_22m.yml"))[0]["model"]
    frames = read_frames(find_chunks(structures)[0])
    convert = AtomsToGraphs(r_edges=False, r_pbc=True)
    batch = data_list_collater(
        [convert.convert(frame.atoms) for frame in islice(frames, n_slabs)], otf_graph=True
    )

    found: list[Any] = []
    for seed, n_layers in enumerate((1, 2)):
        torch.manual_seed(seed)
        arguments = copy.deepcopy(settings)
        arguments["backbone"]["num_layers"] = n_layers
        model = registry.get_model_class(arguments.pop("name"))(**arguments).eval()
        hooks = EmbeddingHooks(model, "student")
        with torch.no_grad():
            model(batch)
        found.append(hooks.embeddings.detach())
    return hooks.graph.edge_index, found[0], found[1]


def change(loss: Any, student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Return the relative change of a loss and of its gradient by rounding the teacher."""
    values, gradients = [], []
    for target in (teacher, teacher.half().float()):
        moved = student.clone().requires_grad_(True)
        value = loss(moved, target)
        value.backward()
        values.append(float(value))
        gradients.append(moved.grad)
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    return abs(values[1] / values[0] - 1), float(difference)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structures", type=Path)
    parser.add_argument("--slabs", type=int, default=2)
    arguments = parser.parse_args()

    edges, student, teacher = embed(arguments.structures, arguments.slabs)
    n2n = {
        f"n2n, l = 0 .. {lmax}": lambda s, t, rows=(lmax + 1) ** 2: squared_sum(
            s[:, :rows].flatten(1), t[:, :rows].flatten(1)
        ).mean()
        for lmax in (6, 2, 0)
    }
    losses = {"CRACK, l = 0": lambda s, t: crack_loss(s[:, 0], t[:, 0], edges), **n2n}

    print("| term | loss | gradient |\n|---|---|---|")
    for name, loss in losses.items():
        of_loss, of_gradient = change(loss, student, teacher)
        print(f"| {name} | {of_loss:.1e} | {of_gradient:.1e} |")
    for lmax in (6, 2, 0):
        sizes = [OSTAR * ATOMS * (lmax + 1) ** 2 * 128 * n / 1e9 for n in (4, 2)]
        print(f"O*, l = 0 .. {lmax}: {sizes[0]:.0f} GB in float32, {sizes[1]:.0f} in float16")


if __name__ == "__main__":
    main()
