"""Sweeps: hard ratios (Taniguchi 2024, Table 1) and N_train (Figure 4), by volume scans.

    python recipes/chgnet_organic/sweep.py ratios --out runs/organic
    python recipes/chgnet_organic/sweep.py sizes --out runs/organic

A student is trained on cached features and judged by the volumes at which rigid molecules have the
least energy, which takes no relaxation. A record a student; stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from scan import read_scans, volume_errors
from students import Arm, School
from study import Study, open_study, write_json
from tqdm import tqdm

SOFT = {"energy": 1, "forces": 1}
RATIOS = (0.1, 0.5, 1, 2, 10)
SIZES = (10, 30, 100, None)
STEPS = 2400


def ratios() -> Iterator[tuple[str, Arm]]:
    """Yield the 26 rows of Table 1, each with the same number of steps, and hard targets alone."""
    yield "soft", Arm(soft=SOFT, steps=STEPS)
    for energy in RATIOS:
        for forces in RATIOS:
            hard = {"energy": energy, "forces": forces}
            yield f"hard_{energy}_{forces}", Arm(soft=SOFT, hard=hard, steps=STEPS)
    yield "hard", Arm(hard={"energy": 1, "forces": 1}, steps=STEPS)


def sizes() -> Iterator[tuple[str, Arm]]:
    """Yield N_train at the paper's 100 epochs and at a fixed number of steps."""
    for size in SIZES:
        for name, soft in (("ef", SOFT), ("efs", {**SOFT, "stress": 0.1})):
            yield f"{name}_epochs_{size}", Arm(soft=soft, epochs=100, schedule="chgnet", size=size)
            yield f"{name}_steps_{size}", Arm(soft=soft, steps=STEPS, size=size)


SWEEPS = {"ratios": ratios, "sizes": sizes}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", choices=SWEEPS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--arms", nargs="+", help="such as soft hard_0.5_1; all if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.out)
    chosen = [arm for arm in SWEEPS[options.sweep]() if arm[0] in (options.arms or arm)]
    arms = [(seed, *arm) for seed in options.seeds for arm in chosen]
    paths = {
        (seed, name): study.out / options.sweep / f"{name}-seed{seed}.json"
        for seed, name, _ in arms
    }
    run(study, [arm for arm in arms if not paths[arm[:2]].is_file()], paths)


def run(study: Study, arms: list[tuple[int, str, Arm]], paths: dict[tuple[int, str], Path]) -> None:
    """Train and judge what has no record yet."""
    school, scans = School(study), read_scans(study)
    for seed, name, arm in (bar := tqdm(arms, unit=" students")):
        bar.set_description(f"{name}, seed {seed}")
        fitted = school.teach(arm, seed, None, progress=False)
        record = {
            **asdict(arm),
            "arm": name,
            "seed": seed,
            "structures": arm.size or len(school.train),
            "steps_taken": fitted.steps,
            "errors": fitted.errors[:: max(1, len(fitted.errors) // 100)],
            "volumes": volume_errors(scans, fitted.model),
        }
        write_json(paths[seed, name], record)


if __name__ == "__main__":
    main()
