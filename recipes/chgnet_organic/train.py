"""Train the students of arms.yml on what label.py made.

    python recipes/chgnet_organic/train.py --out runs/organic

The first call computes the features of the frozen trunk, which takes most of the time. Students are
in OUT/students/<arm>-seed<k>: last.pth.tar after the last epoch, which is what the paper takes, and
best.pth.tar, which has the least errors on the selection crystals. ``CHGNet.from_file`` loads both.
Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import yaml
from students import Arm, School
from study import HERE, open_study, write_json


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--arms", nargs="+", help="of arms.yml; all if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    study = open_study(options.out)
    arms = {
        name: Arm(**raw) for name, raw in yaml.safe_load((HERE / "arms.yml").read_text()).items()
    }
    school = School(study)
    for seed in options.seeds:
        for name in options.arms or arms:
            run = study.out / "students" / f"{name}-seed{seed}"
            record = run / "record.json"
            if record.is_file():
                continue
            print(f"{name}, seed {seed}")
            start = time.perf_counter()
            fitted = school.teach(arms[name], seed, run, progress=True)
            seconds = time.perf_counter() - start
            found = {"arm": name, "seed": seed, "seconds": seconds, "steps": fitted.steps}
            write_json(record, {**found, "errors": fitted.errors, "untrained": fitted.untrained})


if __name__ == "__main__":
    main()
