"""Train teachers, controls and students on one metal.

    python recipes/hippynn_metals/train.py --data ../shared/data/metals --out runs/mo \
        --methods control_10 control_30 student --sizes tiny small --shares 0.1 0.25 1

Runs are in OUT/runs/<method>-<size>-<share>-seed<k>, as hippynn leaves them, with record.json. A
method's teacher is trained first. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

import torch
import yaml
from school import Method, teach
from study import HERE, Run, Study, open_study, write_json
from tqdm import tqdm

TEACHERS_SIZE = "large"


def methods() -> dict[str, Method]:
    """Return the rows of methods.yml."""
    rows = yaml.safe_load((HERE / "methods.yml").read_text())
    return {name: Method.of(row) for name, row in rows.items()}


def ensure(study: Study, run: Run) -> Path:
    """Train a run, and its teacher, unless it is done; return its folder.

    A teacher has the large size, the seed of its student and all structures, so that its weights
    are one more thing that seeds spread over.
    """
    folder, known = study.folder(run), methods()
    if run.method not in known:
        raise SystemExit(f"no method {run.method!r}; methods.yml has {', '.join(known)}")
    if not (folder / "record.json").is_file():
        method = known[run.method]
        teacher = None
        if method.teacher:
            teacher = ensure(study, Run(method.teacher, TEACHERS_SIZE, 1.0, run.seed))
        with quiet():
            record = teach(study, run, method, teacher)
        write_json(folder / "record.json", record)
    return folder


@contextlib.contextmanager
def quiet():
    """Keep what hippynn prints of every batch away from the bar."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--data", type=Path, required=True, help="folder of the metals")
    parser.add_argument("--settings", type=Path, default=HERE / "study.yml")
    parser.add_argument("--methods", nargs="+", default=["control_10", "control_30", "student"])
    parser.add_argument("--sizes", nargs="+", default=["tiny"])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.out, options.data, options.settings)
    runs = [
        Run(method, size, share, seed)
        for seed in options.seeds
        for share in options.shares
        for size in options.sizes
        for method in options.methods
    ]
    for run in (bar := tqdm(runs, unit=" runs")):
        bar.set_description(run.name)
        ensure(study, run)


if __name__ == "__main__":
    main()
