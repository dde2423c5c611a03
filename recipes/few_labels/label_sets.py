"""Write the experiments of a metal's other label sets, from that of 5 mild labels.

    python recipes/few_labels/label_sets.py recipes/few_labels/copper.yml --out runs/few_labels

Writes 5_random.yml, 20_mild.yml, 20_random.yml and all.yml, each with the three controls and the
student, for `kd-plugins compare`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

SETS: dict[str, tuple[int | None, bool]] = {
    "5_random": (5, False),
    "20_mild": (20, True),
    "20_random": (20, False),
    "all": (None, False),
}
"""Name to the number of labels, None for all, and whether they are drawn from mild structures."""
ARMS = ("control_10", "control_30", "control_100", "student")


def experiment_of(name: str, path: Path) -> dict[str, Any]:
    """Return the experiment of a label set, from the YAML of 5 mild labels."""
    experiment = yaml.safe_load(path.read_text())
    count, is_mild = SETS[name]
    experiment["title"] = experiment["title"].replace("5 mild", name.replace("_", " "))
    experiment["base"] = str((path.parent / experiment["base"]).resolve())
    experiment["settings"]["labels"] = count
    if not is_mild:
        experiment["settings"]["force_rms"] = None
    experiment["arms"] = {arm: experiment["arms"][arm] for arm in ARMS}
    return experiment


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="copper.yml or molybdenum.yml")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        text = yaml.safe_dump(experiment_of(name, options.experiment), sort_keys=False)
        (options.out / f"{name}.yml").write_text(text)


if __name__ == "__main__":
    main()
