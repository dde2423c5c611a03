"""Train one run of a study, as kd-plugins compare calls it.

    python recipes/hippynn_metals/compare_run.py SETTINGS.yml

A run that train.py has trained is taken as it is.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from study import HERE, Run, open_study, write_json
from train import ensure

from kd_plugins.config import read_config


@dataclass(frozen=True)
class Asked:
    """What compare asks for.

    Args:
        study: folder of the study, made if it is not there.
        data: folder of the metals.
        settings: of the study, a file of this recipe.
        method: of methods.yml.
        size: of the study's sizes.
        share: of the structures.
        seed: of the run.
        out: folder for what compare reads.
    """

    study: str
    data: str
    settings: str
    method: str
    size: str
    share: float
    seed: int
    out: str


def main() -> None:
    """Train, and leave the model, its curve and its cost where compare finds them."""
    torch.set_num_threads(1)
    asked = read_config(Asked, yaml.safe_load(Path(sys.argv[1]).read_text()), sys.argv[1])
    study = open_study(Path(asked.study), Path(asked.data), HERE / asked.settings)
    folder = ensure(study, Run(asked.method, asked.size, asked.share, asked.seed))
    record, out = json.loads((folder / "record.json").read_text()), Path(asked.out)
    if not (out / "model").exists():
        (out / "model").symlink_to(folder.resolve())
    curve = {"epochs": list(range(1, 1 + len(record["curve"]))), "values": record["curve"]}
    write_json(out / "curves.json", {"valid force RMSE (eV/Å)": curve})
    write_json(out / "costs.json", {"train_seconds": record["seconds"]})


if __name__ == "__main__":
    main()
