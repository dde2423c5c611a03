"""Replay: inorganic crystals of MPtrj with pretrained CHGNet's own values, so that nothing is lost.

    python recipes/chgnet_organic/replay.py --out runs/organic_foreign \
        --mptrj ../shared/data/mptrj/mptrj_random_1k.extxyz.xz

Draws inorganic frames of at most 16 atoms, none of a material that forget.py tests, and labels them
by the pretrained student. OUT/replay.extxyz and OUT/replay are then a source of a training's list,
see replay.yml. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from forget import frames, small_inorganic
from label import QUANTITIES
from study import open_study

from kd_plugins import TargetStore
from kd_plugins.sampling import crystal_of, nested_subset
from kd_plugins.structures import LabelledStructure, export_extxyz
from kd_plugins.teachers import label


def material(structure: LabelledStructure) -> str:
    """Return what all frames of one material have in common."""
    return str(structure.atoms.info.get("mp_id") or crystal_of(structure))


def replay(path: Path, count: int) -> list[LabelledStructure]:
    """Return inorganic frames to replay, other materials than those of forget.py."""
    tested = {material(one) for one in frames(path)}
    others = [one for one in small_inorganic(path) if material(one) not in tested]
    chosen = set(nested_subset([one.structure_id for one in others], count, seed=0))
    return [one for one in others if one.structure_id in chosen]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--mptrj", type=Path, required=True, help="frames of MPtrj")
    parser.add_argument("--count", type=int, default=60, help="frames to draw")
    options = parser.parse_args()

    study = open_study(options.out)
    held = replay(options.mptrj, options.count)
    label(held, study.settings.labels, study.out / "replay", QUANTITIES, total=len(held))
    path = study.structures("replay")
    if not path.is_file():
        export_extxyz(TargetStore.open(study.out / "replay"), path)


if __name__ == "__main__":
    main()
